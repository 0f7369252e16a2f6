"""The study's predictions as one table: every number of the report follows from it, the metadata and the labels.

`predictions.parquet` has one row per image, protocol, variant and seed: `image_id`, `lesion_id`, `protocol`,
`variant`, `seed`, `fold`, `label` and `logit_<class>` (float32, uncalibrated) for every class.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow

from ham10000.modeling import Ham10000Error
from ham10000.training.data.split import lesion_groups
from ham10000.training.utils.files import atomic_path

LOGIT = "logit_"
_KEYS = ("image_id", "lesion_id", "protocol", "variant", "seed", "fold", "label")


@dataclass(frozen=True)
class Predictions:
    """What one variant predicts under one protocol; rows sorted by image id."""

    classes: tuple[str, ...]  # names of the K classes, in the order of the logits
    image_ids: np.ndarray  # (N,) names
    lesion_ids: np.ndarray  # (N,) names as in the data
    groups: np.ndarray  # (N,) lesions with known duplicates merged
    folds: np.ndarray  # (N,) the fold whose model had not seen the image
    labels: np.ndarray  # (N,) class ids
    seeds: tuple[int, ...]  # the S training seeds
    logits: np.ndarray  # (S, N, K) float32, uncalibrated

    def frame(self, protocol: str, variant: str) -> pd.DataFrame:
        """The rows of the table."""
        parts, labels = [], np.array(self.classes)[self.labels]
        for seed, logits in zip(self.seeds, self.logits, strict=True):
            keys = (self.image_ids, self.lesion_ids, protocol, variant, seed, self.folds, labels)
            scores = {f"{LOGIT}{name}": logits[:, k] for k, name in enumerate(self.classes)}
            parts.append(pd.DataFrame(dict(zip(_KEYS, keys, strict=True)) | scores))
        return pd.concat(parts, ignore_index=True)


def write_predictions(path: str | os.PathLike[str], rows: pd.DataFrame) -> None:
    """Writes rows of the table as a parquet file, complete or not at all."""
    with atomic_path(path) as temporary:
        rows.to_parquet(temporary, index=False, compression="zstd")


def read_logits(paths: Sequence[str | os.PathLike[str]]) -> dict[str, Predictions]:
    """Protocol to the image variant's predictions, from one or several tables; other variants' rows are left out."""
    table = pd.concat([_read_table(Path(path)) for path in paths], ignore_index=True)
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if len(twice := table[table.duplicated(["protocol", "seed", "image_id"])]):
        row = twice.iloc[0]
        raise Ham10000Error(
            f"{where}: image {row.image_id!r} is scored twice for {row.protocol}, image, seed {row.seed} "
            f"({len(twice)} repeated rows). Two runs of one fold, or of other folds, are mixed; give one of each."
        )
    parts = table.groupby("protocol", sort=False)
    return {str(protocol): _one_protocol(f"{where}: {protocol}", str(protocol), part) for protocol, part in parts}


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Ham10000Error(f"Cannot read {str(path)!r} as a parquet table of predictions: {error}") from error
    columns = [name for name in table.columns if name.startswith(LOGIT)]
    missing = [name for name in _KEYS if name not in table.columns]
    if missing or len(columns) < 2:
        lacks = missing or [f"{LOGIT}<class> for every class"]
        raise Ham10000Error(f"{path} lacks the column(s) {lacks}; expected predictions.parquet of `ham10000-study`.")
    table = table[table["variant"] == "image"]
    if unknown := sorted(set(table["label"]) - {name.removeprefix(LOGIT) for name in columns}):
        raise Ham10000Error(f"{path}: label {unknown[0]!r} has no column {LOGIT}{unknown[0]}; it has {columns}.")
    if len(bad := np.flatnonzero(~np.isfinite(table[columns].to_numpy(dtype=np.float64)).all(axis=1))):
        raise Ham10000Error(f"{path}: the logits of image {table['image_id'].iloc[bad[0]]!r} are not finite.")
    return table


def _one_protocol(where: str, protocol: str, part: pd.DataFrame) -> Predictions:
    """The predictions of one protocol, whose seeds must have one split."""
    part = part.sort_values(["seed", "image_id"])
    columns = [name for name in part.columns if name.startswith(LOGIT)]
    seeds, images = part["seed"].unique(), part.groupby("image_id")
    counts = images.size()
    if (few := counts < len(seeds)).any():
        name = counts.index[few][0]
        lacking = sorted(set(seeds) - set(images.get_group(name)["seed"]))
        raise Ham10000Error(
            f"{where}: seed {lacking[0]} has no prediction for image {name!r} ({int(few.sum())} images lack a seed). "
            "Finish its folds first."
        )
    for column in ("lesion_id", "fold", "label"):
        if (differs := images[column].nunique(dropna=False) > 1).any():
            name = differs.idxmax()
            values = dict(images.get_group(name)[["seed", column]].to_numpy().tolist())
            raise Ham10000Error(
                f"{where}: image {name!r} does not have the same {column} with every seed: {values}; all seeds need "
                "one split."
            )
    first = part[part["seed"] == seeds[0]]
    ids, classes = first["image_id"].to_numpy(dtype=str), [name.removeprefix(LOGIT) for name in columns]
    groups = np.array(lesion_groups(first["lesion_id"].tolist(), ids.tolist()))
    folds = first["fold"].groupby(groups).nunique()
    if protocol == "lesion-grouped" and (folds > 1).any():
        raise Ham10000Error(
            f"{where}: lesion {folds.index[folds > 1][0]!r} is in two folds ({int((folds > 1).sum())} such lesions), "
            "so its model had seen it."
        )
    return Predictions(
        classes=tuple(classes),
        image_ids=ids,
        lesion_ids=first["lesion_id"].to_numpy(dtype=str),
        groups=groups,
        folds=first["fold"].to_numpy(dtype=np.int64),
        labels=first["label"].map(classes.index).to_numpy(dtype=np.int64),
        seeds=tuple(int(seed) for seed in seeds),
        logits=part[columns].to_numpy(dtype=np.float32).reshape(len(seeds), len(ids), len(classes)),
    )
