"""Images decoded and resized once, as one uint8 array on disk, and batches of them on the device.

The order of an epoch depends on the seed alone, never on the number of processes.
"""

import copy
import errno
import hashlib
import io
import itertools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from PIL import ExifTags, Image
from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Error, Ham10000ImageProcessor, Ham10000Processor, load_image
from ham10000.modeling.image_statistics_ham10000 import image_features
from ham10000.training.data.augment import Augment, working_size
from ham10000.training.data.readers import StoredImage
from ham10000.training.data.sources import metadata_frame
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.files import default_cache_dir

# Pixels of a training frame to each pixel that training reads, in each direction: more than `Augment` samples, for
# crops.
CACHE_FACTOR = 2

# Part of the key: raise it when the same images and settings would give other bytes.
_FORMAT = 2


def _encoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The same with images that are not decoded: each a `StoredImage`."""
    return dataset.cast_column("image", datasets.Image(decode=False))


def _content(entry: StoredImage) -> bytes | str:
    return (entry["path"] or "") if entry["bytes"] is None else entry["bytes"]


def decode(entry: StoredImage, image_id: str, image_processor: Ham10000ImageProcessor) -> np.ndarray:
    """Decodes and resizes an image to (3, height, width) uint8; an error names it."""
    try:
        # Planes, which become floats twice as fast as pixels do.
        return image_processor.resize_planes(_content(entry))
    except Ham10000Error as error:
        raise Ham10000Error(f"Image {image_id!r}: {error} See `ham10000-data --check_images`.") from error


def _frame_processor(
    dataset: datasets.Dataset,
    image_processor: Ham10000ImageProcessor,
    train_size: tuple[int, int],
    short_side: int | None,
) -> Ham10000ImageProcessor:
    """A copy of the image processor that makes the frames to train on, see `open_images`.

    One frame size serves all images, so that batches are tensors: the most frequent size of a sample of 256. Images of
    another aspect are squashed to it, as the network's own size squashes them.
    """
    images = _encoded(dataset)
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int))
    sizes: Counter[tuple[int, int]] = Counter()
    for row in images.select(rows):
        source = _content(row["image"])
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                # As `load_image` turns it. The keys first: a PNG without any would be decoded to look for them, and
                # the sides of a TIFF are turned already.
                told = image.format != "TIFF" and {"exif", "xmp"} & image.info.keys()
                is_turned = told and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
                sizes[image.size[::-1] if is_turned else image.size] += 1
        except Exception:  # by format and damage, Pillow raises a dozen types
            decode(row["image"], row["image_id"], image_processor)  # raises, naming the image
            raise
    (width, height), _ = max(sizes.items(), key=lambda item: (item[1], item[0]))
    if short_side:
        scale = min(1.0, short_side / min(height, width))
        sides = (round(height * scale), round(width * scale))
    else:
        working = working_size((height, width), train_size)
        sides = (CACHE_FACTOR * working[0], CACHE_FACTOR * working[1])
        # A resize by a tenth saves little and softens all the same.
        sides = (height, width) if sides[0] > 0.9 * height else sides
    frame = copy.deepcopy(image_processor)
    frame.size = {"height": max(1, sides[0]), "width": max(1, sides[1])}
    return frame


def cached_images(
    dataset: datasets.Dataset,
    image_processor: Ham10000ImageProcessor,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Opens the cache of a dataset's images, building it first where there is none.

    The file's name is a hash of the images (size and time of a file, or the bytes themselves) and of the settings
    they are resized with, so a changed image or setting never meets an old cache. It appears only when it is
    complete, and one that is damaged all the same is built again, with a warning; a build that was killed goes on
    where it stopped; of several processes one builds and the others wait. A complete one may lie in a folder that is
    read-only, and may be deleted under a process that has opened it.

    Returns (images, 3, height, width) uint8, memory-mapped read-only, in the dataset's order. An image that cannot be
    read, or a cache that cannot be written, is a Ham10000Error and leaves no file behind.
    """
    images = _encoded(dataset)
    path = Path(cache_dir or default_cache_dir()) / f"{_key(images, image_processor)}.npy"
    stream = io.BytesIO()
    shape = (len(images), 3, image_processor.size["height"], image_processor.size["width"])
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    header = stream.getvalue()
    size = len(header) + math.prod(shape)
    try:
        if not _is_whole(path, header, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_builder(path):
                if not _is_whole(path, header, size):
                    if path.is_file():
                        warning = f"warning: the image cache {str(path)!r} is damaged; building it again."
                        tqdm.write(warning, sys.stderr)
                    _build(path, header, images, image_processor, progress)
    except OSError as error:
        raise Ham10000Error(
            f"Cannot write the image cache {str(path)!r}: {error.strerror or error}. It takes {size / 1e9:.2f} GB; "
            "name a folder with that much room as --cache_dir."
        ) from error
    return np.load(path, mmap_mode="r")


def _is_whole(path: Path, header: bytes, size: int) -> bool:
    """Whether a cache exists, of the right length and shape: a copy may have been cut short, a disk have failed."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(len(header)) == header
    except (FileNotFoundError, NotADirectoryError):
        return False


def _one_builder(path: Path) -> AcquireReturnProxy:
    """Takes a lock that ends with its process, however that ends."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"Another process is building {path.name}; waiting for it.", file=sys.stderr)
        return lock.acquire()


def _build(
    path: Path, header: bytes, images: datasets.Dataset, image_processor: Ham10000ImageProcessor, progress: bool
) -> None:
    """Appends image after image to a partial file, whose length says how many are done."""
    half = path.with_suffix(".partial")
    start, size = len(header), image_processor.size["height"] * image_processor.size["width"] * 3
    try:
        with half.open("ab") as file:
            if file.tell() < start:
                file.truncate(0)
                file.write(header)
            done = min((file.tell() - start) // size, len(images))
            file.truncate(start + done * size)
            for image in _decoded(images, image_processor, done, progress):
                file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
            # Where the folder was deleted meanwhile, and the lock with it, another builder's half file has this name.
            if os.fstat(file.fileno()).st_ino != half.stat().st_ino:
                raise FileNotFoundError(errno.ENOENT, "the folder was deleted while the cache was built")
        half.replace(path)
    except FileNotFoundError:
        raise
    except Exception:
        # The rest serves nobody: an image that is repaired, or another folder, makes another cache.
        half.unlink(missing_ok=True)
        raise


def read_rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies rows (N,) out of a cache (images, 3, height, width).

    A memory-mapped cache is read through its file: pages that are touched in the mapping count as this process's
    memory, and after an epoch the whole cache would.
    """
    if not isinstance(images, np.memmap) or images.filename is None:
        return images[rows]
    output = np.empty((len(rows), *images.shape[1:]), dtype=images.dtype)
    try:
        with Path(images.filename).open("rb", buffering=0) as file:
            for row, image in zip(rows.tolist(), output, strict=True):
                file.seek(images.offset + row * image.nbytes)
                if file.readinto(image.data) != image.nbytes:
                    raise Ham10000Error(f"The cache {str(images.filename)!r} ends early; delete it to build it again.")
    except FileNotFoundError:
        # Deleted under a running job: the mapping still has the images.
        return images[rows]
    return output


def _decoded(
    images: datasets.Dataset, image_processor: Ham10000ImageProcessor, first: int, progress: bool
) -> Iterator[np.ndarray]:
    """Yields the resized images in order, from the given row on."""
    # Threads, not processes: Pillow and torch release the interpreter lock while they decode and resize. One thread
    # of torch in each: with one for every core in each of as many threads, two cores cache a quarter fewer images.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        bar = progress_bar(total=len(images), initial=first, desc="Caching images", unit="image", disable=not progress)
        for rows in images.skip(first).iter(256):
            for image in pool.map(decode, rows["image"], rows["image_id"], itertools.repeat(image_processor)):
                yield image
                bar.update()
        bar.close()
    torch.set_num_threads(threads)


def _key(images: datasets.Dataset, image_processor: Ham10000ImageProcessor) -> str:
    settings = {"format": _FORMAT, "resizer": image_processor.resizer, "resample": image_processor.resample}
    settings |= {"height": image_processor.size["height"], "width": image_processor.size["width"]}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for entry in (entry for rows in images.select_columns(["image"]).iter(256) for entry in rows["image"]):
        if entry["bytes"] is not None:
            digest.update(hashlib.blake2b(entry["bytes"]).digest())
        else:
            stat = os.stat(entry["path"])  # noqa: PTH116 (a Path for each of 10,000 files takes as long as the rest)
            name = os.path.basename(entry["path"])  # noqa: PTH119
            digest.update(f"{name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
    return digest.hexdigest()[:32]


@dataclass
class Batch:
    """One micro-batch on the device."""

    pixel_values: torch.Tensor | None  # (batch, 3, height, width) float32, normalised; None for the metadata variant
    metadata: torch.Tensor | None  # (batch, fields) float32; None for the image variant
    labels: torch.Tensor  # (batch,) int64

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of the model's forward."""
        inputs = {"pixel_values": self.pixel_values, "metadata": self.metadata}
        return {name: value for name, value in inputs.items() if value is not None}


@dataclass
class Samples:
    """The rows of one split as tensors on the CPU."""

    image_ids: list[str]
    labels: torch.Tensor  # (rows,) int64
    metadata: torch.Tensor | None  # (rows, fields) float32; None for the image variant

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
    """Images (rows, 3, height, width) of the uint8 cache: a resident tensor on a GPU where it fits, else the file."""

    def __init__(self, images: np.ndarray, image_ids: list[str], device: torch.device):
        self._position = {image_id: row for row, image_id in enumerate(image_ids)}
        self.images = images
        self.aspect = images.shape[3] / images.shape[2]  # width over height
        self.device = device
        self.resident: torch.Tensor | None = None
        # Half of the free memory is left to training.
        if device.type == "cuda" and images.nbytes < 0.5 * torch.cuda.mem_get_info(device)[0]:
            self.resident = torch.empty(images.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(images), 256):
                rows = np.arange(start, min(start + 256, len(images)))
                self.resident[start : start + 256] = torch.from_numpy(read_rows(images, rows)).to(device)

    def rows(self, image_ids: list[str]) -> np.ndarray:
        """Positions of the named images."""
        return np.array([self._position[image_id] for image_id in image_ids], dtype=np.int64)

    def batch(self, rows: np.ndarray) -> torch.Tensor:
        """(rows, 3, height, width) uint8 on the device."""
        if self.resident is None:
            return torch.from_numpy(read_rows(self.images, rows)).to(self.device)
        return self.resident[torch.from_numpy(rows).pin_memory().to(self.device, non_blocking=True)]


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
        short_side: Shorter side of the frames in pixels; None is `CACHE_FACTOR` times what training reads, or the
            images' own where that is little more. Never more than the images have.
        cache_dir: Folder of the caches; None is `default_cache_dir()`.
        progress: Whether to show a progress bar while a cache is built.

    Returns:
        The images, or None for the metadata variant.
    """
    if "pixel_values" not in processor.model_input_names:
        return None
    image_processor = processor.image_processor
    if train_size:
        image_processor = _frame_processor(dataset, image_processor, train_size, short_side)
    images = cached_images(dataset, image_processor, cache_dir=cache_dir, progress=progress)
    return CachedImages(images, dataset["image_id"][:], device)


def features_of_images(dataset: datasets.Dataset, most: int = 1000) -> np.ndarray:
    """(images, features) float64: `image_features` of the stored images, of more than `most` those evenly spaced."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset)), dtype=np.int64))
    entries = _encoded(dataset.select(rows))["image"]
    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(lambda entry: image_features(load_image(_content(entry))), entries)))


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
    batch_size: int = 64  # samples of one step over all processes to train on; of one process to evaluate
    rank: int = 0
    world_size: int = 1
    channels_last: bool = False

    def __post_init__(self) -> None:
        self.rows = None if self.images is None else self.images.rows(self.samples.image_ids)

    def _batch(self, index: np.ndarray, augment: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Batch:
        """The rows at the index; their images are augmented as 0..255 and normalised last."""
        pixels = None
        if self.images is not None and self.rows is not None:
            pixels = self.images.batch(self.rows[index])
            pixels = self.processor.image_processor.normalize_pixels(augment(pixels) if augment else pixels)
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            pixels = pixels.contiguous(memory_format=layout)
        metadata = None if self.samples.metadata is None else self.samples.metadata[index].to(self.device)
        return Batch(pixels, metadata, self.samples.labels[index].to(self.device))


def class_shares(counts: np.ndarray, sampling: str) -> np.ndarray:
    """The share of an epoch that each class takes, (classes,) float64, by its number of training images.

    `natural` is as frequent as the class is; `sqrt` in proportion to the square root of that, half way to equal shares
    (Mahajan et al., ECCV 2018, arXiv:1805.00932; Kang et al., ICLR 2020, arXiv:1910.09217, equation 1 with q = 1/2).
    """
    weights = counts.astype(np.float64) ** {"natural": 1.0, "sqrt": 0.5}[sampling]
    return weights / weights.sum()


def epoch_order(labels: np.ndarray, sampling: str, rng: np.random.Generator) -> np.ndarray:
    """The rows of one epoch, as many as there are; with `natural` a permutation. See `class_shares`.

    A class is drawn as evenly as its share allows: every row as many whole times as it fits, and a random part of the
    rows once more. Compared with weights of the loss, rare classes come with more augmented views instead of larger
    gradients of few.
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
    The incomplete last batch of an epoch is left out, because a small batch has poor batch-norm statistics. A batch
    that cannot be cut evenly is a Ham10000Error, like fewer rows than parts.
    """

    _: KW_ONLY
    augment: Augment
    micro_batches: int = 1  # parts into which each process cuts its share of a batch
    seed: int = 0
    size: Callable[[int], tuple[int, int]] | None = None  # of an epoch's images, by its number; None: the processor's
    sampling: str = "natural"  # see `class_shares`

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
        self.steps_per_epoch = len(self.samples) // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """(rows,) the rows of an epoch, in order."""
        return epoch_order(self.samples.labels.numpy(), self.sampling, np.random.default_rng((self.seed, epoch)))

    def image_ids(self, epoch: int, step: int) -> list[str]:
        """The images of one step's global batch."""
        index = self.order(epoch)[step * self.batch_size : (step + 1) * self.batch_size]
        return [self.samples.image_ids[row] for row in index]

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[tuple[torch.Tensor, list[Batch]]]:
        """Yields, for each step of an epoch, the labels of the global batch and this process's micro-batches.

        The weights of those labels normalise the loss.
        """
        order, sides = self.order(epoch), self.processor.image_processor.size
        size = self.size(epoch) if self.size else (sides["height"], sides["width"])
        first, parts = self.rank * self.micro_batches, self.world_size * self.micro_batches
        shares = [slice(first + part, None, parts) for part in range(self.micro_batches)]
        aspect = 1.0 if self.images is None else self.images.aspect
        for step in range(start_step, self.steps_per_epoch):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch, step))
            parameters = self.augment.sample(len(index), generator, aspect)
            batches = []
            for share in shares:
                own = parameters.to(self.device, share)
                batches.append(self._batch(index[share], partial(self.augment.apply, parameters=own, size=size)))
            yield self.samples.labels[index].to(self.device), batches


class EvalLoader(_Loader):
    """Batches in order, without augmentation; process r of w takes rows r, r + w and so on."""

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(range(self.rank, len(self.samples), self.world_size)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        own = np.arange(self.rank, len(self.samples), self.world_size)
        for start in range(0, len(own), self.batch_size):
            yield self._batch(own[start : start + self.batch_size])
