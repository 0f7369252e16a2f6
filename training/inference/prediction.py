"""Loads a checkpoint and predicts with it: `model, processor = load_checkpoint("runs/fusion")`."""

import contextlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import cached_file

from ham10000.modeling import Ham10000Config, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.run_folder import RunFile
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.files import JsonObject, read_json

# The checkpoints that come with the source tree, next to this folder; a wheel leaves them out.
SHIPPED_CHECKPOINTS = Path(__file__).resolve().parents[2] / "examples" / "checkpoints"
# Dimensions of (batch, 3, height, width) that each view of test-time augmentation flips.
VIEWS: dict[int, list[tuple[int, ...]]] = {1: [()], 2: [(), (3,)], 4: [(), (2,), (3,), (2, 3)]}
Decode = Callable[[Any], object]  # turns an item into an image in any form `load_image` reads
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Calibration:
    """The calibration of a checkpoint's probabilities, as far as it was measured."""

    temperature: float = 1.0  # the logits are divided by it; 1 where none was fitted
    ece: float | None = None  # expected calibration error in [0, 1] that its evaluation measured at this temperature
    part: str | None = None  # of the data it was measured on, such as `test`, or `cross-validation`
    of_another_run: bool = False  # the temperature's: this run left no images to fit one on

    def __str__(self) -> str:
        scaled = "not temperature-scaled"
        if self.temperature != 1:
            scaled = f"temperature-scaled (T = {self.temperature:.3g}{', of another run' * self.of_another_run})"
        where = f"{'by' if self.part == 'cross-validation' else 'on'} {self.part}"
        measured = "calibration error not measured" if self.ece is None else f"ECE {self.ece:.3f} {where}"
        return f"{scaled}; {measured}"


def calibration_of(model: Ham10000ForImageClassification) -> Calibration:
    """The calibration that `load_checkpoint` found; for any other model its temperature alone."""
    return getattr(model, "calibration", None) or Calibration(float(model.config.temperature))


def _read_calibration(checkpoint: str, revision: str | None, temperature: float) -> Calibration:
    """From `eval_results.json` and `train_config.json`, which a checkpoint need not have."""
    records: dict[str, JsonObject] = {RunFile.EVALUATION: {}, RunFile.TRAINING: {}}
    for name in records:
        # A missing or damaged record is no reason not to predict: the claim is left out.
        with contextlib.suppress(Ham10000Error, OSError):
            if path := cached_file(checkpoint, name, revision=revision):
                records[name] = read_json(path)
    evaluation, training = records.values()
    ece, part = None, None
    if evaluation.get("temperature") == temperature:
        ece, part = evaluation.get("metrics", {}).get("ece"), evaluation.get("split", {}).get("name")
    other = temperature != 1 and bool(training.get("config", {}).get("train_on_validation"))
    other = other and "estimated_by" not in evaluation
    return Calibration(temperature, ece, part, other)


def choose_device(name: str) -> torch.device:
    """Returns a device that works, by its name or, for `auto`, the GPU where there is one.

    Raises:
        Ham10000Error: For a device that does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise Ham10000Error(f"Device {name!r} cannot be used: {error}. Expected auto, cpu or cuda.") from error


def shipped_checkpoint(modality: str = "fusion") -> Path:
    """Returns the folder of a checkpoint that comes with the source tree; an error says that there is none."""
    folder = SHIPPED_CHECKPOINTS / f"ham10000-{modality}"
    if not (folder / "config.json").is_file():
        raise Ham10000Error(
            f"No checkpoint was named, and this installation has none ({str(folder)!r} does not exist: a clone of "
            "the repository has it, a wheel does not). Give --checkpoint a folder, or a Hub id `user/name`."
        )
    return folder


def load_checkpoint(
    checkpoint: str | os.PathLike[str], revision: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Ham10000ForImageClassification, Ham10000Processor]:
    """Loads a model, in evaluation mode, and its processor by this package's classes; no code from it runs.

    Args:
        checkpoint: A folder, which needs no network, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        device: Where the model is put.

    Raises:
        Ham10000Error: If there is no such checkpoint, it is incomplete or damaged, or of another kind of model.
    """
    folder, name = Path(checkpoint).expanduser(), str(checkpoint)
    is_folder = folder.is_dir()
    if is_folder:
        if revision is not None:
            raise Ham10000Error(f"`revision` is for Hub ids, but {name!r} is a folder; leave it out.")
        if not (folder / "config.json").is_file():
            raise Ham10000Error(f"The folder {name!r} has no config.json; expected the output_dir of a training run.")
        _check_index(folder)
    # A path that is mistyped must not be looked for on the Hub, which takes half a minute without a network.
    elif not _HUB_ID.fullmatch(name) or folder.parent.is_dir():
        raise Ham10000Error(f"There is no folder {name!r}; give a checkpoint folder, or a Hub id `user/name`.")
    source = str(folder) if is_folder else name
    where: dict[str, Any] = {"revision": revision or "main", "local_files_only": is_folder}
    try:
        kind = Ham10000Config.get_config_dict(source, **where)[0].get("model_type")
        if kind != Ham10000Config.model_type:
            raise Ham10000Error(f"{name!r} has a model of type {kind!r}; give one of this package, 'ham10000'.")
        model = Ham10000ForImageClassification.from_pretrained(source, dtype=torch.float32, **where)
        processor = Ham10000Processor.from_pretrained(source, **where)
    except (Ham10000Error, StrictDataclassError):
        raise
    except SafetensorError as error:
        raise Ham10000Error(f"The weights of {name!r} are damaged: {error}. Copy or train them again.") from error
    except RuntimeError as error:
        # What transformers raises for a weight of another shape; its message only points to its log.
        raise Ham10000Error(
            f"The weights of {name!r} do not fit its config.json: they were saved with another modality, backbone or "
            "fusion. Copy the checkpoint again."
        ) from error
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        if is_folder:
            raise Ham10000Error(f"The checkpoint {name!r} is incomplete or damaged: {reason}") from error
        raise Ham10000Error(
            f"There is no folder {name!r}, and the Hub did not give it either: {reason} "
            "Give an existing checkpoint folder, or a Hub id `user/name` with a connection to the internet."
        ) from error
    except (AttributeError, ImportError, LookupError, TypeError, ValueError) as error:
        # What transformers raises for a file of JSON that is sound, but not what it expects there.
        raise Ham10000Error(
            f"The checkpoint {name!r} is damaged: its config.json or processor_config.json cannot be used "
            f"({type(error).__name__}: {str(error)[:300]}). Copy it again."
        ) from error
    _check_match(name, model, processor)
    calibration = _read_calibration(source, revision, float(model.config.temperature))
    setattr(model, "calibration", calibration)  # noqa: B010 (nn.Module's attributes are typed)
    return model.to(device).eval(), processor


def _check_index(folder: Path) -> None:
    """Refuses an index of sharded weights that names a file outside the checkpoint: transformers would follow it."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    where = f"The checkpoint {str(folder)!r} is"
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise Ham10000Error(f"{where} damaged: {path.name} is not an index of weights: {error!r}") from error
    if outside := sorted(str(name) for name in names if not isinstance(name, str) or Path(name).name != name):
        raise Ham10000Error(f"{where} refused: {path.name} names {outside[0]!r}, outside the folder.")


def _check_match(name: str, model: Ham10000ForImageClassification, processor: Ham10000Processor) -> None:
    """Refuses another checkpoint's processor and NaN in the weights, which would spoil predictions silently."""
    vocabularies = ("metadata_fields", "sex_vocabulary", "localization_vocabulary")
    for field in ("modality", *(vocabularies if model.config.uses_metadata else ())):
        ours, theirs = getattr(model.config, field), getattr(processor, field)
        if ours != theirs:
            raise Ham10000Error(
                f"The checkpoint {name!r} does not fit together: {field} is {ours} in config.json, but {theirs} in "
                "processor_config.json. Copy both from one run."
            )
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Ham10000Error(f"The weights {key!r} of {name!r} are NaN or infinite in part: their training failed.")


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode for a while: in training mode it drops features and metadata at random."""
    training = [module for module in model.modules() if module.training]
    if training:  # else there is nothing to set, which would take longer than the head of a network
        model.eval()
    try:
        yield
    finally:
        for module in training:  # and no others: a frozen backbone stays in evaluation mode
            module.training = True


@torch.inference_mode()
def predict(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    images: Sequence[object] | None = None,
    metadata: Sequence[Mapping[str, object]] | None = None,
    batch_size: int = 32,
    *,
    unknown_values: str = "error",
    progress: bool = False,
    decode: Decode | None = None,
) -> np.ndarray:
    """Predicts a list of images, of metadata rows, or of both; at most two batches of images are in memory.

    Args:
        model: Any variant, on any device.
        processor: Its processor.
        images: Images in any form `load_image` reads; None for a metadata-only model.
        metadata: One mapping per image, as for the processor; None for an image-only model, or if nothing is known.
        batch_size: Samples per step.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.
        progress: Whether to show a progress bar on stderr, if there is more than one batch.
        decode: What turns an item of `images` into an image, in one of several threads, where it is not one yet.

    Returns:
        (samples, classes) float64 probabilities in the order of `model.config.label_names`, the logits divided by the
        checkpoint's temperature.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable image, or an unknown value.
    """
    if batch_size < 1:
        raise Ham10000Error(f"`batch_size` must be at least 1, got {batch_size}.")
    if not images and not metadata:
        raise Ham10000Error("Nothing to predict: give at least one image or one row of metadata.")
    if images is not None and metadata is not None and len(images) != len(metadata):
        raise Ham10000Error(f"Got {len(images)} images but {len(metadata)} rows of metadata; expected one per image.")
    # All rows are checked before the first image is decoded.
    encoded = None
    if metadata is not None:
        encoded = processor(metadata=list(metadata), unknown_values=unknown_values)["metadata"]
    count = len(images if images is not None else metadata or ())
    parts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    pixels = iter([None] * len(parts)) if images is None else _batches(images, parts, model, processor, decode)
    logits = []
    disable = not progress or count <= batch_size
    with evaluating(model), progress_bar(total=count, desc="Predicting", unit="image", disable=disable) as bar:
        for part, pixel_values in zip(parts, pixels, strict=True):
            inputs = {} if encoded is None else {"metadata": encoded[part].to(model.device)}
            if pixel_values is not None:
                inputs["pixel_values"] = pixel_values
            logits.append(model(**inputs).logits)
            bar.update(len(logits[-1]))
    return torch.cat(logits).cpu().double().softmax(dim=-1).numpy()


def _batches(
    images: Sequence[object],
    parts: Sequence[slice],
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    decode: Decode | None,
) -> Iterator[torch.Tensor]:
    """Yields the normalised images of each part on the model's device; several threads decode.

    A GPU computes while the next part is decoded. A CPU does not: the threads of a convolution wait for the slowest,
    so one that shares its core with a decoder delays them all.
    """
    image_processor = processor.image_processor

    def collect(arrays: Iterator[np.ndarray]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack(list(arrays)))  # (B, H, W, 3) uint8
        return image_processor.normalize_pixels(stacked.to(model.device).permute(0, 3, 1, 2)).contiguous()

    lookahead = 0 if model.device.type == "cpu" else 1
    waiting: deque[Iterator[np.ndarray]] = deque()
    # Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for part in parts:
            # `map` submits all of them at once, and cancels the rest where one fails.
            arrays = pool.map(lambda item: image_processor.resize(decode(item) if decode else item), images[part])
            waiting.append(arrays)
            if len(waiting) > lookahead:
                yield collect(waiting.popleft())
        yield from map(collect, waiting)


@torch.inference_mode()
def predict_logits(
    model: Ham10000ForImageClassification,
    loader: Any,
    *,
    accelerator: Any = None,  # an Accelerator, which nobody needs to predict
    autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    views: int = 1,
    progress: bool = False,
) -> np.ndarray:
    """Predicts every row of a loader; with several processes each predicts its share and all get the whole.

    Args:
        model: The model, in evaluation mode.
        loader: An `EvalLoader`, whose module imports datasets and pandas.
        accelerator: Gathers over processes; None is one process.
        autocast: Makes the context the model runs in; by default its own precision.
        views: Test-time augmentation: 1 none, 2 with the horizontal mirror image, 4 all flips. The probabilities of
            the views are averaged, and their logarithm is returned.
        progress: Whether to show a progress bar.

    Returns:
        (rows, classes) float32 logits in the order of the loader's samples.

    Raises:
        Ham10000Error: For another number of views.
    """
    if views not in VIEWS:
        raise Ham10000Error(f"`views` must be one of {sorted(VIEWS)}, got {views}.")
    parts = []
    for batch in progress_bar(iterable=loader, desc="Predicting", unit="batch", disable=not progress, leave=False):
        inputs = batch.inputs
        outputs = []
        for dimensions in VIEWS[views if batch.pixel_values is not None else 1]:
            if dimensions:
                inputs = {**inputs, "pixel_values": batch.pixel_values.flip(dimensions)}
            with autocast():
                outputs.append(model(**inputs).logits.float())
        # Without averaging, one view keeps its logits bit-identical.
        many = len(outputs) > 1
        parts.append(torch.stack(outputs).softmax(-1).mean(0).clamp_min(1e-30).log() if many else outputs[0])
    logits = torch.cat(parts) if parts else torch.zeros(0, len(model.config.label_names), device=loader.device)
    if accelerator is None:
        return logits.cpu().numpy()
    # Ranks have rows r, r + w, …; short ones are padded for the gather and the padding is cut off again.
    padded = accelerator.pad_across_processes(logits)
    gathered = accelerator.gather(padded).view(accelerator.num_processes, *padded.shape)
    return gathered.transpose(0, 1).flatten(0, 1)[: len(loader.samples)].cpu().numpy()
