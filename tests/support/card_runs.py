"""For the tests of the cards: run folders with evaluations of random predictions, and how to read a card back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image

from ham10000.modeling import LABELS, Ham10000Config, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.evaluation.comparison import subgroup_results
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.evaluation.report import evaluate_predictions, predictions_table
from ham10000.training.utils.hardware import environment

PARSER = MarkdownIt("commonmark", {"html": True}).enable("table")
N_IMAGES = 240


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **values: Any) -> None:
    write_json(path, read_json(path) | values)


def _predictions(seed: int, prefix: str) -> dict[str, Any]:
    numbers, logits = range(N_IMAGES), np.random.default_rng(seed).normal(size=(N_IMAGES, len(LABELS)))
    labels = np.arange(N_IMAGES) % len(LABELS)
    logits[numbers, labels] += 1.5
    image_ids = [f"{prefix}_{24306 + number:07d}" for number in numbers]
    lesion_groups = [f"L_{number // 14 * 7 + number % 7:07d}" for number in numbers]
    columns = {"image_ids": image_ids, "lesion_groups": lesion_groups}
    return {**columns, "labels": labels, "probabilities": softmax(logits)}


def _metadata() -> pd.DataFrame:
    generator = np.random.default_rng(7)
    # One group, under 30, stays too small to judge.
    ages = np.where(np.arange(N_IMAGES) < 5, 20.0, generator.choice([35.0, 50.0, 70.0], N_IMAGES))
    sites = generator.choice(["back", "face", "foot"], N_IMAGES)
    columns = {"age": ages, "sex": generator.choice(["female", "male"], N_IMAGES), "localization": sites}
    return pd.DataFrame({**columns, "photographs": generator.integers(1, 4, N_IMAGES)})


def split_summary(protocol: str = "lesion-grouped", leak: float = 0.0) -> dict[str, Any]:
    train = dict(zip(LABELS, (262, 411, 879, 92, 890, 5363, 114), strict=True))
    counts = {"train": train, "validation": dict.fromkeys(LABELS, 31), "test": dict.fromkeys(LABELS, 34)}
    plan = {"protocol": protocol, "seed": 42, "folds": 10, "fold": 0, "sha256": "ab" * 32, "class_counts": counts}
    sizes = {part: sum(values.values()) for part, values in counts.items()}
    return plan | {"sizes": sizes, "leakage": {part: {"all": leak} for part in ("validation", "test")}}


def training_summary(modality: str = "fusion", **config: Any) -> dict[str, Any]:
    settings = TrainConfig(modality=modality, backbone="test_efficientnet", backbone_kwargs="{}", epochs=10, seed=3)
    best = {"epoch": 9, "validation_macro_f1": 0.70021, "validation_balanced_accuracy": 0.73}
    best |= {"validation_accuracy": 0.83, "validation_loss": 0.5567}
    outcome = {"parameters": 5879447, "finished": True, "epochs_trained": 10, "best": best, "training_seconds": 3600.0}
    outcome |= {"mixed_precision": "bf16", "processes": 1, "device": "cpu", "median_images_per_second": 39.1}
    return {
        "config": settings.to_dict() | {"data": "/home/anna/data/HAM10000", "output_dir": "/home/anna/run"} | config,
        "split": split_summary(),
        "class_weights": dict.fromkeys(LABELS, 1.25),
        "data_notes": ["/home/anna/data/HAM10000/table.csv: no column lesion_id; every image counts as a lesion"],
        "environment": environment(),
        **outcome,
    }


def write_checkpoint(folder: Path, modality: str) -> Path:
    """Config and processor, as they lie beside the weights; no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = Ham10000Config(modality=modality, backbone="test_efficientnet")
    config.save_pretrained(folder)
    create_processor(config, image_size=64).save_pretrained(folder)
    return folder


def write_run(
    folder: Path, modality: str, *, evaluated: bool = True, seed: int = 0, prefix: str = "ISIC", **config: Any
) -> Path:
    """A finished run; `config` overrides its training settings."""
    write_checkpoint(folder, modality)
    write_json(folder / "train_config.json", training_summary(modality, **config))
    write_json(folder / "history.json", [{"epoch": 1, "train_loss": 1.0}])
    (folder / "split.csv").write_text(f"image_id,lesion_id,group,dx,fold,split\n{prefix}_0024306,L,L,nv,0,train\n")
    if not evaluated:
        return folder
    columns = _predictions(seed, prefix)
    given = [columns[name] for name in ("labels", "probabilities", "lesion_groups")]
    names = pd.DataFrame({"image_id": columns["image_ids"], "lesion_id": columns["lesion_groups"]})
    table = predictions_table(names, *given)
    results = evaluate_predictions(table, n_resamples=50)
    results["subgroups"] = subgroup_results(_metadata(), *given, n_resamples=50)
    results |= {"data": "HAM10000", "split": {"name": "test", **split_summary()}, "views": 1}
    write_json(folder / "eval_results.json", results)
    table.to_csv(folder / "predictions.csv", index=False)
    (folder / "figures").mkdir()
    for name in ("confusion_matrix", "per_class", "reliability", "subgroups", "training_curves"):
        Image.new("RGB", (8, 8), "white").save(folder / "figures" / f"{name}.png")
    return folder


def tables(markdown: str) -> Iterator[list[list[str]]]:
    """Every table as a Markdown parser sees it: rows of the text of their cells."""
    rows: list[list[str]] = []
    for token in PARSER.parse(markdown):
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline" and rows:
            rows[-1].append(text_of(token))
        elif token.type == "table_close":
            yield rows
            rows = []


def text_of(token: Token) -> str:
    """What a reader sees of an inline token, with spaces for those that do not break."""
    seen = ("text", "code_inline", "text_special")
    return "".join(c.content for c in token.children or [] if c.type in seen).replace("\u00a0", " ")


def find_table(markdown: str, *titles: str) -> dict[str, list[str]]:
    """The one table whose header holds these titles, by the first cell of its rows."""
    found = [rows for rows in tables(markdown) if set(titles) <= set(rows[0])]
    assert len(found) == 1, (titles, [rows[0] for rows in tables(markdown)])
    return {row[0]: row[1:] for row in found[0][1:]}


def cell(interval: dict[str, Any]) -> str:
    """How an interval must read, written down anew."""
    return "{estimate:.3f} [{low:.3f}, {high:.3f}]".format(**interval)
