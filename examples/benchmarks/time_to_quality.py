"""Wall time until a model is as good as the published baseline's pipeline makes it, on one machine and one split.

python examples/benchmarks/time_to_quality.py baseline --data HAM10000/ --pretrained WEIGHTS --work runs/quality
python examples/benchmarks/time_to_quality.py ours --data HAM10000/ --pretrained WEIGHTS --work runs/quality
python examples/benchmarks/time_to_quality.py report --work runs/quality --output examples/results/time_to_quality.json

The bars are set by the baseline alone: the lowest validation loss and the highest validation macro-F1 of its epochs,
which need not be those of one epoch. Both sides start from the same ImageNet weights, train on the same images, are
validated after every epoch on the same photographs, and are scored once on the test split. Only training counts as
time, and for ours the cache is told apart; validation and imports count on neither side. The measure is that of MLPerf
Training (Mattson et al. 2020, arXiv:1910.01500): time to a quality, not images a second.

Interrupted, either side goes on after its last finished epoch when the same command is given again.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import timm
import torch
from accelerate.utils import set_seed
from benchmark_baseline import Photographs
from safetensors.torch import load_file
from sklearn.metrics import f1_score, log_loss
from torch import nn
from torch.utils.data import DataLoader

from ham10000.modeling import LABELS, Ham10000Error, create_processor
from ham10000.training.config import TrainConfig, read_config_file
from ham10000.training.data.loader import open_images
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import apply_split, make_split
from ham10000.training.evaluation.bootstrap import bootstrap_distribution, cluster_weights, percentile_interval
from ham10000.training.evaluation.evaluator import evaluate_checkpoint
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.inference.prediction import choose_device
from ham10000.training.run_folder import load_training_state, save_training_state
from ham10000.training.train import build_accelerator, train
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.figures import GREY, OKABE_ITO, new_figure, save_figure, style_axes
from ham10000.training.utils.files import JsonObject, atomic_write_json, read_json
from ham10000.training.utils.hardware import environment

IMAGE_SIZE = 224
BATCH_SIZE = 32
LEARNING_RATE = 1e-4


def _scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Both measures of quality, by scikit-learn for both sides."""
    probabilities = probabilities.astype(np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # float32 sums are not 1 to the last bit
    return {
        "validation_loss": float(log_loss(labels, probabilities, labels=range(len(LABELS)))),
        "validation_macro_f1": float(f1_score(labels, probabilities.argmax(axis=1), average="macro")),
    }


def _files(rows: datasets.Dataset) -> list[Path]:
    """The photographs' files."""
    return [Path(image["path"]) for image in rows.cast_column("image", datasets.Image(decode=False))["image"]]


@torch.no_grad()
def _predict(model: nn.Module, photographs: Photographs) -> np.ndarray:
    """Probabilities (images, classes), in order."""
    device = next(model.parameters()).device
    loader = DataLoader(photographs, batch_size=64, num_workers=os.cpu_count() or 1)
    return torch.cat([model(images.to(device)).softmax(1).cpu() for images, _ in loader]).numpy()


def run_baseline(options: argparse.Namespace) -> None:
    """Trains the baseline's recipe as its card has it: PIL and torchvision image by image, DataLoader, fp32."""
    device, workers = choose_device("auto"), os.cpu_count() or 1
    folder = options.work / "baseline"
    folder.mkdir(parents=True, exist_ok=True)
    dataset, _ = load_data(options.data)
    split = make_split(dataset, protocol="lesion-grouped", seed=options.split_seed)
    parts = apply_split(dataset, split)
    files = {part: _files(rows) for part, rows in parts.items()}
    labels = {part: np.array(rows["dx"]) for part, rows in parts.items()}
    history = read_json(folder / "history.json", list, optional=True) or []
    facts = {"split_sha256": split.sha256, "backbone": options.backbone, "environment": environment()}
    if history:
        facts = read_json(folder / "facts.json")
    atomic_write_json(folder / "facts.json", facts | {"epochs": options.epochs})
    if len(history) >= options.epochs:
        print(f"{folder} is finished; delete it to measure again.")
        return
    set_seed(0)
    model = timm.create_model(options.backbone, num_classes=len(LABELS))
    weights = load_file(options.pretrained)
    model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("classifier.")}, strict=False)
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0)
    if history:
        history = load_training_state(folder, {"model": model}, optimizer, {})["history"]
    counts = np.bincount(labels["train"], minlength=len(LABELS))
    weight = torch.tensor(counts.sum() / (len(LABELS) * counts), dtype=torch.float32, device=device)
    loss = nn.CrossEntropyLoss(weight=weight)
    for epoch in range(len(history), options.epochs):
        loader = DataLoader(
            Photographs(files["train"], labels["train"].tolist(), IMAGE_SIZE),
            batch_size=BATCH_SIZE,
            shuffle=True,
            generator=torch.Generator().manual_seed(epoch),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            drop_last=True,
        )
        start = time.perf_counter()
        for images, target in loader:
            optimizer.zero_grad()
            loss(model(images.to(device, non_blocking=True)), target.to(device, non_blocking=True)).backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        probabilities = {
            part: _predict(model.eval(), Photographs(files[part], labels[part].tolist(), IMAGE_SIZE, augmented=False))
            for part in ("validation", "test")
        }
        model.train()
        history.append(
            {"epoch": epoch + 1, "seconds": seconds, **_scores(labels["validation"], probabilities["validation"])}
        )
        np.savez(folder / f"epoch{epoch + 1}.npz", test=probabilities["test"], image_ids=parts["test"]["image_id"])
        save_training_state(folder, {"history": history}, {"model": model}, optimizer, step=epoch + 1)
        atomic_write_json(folder / "history.json", history)
        print(json.dumps(history[-1]), flush=True)


def run_ours(options: argparse.Namespace) -> None:
    """Trains our recipe as `ham10000-train` does, once for each seed, from a cache that is built and timed first."""
    dataset, _ = load_data(options.data)
    settings = read_config_file(options.config) | {"backbone": options.backbone, "pretrained": options.pretrained}
    for seed in options.seeds:
        folder = options.work / f"ours-seed{seed}"
        config = TrainConfig(
            **settings
            | {
                "data": options.data,
                "modality": "image",
                "protocol": "lesion-grouped",
                "split_seed": options.split_seed,
                "seed": seed,
                "output_dir": str(folder),
                "cache_dir": str(options.work / "cache"),
                "trackers": ["none"],
                "resume": (folder / "train_config.json").is_file(),
            }
        )
        accelerator = build_accelerator(config)
        atomic_write_json(options.work / "ours.json", {"config": options.config, "environment": environment()})
        cache_facts = options.work / "cache.json"
        if not cache_facts.is_file():
            processor = create_processor(config.model_config(), image_size=config.size, resizer=config.resizer)
            start = time.perf_counter()
            open_images(
                dataset,
                processor,
                accelerator.device,
                train_size=config.largest_train_size,
                short_side=config.cache_size,
                cache_dir=config.cache_dir,
                progress=True,
            )
            atomic_write_json(cache_facts, {"seconds": time.perf_counter() - start, "n_images": len(dataset)})
        if not (read_json(folder / "train_config.json", optional=True) or {}).get("finished"):
            train(config, accelerator)
        if not (folder / "predictions.csv").is_file():
            options_of_score = {"device": accelerator.device, "cache_dir": config.cache_dir, "n_resamples": 2}
            evaluate_checkpoint(folder, dataset, data=options.data, **options_of_score)


def _time_to(history: list[dict], bar: dict[str, float]) -> dict[str, float | int | None]:
    """Training seconds until an epoch is at least as good as the bar, by each measure; None where none is."""
    found: dict[str, float | int | None] = {}
    total = 0.0
    for row in history:
        total += row["seconds"]
        if row["validation_loss"] <= bar["validation_loss"]:
            found.setdefault("by_loss", total)
        if row["validation_macro_f1"] >= bar["validation_macro_f1"]:
            found.setdefault("by_macro_f1", total)
    return {"by_loss": None, "by_macro_f1": None} | found | {"total": total, "epochs": len(history)}


def report(options: argparse.Namespace) -> None:
    """Sets the bar, reads both sides' times to it, and the difference on the test split.

    Raises:
        Ham10000Error: If a side is not finished.
    """
    baseline, ours = options.work / "baseline", sorted(options.work.glob("ours-seed*"))
    if not ours or not all(
        path.is_file() for path in [baseline / "facts.json", *(f / "predictions.csv" for f in ours)]
    ):
        raise Ham10000Error(f"{options.work}: finish `baseline` and `ours` first.")
    history, facts = read_json(baseline / "history.json", list), read_json(baseline / "facts.json")
    if len(history) < facts["epochs"]:
        raise Ham10000Error(f"{baseline} has {len(history)} of {facts['epochs']} epochs: finish `baseline` first.")
    best = {
        "by_loss": min(history, key=lambda row: row["validation_loss"]),
        "by_macro_f1": max(history, key=lambda row: row["validation_macro_f1"]),
    }
    bar = {
        "validation_loss": best["by_loss"]["validation_loss"],
        "validation_macro_f1": best["by_macro_f1"]["validation_macro_f1"],
    }
    cache, sides = read_json(options.work / "cache.json")["seconds"], read_json(options.work / "ours.json")
    theirs = _time_to(history, bar)
    their_test = {}
    for measure, row in best.items():
        with np.load(baseline / f"epoch{row['epoch']}.npz") as arrays:
            their_test[measure] = arrays["test"][np.argsort(arrays["image_ids"])]
    seeds = {}
    for folder in ours:
        rows = read_json(folder / "history.json", list)
        table, labels, probabilities = read_predictions(folder / "predictions.csv")
        order = np.argsort(table["image_id"].to_numpy())
        weights = cluster_weights(table["lesion_group"].to_numpy()[order], 2000, 0)
        (mine, mine_values), *others = (
            bootstrap_distribution(labels[order], side, weights, ["macro_f1"])
            for side in (probabilities[order], *their_test.values())
        )
        seeds[folder.name] = {
            "times": _time_to(rows, bar),
            "test_macro_f1": mine["macro_f1"],
            "differences": {
                measure: percentile_interval(
                    mine["macro_f1"] - other["macro_f1"], mine_values["macro_f1"] - values["macro_f1"]
                )
                for measure, (other, values) in zip(best, others, strict=True)
            },
            "history": [{name: row[name] for name in history[0]} for row in rows],
        }
    ratios = {
        measure: {
            "without_cache": _ratio(theirs[measure], [row["times"][measure] for row in seeds.values()], 0.0),
            "with_cache": _ratio(theirs[measure], [row["times"][measure] for row in seeds.values()], cache),
        }
        for measure in ("by_loss", "by_macro_f1")
    }
    found = {
        "bar": bar,
        "baseline": {
            "times": theirs,
            "best_epochs": {measure: row["epoch"] for measure, row in best.items()},
            "test_macro_f1": {measure: other["macro_f1"] for measure, (other, _) in zip(best, others, strict=True)},
            "history": history,
        },
        "ours": seeds,
        "cache_seconds": cache,
        "ratio_of_seconds": ratios,
        "facts": facts,
        "config": sides["config"],
        "ours_environment": sides["environment"],
    }
    print(json.dumps({name: found[name] for name in ("bar", "ratio_of_seconds")}, indent=1))
    if options.output:
        atomic_write_json(options.output, found)
        plot_quality(found, options.output.with_suffix(".png"))


def plot_quality(found: JsonObject, path: Path) -> None:
    """Both sides' validation loss and macro-F1 over minutes of training, with the bar, as a PNG.

    Args:
        found: What `report` writes.
        path: The file.
    """
    figure = new_figure(11, 4.2)
    panels = figure.subplots(1, 2)
    sides = [("the baseline's pipeline", found["baseline"], "vermilion", "o")]
    sides += [("ours, a line for each seed", ours, "blue", "s") for ours in found["ours"].values()]
    for axes, measure, short in zip(
        panels, ("validation_loss", "validation_macro_f1"), ("loss", "macro_f1"), strict=True
    ):
        for number, (name, side, colour, marker) in enumerate(sides):
            minutes = np.cumsum([row["seconds"] for row in side["history"]]) / 60
            values = [row[measure] for row in side["history"]]
            label = name if number < 2 else None
            axes.plot(minutes, values, marker=marker, color=OKABE_ITO[colour], label=label, markersize=4)
        axes.axhline(found["bar"][measure], color=GREY, linestyle="--", linewidth=1, label="the bar")
        ratio, title = found["ratio_of_seconds"][f"by_{short}"]["without_cache"], short.replace("macro_f1", "macro-F1")
        shown = "not reached by every seed" if ratio is None else f"reached {ratio:.1f} times as fast"
        xlabel, ylabel = "Minutes of training", f"Validation {title}"
        style_axes(axes, title=f"{title[0].upper()}{title[1:]}: {shown}", xlabel=xlabel, ylabel=ylabel)
        axes.set_xlim(left=0)
    panels[1].legend(frameon=False, loc="lower right")
    save_figure(figure, path)


def _ratio(theirs: float, ours: list[float | None], cache: float) -> float | None:
    """Their seconds over the median of ours; None where a seed of ours never reached the bar."""
    reached = [seconds + cache for seconds in ours if seconds is not None]
    return theirs / statistics.median(reached) if len(reached) == len(ours) else None


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: `baseline`, `ours` or `report`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("baseline", "ours", "report"):
        command = commands.add_parser(name)
        command.add_argument("--work", type=Path, required=True, help="folder of both sides' runs")
        add_debug_argument(command)
        if name == "report":
            command.add_argument("--output", type=Path, help="JSON file to write")
            continue
        command.add_argument("--data", required=True)
        command.add_argument("--pretrained", required=True, help="ImageNet weights of the backbone, safetensors")
        command.add_argument("--backbone", default="tf_efficientnetv2_b0")
        command.add_argument("--split_seed", type=int, default=42)
    commands.choices["baseline"].add_argument("--epochs", type=int, default=10)
    commands.choices["ours"].add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    commands.choices["ours"].add_argument("--config", default="examples/configs/recipe_fast.yaml")
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    {"baseline": run_baseline, "ours": run_ours, "report": report}[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
