"""Batches on the device, in an order that depends on the seed alone, never on the number of processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from ham10000.modeling import Ham10000Error, Ham10000Processor, load_image
from ham10000.modeling.image_statistics_ham10000 import image_features
from ham10000.training.data.augment import Augment
from ham10000.training.data.cache import cached_images, encoded_images, frame_processor, read_rows
from ham10000.training.data.sources import metadata_frame


@dataclass
class Batch:
    """One micro-batch on the device.

    Attributes:
        pixel_values: (batch, 3, height, width) float32, normalised; None for the metadata variant.
        metadata: (batch, fields) float32; None for the image variant.
        labels: (batch,) int64.
    """

    pixel_values: torch.Tensor | None
    metadata: torch.Tensor | None
    labels: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward."""
        inputs = {"pixel_values": self.pixel_values, "metadata": self.metadata}
        return {name: value for name, value in inputs.items() if value is not None}


@dataclass
class Samples:
    """The rows of one split as tensors on the CPU.

    Attributes:
        image_ids: (rows,) names.
        labels: (rows,) int64.
        metadata: (rows, fields) float32, or None for the image variant.
    """

    image_ids: list[str]
    labels: torch.Tensor
    metadata: torch.Tensor | None

    @classmethod
    def from_dataset(cls, dataset: datasets.Dataset, processor: Ham10000Processor) -> "Samples":
        """Reads labels and metadata; images are left to an image source."""
        frame = metadata_frame(dataset)
        metadata = None
        if "metadata" in processor.model_input_names:
            rows = frame[processor.metadata_fields].to_dict("records")
            metadata = processor.encode_metadata(rows)  # type: ignore[arg-type]  # names of columns are strings
        # Whole columns at once: row by row, 10,000 rows take seconds.
        return cls(frame["image_id"].tolist(), torch.tensor(dataset["dx"][:], dtype=torch.int64), metadata)

    def __len__(self) -> int:
        return len(self.labels)


class CachedImages:
    """Images from the uint8 cache: one resident tensor on a GPU where it fits, read from the file otherwise.

    Args:
        images: (rows, 3, height, width) uint8.
        image_ids: Their names.
        device: Where batches are wanted.
    """

    def __init__(self, images: np.ndarray, image_ids: list[str], device: torch.device):
        self._position = {image_id: row for row, image_id in enumerate(image_ids)}
        self.images = images
        self.device = device
        self.resident: torch.Tensor | None = None
        # Half of the free memory is left to training.
        if device.type == "cuda" and images.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.from_numpy(np.ascontiguousarray(images)).to(device)

    @property
    def aspect(self) -> float:
        """Width over height."""
        return self.images.shape[3] / self.images.shape[2]

    def rows(self, image_ids: list[str]) -> np.ndarray:
        """Positions of the named images."""
        return np.array([self._position[image_id] for image_id in image_ids], dtype=np.int64)

    def batches(self, plan: list[np.ndarray]) -> Iterator[torch.Tensor]:
        """One (batch, 3, height, width) uint8 tensor on the device for each entry of the plan."""
        for rows in plan:
            if self.resident is not None:
                yield self.resident[torch.from_numpy(rows).pin_memory().to(self.device, non_blocking=True)]
            else:
                yield torch.from_numpy(read_rows(self.images, rows)).to(self.device)


def open_images(
    dataset: datasets.Dataset,
    processor: Ham10000Processor,
    device: torch.device,
    *,
    train_size: tuple[int, int] | None = None,
    short_side: int | None = None,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> CachedImages | None:
    """Opens a dataset's images: as the checkpoint's processor makes them, or, to train on, as frames for `Augment`.

    Args:
        dataset: The rows that are predicted; for frames the whole source, all splits, so that one cache serves every
            protocol and fold.
        processor: The checkpoint's; a metadata-only one needs no images.
        device: Where batches are wanted.
        train_size: (height, width) of the largest training images, for frames: at the images' own aspect, with more
            pixels than the network reads.
        short_side: Of frames, as in `frame_processor`.
        cache_dir: Folder of the caches.
        progress: Whether to show a progress bar while a cache is built.

    Returns:
        The images, or None for the metadata variant.
    """
    if "pixel_values" not in processor.model_input_names:
        return None
    image_processor = processor.image_processor
    if train_size:
        image_processor = frame_processor(dataset, image_processor, train_size, short_side)
    images = cached_images(dataset, image_processor, cache_dir=cache_dir, progress=progress)
    return CachedImages(images, dataset["image_id"][:], device)


def features_of_images(dataset: datasets.Dataset, most: int = 1000) -> np.ndarray:
    """The colours and textures of images, as they are stored.

    Args:
        dataset: With `image` and `image_id`.
        most: Of more images, so many are read, evenly spaced.

    Returns:
        (images, features) float64, see `image_features`.

    Raises:
        Ham10000Error: For an image that cannot be read.
    """
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset)), dtype=np.int64))
    entries = encoded_images(dataset.select(rows))["image"]

    def features(entry: dict[str, bytes | str]) -> np.ndarray:
        return image_features(load_image(entry["path"] if entry["bytes"] is None else entry["bytes"]))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(features, entries)))


def mix_seeds(*parts: int) -> int:
    """One 32-bit seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


@dataclass(eq=False)
class _Loader:
    """Shared by training and evaluation: rows to batches on the device."""

    samples: Samples
    images: CachedImages | None
    processor: Ham10000Processor
    device: torch.device
    _: KW_ONLY
    batch_size: int = 64
    rank: int = 0
    world_size: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        self.rows = None if self.images is None else self.images.rows(self.samples.image_ids)
        self.labels = self.samples.labels.to(self.device)
        self.metadata = None if self.samples.metadata is None else self.samples.metadata.to(self.device)

    def _pictures(self, plan: list[np.ndarray]) -> Iterator[torch.Tensor | None]:
        if self.images is None or self.rows is None:
            return iter([None] * len(plan))
        return self.images.batches([self.rows[index] for index in plan])

    def _batch(self, index: np.ndarray, pixels: torch.Tensor | None) -> Batch:
        """Normalises last: `pixels` are uint8, or augmented floats in 0..255."""
        if pixels is not None:
            pixels = self.processor.image_processor.normalize_pixels(pixels)
            pixels = pixels.contiguous(memory_format=self.memory_format)
        chosen = torch.from_numpy(index).to(self.device)
        metadata = None if self.metadata is None else self.metadata[chosen]
        return Batch(pixels, metadata, self.labels[chosen])


def class_shares(counts: np.ndarray, sampling: str) -> np.ndarray:
    """The share of an epoch that each class takes.

    Args:
        counts: (classes,) training images of each class.
        sampling: `natural`: as frequent as the class is; `sqrt`: in proportion to the square root of that, half way
            to equal shares (Mahajan et al., ECCV 2018, arXiv:1805.00932; Kang et al., ICLR 2020, arXiv:1910.09217,
            equation 1 with q = 1/2).

    Returns:
        (classes,) float64, summing to one.
    """
    weights = counts.astype(np.float64) ** {"natural": 1.0, "sqrt": 0.5}[sampling]
    return weights / weights.sum()


def epoch_order(labels: np.ndarray, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, as many as there are.

    A class is drawn as evenly as its share allows: every row as many whole times as it fits, and a random part of the
    rows once more. Compared with weights of the loss, rare classes come with more augmented views instead of larger
    gradients of few.

    Args:
        labels: (rows,) class ids.
        sampling: As for `class_shares`.
        rng: Source of randomness.

    Returns:
        (rows,) int64 positions; with `natural` a permutation.
    """
    if sampling == "natural":
        return rng.permutation(len(labels))
    classes, counts = np.unique(labels, return_counts=True)
    ends = np.rint(np.cumsum(class_shares(counts, sampling)) * len(labels)).astype(np.int64)
    drawn = []
    for label, draws in zip(classes, np.diff(ends, prepend=0), strict=True):
        rows = np.flatnonzero(labels == label)
        passes, rest = divmod(int(draws), len(rows))
        drawn += [np.tile(rows, passes), rng.permutation(rows)[:rest]]
    return rng.permutation(np.concatenate(drawn))


@dataclass(eq=False)
class TrainLoader(_Loader):
    """Shuffled, augmented batches.

    Order and augmentation are functions of (seed, epoch, step) over the global batch, of which each process takes its
    share: the same run on one or on several processes sees the same images, and a resumed one needs no saved state.
    The incomplete last batch of an epoch is left out, because a small batch has poor batch-norm statistics.

    Args:
        samples: The training rows.
        images: From `open_images`, or None.
        processor: Normalises the images.
        device: Where batches are wanted.
        augment: The augmentation.
        batch_size: Samples per optimiser step, over all processes.
        micro_batches: Parts into which each process cuts its share of a batch.
        seed: Seed of order and augmentation.
        rank: Number of this process.
        world_size: Number of processes.
        channels_last: Memory layout of the pixel values.
        size: (height, width) of an epoch's images, by its number from 0; by default the processor's.
        sampling: How often each class is drawn, `natural` or `sqrt`, see `class_shares`.

    Raises:
        Ham10000Error: If the batch cannot be cut evenly, or there are no rows.
    """

    _: KW_ONLY
    augment: Augment
    micro_batches: int = 1
    seed: int = 0
    size: Callable[[int], tuple[int, int]] | None = None
    sampling: str = "natural"

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = self.world_size * self.micro_batches
        if self.batch_size % parts:
            raise Ham10000Error(
                f"batch_size {self.batch_size} counts the samples of a step over all processes; it must be a multiple "
                f"of {self.world_size} processes times {self.micro_batches} gradient accumulation steps."
            )
        self.batch_size = min(self.batch_size, len(self.samples))
        if self.batch_size < parts:
            raise Ham10000Error(f"{len(self.samples)} training rows are too few for {parts} parts.")

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one epoch."""
        return len(self.samples) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """(rows,) the rows of an epoch, in order."""
        rng = np.random.default_rng((self.seed, epoch))
        return epoch_order(self.samples.labels.numpy(), self.sampling, rng)

    def image_ids(self, epoch: int, step: int) -> list[str]:
        """The images of one step's global batch."""
        index = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return [self.samples.image_ids[row] for row in index]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[torch.Tensor, list[Batch]]]:
        """Yields the steps of an epoch.

        Args:
            epoch: Number of the epoch, from 0.
            start_step: Step of the epoch to begin at, when resuming.

        Yields:
            The labels of the global batch, whose weights normalise the loss, and this process's micro-batches.
        """
        order, sides = self.order(epoch), self.processor.image_processor.size
        size = self.size(epoch) if self.size else (sides["height"], sides["width"])
        numbers = range(start_step, self.steps_per_epoch)
        steps = [order[step * self.batch_size : (step + 1) * self.batch_size] for step in numbers]
        first, parts = self.rank * self.micro_batches, self.world_size * self.micro_batches
        shares = [np.arange(first + part, self.batch_size, parts) for part in range(self.micro_batches)]
        pictures = self._pictures([index[share] for index in steps for share in shares])
        aspect = 1.0 if self.images is None else self.images.aspect
        for step, index in zip(numbers, steps, strict=True):
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch, step))
            parameters = self.augment.sample(len(index), generator, aspect)
            batches = []
            for share in shares:
                pixels = next(pictures)
                if pixels is not None:
                    own = parameters.select(torch.from_numpy(share)).to(self.device)
                    pixels = self.augment.apply(pixels, own, size)
                batches.append(self._batch(index[share], pixels))
            yield self.samples.labels[index].to(self.device), batches


class EvalLoader(_Loader):
    """Batches in order, without augmentation; process r of w takes rows r, r + w and so on."""

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(range(self.rank, len(self.samples), self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        own = np.arange(self.rank, len(self.samples), self.world_size)
        plan = [own[start : start + self.batch_size] for start in range(0, len(own), self.batch_size)]
        for index, pixels in zip(plan, self._pictures(plan), strict=True):
            yield self._batch(index, pixels)
