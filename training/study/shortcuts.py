"""How a model's answers change when only its metadata does: shuffled, unknown, missing at random, or swept."""

import contextlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, Ham10000ForImageClassification
from ham10000.training.data.loader import EvalLoader
from ham10000.training.inference.metadata_effects import SWEEP_AGES, logits_from_embeddings

MISSING_SHARES = tuple(tenths / 10 for tenths in range(1, 10))


@torch.inference_mode()
def perturbed_probabilities(
    model: Ham10000ForImageClassification,
    loader: EvalLoader,
    *,
    seed: int,
    repeats: int = 5,
    autocast: Callable[[], Any] = contextlib.nullcontext,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Predicts every row of a loader with its own metadata and with changed ones, the picture fixed.

    Every picture goes through the backbone once; for each change only the small head runs again, on the loader's own
    batches, so a change that changes no value changes no bit. Shuffling a field breaks its tie to the class and keeps
    its distribution (permutation importance: Breiman 2001, 10.1023/A:1010933404324, section 10).

    Args:
        model: A model that reads metadata, in evaluation mode.
        loader: The N rows, of one process.
        seed: Seed of the permutations and of what goes missing.
        repeats: K, how often what is random is drawn.
        autocast: Makes the context the backbone runs in. The head always runs in the model's own precision, because
            rounding it to bf16 would flip answers by itself.
        progress: Whether to show progress bars.

    Returns:
        Name to probabilities, float32, in the loader's order; fields the model does not have are left out:

        - `as_is` (N, 7): without `autocast` equal to the model's own forward on the same batches, to the last bit.
        - `shuffled:FIELD` and `shuffled:all` (K, N, 7): the rows' values permuted; for `all`, whole rows of metadata.
        - `unknown:FIELD` and `unknown:all` (N, 7): the field, or every field, missing in every row.
        - `missing:SHARE` (K, N, 7), SHARE in 0.1…0.9: each field of each row missing with that probability.
        - `age_sweep` (18, N, 7): every row's age set to 0, 5, … 85 years.
        - `site_sweep` (sites, N, 7): every row's site set to each of `config.localization_vocabulary`, in its order.

    Raises:
        Ham10000Error: For the image variant, a model in training mode, no rows, no repeats, or a loader of several
            processes.
    """
    config: Any = model.config
    if not config.uses_metadata:
        raise Ham10000Error("modality='image' reads no metadata, so there is nothing to change; leave it out.")
    if model.training:
        raise Ham10000Error("The model is in training mode, in which metadata is dropped; call model.eval() first.")
    if loader.world_size != 1:
        raise Ham10000Error(f"Expected a loader of one process, which has all rows, got one of {loader.world_size}.")
    metadata = loader.samples.metadata  # (N, F)
    if metadata is None or len(metadata) == 0:
        raise Ham10000Error("The loader holds no rows with metadata; give it the checkpoint's own processor.")
    if repeats < 1:
        raise Ham10000Error(f"`repeats` must be at least 1, got {repeats}.")

    embeddings: list[tuple[int, torch.Tensor | None]] = []  # rows and (rows, C) of each batch
    for batch in tqdm(loader, desc="Embedding", unit="batch", disable=not progress, leave=False):
        image = None
        if batch.pixel_values is not None:
            with autocast():
                image = model.encode_image(batch.pixel_values.to(next(model.backbone.parameters()).dtype))
            image = image.to(model.classifier.weight.dtype)
        embeddings.append((len(batch.labels), image))

    def predict(tables: torch.Tensor) -> np.ndarray:
        """(…, N, F) metadata to (…, N, 7) probabilities."""
        flat = tables.reshape(-1, *metadata.shape)
        output = np.empty((*flat.shape[:2], len(LABELS)), dtype=np.float32)
        start = 0
        for rows, image in embeddings:
            for number, table in enumerate(flat[:, start : start + rows].to(loader.device)):
                probabilities = logits_from_embeddings(model, image, table).float().softmax(-1)
                output[number, start : start + rows] = probabilities.cpu().numpy()
            start += rows
        return output.reshape(*tables.shape[:-1], len(LABELS))

    changes = tqdm(
        _changes(config, metadata, seed, repeats), desc="Perturbing", disable=not progress, leave=False, unit="change"
    )
    return {"as_is": predict(metadata)} | {name: predict(tables) for name, tables in changes}


def _changes(
    config: Ham10000Config, metadata: torch.Tensor, seed: int, repeats: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and changed metadata (…, N, F), one at a time, as all of them together would be large."""

    def generator(name: str) -> np.random.Generator:
        # By name, so that a draw does not depend on which other fields the model has.
        return np.random.default_rng((seed, zlib.crc32(name.encode())))

    fields = {name: [column] for column, name in enumerate(config.metadata_fields)}
    for field, columns in (fields | {"all": list(range(len(fields)))}).items():
        draws = generator(f"shuffled:{field}")
        shuffled = metadata.repeat(repeats, 1, 1)  # (K, N, F)
        for table in shuffled:
            table[:, columns] = metadata[torch.from_numpy(draws.permutation(len(metadata)))][:, columns]
        yield f"shuffled:{field}", shuffled
        unknown = metadata.clone()
        unknown[:, columns] = float("nan")
        yield f"unknown:{field}", unknown
    for share in MISSING_SHARES:
        absent = generator(f"missing:{share}").random((repeats, *metadata.shape)) < share
        yield f"missing:{share}", metadata.repeat(repeats, 1, 1).masked_fill(torch.from_numpy(absent), float("nan"))
    sweeps = {"age": ("age_sweep", SWEEP_AGES)}
    sweeps["localization"] = ("site_sweep", tuple(range(len(config.localization_vocabulary))))
    for field, (name, values) in sweeps.items():
        if field in fields:
            swept = metadata.repeat(len(values), 1, 1)
            swept[:, :, fields[field][0]] = torch.tensor(values, dtype=metadata.dtype)[:, None]
            yield name, swept


__all__ = ["MISSING_SHARES", "SWEEP_AGES", "perturbed_probabilities"]
