"""The search for a recipe: trials on lesion-grouped validation images, and the table of what was tried.

python -m ham10000.training.recipes examples/configs/recipes.yaml --data DIR --output_dir runs/recipes

trains what is not trained yet, scores every trial on the validation images of its own split, never on the test images,
and writes recipes.json, recipes.md and recipes.png. A plan is YAML:

    shared: {modality: image, ...}          settings of all trials, names of `ham10000-train`
    trials:
      sqrt-sampling:
        what: Classes drawn by the square root of their size
        against: baseline                   the trial it is compared with
        settings: {sampling: sqrt, ...}     over the shared ones
        seeds: 1
        start: lesion-grouped/image-seed0   its backbone starts from a run below --study
      four-views:
        what: ...
        against: sqrt-sampling
        of: sqrt-sampling                   the same weights, used in another way:
        views: 4                            views averaged,
        image_size: [192]                   pictures of another size,
        raw: true                           the weights as trained instead of their moving average,
        average: true                       or the weights of all seeds averaged into one model
      final:
        runs: [lesion-grouped/image-seed0]  runs below --study, instead of training anew
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import yaml
from safetensors.torch import load_file

from ham10000.modeling import Ham10000Error
from ham10000.training.atomic import atomic_write_json, atomic_write_text
from ham10000.training.calibration import apply_temperature
from ham10000.training.checkpoint import save_checkpoint, training_states
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.config import TrainConfig
from ham10000.training.data import load_data
from ham10000.training.data_checks import DataReport
from ham10000.training.engine import VIEWS
from ham10000.training.environment import environment
from ham10000.training.evaluation import evaluate_checkpoint
from ham10000.training.evaluation_report import read_predictions
from ham10000.training.prediction import load_checkpoint
from ham10000.training.recipes_report import RECIPE_METRICS, RECIPES_FORMAT, plot_recipes, recipes_markdown
from ham10000.training.split import load_split
from ham10000.training.study_comparison import compare_variants
from ham10000.training.study_runs import is_trained
from ham10000.training.study_statistics import summarise_seeds
from ham10000.training.train import build_accelerator, quiet_libraries, train

_KEYS = {"what", "against", "settings", "seeds", "start", "of", "runs", "views", "image_size", "raw", "average"}
_SOURCES = ("settings", "of", "runs")


@dataclass(frozen=True)
class Trial:
    """One row of the table.

    Attributes:
        name: Its name, also that of its folders.
        what: What it tries, in words.
        against: Name of the trial it is compared with, or None.
        settings: Settings of training, over the shared ones; None for weights that are there already.
        seeds: Training seeds 0, 1, …
        start: Run of the study whose backbone the training starts from, None for the shared weights.
        of: Name of the trial whose weights it uses, or None.
        runs: Runs of the study whose weights it uses.
        views: Views of test-time augmentation.
        image_size: Size of the pictures, None for that of the checkpoint.
        raw: Whether the weights are those the optimiser ended with, not their moving average.
        average: Whether the weights of all seeds become one model.
    """

    name: str
    what: str
    against: str | None = None
    settings: dict[str, Any] | None = None
    seeds: int = 1
    start: str | None = None
    of: str | None = None
    runs: tuple[str, ...] = ()
    views: int = 1
    image_size: tuple[int, ...] | None = None
    raw: bool = False
    average: bool = False


def read_plan(path: Path) -> tuple[dict[str, Any], list[Trial]]:
    """Reads a plan and checks it as a whole, before anything is trained.

    Args:
        path: The YAML file.

    Returns:
        The shared settings, and the trials in order.

    Raises:
        Ham10000Error: For a file that is no plan, an unknown key, or a trial that refers to none above it.
    """
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        shared, entries = plan["shared"], plan["trials"].items()
    except (AttributeError, KeyError, OSError, TypeError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Ham10000Error(f"{str(path)!r} is no plan with `shared` and `trials`: {error!r}.") from error
    trials: dict[str, Trial] = {}
    for name, entry in entries:
        where = f"{path}, trial {name!r}"
        if unknown := sorted(set(entry) - _KEYS):
            raise Ham10000Error(f"{where}: unknown key(s) {unknown}; expected some of {sorted(_KEYS)}.")
        if sum(key in entry for key in _SOURCES) != 1 or "what" not in entry:
            raise Ham10000Error(f"{where} needs `what`, and one of {', '.join(_SOURCES)}.")
        for key in ("against", "of"):
            if entry.get(key) is not None and entry[key] not in trials:
                raise Ham10000Error(f"{where}: {key} {entry[key]!r} is no trial above it.")
        if entry.get("views", 1) not in VIEWS:
            raise Ham10000Error(f"{where}: views must be one of {sorted(VIEWS)}, got {entry['views']!r}.")
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()
        }
        trials[name] = Trial(name=name, **values)
        if trials[name].settings is not None:
            trial_config(shared, trials[name], 0, Path("runs"))
    return shared, list(trials.values())


def trial_config(shared: dict[str, Any], trial: Trial, seed: int, folder: Path) -> TrainConfig:
    """The configuration of one training run of a trial."""
    return TrainConfig(
        **{**shared, **(trial.settings or {})},
        seed=seed,
        output_dir=str(folder),
        trackers=["none"],
        save_every_steps=200,
        resume=bool(training_states(folder)),
        overwrite=not training_states(folder),
    )


def derive_checkpoint(
    folders: Sequence[Path], to: Path, image_size: Sequence[int] | None = None, *, raw: bool = False
) -> Path:
    """Writes a checkpoint made of others, at temperature 1: one of them used otherwise, or the mean of their weights.

    The mean of all parameters and statistics is a uniform soup (Wortsman et al., "Model soups", ICML 2022,
    arXiv:2203.05482, table 2).

    Args:
        folders: Checkpoints of one architecture and one split.
        to: The new checkpoint's folder.
        image_size: Side, or height and width; None keeps it.
        raw: Takes the weights that the optimiser ended with, from the last training state.

    Returns:
        The folder.

    Raises:
        Ham10000Error: If the splits differ, or a training state is needed that is not there.
    """
    if len({load_split(folder).sha256 for folder in folders}) != 1:
        raise Ham10000Error(f"{[str(folder) for folder in folders]} have different splits and cannot be averaged.")
    model, processor = load_checkpoint(folders[0])
    states = [_last_weights(folder) if raw else load_checkpoint(folder)[0].state_dict() for folder in folders]
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
    # A temperature belongs to the weights it was fitted for.
    model.config.temperature = 1.0
    if image_size is not None:
        processor.image_processor.size = {"height": image_size[0], "width": image_size[-1]}
    save_checkpoint(to, model, processor)
    for name in ("split.csv", "split.json"):
        shutil.copyfile(folders[0] / name, to / name)
    return to


def _last_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the model, not of its average, in a run's newest training state."""
    states = training_states(folder)
    if not states:
        raise Ham10000Error(f"{str(folder)!r} holds no training state, so the weights as trained are gone.")
    prefix = "model/"
    return {
        name.removeprefix(prefix): value for name, value in load_file(states[0]).items() if name.startswith(prefix)
    }


class Search:
    """Does the trials of a plan and reads what they found.

    Args:
        shared: The settings of all trials.
        output_dir: Folder of the trials.
        study_dir: The study that `runs` are in.
        data: Result of `load_data`.
    """

    def __init__(
        self,
        shared: dict[str, Any],
        output_dir: Path,
        study_dir: Path | None,
        data: tuple[datasets.Dataset, DataReport],
    ):
        self.shared, self.output_dir, self.study_dir, self.data = shared, output_dir, study_dir, data
        self.folders: dict[str, list[Path]] = {}
        self.found: dict[str, tuple[list[str], np.ndarray, np.ndarray, np.ndarray]] = {}

    def do(self, trial: Trial) -> dict[str, Any]:
        """Trains and scores whatever of a trial is not there yet.

        Returns:
            Its row: what was tried, metrics over seeds, the difference from its counterpart, and what it cost.
        """
        folders = self.folders[trial.name] = self._checkpoints(trial)
        self.found[trial.name] = self._predictions(trial, folders)
        ids, labels, groups, probabilities = self.found[trial.name]
        difference = None
        if trial.against is not None:
            other_ids, _, _, other = self.found[trial.against]
            if other_ids != ids:
                raise Ham10000Error(f"{trial.name} and {trial.against} were scored on different images.")
            count = min(len(probabilities), len(other))
            difference = compare_variants(
                labels,
                probabilities[:count],
                other[:count],
                groups,
                image_ids=ids,
                model=trial.name,
                other=trial.against,
                kind="recipe",
                metrics=RECIPE_METRICS,
            )["metrics"]
        return {
            "name": trial.name,
            "what": trial.what,
            "against": trial.against,
            "settings": trial.settings,
            "start": trial.start,
            "runs": list(trial.runs),
            "seeds": len(probabilities),
            "views": trial.views,
            "metrics": summarise_seeds(labels, probabilities, groups, metrics=RECIPE_METRICS),
            "differences": difference,
            "n_images": len(labels),
            "n_lesions": len(np.unique(groups)),
            "split": load_split(folders[0]).sha256,
            "cost": None if trial.settings is None else [_cost(folder) for folder in folders],
        }

    def _checkpoints(self, trial: Trial) -> list[Path]:
        if trial.settings is not None:
            return [self._train(trial, seed) for seed in range(trial.seeds)]
        if trial.runs:
            sources = [self._study_run(trial, run) for run in trial.runs]
        else:
            sources = self.folders[str(trial.of)]
        # A study's checkpoints are calibrated, and the mean over views of tempered probabilities is another one.
        is_tempered = bool(trial.runs) and trial.views > 1
        if not (trial.average or trial.raw or trial.image_size or is_tempered):
            return sources
        groups = [sources] if trial.average else [[source] for source in sources]
        made = []
        for number, group in enumerate(groups):
            to = self.output_dir / f"{trial.name}-seed{number}"
            made.append(
                to if (to / "split.json").is_file() else derive_checkpoint(group, to, trial.image_size, raw=trial.raw)
            )
        return made

    def _study_run(self, trial: Trial, run: str) -> Path:
        if self.study_dir is None:
            raise Ham10000Error(f"Trial {trial.name!r} uses runs of a study; name its folder with --study.")
        return self.study_dir / run

    def _train(self, trial: Trial, seed: int) -> Path:
        folder = self.output_dir / f"{trial.name}-seed{seed}"
        shared = dict(self.shared)
        if trial.start is not None:
            shared["pretrained"] = str(self._study_run(trial, trial.start) / "model.safetensors")
        config = trial_config(shared, trial, seed, folder)
        if config.protocol != "lesion-grouped":
            raise Ham10000Error(f"Trial {trial.name!r}: recipes are chosen on lesion-grouped validation images only.")
        if not is_trained(folder, config):
            print(f"--- {folder.name}", flush=True)
            train(config, build_accelerator(config), self.data)
        return folder

    def _predictions(
        self, trial: Trial, folders: Sequence[Path]
    ) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """Image ids, labels (N,), lesion groups (N,) and probabilities (S, N, 7) before any temperature."""
        tables, stacked = [], []
        for folder in folders:
            # Of trials and of studies alike: a study scores validation before it calibrates.
            to = folder / ("evaluation_validation" + (f"_{trial.views}_views" if trial.views > 1 else ""))
            results = _read(to / "eval_results.json")
            if results is None:
                _, results = evaluate_checkpoint(
                    folder,
                    self.data[0],
                    data=self.shared["data"],
                    part="validation",
                    output_dir=to,
                    views=trial.views,
                    n_resamples=200,
                    cache_dir=self.shared.get("cache_dir"),
                )
            table, labels, probabilities = read_predictions(to / "predictions.csv")
            order = np.argsort(table["image_id"].to_numpy(), kind="stable")
            tables.append((table.iloc[order], labels[order]))
            stacked.append(apply_temperature(probabilities, 1 / results["temperature"])[order])
        table, labels = tables[0]
        return table["image_id"].tolist(), labels, table["lesion_group"].to_numpy(), np.stack(stacked)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _cost(folder: Path) -> dict[str, Any]:
    summary = _read(folder / "train_config.json") or {}
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
        prog="python -m ham10000.training.recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plan", type=Path, help="YAML file of the trials")
    parser.add_argument("--data", required=True, help="as for ham10000-train")
    parser.add_argument("--pretrained", help="weights of the backbone, over the plan's")
    parser.add_argument("--cache_dir", help="folder of the uint8 image cache (default: ~/.cache/ham10000)")
    parser.add_argument("--study", type=Path, help="folder of the study whose runs the plan names")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--to", type=Path, help="also write recipes.json, recipes.md and recipes.png there")
    add_debug_argument(parser)
    return parser


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line: does a plan's trials and writes the table."""
    options = build_parser().parse_args(argv)
    quiet_libraries()
    shared, trials = read_plan(options.plan)
    for name in ("data", "pretrained", "cache_dir"):
        if getattr(options, name) is not None:
            shared[name] = getattr(options, name)
    search = Search(shared, options.output_dir, options.study, load_data(options.data))
    rows = [search.do(trial) for trial in trials]
    places = ("data", "pretrained", "cache_dir")
    found = {
        "format": RECIPES_FORMAT,
        "plan": options.plan.name,
        "shared": {name: value for name, value in shared.items() if name not in places},
        "pretrained": Path(shared.get("pretrained", "timm")).name,
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
