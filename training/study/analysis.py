"""From predictions and metadata to study.json: every number of the report, computed once."""

from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np
import pandas as pd
import torch
from scipy.stats import mode
from sklearn.metrics import confusion_matrix

from ham10000.modeling import Ham10000Config
from ham10000.training.evaluation.bootstrap import Bootstrap, Estimate, Sample, mean_sample
from ham10000.training.evaluation.comparison import (
    bootstrap_p_value,
    holm,
    mcnemar_mid_p,
    smallest_detectable,
    subgroup_results,
)
from ham10000.training.evaluation.metrics import ece_floor, softmax
from ham10000.training.study.config import STUDY_RULES, StudyConfig
from ham10000.training.study.crossfit import CrossFitted, cross_conformal
from ham10000.training.study.predictions import Predictions
from ham10000.training.study.shortcuts import ALPHA, Baseline, Shortcuts, baseline_rows, shortcut_results
from ham10000.training.utils.files import JsonObject

ANSWER_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", "weighted_f1")
PROBABILITY_METRICS = ("auroc_macro", "melanoma_sensitivity_at_95_specificity", "ece", "nll")
METRICS = ANSWER_METRICS + PROBABILITY_METRICS
_PER_CLASS = ("recall", "f1")


class SetResult(TypedDict):
    """Prediction sets of one coverage: measured coverage in every class, mean size, and shares of sizes 0 and 1."""

    coverage: float
    per_class: dict[str, Estimate]
    size: Estimate
    empty: float
    single: float


class VariantResult(TypedDict):
    """One variant under one protocol; `metrics` by the study's rule, calibrated."""

    metrics: dict[str, Estimate]
    uncalibrated: dict[str, Estimate]
    ece_floor: float
    rules: dict[str, dict[str, Estimate]]
    per_class: dict[str, dict[str, Estimate]]
    confusion: list[list[float]]
    calibration: list[JsonObject]
    sets: list[SetResult]
    subgroups: JsonObject
    shortcuts: Shortcuts | None


class Difference(TypedDict):
    """A metric's difference: its estimate, p-value, and the smallest one that would have been found."""

    estimate: Estimate
    p: float | None
    smallest_detectable: float | None


class Opposed(TypedDict):
    """Two models' answers: McNemar's mid-p test, changes by class, and the images that they call differently."""

    mcnemar: dict[str, float]
    changes: dict[str, dict[str, int]]
    moved: list[dict[str, str]]  # of the first comparison only


class Comparison(Opposed):
    """One variant minus another; `p_holm` and `verdict` are those of the primary metric within the family."""

    model: str
    other: str
    metrics: dict[str, Difference]
    p_holm: float
    smallest_detectable: float
    verdict: str


class ProtocolResult(TypedDict):
    """One protocol of study.json."""

    seeds: list[int]
    folds: int
    n_images: int
    n_lesions: int
    class_counts: dict[str, int]
    class_lesions: dict[str, int]
    variants: dict[str, VariantResult]
    comparisons: list[Comparison]
    baselines: list[Baseline]
    forbidden: list[Baseline]
    leakage: JsonObject | None


class Inputs(NamedTuple):
    """What every part of the analysis reads."""

    frame: pd.DataFrame  # metadata of the images, in the order of the predictions, as `matching_rows`
    metadata: torch.Tensor  # (N, fields) the same as the heads read them
    study: StudyConfig
    model: Ham10000Config  # metadata schema of the heads, and the malignant classes


def analyse_protocol(variants: dict[str, CrossFitted], inputs: Inputs) -> ProtocolResult:
    """One protocol's part of study.json, from its variants, `image` among them, of the same images."""
    image = variants["image"].predictions
    n_folds = len(np.unique(image.folds))
    members = {name: image.labels == k for k, name in enumerate(image.classes)}
    bootstrap = Bootstrap(image.labels, image.groups, len(image.seeds), inputs.study.n_resamples)
    samples = {name: _samples(fitted, bootstrap, inputs.study.rule) for name, fitted in variants.items()}
    baselines, forbidden = baseline_rows(image, inputs.frame, bootstrap) if n_folds > 1 else ([], [])
    return {
        "seeds": list(image.seeds),
        "folds": n_folds,
        "n_images": len(image.labels),
        "n_lesions": len(np.unique(image.groups)),
        "class_counts": {name: int(rows.sum()) for name, rows in members.items()},
        "class_lesions": {name: len(np.unique(image.groups[rows])) for name, rows in members.items()},
        "variants": {name: _variant(name, one, samples[name], inputs, bootstrap) for name, one in variants.items()},
        "comparisons": _compare(variants, samples, bootstrap, inputs.study),
        "baselines": baselines,
        "forbidden": forbidden,
        "leakage": _leakage(variants["image"], inputs),
    }


def _samples(fitted: CrossFitted, bootstrap: Bootstrap, rule: str) -> dict[str, Sample]:
    """Every metric of a variant, those of single classes too."""
    per_class = [f"{name}:{label}" for label in fitted.predictions.classes for name in _PER_CLASS]
    answers = bootstrap.scores(fitted.answers(rule), [*ANSWER_METRICS, *per_class])
    return answers | bootstrap.scores(fitted.probabilities(), PROBABILITY_METRICS)


def _summaries(samples: Mapping[str, Sample]) -> dict[str, Estimate]:
    return {name: sample.summary() for name, sample in samples.items()}


def _variant(
    name: str, fitted: CrossFitted, samples: Mapping[str, Sample], inputs: Inputs, bootstrap: Bootstrap
) -> VariantResult:
    predictions, study, classes = fitted.predictions, inputs.study, fitted.predictions.classes
    ids, answers = range(len(classes)), fitted.answers(study.rule)
    confusion = np.mean([confusion_matrix(predictions.labels, of_seed, labels=ids) for of_seed in answers], axis=0)
    return {
        "metrics": _summaries({metric: samples[metric] for metric in METRICS}),
        "uncalibrated": _summaries(bootstrap.scores(softmax(predictions.logits), ("ece", "nll"))),
        "ece_floor": float(np.mean([ece_floor(of_seed) for of_seed in fitted.probabilities()])),
        "rules": {
            rule: _summaries(bootstrap.scores(fitted.answers(rule), ANSWER_METRICS[:3])) for rule in STUDY_RULES
        },
        "per_class": {label: _summaries({n: samples[f"{n}:{label}"] for n in _PER_CLASS}) for label in classes},
        "confusion": confusion.round(4).tolist(),
        "calibration": [
            {"seed": seed, "temperatures": temperatures.tolist(), "biases": biases.tolist()}
            for seed, temperatures, biases in zip(predictions.seeds, fitted.temperatures, fitted.biases, strict=True)
        ],
        "sets": [_sets(fitted, coverage, bootstrap) for coverage in study.coverages],
        "subgroups": _subgroups(fitted, inputs),
        "shortcuts": shortcut_results(fitted, inputs.metadata, inputs.model, bootstrap, study.rule)
        if name in ("fusion", "metadata")
        else None,
    }


def _sets(fitted: CrossFitted, coverage: float, bootstrap: Bootstrap) -> SetResult:
    sets, predictions = cross_conformal(fitted, coverage), fitted.predictions
    sizes = sets.sum(axis=-1)
    hit = sets[:, np.arange(len(predictions.labels)), predictions.labels].mean(axis=0)
    # A mean over one class's images is the ratio of two means over all of them.
    members = predictions.labels == np.arange(len(predictions.classes))[:, None]  # (K, N)
    means = (bootstrap.means(values) for values in (hit * members, members.astype(float)))
    return {
        "coverage": coverage,
        "per_class": _summaries({name: hits / n for name, hits, n in zip(predictions.classes, *means, strict=True)}),
        "size": bootstrap.means(sizes.mean(axis=0)[None])[0].summary(),
        "empty": float((sizes == 0).mean()),
        "single": float((sizes == 1).mean()),
    }


def _subgroups(fitted: CrossFitted, inputs: Inputs) -> JsonObject:
    """Over all seeds at once: a rate over the stacked seeds is the mean of their rates."""
    predictions, seeds = fitted.predictions, len(fitted.predictions.seeds)
    answers = fitted.answers(inputs.study.rule).reshape(-1)
    results = subgroup_results(
        pd.concat([inputs.frame] * seeds, ignore_index=True),
        np.tile(predictions.labels, seeds),
        np.eye(len(predictions.classes))[answers],
        np.tile(predictions.groups, seeds),
        n_resamples=inputs.study.n_resamples,
    )
    for group in (group for groups in results["fields"].values() for group in groups):
        group["n_images"] //= seeds
        group["n_malignant"] //= seeds
    return results


def _compare(
    variants: dict[str, CrossFitted], samples: dict[str, dict[str, Sample]], bootstrap: Bootstrap, config: StudyConfig
) -> list[Comparison]:
    """The family of comparisons; `p_holm` and `verdict` are those of the primary metric within the family."""
    family = [pair for pair in config.comparisons if set(pair) <= set(variants)]
    metrics = [
        {name: _difference(samples[model][name] - samples[other][name]) for name in METRICS} for model, other in family
    ]
    corrected = holm([found[config.primary]["p"] or 1.0 for found in metrics])
    rows: list[Comparison] = []
    for (model, other), found, p in zip(family, metrics, corrected, strict=True):
        predictions = variants[model].predictions
        # One answer per image: that of most seeds, and of those with equal votes the first class.
        ours, theirs = (mode(variants[name].answers(config.rule)).mode for name in (model, other))
        difference = samples[model][config.primary] - samples[other][config.primary]
        error = float(np.nanstd(difference.values, ddof=1))
        better = "helps" if difference.estimate > 0 else "hurts"
        rows.append(
            {
                "model": model,
                "other": other,
                "metrics": found,
                "p_holm": p,
                "smallest_detectable": smallest_detectable(error, confidence=1 - ALPHA / len(family)),
                "verdict": better if p < ALPHA else "no significant difference",
                **_opposed(predictions, ours, theirs, bootstrap),
            }
        )
        if len(rows) > 1:
            rows[-1]["moved"] = []  # of the primary comparison alone: a thousand rows each
    return rows


def _difference(sample: Sample) -> Difference:
    defined = sample.values[~np.isnan(sample.values)]
    if np.isnan(sample.estimate) or len(defined) < 2:
        return {"estimate": sample.summary(), "p": None, "smallest_detectable": None}
    least = smallest_detectable(float(defined.std(ddof=1)))
    return {"estimate": sample.summary(), "p": bootstrap_p_value(defined), "smallest_detectable": least}


def _opposed(predictions: Predictions, ours: np.ndarray, theirs: np.ndarray, bootstrap: Bootstrap) -> Opposed:
    """McNemar's test takes pairs as independent, so of each lesion the first image by name.

    `changes` counts images and lesions that the first model corrects and breaks; a lesion may count both ways.
    """
    labels, names = predictions.labels, np.array(predictions.classes)
    gained, lost = (ours == labels) & (theirs != labels), (ours != labels) & (theirs == labels)
    first = np.unique(bootstrap.weights.index, return_index=True)[1]
    only, only_other = int(gained[first].sum()), int(lost[first].sum())
    changes: dict[str, dict[str, int]] = {}
    for k, name in enumerate(predictions.classes):
        parts = {way: rows & (labels == k) for way, rows in (("", labels == k), ("_gained", gained), ("_lost", lost))}
        changes[name] = {f"images{way}": int(rows.sum()) for way, rows in parts.items()}
        changes[name] |= {f"lesions{way}": len(np.unique(predictions.groups[rows])) for way, rows in parts.items()}
    table = pd.DataFrame({"lesion_id": predictions.lesion_ids, "image_id": predictions.image_ids})
    table = table.assign(label=names[labels], before=names[theirs], after=names[ours])
    return {
        "mcnemar": {"only_model_right": only, "only_other_right": only_other, "p": mcnemar_mid_p(only, only_other)},
        "changes": changes,
        "moved": table[ours != theirs].sort_values(["lesion_id", "image_id"]).to_dict("records"),
    }


def _leakage(fitted: CrossFitted, inputs: Inputs) -> JsonObject | None:
    """The score on lesions that training showed in another photograph, against that on the others.

    Both parts have other lesions, of another mix of classes, so their difference is not the leak's effect alone. The
    means over classes are over those that both parts have. None where a part lacks lesions or no class is common.
    """
    predictions, seen = fitted.predictions, inputs.frame["seen"].to_numpy()
    labels, groups = predictions.labels, predictions.groups
    common = np.intersect1d(labels[seen], labels[~seen])
    shared = [predictions.classes[k] for k in common]
    if not shared or min(len(np.unique(groups[seen])), len(np.unique(groups[~seen]))) < 2:
        return None
    answers, found, samples = fitted.answers(inputs.study.rule), {}, {}
    names = ["accuracy", *(f"{key}:{name}" for key in ("f1", "recall") for name in shared)]
    seeds_drawn = None
    for draws, (part, rows) in enumerate((("seen", seen), ("unseen", ~seen)), 1):  # other lesions, so other draws
        bootstrap = Bootstrap(labels[rows], groups[rows], len(predictions.seeds), inputs.study.n_resamples, draws)
        # The same models score both parts, so what a seed shares between them cancels out of the difference.
        seeds_drawn = bootstrap.draws = bootstrap.draws if seeds_drawn is None else seeds_drawn
        scores = bootstrap.scores(answers[:, rows], names)
        samples[part] = {"accuracy": scores["accuracy"]} | {
            metric: mean_sample([scores[f"{key}:{name}"] for name in shared])
            for metric, key in (("macro_f1", "f1"), ("balanced_accuracy", "recall"))
        }
        n_lesions, metrics = len(np.unique(groups[rows])), _summaries(samples[part])
        found[part] = {"n_images": int(rows.sum()), "n_lesions": n_lesions, "metrics": metrics}
    differences = _summaries({name: sample - samples["unseen"][name] for name, sample in samples["seen"].items()})
    return {**found, "difference": differences, "classes": shared, "share": float(seen.mean())}
