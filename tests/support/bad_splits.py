"""Cases of the bad-input corpus: saved splits, and configurations of training."""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from bad_input import Case, written

from ham10000.training.config import parse_arguments
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import Split, apply_split, load_split, make_split


@functools.cache
def data() -> datasets.Dataset:
    return load_data("synthetic:220")[0]


@functools.cache
def files() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        make_split(data(), folds=4).save(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).iterdir()}


def case(name: str, edit: Callable[[Path], Any], *fragments: str, check: Callable[[Any], None] | None = None) -> Case:
    def build(folder: Path) -> Path:
        for file, text in files().items():
            (folder / file).write_text(text, encoding="utf-8", newline="")
        edit(folder)
        return folder

    return Case("split", name, build, load_split, None if check else ("split.", *fragments), check)


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Edits split.csv."""

    def edit(folder: Path) -> None:
        frame = change(pd.read_csv(folder / "split.csv", dtype=str))
        frame.to_csv(folder / "split.csv", index=False, lineterminator="\n")

    return edit


def record(**values: Any) -> Callable[[Path], None]:
    """Edits split.json."""

    def edit(folder: Path) -> None:
        path = folder / "split.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def put(column: str, value: str, row: int = 0) -> Callable[[Path], None]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        frame.loc[row, column] = value
        return frame

    return table(change)


def _overlap(folder: Path) -> None:
    """A consistent pair of files whose split has one lesion on two sides."""
    split = load_split(folder)
    largest = split.table["group"].value_counts().index[0]
    row = split.table.index[split.table["group"] == largest][0]
    split.table.loc[row, "split"] = "train" if split.table.loc[row, "split"] == "test" else "test"
    split.save(folder)


def _twice(folder: Path) -> None:
    """A consistent pair of files with one image in train and in test."""
    split = load_split(folder)
    row = split.table[split.table["split"] == "train"].iloc[[0]].assign(split="test")
    Split(split.protocol, split.seed, 4, 0, pd.concat([split.table, row], ignore_index=True)).save(folder)


def _same(result: Split) -> None:
    assert result.table["image_id"].is_unique
    assert len(result.table) == 220


SPLITS = [
    case("untouched", lambda folder: None, check=_same),
    case("rows in another order", table(lambda frame: frame.iloc[::-1]), check=_same),
    case("one image moved to test", put("split", "test", 3), "edited", "sha256"),
    case("all labels nv", table(lambda frame: frame.assign(dx="nv")), "edited", "class_counts"),
    case("a group changed", put("group", "HAM_x"), "edited", "group"),
    case("a fold of text", put("fold", "first"), "no saved split"),
    case("wrong leakage", record(leakage={}), "edited", "leakage"),
    case("unknown protocol", record(protocol="random"), "protocol", "'random'"),
    case("a protocol that is a list", record(protocol=["lesion-grouped"]), "protocol"),
    case("no column image_id", table(lambda frame: frame.drop(columns="image_id")), "no saved split", "image_id"),
    case("table absent", lambda folder: (folder / "split.csv").unlink(), "split.csv", "does not exist"),
    case("record absent", lambda folder: (folder / "split.json").unlink(), "split.json", "does not exist"),
    *[
        case(f"{file} {name}", written(file, value), "no saved split")
        for file in ("split.csv", "split.json")
        for name, value in {"empty": "", "binary": b"\xff\xfe\x00", "of another kind": "[1, 2]"}.items()
    ],
    case("record 100,000 deep", written("split.json", "[" * 100_000), "no saved split"),
    case("record without a seed", written("split.json", '{"protocol": "lesion-grouped"}'), "no saved split", "seed"),
    case("an image in train and test", _twice, "twice"),
    case("a lesion on two sides", _overlap, "two sides"),
]


def other_data(name: str, size: int, seed: int, message: str) -> Case:
    """The saved split on other data; the message names the images, not the file."""

    def run(folder: Path) -> datasets.DatasetDict:
        return apply_split(load_data(f"synthetic:{size}", seed=seed)[0], load_split(folder))

    return Case("split", name, SPLITS[0].build, run, (message,))


OTHER_DATA = [
    other_data("of more data", 200, 0, "images of the split are not in the data"),
    other_data("of less data", 240, 0, "images of the data are not in the split"),
    other_data("of data relabelled", 220, 5, "is another in the split"),
]


def options(name: str, argv: list[str], *fragments: str) -> Case:
    return Case("training config", name, lambda folder: argv, parse_arguments, fragments)


def parse_file(path: Path) -> Any:
    return parse_arguments(["--config", str(path)])


def config(name: str, text: str | bytes, *fragments: str, file: str = "c.yaml") -> Case:
    return Case("config file", name, written(file, text), parse_file, fragments)


CONFIGS = [
    options("epochs zero", ["--epochs", "0"], "`epochs` must be at least 1"),
    options("negative rate", ["--learning_rate", "-1"], "learning_rate", "-1"),
    options("rate NaN", ["--learning_rate", "nan"], "learning_rate", "nan"),
    options("uneven batches", ["--batch_size", "10", "--gradient_accumulation_steps", "3"], "batch_size", "10", "3"),
    options("unknown fix", ["--data_fixes", "drop_everything"], "data_fixes", "drop_everything"),
    options("three sides", ["--image_size", "1", "2", "3"], "image_size"),
    options("side zero", ["--image_size", "0"], "image_size"),
    options("arguments no JSON", ["--backbone_kwargs", "{"], "backbone_kwargs", "'{'"),
    options("arguments a list", ["--backbone_kwargs", "[1]"], "backbone_kwargs"),
    options("leaking field", ["--metadata_fields", "age", "dx_type"], "dx_type", "can never be a model input"),
    options("smoothing all", ["--label_smoothing", "1"], "label_smoothing"),
    options("rotation beyond", ["--augment_rotation", "181"], "augment_rotation", "181"),
    options("area zero", ["--augment_min_area", "0"], "augment_min_area"),
    options("no states kept", ["--keep_checkpoints", "0"], "`keep_checkpoints` must be at least 1"),
    options("no backbone to freeze", ["--freeze_backbone", "true", "--pretrained", "none"], "`freeze_backbone` must"),
    options("a scale beyond", ["--train_scales", "0.5", "1.5"], "`train_scales` must be two shares in (0, 1]"),
    options("negative mixup", ["--mixup", "-1"], "`mixup` must be 0 or more"),
    options("patience zero", ["--patience", "0"], "`patience` must be positive, or left out"),
    options("cache of nothing", ["--cache_size", "0"], "`cache_size` must be positive, or left out"),
    config("unknown key", "epoch: 3\n", "c.yaml", "'epoch'", "Known keys"),
    config("a key of a number", "3: 3\n", "c.yaml", "3"),
    config("text for a number", "learning_rate: fast\n", "c.yaml", "learning_rate", "'fast'"),
    config("text for a number or none", "max_gradient_norm: some\n", "c.yaml", "max_gradient_norm", "'some'"),
    config("true for a number", "weight_decay: true\n", "c.yaml", "weight_decay must be a number, got True"),
    config("a fraction for a whole number", "epochs: 1.5\n", "epochs"),
    config("a list", "- 1\n", "c.yaml", "list"),
    config("broken yaml", "a: [1\n", "c.yaml"),
    config("broken json", '{"epochs": 3', "c.json", file="c.json"),
    config("yaml that asks for code", "!!python/object/apply:os.getcwd []\n", "c.yaml", "python/object"),
    config("Latin-1", "data: é\n".encode("latin-1"), "c.yaml", "Cannot read"),
    config("NUL", "epochs: \0\n", "c.yaml", "Cannot read"),
    config("brackets 5,000 deep", "[" * 5000, "c.yaml"),
    Case("config file", "absent", lambda folder: folder / "no.yaml", parse_file, ("no.yaml",)),
]

CASES = [*SPLITS, *OTHER_DATA, *CONFIGS]
