"""The study's predictions as one table: every number of the report follows from it, the metadata and the labels.

`predictions.parquet` has one row per image, protocol, variant and seed: `image_id`, `lesion_id`, `protocol`,
`variant`, `seed`, `fold`, `label` and `logit_<class>` (float32, uncalibrated) for every class.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
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

    def with_logits(self, logits: np.ndarray) -> "Predictions":
        """The same images with another variant's logits (S, N, K)."""
        return dataclasses.replace(self, logits=np.asarray(logits, dtype=np.float32))

    def frame(self, protocol: str, variant: str) -> pd.DataFrame:
        """The rows of the table."""
        parts, labels = [], np.array(self.classes)[self.labels]
        for seed, logits in zip(self.seeds, self.logits, strict=True):
            keys = (self.image_ids, self.lesion_ids, protocol, variant, seed, self.folds, labels)
            scores = {f"{LOGIT}{name}": logits[:, k] for k, name in enumerate(self.classes)}
            parts.append(pd.DataFrame(dict(zip(_KEYS, keys, strict=True)) | scores))
        return pd.concat(parts, ignore_index=True)


def write_predictions(
    path: str | os.PathLike[str], predictions: Mapping[tuple[str, str], Predictions] | pd.DataFrame
) -> None:
    """Writes the table, complete or not at all.

    Args:
        path: The parquet file.
        predictions: (protocol, variant) to predictions, or the rows themselves.
    """
    if not isinstance(predictions, pd.DataFrame):
        rows = [value.frame(protocol, variant) for (protocol, variant), value in predictions.items()]
        predictions = pd.concat(rows, ignore_index=True)
    with atomic_path(path) as temporary:
        predictions.to_parquet(temporary, index=False, compression="zstd")


def read_logits(paths: Sequence[str | os.PathLike[str]]) -> dict[tuple[str, str], Predictions]:
    """Reads and checks one table, or the tables of several runs.

    Args:
        paths: Parquet files; their rows are joined.

    Returns:
        (protocol, variant) to predictions, in the order of the table.

    Raises:
        Ham10000Error: For a missing column, an image that is scored twice or lacks in a variant or seed, an image with
            two labels, folds or lesions, or, with lesion-grouped, a lesion in two folds.
    """
    table = pd.concat([_read_table(Path(path)) for path in paths], ignore_index=True)
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    if len(twice := table[table.duplicated(["protocol", "variant", "seed", "image_id"])]):
        row = twice.iloc[0]
        raise Ham10000Error(
            f"{where}: image {row.image_id!r} is scored twice for {row.protocol}, {row.variant}, seed {row.seed} "
            f"({len(twice)} repeated rows). Two runs of one fold, or of other folds, are mixed; give one of each."
        )
    found: dict[tuple[str, str], Predictions] = {}
    for keys, part in table.groupby(["protocol", "variant"], sort=False):
        protocol, variant = map(str, keys)
        value = _one(f"{where}: {protocol}, {variant}", protocol, part)
        first, expected = next(((v, other) for (p, v), other in found.items() if p == protocol), (variant, value))
        _check_ids(f"{where}: {protocol}", first, expected.image_ids, variant, value.image_ids)
        for name in ("seeds", "folds", "labels", "groups"):
            if not np.array_equal(getattr(expected, name), getattr(value, name)):
                raise Ham10000Error(
                    f"{where}: {protocol}: {variant} and {first} have different {name}; give the same."
                )
        found[protocol, variant] = value
    return found


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Ham10000Error(f"Cannot read {str(path)!r} as a parquet table of predictions: {error}") from error
    columns = _logit_columns(table)
    missing = [name for name in _KEYS if name not in table.columns]
    if missing or len(columns) < 2:
        lacks = missing or [f"{LOGIT}<class> for every class"]
        raise Ham10000Error(
            f"{path} lacks the column(s) {lacks}; expected the predictions.parquet of `ham10000-study`."
        )
    if unknown := sorted(set(table["label"]) - {name.removeprefix(LOGIT) for name in columns}):
        raise Ham10000Error(f"{path}: label {unknown[0]!r} has no column {LOGIT}{unknown[0]}; it has {columns}.")
    if len(bad := np.flatnonzero(~np.isfinite(table[columns].to_numpy(dtype=np.float64)).all(axis=1))):
        raise Ham10000Error(f"{path}: the logits of image {table['image_id'].iloc[bad[0]]!r} are not finite.")
    return table


def _logit_columns(table: pd.DataFrame) -> list[str]:
    return [name for name in table.columns if name.startswith(LOGIT)]


def _one(where: str, protocol: str, part: pd.DataFrame) -> Predictions:
    """The predictions of one protocol and variant, whose seeds must have one split."""
    tables = {int(str(seed)): rows.sort_values("image_id", ignore_index=True) for seed, rows in part.groupby("seed")}
    (first_seed, first), *_ = tables.items()
    columns, ids = _logit_columns(part), first["image_id"].to_numpy(dtype=str)
    classes = tuple(name.removeprefix(LOGIT) for name in columns)
    shared = ["lesion_id", "fold", "label"]
    for seed, rows in tables.items():
        _check_ids(where, f"seed {first_seed}", ids, f"seed {seed}", rows["image_id"].to_numpy(dtype=str))
        differs = (rows[shared].astype(str) != first[shared].astype(str)).any(axis=1)
        if differs.any():
            raise Ham10000Error(
                f"{where}: image {ids[differs][0]!r} has another lesion, fold or label with seed {seed} than with "
                f"seed {first_seed}; all seeds need one split."
            )
    groups = np.array(lesion_groups(first["lesion_id"].tolist(), ids.tolist()))
    folds = first["fold"].groupby(groups).nunique()
    if protocol == "lesion-grouped" and (folds > 1).any():
        raise Ham10000Error(
            f"{where}: lesion {folds.index[folds > 1][0]!r} is in two folds ({int((folds > 1).sum())} such lesions), "
            "so its model had seen it."
        )
    return Predictions(
        classes=classes,
        image_ids=ids,
        lesion_ids=first["lesion_id"].to_numpy(dtype=str),
        groups=groups,
        folds=first["fold"].to_numpy(dtype=np.int64),
        labels=first["label"].map({name: k for k, name in enumerate(classes)}).to_numpy(dtype=np.int64),
        seeds=tuple(tables),
        logits=np.stack([rows[columns].to_numpy(dtype=np.float32) for rows in tables.values()]),
    )


def _check_ids(where: str, name: str, ours: np.ndarray, other: str, theirs: np.ndarray) -> None:
    if len(only := np.setxor1d(ours, theirs)):
        lacking = other if only[0] in ours else name
        raise Ham10000Error(
            f"{where}: {lacking} has no prediction for image {str(only[0])!r} ({len(only)} images are in one of "
            f"{name} and {other} only). Finish its folds first."
        )
