"""From predictions to the files of an evaluation: results with intervals, the predictions themselves, figures."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ham10000.modeling.configuration_ham10000 import LABELS, METADATA_FIELDS, Ham10000Error
from ham10000.training.evaluation.bootstrap import CONFIDENCE, Bootstrap, Interval
from ham10000.training.evaluation.metrics import (
    HEADLINE_METRICS,
    METRIC_TITLES,
    SENSITIVITY,
    compute_metrics,
    headline_metrics,
    validate_labels,
    validate_probabilities,
)
from ham10000.training.evaluation.plots import plot_reliability, plot_results
from ham10000.training.run_folder import RunFile
from ham10000.training.utils import markdown_text as md
from ham10000.training.utils.files import (
    JsonObject,
    atomic_write_text,
    read_json,
    remove_leftovers,
    restore_cell,
    scratch_folder,
    to_json,
    write_table,
    writing,
)

_PROBABILITY = "p_"  # begins the names of the columns of probabilities, one per label
# Every file of an evaluation is written in a second; what is older was left by a process that was killed.
_STALE_SECONDS = 600.0
# What tables and comparisons of several models show.
SUMMARY_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", "auroc_macro", "ece", HEADLINE_METRICS[-1])


def metric_title(name: str) -> str:
    """The title of a metric of any label set."""
    positive = name.removesuffix(f"_{SENSITIVITY}")
    return METRIC_TITLES.get(name, name if positive == name else f"{positive} sensitivity at 95 % specificity")


def at_chance(results: JsonObject) -> bool:
    """Whether an evaluation does not tell a model from guessing, so that no gain over it means anything.

    The balanced accuracy of any guess that does not look at the image is, on average, 1 / classes with images.
    """
    low = results["intervals"]["balanced_accuracy"]["low"]
    present = sum(row["support"] > 0 for row in results["metrics"]["per_class"].values())
    return low is not None and low <= 1 / present


def interval_metrics(results: JsonObject) -> list[str]:
    """The metrics of an evaluation that have an interval, in order."""
    return [name for name in results["intervals"] if name != "per_class"]


def evaluate_predictions(
    predictions: pd.DataFrame, *, positive: str | None = None, n_resamples: int = 2000, seed: int = 0
) -> JsonObject:
    """All metrics of a `predictions_table`, the headline and the per-class ones with lesion-clustered intervals.

    Returns `metrics` (see `compute_metrics`), `intervals` (of the headline metrics, and of recall and F1 of each class
    under `per_class`) and `bootstrap` (how they were made). A duplicated image, or fewer than two lesions, is a
    `Ham10000Error`.
    """
    ids, lesion_groups = predictions["image_id"], predictions["lesion_group"]
    if len(again := ids[ids.duplicated()]):
        raise Ham10000Error(
            f"Image {again.iloc[0]!r} is duplicated ({len(again)} repeated rows): padded batches must be trimmed "
            "before the evaluation."
        )
    label_names, (labels, probabilities) = predicted_labels(predictions), _labels_and_probabilities(predictions)
    metrics = compute_metrics(labels, probabilities, label_names, positive)
    headline = headline_metrics(metrics["positive"])
    names = [*headline, *(f"{name}:{label}" for label in label_names for name in ("recall", "f1"))]
    bootstrap = Bootstrap(labels, lesion_groups, 1, n_resamples, seed, label_names)
    found = bootstrap.intervals(probabilities, names)
    per_class = {label: {name: found[f"{name}:{label}"] for name in ("recall", "f1")} for label in label_names}
    return {
        "metrics": metrics,
        "intervals": {**{name: found[name] for name in headline}, "per_class": per_class},
        "bootstrap": {
            "method": "percentile, lesions resampled with replacement; ECE bias-corrected",
            "confidence": CONFIDENCE,
            "n_resamples": n_resamples,
            "n_lesions": bootstrap.weights.n_clusters,
            "seed": seed,
            "note": "a resample without a class averages the others",
        },
    }


def predictions_table(
    frame: pd.DataFrame,
    labels: np.ndarray,
    probabilities: np.ndarray,
    lesion_groups: Sequence[str] | np.ndarray,
    label_names: Sequence[str] = LABELS,
) -> pd.DataFrame:
    """The table of `predictions.csv`: ids and what there is of the metadata from the frame, one p_LABEL per label.

    Known duplicates are merged in the lesion groups, which the intervals rest on.
    """
    labels = validate_labels(labels, len(label_names))
    probabilities = validate_probabilities(probabilities, len(labels), len(label_names))
    names, predicted = np.array(label_names), probabilities.argmax(axis=1)
    columns = [name for name in ("image_id", "lesion_id", *METADATA_FIELDS) if name in frame]
    table = frame[columns].reset_index(drop=True)
    table.insert(2, "lesion_group", list(lesion_groups))
    table = table.assign(dx=names[labels], predicted=names[predicted], correct=predicted == labels)
    return table.join(pd.DataFrame(probabilities, columns=[f"{_PROBABILITY}{label}" for label in label_names]))


def predicted_labels(table: pd.DataFrame) -> list[str]:
    """The label set of a `predictions.csv`, in the order of the class ids."""
    return [str(name).removeprefix(_PROBABILITY) for name in table.columns if str(name).startswith(_PROBABILITY)]


def _labels_and_probabilities(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    names = predicted_labels(table)
    labels = table["dx"].map({label: k for k, label in enumerate(names)}).to_numpy(dtype=np.int64)
    probabilities = table[[f"{_PROBABILITY}{label}" for label in names]].to_numpy(dtype=np.float64)
    return labels, np.ascontiguousarray(probabilities)  # rows are summed in one order, whatever the table's layout


def read_predictions(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Reads a `predictions.csv` with every digit, and the ids as they were before `files.escape_cell`.

    Args:
        path: The file.

    Returns:
        The table, the class ids (N,) and the probabilities (N, K).

    Raises:
        Ham10000Error: For a missing column or an unknown label.
    """
    # pandas' default parser is faster and may be off in the last digit. By default an id such as "<NA>" would be read
    # as missing; only an age may be.
    texts = dict.fromkeys(("image_id", "lesion_id", "lesion_group", "dx"), restore_cell)
    table = pd.read_csv(
        path, float_precision="round_trip", converters=texts, keep_default_na=False, na_values={"age": [""]}
    )
    names = predicted_labels(table)
    missing = sorted({"image_id", "lesion_group", "dx"} - set(table.columns))
    missing += [f"{_PROBABILITY}LABEL"] if len(names) < 2 else []
    if missing:
        raise Ham10000Error(f"{path} lacks the column(s) {missing}; is it the predictions.csv of an evaluation?")
    if unknown := sorted(set(table["dx"]) - set(names)):
        raise Ham10000Error(f"{path} has unknown dx {unknown}; expected some of {names}.")
    labels, probabilities = _labels_and_probabilities(table)
    return table, labels, validate_probabilities(probabilities, len(labels))


def write_evaluation(output_dir: str | os.PathLike[str], results: JsonObject, predictions: pd.DataFrame) -> Path:
    """Writes `predictions.csv`, the figures in `figures/` and `eval_results.json`, whose path it returns.

    All are written first and each is put in its place then, `eval_results.json` last: it means complete. Takes the
    results of `evaluate_predictions`, with that of `subgroup_results` as `subgroups` where there is one, and the
    `predictions_table`.
    """
    text = to_json(results)  # before anything is written: it must be strict JSON
    output_dir = Path(output_dir)
    remove_leftovers(output_dir, older_than=_STALE_SECONDS)
    with writing(output_dir), scratch_folder(output_dir) as scratch:
        write_table(predictions, scratch / RunFile.PREDICTIONS)
        _, labels, probabilities = read_predictions(scratch / RunFile.PREDICTIONS)
        figures = scratch / "figures"
        plot_reliability(labels, probabilities, figures / "reliability.png")
        plot_results(results, figures)
        last = atomic_write_text(scratch / RunFile.EVALUATION, text)
        # Until here an earlier evaluation is whole. Killed from here on, none is: never one's results by another's
        # predictions.
        (output_dir / last.name).unlink(missing_ok=True)
        (output_dir / "figures").mkdir(exist_ok=True)
        for path in [scratch / RunFile.PREDICTIONS, *figures.iterdir(), last]:
            path.replace(output_dir / path.relative_to(scratch))
    return output_dir / last.name


def _cell(interval: Interval) -> str:
    return "undefined" if interval["estimate"] is None else md.interval(interval).replace(md.NO_BREAK, " ")


def format_results(results: JsonObject) -> str:
    """The result of `evaluate_predictions` as a table for the terminal, without a final newline."""
    metrics, intervals, bootstrap = results["metrics"], results["intervals"], results["bootstrap"]
    titles = {name: metric_title(name) for name in interval_metrics(results)}
    width = max(map(len, titles.values()))
    lines = [
        f"{metrics['n_images']:,} images of {bootstrap['n_lesions']:,} lesions; {bootstrap['confidence']:.0%} "
        f"intervals from {bootstrap['n_resamples']:,} bootstrap resamples of lesions"
    ]
    lines += [f"  {title:<{width}}  {_cell(intervals[name])}" for name, title in titles.items()]
    if absent := ", ".join(metrics["absent_classes"]):
        lines.append(f"  (macro-F1 and balanced accuracy average the classes with images; none of {absent})")
    lines += [f"  ({name} is undefined: {reason})" for name, reason in metrics["undefined"].items()]
    for rule, found in results.get("decisions", {}).items():
        cells = [f"{METRIC_TITLES[name]} {_cell(interval)}" for name, interval in found.items()]
        lines.append(f"  rule {rule}: {', '.join(cells)}")
    width = max(6, *map(len, metrics["per_class"]))
    lines.append(f"  {'class':<{width}} {'images':>6}  {'precision':>9}  {'recall':<21}  {'F1':<21}  AUROC")
    for label, row in metrics["per_class"].items():
        cells = intervals["per_class"][label]
        auroc = "-" if row["auroc"] is None else f"{row['auroc']:.3f}"
        lines.append(
            f"  {label:<{width}} {row['support']:>6,}  {row['precision']:>9.3f}  {_cell(cells['recall']):<21}  "
            f"{_cell(cells['f1']):<21}  {auroc}"
        )
    for field, gap in results.get("subgroups", {}).get("largest_gaps", {}).items():
        if gap:
            ends = f"{gap['lowest']} below {gap['highest']} by {_cell(gap['difference'])}"
            lines.append(f"  largest gap by {field}, in sensitivity to malignancy: {ends}")
    return "\n".join(lines)


def published_baseline() -> JsonObject:
    """The published image-only baseline this package grew out of; its 95 % intervals resample images.

    `leak` is the share of its test images whose lesion is in train.
    """
    return read_json(Path(__file__).with_name("published_baseline.json"))
