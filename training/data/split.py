"""Splits into train, validation and test: two protocols, their hash, and how much they leak."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from scipy.cluster.hierarchy import DisjointSet
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, train_test_split

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.config import PROTOCOLS
from ham10000.training.data.sources import label_names, lesions_known, metadata_frame
from ham10000.training.utils.files import JsonObject, atomic_write_json, restore_cell, write_table

SPLITS = ("train", "validation", "test")
WEIGHT_KINDS = ("balanced", "sqrt", "none")
# Photographs of one lesion that HAM10000 gives two lesion ids: Abhishek, Jain, Hamarneh, "Investigating the quality of
# DermaMNIST and Fitzpatrick17k dermatological image datasets", Scientific Data 12:196 (2025).
KNOWN_DUPLICATE_PAIRS = (
    *(("ISIC_0033481", "ISIC_0033421"), ("ISIC_0033556", "ISIC_0032634"), ("ISIC_0029152", "ISIC_0033173")),
    *(("ISIC_0029036", "ISIC_0027027"), ("ISIC_0027820", "ISIC_0028209"), ("ISIC_0027689", "ISIC_0032647")),
    *(("ISIC_0030906", "ISIC_0024879"), ("ISIC_0033391", "ISIC_0034186"), ("ISIC_0025226", "ISIC_0030074")),
    *(("ISIC_0026087", "ISIC_0025664"), ("ISIC_0024736", "ISIC_0029748"), ("ISIC_0024770", "ISIC_0027811")),
    *(("ISIC_0027162", "ISIC_0029061"), ("ISIC_0024602", "ISIC_0032283"), ("ISIC_0029625", "ISIC_0024629")),
    *(("ISIC_0030000", "ISIC_0031392"), ("ISIC_0024437", "ISIC_0031299"), ("ISIC_0033374", "ISIC_0033417")),
)


@dataclass
class Split:
    """An assignment of images to train, validation and test."""

    protocol: str
    seed: int
    folds: int | None  # None for the baseline's single 80/10/10 split
    fold: int  # the test set; the next one is the validation set
    table: pd.DataFrame  # image_id, lesion_id, group, dx, split, and `fold` where there are folds
    dropped: list[str] = field(default_factory=list)  # images of the data that the protocol leaves out
    labels: list[str] = field(default_factory=lambda: list(LABELS))  # in the order of the class ids

    @property
    def sha256(self) -> str:
        """Hash of the assignment, the same in any order of the rows."""
        lines = sorted(f"{name},{part}\n" for name, part in zip(self.table.image_id, self.table.split, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def sizes(self) -> dict[str, int]:
        """Images per split."""
        return {part: int((self.table["split"] == part).sum()) for part in SPLITS}

    @property
    def class_counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class, in the order of `labels`."""
        counts = pd.crosstab(self.table["split"], self.table["dx"])
        rows = counts.reindex(index=SPLITS, columns=self.labels, fill_value=0).to_numpy().tolist()
        return {part: dict(zip(self.labels, row, strict=True)) for part, row in zip(SPLITS, rows, strict=True)}

    def ids(self, part: str) -> list[str]:
        """Image ids of `train`, `validation` or `test`, in the order of the table."""
        return self.table.loc[self.table["split"] == part, "image_id"].tolist()

    def leakage(self, trained_on: Sequence[str] = ("train",)) -> dict[str, dict[str, float | None]]:
        """Share of the images of validation and test whose lesion is shown by an image that was trained on.

        Per part, the share over `all` of its images and per class; `all` alone, and None, where no image has a lesion
        id, so that nobody knows. Of a part that was trained on, all images count.
        """
        if not lesions_known(self.table):
            return {part: {"all": None} for part in SPLITS[1:]}
        seen = self.table["group"].isin(self.table.loc[self.table["split"].isin(trained_on), "group"])
        shares: dict[str, dict[str, float | None]] = {}
        for part in SPLITS[1:]:
            chosen = self.table["split"] == part
            by_class = seen[chosen].groupby(self.table.loc[chosen, "dx"]).mean()
            shares[part] = {"all": float(seen[chosen].mean())}
            shares[part] |= {label: float(by_class[label]) for label in self.labels if label in by_class.index}
        return shares

    def counts(self, parts: Sequence[str] = ("train",)) -> np.ndarray:
        """(labels,) int64 images per class, over some of the parts."""
        return np.sum([list(self.class_counts[part].values()) for part in parts], axis=0)

    def class_weights(self, kind: str = "balanced", parts: Sequence[str] = ("train",)) -> np.ndarray:
        """`class_weights` of the parts that are trained on, which have every class: see `check`."""
        return class_weights(self.counts(parts), kind)

    def summary(self) -> JsonObject:
        """The content of `split.json`, as plain values."""
        names = ("protocol", "seed", "folds", "fold", "sha256", "sizes", "class_counts")
        last = {"leakage": self.leakage(), "dropped": self.dropped, "labels": self.labels}
        return {name: getattr(self, name) for name in names} | last

    def save(self, directory: str | Path) -> Path:
        """Writes `split.csv` (the table), whose path is returned, and `split.json` (`summary()`) into a folder."""
        path = write_table(self.table, Path(directory) / "split.csv")
        atomic_write_json(path.with_suffix(".json"), self.summary())
        return path

    def check(self) -> None:
        """Ham10000Error for an image id twice, a class that a side lacks, or a lesion on two of `lesion-grouped`."""
        twice = self.table["image_id"][self.table["image_id"].duplicated()]
        if len(twice):
            raise Ham10000Error(f"The split names an image twice: {twice.iloc[0]!r}.")
        counts = self.class_counts.items()
        lacking = {part: labels for part, row in counts if (labels := [dx for dx, count in row.items() if not count])}
        if lacking:
            raise Ham10000Error(f"Classes without an image, per split: {lacking}. {self._advice()}")
        if self.protocol == "lesion-grouped":
            sides = self.table.groupby("group")["split"].nunique()
            if (sides > 1).any():
                lesions = [str(group) for group in sides.index[sides > 1][:3]]
                raise Ham10000Error(
                    f"{int((sides > 1).sum())} lesions are on two sides of the split, such as {lesions}."
                )

    def _advice(self) -> str:
        """Advice for a class that is not in every split."""
        present = [label for label in self.labels if label in set(self.table["dx"])]
        if absent := [label for label in self.labels if label not in present]:
            return f"The data have no {', '.join(absent)}: leave them out with --labels {' '.join(present)}."
        unit, column = ("lesions", "group") if self.protocol == "lesion-grouped" else ("images", "image_id")
        rarest = self.table.groupby("dx")[column].nunique().sort_values()
        others = [label for label in self.labels if label != rarest.index[0]]
        return (
            f"Every split needs every class, and the rarest, {rarest.index[0]}, has {rarest.iloc[0]} {unit}: join it "
            f"with another by --label_map {rarest.index[0]}=LABEL, leave it out with --labels {' '.join(others)} "
            "--data_fixes drop_unknown_labels, or try another --split_seed or --folds."
        )


def class_weights(counts: np.ndarray, kind: str) -> np.ndarray:
    """(classes,) float64 weights of the loss from the number of training images of each class.

    `balanced` is n / (classes * count), `sqrt` its square root, `none` ones; another kind is a Ham10000Error.
    """
    if kind not in WEIGHT_KINDS:
        raise Ham10000Error(f"Class weights {kind!r} do not exist; expected one of {list(WEIGHT_KINDS)}.")
    if kind == "none":
        return np.ones(len(counts))
    balanced = counts.sum() / (len(counts) * counts.astype(np.float64))
    return balanced if kind == "balanced" else np.sqrt(balanced)


def lesion_groups(lesion_id: list[str], image_id: list[str]) -> list[str]:
    """Groups images that show one lesion: those with one lesion id, and the 18 known duplicate pairs.

    A group, given for every image, is named by the smallest lesion id in it.
    """
    lesion_of = dict(zip(image_id, lesion_id, strict=True))
    lesions = DisjointSet(lesion_id)
    for first, second in KNOWN_DUPLICATE_PAIRS:
        if first in lesion_of and second in lesion_of:
            lesions.merge(lesion_of[first], lesion_of[second])
    return [min(lesions.subset(lesion)) for lesion in lesion_id]


def make_split(
    dataset: datasets.Dataset,
    protocol: str = "lesion-grouped",
    *,
    seed: int = 42,
    folds: int | None = None,
    fold: int = 0,
) -> Split:
    """Assigns every image to train, validation or test.

    `lesion-grouped` is the protocol to believe: stratified folds, no lesion on two sides, rows without an age kept,
    the same assignment in any order of the rows. `image-stratified` is the published baseline's: rows without an age
    are dropped, then 80/10/10 by class on images, in the order of the rows; it puts photographs of one lesion on
    both sides and serves only to compare with the baseline's table.

    Args:
        dataset: From `load_data`.
        protocol: `lesion-grouped` or `image-stratified`.
        seed: Seed of the assignment.
        folds: Number of folds; test is fold `fold`, validation the next, train the rest. By default 10 for
            `lesion-grouped`, and no folds (two `train_test_split` calls, 0.2 then 0.5) for `image-stratified`.
        fold: The test fold, from 0.

    Returns:
        The checked split.

    Raises:
        Ham10000Error: For an unknown protocol, a fold out of range, data without lesion ids, or a class too rare to
            be in every split.
    """
    if protocol not in PROTOCOLS:
        raise Ham10000Error(f"Protocol {protocol!r} does not exist; expected one of {list(PROTOCOLS)}.")
    grouped = protocol == "lesion-grouped"
    folds = 10 if folds is None and grouped else folds
    if folds is None and fold != 0:
        raise Ham10000Error(f"fold={fold} needs `folds`: {protocol} without folds has one split only.")
    if folds is not None and not (folds >= 3 and 0 <= fold < folds):
        raise Ham10000Error(f"Got folds={folds} and fold={fold}; expected at least 3 folds and 0 <= fold < folds.")

    frame = metadata_frame(dataset)
    dropped: list[str] = []
    if grouped:
        if not lesions_known(frame):
            raise Ham10000Error(
                "lesion-grouped needs lesion ids, but the data has none: photographs of one lesion would be parted "
                "unseen. Name the column with --columns lesion_id=COLUMN, group by another with --group_by COLUMN "
                "(such as a patient's id), or choose --protocol image-stratified, whose leakage is then unknown."
            )
        frame = frame.sort_values("image_id", ignore_index=True)
    else:
        # The baseline's rule; data without any age are kept.
        without_age = frame["age"].isna() & bool(frame["age"].notna().any())
        dropped = frame.loc[without_age, "image_id"].tolist()
        frame = frame[~without_age].reset_index(drop=True)
    table = frame[["image_id", "lesion_id", "dx"]].copy()
    table.insert(2, "group", lesion_groups(frame["lesion_id"].tolist(), frame["image_id"].tolist()))
    try:
        _assign(table, grouped=grouped, seed=seed, folds=folds, fold=fold)
    except ValueError as error:
        counts = table["dx"].value_counts().to_dict()
        raise Ham10000Error(
            f"{len(table)} images cannot be split by {protocol} with folds={folds}: {error} "
            f"Images per class: {counts}. Join rare classes with --label_map, or use fewer --folds."
        ) from error
    split = Split(protocol, seed, folds, fold, table, dropped, label_names(dataset))
    split.check()
    return split


def _assign(table: pd.DataFrame, *, grouped: bool, seed: int, folds: int | None, fold: int) -> None:
    """Adds the column `split`, and `fold` where there are folds."""
    labels = table["dx"].to_numpy()
    if folds is None:
        _, rest = train_test_split(np.arange(len(table)), test_size=0.2, stratify=labels, random_state=seed)
        validation, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=seed)
        table["split"] = "train"
        table.loc[validation, "split"] = "validation"
        table.loc[test, "split"] = "test"
        return
    splitter = (StratifiedGroupKFold if grouped else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    fold_of = np.empty(len(table), dtype=np.int64)
    with warnings.catch_warnings():
        # A class rarer than the folds may still be in the three splits; `Split.check` decides.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for index, (_, test) in enumerate(splitter.split(labels, labels, table["group"] if grouped else None)):
            fold_of[test] = index
    table["fold"] = fold_of
    table["split"] = np.select([fold_of == fold, fold_of == (fold + 1) % folds], ["test", "validation"], "train")


def leakage_text(share: float | None, part: str) -> str:
    """A sentence on the share of a part whose lesion an image of training shows; None where lesions are unknown."""
    if share is None:
        return f"leakage unknown: without lesion ids nobody knows which {part} images show a lesion of train"
    return f"{share:.1%} of the {part} images show a lesion that another image shows in training"


def load_split(path: str | Path) -> Split:
    """Reads a saved split, by its folder or its `split.csv`; a Ham10000Error where it is unreadable or was edited."""
    csv_path = Path(path) / "split.csv" if Path(path).is_dir() else Path(path)
    json_path = csv_path.with_suffix(".json")
    try:
        table = pd.read_csv(csv_path, dtype=str, keep_default_na=False).map(restore_cell)
        saved = json.loads(json_path.read_text(encoding="utf-8"))
        if "fold" in table.columns:
            table["fold"] = table["fold"].astype(np.int64)
        labels = saved.get("labels", list(LABELS))  # earlier versions had no other
        split = Split(saved["protocol"], saved["seed"], saved["folds"], saved["fold"], table, saved["dropped"], labels)
        if split.protocol not in PROTOCOLS:
            raise ValueError(f"protocol {split.protocol!r} does not exist")
        found, groups = split.summary(), lesion_groups(table["lesion_id"].tolist(), table["image_id"].tolist())
    except FileNotFoundError as error:
        raise Ham10000Error(
            f"A saved split is split.csv next to split.json; {error.filename} does not exist."
        ) from error
    except (AttributeError, KeyError, OSError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise Ham10000Error(f"{csv_path} with {json_path.name} is no saved split: {error!r}.") from error
    if table["group"].tolist() != groups:
        raise Ham10000Error(f"{csv_path} was edited: its column group does not follow from lesion_id and image_id.")
    # The hash covers ids and sides; the counts and the leak cover dx and group.
    for name in ("sha256", "sizes", "class_counts", "leakage"):
        unknown = name == "leakage" and found[name]["test"]["all"] is None  # 0 in earlier versions
        if found[name] != saved.get(name) and not unknown:
            raise Ham10000Error(
                f"{csv_path} was edited: its {name} is {found[name]}, but {json_path.name} records "
                f"{saved.get(name)}. Restore the file, or make the split again."
            )
    try:
        split.check()
    except Ham10000Error as error:
        raise Ham10000Error(f"{csv_path}: {error}") from error
    return split


def apply_split(dataset: datasets.Dataset, split: Split) -> datasets.DatasetDict:
    """Divides a dataset by a split into `train`, `validation` and `test`, each in the order of the split's table.

    Raises:
        Ham10000Error: Where the data and the split are not of the same images, lesions and labels.
    """
    frame = metadata_frame(dataset).reset_index().set_index("image_id")
    known, assigned = set(frame.index), set(split.table["image_id"])
    for names, what in (
        (assigned - known, "images of the split are not in the data"),
        (known - assigned - set(split.dropped), "images of the data are not in the split"),
    ):
        if names:
            raise Ham10000Error(
                f"{len(names)} {what}, such as {sorted(names)[:3]}. "
                "Use the data the split was made from, or make the split again."
            )
    rows = frame.loc[split.table["image_id"]]
    for name, option in (("lesion_id", "--group_by"), ("dx", "--label_map")):
        differs = rows[name].to_numpy() != split.table[name].to_numpy()
        if differs.any():
            image_id = split.table["image_id"][differs].iloc[0]
            raise Ham10000Error(
                f"The {name} of {int(differs.sum())} images is another in the split, such as {image_id!r}. Give the "
                f"{option} and --columns that the split was made with, or make the split again."
            )
    index = rows["index"].to_numpy()
    sides = split.table["split"].to_numpy()
    return datasets.DatasetDict({part: dataset.select(index[sides == part]) for part in SPLITS})
