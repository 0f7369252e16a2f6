"""From the runs of a study on disk to `study.json`: every number of the report, computed once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error
from ham10000.training.data.sources import metadata_frame
from ham10000.training.data.split import Split, load_split, photographs_per_lesion
from ham10000.training.evaluation.report import CONFIDENCE, read_predictions
from ham10000.training.evaluation.subgroups import subgroup_results
from ham10000.training.run_folder import RunFile
from ham10000.training.study.comparison import adjust_comparisons, class_changes, compare_variants, moved_images
from ham10000.training.study.forbidden_columns import ProbePart, forbidden_columns_probe
from ham10000.training.study.predictions import Predictions, read_variant
from ham10000.training.study.runs import TTA_FOLDER, StudyRun, read_perturbed
from ham10000.training.study.seeds import STUDY_METRICS, leakage_scores, summarise_seeds
from ham10000.training.study.shortcut_results import shortcut_results
from ham10000.training.utils.files import read_json

# Metrics of the probabilities that a temperature changes; reported before and after.
_CALIBRATION_METRICS = ("ece", "nll")
_PER_CLASS = ("recall", "f1")


class StudyAnalysis:
    """Reads the finished runs of one protocol and computes its part of `study.json`.

    Args:
        study_dir: The study's folder.
        runs: The protocol's runs, all of them finished.
        dataset: The whole source.
        views: Views of the evaluation with test-time augmentation, 1 if there is none.
        n_resamples: Bootstrap resamples.

    Raises:
        Ham10000Error: If runs of one protocol did not score the same images.
    """

    def __init__(
        self, study_dir: Path, runs: Sequence[StudyRun], dataset: datasets.Dataset, *, views: int, n_resamples: int
    ):
        self.study_dir, self.runs, self.views = study_dir, list(runs), views
        self.frame = metadata_frame(dataset).set_index("image_id", drop=False)
        self.frame["photographs"] = photographs_per_lesion(dataset, self.frame)
        self.bootstrap: dict[str, Any] = {"n_resamples": n_resamples, "confidence": CONFIDENCE, "seed": 0}
        self.variants = list(dict.fromkeys(run.variant for run in runs))
        self.seeds = sorted({run.seed for run in runs})
        self.predictions = {variant: self._read(variant) for variant in self.variants}
        self.augmented = {variant: self._read(variant, TTA_FOLDER) for variant in self._augmentable()}
        first = self.predictions[self.variants[0]].table["image_id"]
        for variant, predictions in {**self.predictions, **self.augmented}.items():
            if not predictions.table["image_id"].equals(first):
                raise Ham10000Error(
                    f"{variant} and {self.variants[0]} of {runs[0].protocol} scored different images: their runs "
                    "have different splits. Delete the runs that do not belong to this study."
                )

    def results(self) -> dict[str, Any]:
        """The protocol's entry in `study.json`; see the keys of the returned dict."""
        some = self.predictions[self.variants[0]]
        comparisons = adjust_comparisons(self._comparisons())
        fusions = [variant for variant in self.variants if variant.startswith("fusion-")]
        pairs = fusions if "image" in self.variants else []
        split = self._split(self.runs[0])
        return {
            "split": {key: value for key, value in split.summary().items() if key != "dropped"},
            "evaluated": {
                "n_images": len(some.labels),
                "n_lesions": len(np.unique(some.groups)),
                "class_counts": {label: int((some.labels == k).sum()) for k, label in enumerate(LABELS)},
                "class_lesions": {
                    label: len(np.unique(some.groups[some.labels == k])) for k, label in enumerate(LABELS)
                },
            },
            "variants": {variant: self._variant(variant) for variant in self.variants},
            "comparisons": comparisons,
            "class_changes": {variant: self._changes(variant) for variant in pairs},
            "moved": {variant: self._moved(variant) for variant in pairs},
            "forbidden": self._forbidden(),
        }

    def _of(self, variant: str, seed: int) -> list[StudyRun]:
        return [run for run in self.runs if run.variant == variant and run.seed == seed]

    def _split(self, run: StudyRun) -> Split:
        return load_split(self.study_dir / run.name)

    def _augmentable(self) -> list[str]:
        return [variant for variant in self.variants if variant != "metadata"] if self.views > 1 else []

    def _read(self, variant: str, folder: str = "") -> Predictions:
        return read_variant(self.study_dir, [self._of(variant, seed) for seed in self.seeds], folder)

    def _variant(self, variant: str) -> dict[str, Any]:
        predictions = self.predictions[variant]
        labels, groups = predictions.labels, predictions.groups
        per_class = [f"{name}:{label}" for label in LABELS for name in _PER_CLASS]
        metrics = summarise_seeds(
            labels, predictions.probabilities, groups, metrics=[*STUDY_METRICS, *per_class], **self.bootstrap
        )
        before = summarise_seeds(
            labels, predictions.uncalibrated, groups, metrics=_CALIBRATION_METRICS, **self.bootstrap
        )
        return {
            "metrics": {name: metrics[name] for name in STUDY_METRICS}
            | {f"{name}_uncalibrated": before[name] for name in _CALIBRATION_METRICS},
            "per_class": {label: {name: metrics[f"{name}:{label}"] for name in _PER_CLASS} for label in LABELS},
            "temperatures": predictions.temperatures,
            "subgroups": self._subgroups(predictions),
            "confusion_matrix": self._confusion(predictions),
            "leakage": self._leakage(predictions),
            "cost": self._cost(variant),
            "tta": self._tta(variant),
            "shortcuts": None if variant == "image" else self._shortcuts(variant),
        }

    def _subgroups(self, predictions: Predictions) -> dict[str, Any]:
        """Over all seeds at once: a rate over the stacked seeds is the mean of their rates."""
        seeds = len(self.seeds)
        rows = self.frame.loc[predictions.table["image_id"]].reset_index(drop=True)
        results = subgroup_results(
            pd.concat([rows] * seeds, ignore_index=True),
            np.tile(predictions.labels, seeds),
            predictions.probabilities.reshape(-1, len(LABELS)),
            np.tile(predictions.groups, seeds),
            **self.bootstrap,
        )
        for groups in results["fields"].values():
            for group in groups:
                group["n_images"] //= seeds
                group["n_malignant"] //= seeds
        return results

    def _confusion(self, predictions: Predictions) -> list[list[float]]:
        matrix = np.zeros((len(LABELS), len(LABELS)))
        for probabilities in predictions.probabilities:
            np.add.at(matrix, (predictions.labels, probabilities.argmax(axis=1)), 1 / len(self.seeds))
        return [[round(float(value), 4) for value in row] for row in matrix]

    def _leakage(self, predictions: Predictions) -> dict[str, Any] | None:
        """Test images by whether training showed another photograph of their lesion."""
        seen: dict[str, bool] = {}
        for run in self._of(self.variants[0], self.seeds[0]):
            table = self._split(run).table
            in_train = set(table.loc[table["split"] == "train", "group"])
            test = table[table["split"] == "test"]
            seen |= dict(zip(test["image_id"], test["group"].isin(in_train), strict=True))
        flags = np.array([seen[image_id] for image_id in predictions.table["image_id"]])
        if not flags.any():
            return None
        return leakage_scores(
            predictions.labels, predictions.probabilities, flags, predictions.groups, **self.bootstrap
        )

    def _cost(self, variant: str) -> dict[str, Any]:
        summaries = [
            read_json(self.study_dir / run.name / RunFile.TRAINING) for run in self.runs if run.variant == variant
        ]
        facts = [summary["environment"] for summary in summaries]
        gpu, cpu = facts[0]["gpu"], facts[0]["cpu"]
        cuda = [fact["peak_cuda_mib"] for fact in facts]
        return {
            "training_seconds": [summary["training_seconds"] for summary in summaries],
            "images_per_second": [summary["median_images_per_second"] for summary in summaries],
            "parameters": summaries[0]["parameters"],
            "peak_rss_mib": [fact["peak_rss_mib"] for fact in facts],
            "peak_cuda_mib": None if None in cuda else cuda,
            "hardware": gpu["model"] if gpu else f"{cpu['count']} cores of {cpu['model']}",
            "best_epoch": [summary["best"]["epoch"] for summary in summaries],
            "epochs": [summary["epochs_trained"] for summary in summaries],
            "commits": sorted({(fact["git"] or {}).get("commit", "unknown")[:10] for fact in facts}),
        }

    def _tta(self, variant: str) -> dict[str, Any] | None:
        if variant not in self.augmented:
            return None
        predictions = self.augmented[variant]
        metrics = summarise_seeds(predictions.labels, predictions.probabilities, predictions.groups, **self.bootstrap)
        return {"metrics": metrics, "views": self.views}

    def _shortcuts(self, variant: str) -> dict[str, Any]:
        predictions = self.predictions[variant]
        of_seeds = []
        for seed in self.seeds:
            parts = [read_perturbed(self.study_dir / run.name / RunFile.SHORTCUTS) for run in self._of(variant, seed)]
            image_ids = np.concatenate([part.pop("image_id") for part in parts])
            if set(image_ids) != set(predictions.table["image_id"]):
                raise Ham10000Error(
                    f"shortcuts.npz of {variant}, seed {seed}, is of other images than its predictions; delete it."
                )
            order = np.argsort(image_ids, kind="stable")
            for part in parts:
                del part["temperature"]
            of_seeds.append(
                {name: np.concatenate([part[name] for part in parts], -2)[..., order, :] for name in parts[0]}
            )
        sites = list(Ham10000Config().localization_vocabulary)
        return shortcut_results(predictions.labels, of_seeds, predictions.groups, sites=sites, **self.bootstrap)

    def _comparisons(self) -> list[dict[str, Any]]:
        """Fusion against image, fusions against the first, and test-time augmentation against none."""
        fusions = [variant for variant in self.variants if variant.startswith("fusion-")]
        pairs = (
            [(self.predictions[name], self.predictions["image"], name, "image", "metadata") for name in fusions]
            if ("image" in self.variants)
            else []
        )
        pairs += [
            (self.predictions[name], self.predictions[fusions[0]], name, fusions[0], "fusion") for name in fusions[1:]
        ]
        pairs += [
            (self.augmented[name], self.predictions[name], f"{name}, {self.views} views", name, "tta")
            for name in self.augmented
        ]
        return [
            compare_variants(
                ours.labels,
                ours.probabilities,
                other.probabilities,
                ours.groups,
                image_ids=ours.table["image_id"].to_numpy(),
                model=model,
                other=other_name,
                kind=kind,
                **self.bootstrap,
            )
            for ours, other, model, other_name, kind in pairs
        ]

    def _changes(self, variant: str) -> dict[str, Any]:
        ours, image = self.predictions[variant], self.predictions["image"]
        return class_changes(ours.labels, ours.probabilities, image.probabilities, ours.groups)

    def _moved(self, variant: str) -> list[dict[str, str]]:
        ours, image = self.predictions[variant], self.predictions["image"]
        table = ours.table
        return moved_images(
            table["image_id"].tolist(),
            table["lesion_id"].tolist(),
            ours.labels,
            ours.probabilities,
            image.probabilities,
        )

    def _forbidden(self) -> dict[str, Any]:
        """With the image model of the first seed where there is one."""
        variant = "image" if "image" in self.variants else self.variants[0]
        parts = []
        for run in self._of(variant, self.seeds[0]):
            table, directory = self._split(run).table, self.study_dir / run.name
            frames = {
                part: self.frame.loc[table.loc[table["split"] == part, "image_id"]]
                for part in ("train", "validation", "test")
            }
            images: list[np.ndarray | None] = [None, None]
            if variant == "image":
                for place, (part, folder) in enumerate((("validation", "evaluation_validation"), ("test", ""))):
                    predicted, _, probabilities = read_predictions(directory / folder / RunFile.PREDICTIONS)
                    position = pd.Series(np.arange(len(predicted)), index=predicted["image_id"])
                    images[place] = probabilities[position.loc[frames[part]["image_id"]].to_numpy()]
            parts.append(ProbePart(frames["train"], frames["validation"], frames["test"], *images))
        return forbidden_columns_probe(parts, **self.bootstrap)


__all__ = ["StudyAnalysis"]
