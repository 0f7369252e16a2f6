"""The search for a recipe: trials on lesion-grouped validation folds, and the table of what was tried.

python examples/benchmarks/recipes.py examples/configs/recipes.yaml --data DIR --output_dir runs/recipes

trains what is not trained yet, scores every trial on the validation images of its own folds, never on test images,
and writes recipes.json, recipes.md and recipes.png. A plan is YAML:

    folds: 5                                the data are cut into so many folds;
    use: [0, 1]                             these are set aside for testing, one a run; the next one validates
    shared: {modality: image, ...}          settings of all trials, names of `ham10000-train`
    trials:
      mixup:
        what: Mixup of 0.2
        against: plain                      the trial it is compared with
        settings: {mixup: 0.2}              over the shared ones
      eight-views:
        what: ...
        against: plain
        of: plain                           the same weights, used in another way:
        views: 4                            flipped views averaged,
        crops: 8                            training views averaged,
        image_size: [192]                   images of another size,
        raw: true                           the weights as trained instead of their moving average,
        balanced: true                      or the class with the largest ratio of probability to prior

One process a run can share a machine: `--only mixup-fold0` trains that run and ends.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from recipes_report import RECIPES_FORMAT, plot_recipes, recipes_markdown
from safetensors.torch import load_file

from ham10000.modeling import Ham10000Error
from ham10000.training.config import TrainConfig
from ham10000.training.data.augment import Augment
from ham10000.training.data.loader import EvalLoader, Samples, class_shares, open_images
from ham10000.training.data.sources import DataReport, load_data, metadata_frame
from ham10000.training.data.split import apply_split, class_weights, lesion_groups, load_split
from ham10000.training.engine import answered_prior
from ham10000.training.evaluation.bootstrap import (
    AVERAGE_PRECISION,
    bootstrap_distribution,
    cluster_weights,
    percentile_interval,
)
from ham10000.training.evaluation.calibration import fit_temperature
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.inference.prediction import VIEWS, load_checkpoint, predict_logits
from ham10000.training.run_folder import RunFile, training_states
from ham10000.training.study.runs import is_trained
from ham10000.training.train import build_accelerator, quiet_libraries, train
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import atomic_path, atomic_write_json, atomic_write_text, read_json
from ham10000.training.utils.hardware import environment

# Of the answers as the trial gives them, and of its probabilities with prior and temperature corrected.
ANSWERED = ("macro_f1", "balanced_accuracy", "accuracy")
CORRECTED = ("nll", AVERAGE_PRECISION)
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Trial:
    """One row of the table.

    Attributes:
        name: Its name, also that of its folders.
        what: What it tries.
        against: Name of the trial it is compared with, or None.
        settings: Settings of training, over the shared ones; None for weights of another trial.
        of: Name of the trial whose weights it uses, or None.
        views: Flipped views averaged.
        crops: Training views averaged, 0 for none.
        image_size: Size of the images, None for that of the checkpoint.
        raw: Whether the weights are those the optimiser ended with, not their moving average.
        balanced: Whether the answer is the class with the largest ratio of probability to prior.
    """

    name: str
    what: str
    against: str | None = None
    settings: dict[str, Any] | None = None
    of: str | None = None
    views: int = 1
    crops: int = 0
    image_size: tuple[int, ...] | None = None
    raw: bool = False
    balanced: bool = False


@dataclass(frozen=True)
class Plan:
    """A search: its folds, the settings all trials share, and the trials in order."""

    folds: int
    use: tuple[int, ...]
    shared: dict[str, Any]
    trials: tuple[Trial, ...]


_KEYS = {name for name in Trial.__dataclass_fields__ if name != "name"}


def read_plan(path: Path) -> Plan:
    """Reads a plan and checks it as a whole, before anything is trained.

    Raises:
        Ham10000Error: For a file that is not a plan, an unknown key, or a trial that refers to none above it.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        folds, use, shared, entries = plan["folds"], tuple(plan["use"]), plan["shared"], plan["trials"].items()
    except (AttributeError, KeyError, OSError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Ham10000Error(
            f"{str(path)!r} is not a plan with `folds`, `use`, `shared` and `trials`: {error!r}."
        ) from error
    trials: dict[str, Trial] = {}
    for name, entry in entries:
        where = f"{path}, trial {name!r}"
        if unknown := sorted(set(entry) - _KEYS):
            raise Ham10000Error(f"{where}: unknown key(s) {unknown}; expected some of {sorted(_KEYS)}.")
        if ("settings" in entry) == ("of" in entry) or "what" not in entry:
            raise Ham10000Error(f"{where} needs `what`, and either `settings` or `of`.")
        for key in ("against", "of"):
            if entry.get(key) is not None and entry[key] not in trials:
                raise Ham10000Error(f"{where}: {key} {entry[key]!r} is not a trial above it.")
        if entry.get("of") and trials[entry["of"]].settings is None:
            raise Ham10000Error(f"{where}: of {entry['of']!r} was not trained; name a trial with `settings`.")
        if entry.get("views", 1) not in VIEWS:
            raise Ham10000Error(f"{where}: views must be one of {sorted(VIEWS)}, got {entry['views']!r}.")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        trials[name] = Trial(name=name, **values)
        if trials[name].settings is not None:
            trial_config(Plan(folds, use, shared, ()), trials[name], use[0], Path("runs"))
    return Plan(folds, use, shared, tuple(trials.values()))


def trial_config(plan: Plan, trial: Trial, fold: int, folder: Path) -> TrainConfig:
    """The configuration of one training run of a trial."""
    return TrainConfig(
        **{**plan.shared, **(trial.settings or {})},
        protocol="lesion-grouped",
        folds=plan.folds,
        fold=fold,
        output_dir=str(folder),
        trackers=["none"],
        save_every_steps=200,
        resume=bool(training_states(folder)),
        overwrite=not training_states(folder),
    )


class Search:
    """Does the trials of a plan and reads what they found.

    Args:
        plan: The plan.
        output_dir: Folder of the runs.
        data: Result of `load_data`.
    """

    def __init__(self, plan: Plan, output_dir: Path, data: tuple[datasets.Dataset, DataReport]):
        self.plan, self.output_dir, self.data = plan, output_dir, data
        self.labels = np.zeros(0, dtype=np.int64)
        self.weights: Any = None
        self.values: dict[str, tuple[dict[str, float], dict[str, np.ndarray]]] = {}

    def train(self, trial: Trial, fold: int) -> Path:
        """Trains a run, or finds it trained; returns its folder."""
        folder = self.output_dir / f"{trial.of or trial.name}-fold{fold}"
        if trial.settings is not None:
            config = trial_config(self.plan, trial, fold, folder)
            if not is_trained(folder, config):
                print(f"--- {folder.name}", flush=True)
                train(config, build_accelerator(config), self.data)
        return folder

    def do(self, trial: Trial) -> dict[str, Any]:
        """Trains and scores whatever of a trial is not there yet.

        Returns:
            Its row: what was tried, metrics, differences from its counterpart, and what it cost.
        """
        folders = [self.train(trial, fold) for fold in self.plan.use]
        predictions = [self._predictions(trial, folder) for folder in folders]
        labels = np.concatenate([found["labels"] for found in predictions])
        if self.weights is None:
            self.labels = labels
            self.weights = cluster_weights(np.concatenate([found["groups"] for found in predictions]), N_RESAMPLES)
        priors = np.concatenate([np.tile(found["prior"], (len(found["labels"]), 1)) for found in predictions])
        natural = np.concatenate([np.tile(found["natural"], (len(found["labels"]), 1)) for found in predictions])
        logits = np.concatenate([found["logits"] for found in predictions])
        corrected = softmax(logits + np.log(natural / priors))
        temperature = fit_temperature(labels, corrected)
        answers = softmax(logits - np.log(priors)) if trial.balanced else softmax(logits)
        self.values[trial.name] = self._distribution(
            answers, softmax(np.log(np.maximum(corrected, 1e-30)) / temperature)
        )
        estimates, resampled = self.values[trial.name]
        differences = None
        if trial.against is not None:
            other, others = self.values[trial.against]
            differences = {
                name: percentile_interval(estimates[name] - other[name], resampled[name] - others[name])
                for name in estimates
            }
        return {
            "name": trial.name,
            "what": trial.what,
            "against": trial.against,
            "settings": trial.settings,
            "of": trial.of,
            "temperature": temperature,
            "metrics": {name: percentile_interval(estimates[name], resampled[name]) for name in estimates},
            "differences": differences,
            "n_images": len(labels),
            "n_lesions": int(self.weights.n_clusters),
            "splits": [load_split(folder).sha256 for folder in folders],
            "cost": None if trial.settings is None else [_cost(folder) for folder in folders],
        }

    def _distribution(self, answers: np.ndarray, corrected: np.ndarray) -> tuple[dict[str, Any], dict[str, Any]]:
        first = bootstrap_distribution(self.labels, answers, self.weights, ANSWERED)
        second = bootstrap_distribution(self.labels, corrected, self.weights, CORRECTED)
        return first[0] | second[0], first[1] | second[1]

    def _predictions(self, trial: Trial, folder: Path) -> dict[str, np.ndarray]:
        """Labels, lesion groups, logits, and the priors of one fold's validation images, predicted once."""
        # Named by all that decides the logits: under the trial's name, those of an edited trial would be stale.
        size = "x".join(map(str, trial.image_size or ["own"]))
        use = f"views{trial.views}_crops{trial.crops}_size{size}{'_raw' * trial.raw}"
        path = folder / f"validation_{use}.npz"
        if not path.is_file():
            with atomic_path(path) as temporary, Path(temporary).open("wb") as file:
                np.savez(file, **self._predict(trial, folder))
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def _predict(self, trial: Trial, folder: Path) -> dict[str, Any]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load_checkpoint(folder, device=device)
        if trial.raw:
            model.load_state_dict(_last_weights(folder))
        if trial.image_size:
            processor.image_processor.size = {"height": trial.image_size[0], "width": trial.image_size[-1]}
        split = load_split(folder)
        rows = apply_split(self.data[0], split)["validation"]
        cache_dir = self.plan.shared.get("cache_dir")
        samples = Samples.from_dataset(rows, processor)
        network: Any = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        settings = read_json(folder / RunFile.TRAINING)["config"]
        config = TrainConfig(**{name: value for name, value in settings.items() if name != "overwrite"})
        images: Any = None
        if trial.crops:
            size = processor.image_processor.size
            images = open_images(
                self.data[0],
                processor,
                device,
                train_size=(size["height"], size["width"]),
                short_side=config.cache_size,
                cache_dir=cache_dir,
            )
        else:
            images = open_images(rows, processor, device, cache_dir=cache_dir)
        if trial.crops:
            logits = _training_views(network, samples, images, processor, config, trial.crops)
        else:
            loader = EvalLoader(samples, images, processor, device, batch_size=64, channels_last=True)
            logits = predict_logits(network, loader, views=trial.views, progress=True)
        frame = metadata_frame(rows)
        counts = split.counts(config.train_parts)
        return {
            "labels": np.asarray(samples.labels),
            "groups": np.array(lesion_groups(frame["lesion_id"].tolist(), samples.image_ids)),
            "logits": logits,
            "prior": answered_prior(
                class_shares(counts, config.sampling),
                class_weights(counts, config.class_weights),
                config.logit_adjustment,
            ),
            "natural": class_shares(counts, "natural"),
        }


@torch.inference_mode()
def _training_views(
    model: Any, samples: Samples, images: Any, processor: Any, config: TrainConfig, views: int
) -> np.ndarray:
    """Log of the mean probabilities over augmented views without colour jitter, (rows, classes)."""
    augment = Augment.from_config(config, processor, color=False)
    sides = processor.image_processor.size
    rows = images.rows(samples.image_ids)
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, len(rows), 64):
        pixels = images.batch(rows[start : start + 64])
        total: Any = 0.0
        for _ in range(views):
            parameters = augment.sample(len(pixels), generator, images.aspect).to(pixels.device)
            warped = augment.apply(pixels, parameters, (sides["height"], sides["width"]))
            values = processor.image_processor.normalize_pixels(warped).contiguous(memory_format=torch.channels_last)
            total = total + model(pixel_values=values).logits.float().softmax(-1)
        parts.append((total / views).clamp_min(1e-30).log())
    return torch.cat(parts).cpu().numpy()


def _last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model, not of its average, in a run's newest training state."""
    states = training_states(folder)
    if not states:
        raise Ham10000Error(f"{str(folder)!r} has no training state, so the weights as trained are gone.")
    prefix = "model/"
    return {
        name.removeprefix(prefix): value for name, value in load_file(states[0]).items() if name.startswith(prefix)
    }


def _cost(folder: Path) -> dict[str, Any]:
    summary = read_json(folder / RunFile.TRAINING)
    facts = summary["environment"]
    return {
        "epochs": summary["epochs_trained"],
        "training_seconds": summary["training_seconds"],
        "hardware": f"{facts['cpu']['count']} cores of {facts['cpu']['model']}"
        if summary["device"] == "cpu"
        else facts["gpu"]["model"],
        "commit": (facts["git"] or {}).get("commit", "unknown")[:10],
    }


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of this command line."""
    parser = argparse.ArgumentParser(
        prog="python examples/benchmarks/recipes.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="YAML file of the trials")
    parser.add_argument("--data", required=True, help="as for ham10000-train")
    parser.add_argument("--pretrained", help="weights of the backbone, over the plan's")
    parser.add_argument("--cache_dir", help="folder of the uint8 image cache (default: ~/.cache/ham10000)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/recipes"))
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", default=[], help="train these runs and end, as plain-fold0"
    )
    parser.add_argument("--to", type=Path, help="also write recipes.json, recipes.md and recipes.png there")
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: does a plan's trials and writes the table."""
    options = build_parser().parse_args(argv)
    quiet_libraries()
    plan = read_plan(options.plan)
    for name in ("data", "pretrained", "cache_dir"):
        if getattr(options, name) is not None:
            plan.shared[name] = getattr(options, name)
    trained = [trial for trial in plan.trials if trial.settings is not None]
    runs = {f"{trial.name}-fold{fold}": (trial, fold) for trial in trained for fold in plan.use}
    if unknown := sorted(set(options.only) - set(runs)):
        raise Ham10000Error(f"--only {' '.join(unknown)}: not a run of this plan; it trains {', '.join(runs)}.")
    search = Search(plan, options.output_dir, load_data(options.data))
    if options.only:
        for name in options.only:
            search.train(*runs[name])
        return
    rows = [search.do(trial) for trial in plan.trials]
    places = ("data", "pretrained", "cache_dir")
    found = {
        "format": RECIPES_FORMAT,
        "plan": options.plan.name,
        "folds": plan.folds,
        "shared": {name: value for name, value in plan.shared.items() if name not in places},
        "pretrained": Path(plan.shared.get("pretrained", "timm")).name,
        "environment": environment(),
        "trials": rows,
    }
    for folder in [options.output_dir, *([options.to] if options.to else [])]:
        atomic_write_json(folder / "recipes.json", found)
        atomic_write_text(folder / "recipes.md", recipes_markdown(found))
        plot_recipes(found, folder / "figures" / "recipes.png")
        print(f"Saved     {folder / 'recipes.md'}, recipes.json and figures/recipes.png")


if __name__ == "__main__":
    sys.exit(main())
