"""Loads a checkpoint and predicts with it: `model, processor = load_checkpoint("runs/fusion")`."""

import json
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Config, Ham10000Error, Ham10000ForImageClassification, Ham10000Processor

# The checkpoints that come with the source tree, next to this folder; a wheel leaves them out.
SHIPPED_CHECKPOINTS = Path(__file__).resolve().parents[1] / "examples" / "checkpoints"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def choose_device(name: str) -> torch.device:
    """Finds a device, and that it works.

    Args:
        name: As torch names it, or `auto`, which is the GPU where there is one.

    Returns:
        The device.

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
    """The checkpoint of a variant that comes with the source tree.

    Args:
        modality: `image`, `metadata` or `fusion`.

    Returns:
        Its folder.

    Raises:
        Ham10000Error: If this installation has none.
    """
    folder = SHIPPED_CHECKPOINTS / f"ham10000-{modality}"
    if not (folder / "config.json").is_file():
        raise Ham10000Error(
            f"No checkpoint was named, and this installation brings none ({str(folder)!r} does not exist: a clone of "
            "the repository has it, a wheel does not). Give --checkpoint a folder, or a Hub id `user/name`."
        )
    return folder


def load_checkpoint(
    checkpoint: str | os.PathLike[str], revision: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Ham10000ForImageClassification, Ham10000Processor]:
    """Loads a model and its processor with this package's own classes; no code from the checkpoint runs.

    Args:
        checkpoint: A folder, which needs no network, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        device: Where the model is put.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        Ham10000Error: If there is no such checkpoint, it is incomplete or damaged, or of another kind of model.

    Example:
        >>> model, processor = load_checkpoint("runs/fusion")
        >>> predict(model, processor, ["lesion.jpg"], [{"age": 60, "sex": "male"}])
    """
    folder = Path(checkpoint).expanduser()
    name, is_folder = str(checkpoint), folder.is_dir()
    if is_folder and revision is not None:
        raise Ham10000Error(f"`revision` is for Hub ids, but {name!r} is a folder; leave it out.")
    if is_folder and not (folder / "config.json").is_file():
        raise Ham10000Error(f"The folder {name!r} holds no config.json; expected the output_dir of a training run.")
    if folder.is_file():
        raise Ham10000Error(f"{name!r} is a file; give the checkpoint's folder.")
    # A path that is mistyped must not be looked for on the Hub, which takes half a minute without a network.
    if not is_folder and (not _HUB_ID.fullmatch(name) or folder.parent.is_dir()):
        raise Ham10000Error(f"There is no folder {name!r}; give a checkpoint folder, or a Hub id `user/name`.")
    if is_folder:
        _check_index(folder)
    source = str(folder) if is_folder else name
    options: dict[str, Any] = {"revision": revision or "main", "local_files_only": is_folder}
    try:
        model_type = Ham10000Config.get_config_dict(source, **options)[0].get("model_type")
        if model_type != Ham10000Config.model_type:
            raise Ham10000Error(
                f"{name!r} holds a model of type {model_type!r}, not {Ham10000Config.model_type!r}; "
                "give a checkpoint of this package."
            )
        model = Ham10000ForImageClassification.from_pretrained(source, dtype=torch.float32, **options)
        processor = Ham10000Processor.from_pretrained(source, **options)
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
    return model.to(device).eval(), processor


def _check_index(folder: Path) -> None:
    """Refuses an index of sharded weights that names a file outside the checkpoint: transformers would follow it."""
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        names = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        raise Ham10000Error(
            f"The checkpoint {str(folder)!r} is damaged: {path.name} is no index of weights: {error!r}"
        ) from error
    if outside := sorted(str(name) for name in names if not isinstance(name, str) or Path(name).name != name):
        raise Ham10000Error(
            f"The checkpoint {str(folder)!r} is refused: {path.name} names {outside[0]!r}, outside the folder."
        )


def _check_match(name: str, model: Ham10000ForImageClassification, processor: Ham10000Processor) -> None:
    """A processor of another checkpoint would be read wrongly without any error, and NaN would spread silently."""
    fields = ["modality"]
    if model.config.uses_metadata:
        fields += ["metadata_fields", "sex_vocabulary", "localization_vocabulary"]
    for field in fields:
        ours, theirs = getattr(model.config, field), getattr(processor, field)
        if ours != theirs:
            raise Ham10000Error(
                f"The checkpoint {name!r} does not fit together: {field} is {ours} in config.json, but {theirs} in "
                "processor_config.json. Copy both from one run."
            )
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Ham10000Error(
                f"The weights of {name!r} hold NaN or infinite values, in {key!r}: their training failed."
            )


@torch.inference_mode()
def predict(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    images: Sequence[Any] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    *,
    unknown_values: str = "error",
    progress: bool = False,
) -> np.ndarray:
    """Predicts a list of pictures, of metadata rows, or of both; at most two batches of pictures are in memory.

    Args:
        model: Any variant, on any device.
        processor: The model's processor.
        images: Pictures in any form `load_image` reads; None for a metadata-only model.
        metadata: One mapping a picture, as for the processor; None for an image-only model, or if nothing is known.
        batch_size: Samples a step.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.
        progress: Whether to show a progress bar on stderr, if there is more than one batch.

    Returns:
        (samples, 7) float64 probabilities in the order of `LABELS`, calibrated by the checkpoint's temperature.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable picture, or an unknown value.
    """
    if batch_size < 1:
        raise Ham10000Error(f"`batch_size` must be at least 1, got {batch_size}.")
    if not images and not metadata:
        raise Ham10000Error("Nothing to predict: give at least one picture or one row of metadata.")
    if images is not None and metadata is not None and len(images) != len(metadata):
        raise Ham10000Error(f"Got {len(images)} images but {len(metadata)} rows of metadata; expected one a picture.")
    # All rows are checked before the first picture is decoded.
    encoded = None
    if metadata is not None:
        encoded = processor(metadata=list(metadata), unknown_values=unknown_values)["metadata"]
    count = len(images if images is not None else metadata or ())
    parts = [slice(start, start + batch_size) for start in range(0, count, batch_size)]
    pixels = iter([None] * len(parts)) if images is None else _batches(images, parts, model, processor)
    was_training = model.training
    model.eval()
    logits = []
    try:
        with tqdm(total=count, desc="Predicting", unit="image", disable=not progress or count <= batch_size) as bar:
            for part, pixel_values in zip(parts, pixels, strict=True):
                inputs = {} if encoded is None else {"metadata": encoded[part].to(model.device)}
                if pixel_values is not None:
                    inputs["pixel_values"] = pixel_values
                logits.append(model(**inputs).logits)
                bar.update(len(logits[-1]))
    finally:
        model.train(was_training)
    return torch.cat(logits).cpu().double().softmax(dim=-1).numpy()


def _batches(
    images: Sequence[Any], parts: Sequence[slice], model: Ham10000ForImageClassification, processor: Ham10000Processor
) -> Iterator[torch.Tensor]:
    """Yields the normalised pictures of each part on the model's device; several threads decode.

    A GPU computes while the next part is decoded. A CPU does not: the threads of a convolution wait for the slowest,
    so one that shares its core with a decoder delays them all.
    """
    image_processor: Any = processor.image_processor

    def collect(futures: list[Future[np.ndarray]]) -> torch.Tensor:
        stacked = torch.from_numpy(np.stack([future.result() for future in futures]))  # (B, H, W, 3) uint8
        return image_processor.normalize_pixels(stacked.to(model.device).permute(0, 3, 1, 2)).contiguous()

    lookahead = 0 if model.device.type == "cpu" else 1
    waiting: deque[list[Future[np.ndarray]]] = deque()
    # Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        try:
            for part in parts:
                waiting.append([pool.submit(image_processor.resize, image) for image in images[part]])
                if len(waiting) > lookahead:
                    yield collect(waiting.popleft())
            while waiting:
                yield collect(waiting.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


__all__ = ["SHIPPED_CHECKPOINTS", "choose_device", "load_checkpoint", "predict", "shipped_checkpoint"]
