"""For a paper: tables as csv and LaTeX, figures as PDF and SVG, and a reporting checklist.

ROC and precision-recall curves with bands, operating points, and the decision curve of Vickers & Elkin 2006
(10.1177/0272989X06295361). All curves are scikit-learn's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from ham10000.training.evaluation.bootstrap import ClusterWeights, cluster_weights, percentile_interval
from ham10000.training.evaluation.plots import legend_below, panels, plot_results, set_title
from ham10000.training.evaluation.report import interval_metrics, metric_title, predicted_labels, read_predictions
from ham10000.training.run_folder import portable_training
from ham10000.training.utils import markdown_text as md
from ham10000.training.utils.figures import GREY, OKABE_ITO, plain, save_figure, style_axes
from ham10000.training.utils.files import JsonObject, atomic_write_text, write_table

SPECIFICITIES = (0.9, 0.95)
THRESHOLDS = np.linspace(0.01, 0.6, 60)
FORMATS = (".pdf", ".svg")
# Resamples of lesions for bands and operating points, which need fewer than tests do.
N_RESAMPLES = 200
_GRID = np.linspace(0, 1, 101)
_COLOURS = (OKABE_ITO["vermilion"], OKABE_ITO["blue"])


@dataclass(frozen=True)
class Target:
    """A yes-or-no question that a model's probabilities answer, such as `mel`, or `malignant`."""

    name: str
    positive: np.ndarray  # (N,) bool
    scores: np.ndarray  # (N,) probability of yes


def targets(
    labels: np.ndarray, probabilities: np.ndarray, label_names: Sequence[str], malignant: Sequence[str]
) -> list[Target]:
    """Malignant or not, if there are several malignant labels, then each class against the others, malignant first.

    Only those of which, and of whose others, there are images.
    """
    ids = [label_names.index(label) for label in malignant]
    found = [Target("malignant", np.isin(labels, ids), probabilities[:, ids].sum(axis=1))] if len(ids) > 1 else []
    # Malignant classes first: the decision curve is that of the first target.
    order = sorted(range(len(label_names)), key=lambda k: k not in ids)
    found += [Target(label_names[k], labels == k, probabilities[:, k]) for k in order]
    return [target for target in found if 0 < target.positive.sum() < len(labels)]


def true_positive_rate(target: Target, weights: np.ndarray | None = None) -> np.ndarray:
    """The largest share of positives found at each false-positive rate of the grid 0, 0.01 … 1: (101,)."""
    # Every threshold, as among ties scikit-learn would leave out some that are reached.
    false, true, _ = roc_curve(target.positive, target.scores, sample_weight=weights, drop_intermediate=False)
    # A hair wider, as 1 - 0.95 is not 0.05.
    return true[np.searchsorted(false, _GRID + 1e-9, side="right") - 1]


def precision(target: Target, weights: np.ndarray | None = None) -> np.ndarray:
    """The precision at the smallest recall that is at least each of the grid 0, 0.01 … 1: (101,).

    Between two recalls precision is not linear (Davis & Goadrich 2006, 10.1145/1143844.1143874).
    """
    precisions, recalls, _ = precision_recall_curve(target.positive, target.scores, sample_weight=weights)
    return precisions[::-1][np.searchsorted(recalls[::-1], _GRID - 1e-9)]


def resampled(curve: Callable[..., np.ndarray], target: Target, weights: ClusterWeights) -> np.ndarray:
    """(R, 101) a curve in every resample of lesions that has images of both kinds."""
    draws = (drawn[weights.index] for block in weights.blocks() for drawn in block)
    return np.array([curve(target, rows) for rows in draws if 0 < (rows * target.positive).sum() < rows.sum()])


def operating_points(all_targets: Sequence[Target], weights: ClusterWeights) -> pd.DataFrame:
    """What each target finds at 90 and 95 % specificity, also as counts per 1,000 images like the scored.

    The thresholds are chosen on the scored images themselves, again in every resample.
    """
    rows = []
    for target in all_targets:
        values = resampled(true_positive_rate, target, weights)
        false, true, thresholds = roc_curve(target.positive, target.scores, drop_intermediate=False)
        share = target.positive.mean()
        for specificity in SPECIFICITIES:
            place = int(np.searchsorted(false, 1 - specificity + 1e-9, side="right") - 1)
            found = percentile_interval(float(true[place]), values[:, round((1 - specificity) * 100)])
            hits, alarms = 1000 * share * true[place], 1000 * (1 - share) * false[place]
            row: JsonObject = {"target": target.name, "least specificity": specificity}
            row |= {"threshold": float(thresholds[place]), "sensitivity": found["estimate"]}
            row |= {"low": found["low"], "high": found["high"], "found per 1,000": hits}
            row |= {"missed per 1,000": 1000 * share - hits, "false alarms per 1,000": alarms}
            rows.append(row | {"flagged per found": (hits + alarms) / hits if hits else float("nan")})
    return pd.DataFrame(rows)


def net_benefit(target: Target) -> pd.DataFrame:
    """The decision curve: net benefit of the model, of flagging all and of flagging none, by threshold probability."""
    flagged = target.scores[:, None] >= THRESHOLDS
    odds = THRESHOLDS / (1 - THRESHOLDS)
    true, false = (flagged & target.positive[:, None]).mean(axis=0), (flagged & ~target.positive[:, None]).mean(axis=0)
    share = target.positive.mean()
    return pd.DataFrame(
        {"threshold": THRESHOLDS, "model": true - false * odds, "all": share - (1 - share) * odds, "none": 0.0}
    )


def _draw_curves(all_targets: Sequence[Target], weights: ClusterWeights) -> Figure:
    """ROC and precision-recall curves: the first target and melanoma with bands, the other classes thin."""
    figure, (left, right) = panels(2, 3.6)
    bold = [all_targets[0], *(target for target in all_targets[1:] if target.name == "mel")]
    for axes, curve, name, score in (
        (left, true_positive_rate, "AUROC", roc_auc_score),
        (right, precision, "average precision", average_precision_score),
    ):
        for target in (target for target in all_targets if target not in bold):
            axes.plot(_GRID, curve(target), color=GREY, linewidth=0.8, alpha=0.7)
        for target, colour in zip(bold, _COLOURS, strict=False):
            low, high = np.quantile(resampled(curve, target, weights), [0.025, 0.975], axis=0)
            axes.fill_between(_GRID, low, high, color=colour, alpha=0.2, linewidth=0)
            label = f"{plain(target.name)}: {name} {score(target.positive, target.scores):.3f}"
            axes.plot(_GRID, curve(target), color=colour, linewidth=1.8, label=label)
        axes.set(xlim=(0, 1), ylim=(0, 1.01))
    left.plot([0, 1], [0, 1], "--", color=GREY, linewidth=0.8)
    style_axes(left, xlabel="1 - specificity", ylabel="sensitivity")
    style_axes(right, xlabel="recall", ylabel="precision")
    legend_below(figure, [line for axes in (left, right) for line in axes.get_legend_handles_labels()[0]])
    set_title(figure, "ROC and precision-recall curves: 95 % bands over lesions, other classes thin")
    return figure


def _draw_decision_curve(target: Target) -> Figure:
    """The net benefit of the model against flagging all and flagging none."""
    table = net_benefit(target)
    figure, (axes,) = panels(1, 3.1)
    for name, colour in (("model", OKABE_ITO["vermilion"]), ("all", OKABE_ITO["sky"]), ("none", GREY)):
        label = name if name == "model" else f"flag {name}"
        axes.plot(table["threshold"], table[name], color=colour, linewidth=1.8, label=label)
    top = max(float(target.positive.mean()), 0.01)
    axes.set(xlim=(0, THRESHOLDS[-1]), ylim=(-0.1 * top, 1.1 * top))
    style_axes(axes, xlabel="threshold probability", ylabel="net benefit per image")
    axes.legend(frameon=False, fontsize=10)
    set_title(figure, f"Decision curve for {plain(target.name)}, at this data's frequencies, which are not a clinic's")
    return figure


def write_latex_table(table: pd.DataFrame, path: Path, caption: str) -> None:
    """Writes a table as csv with every digit and as LaTeX (booktabs) with three decimals, next to each other."""
    write_table(table, path.with_suffix(".csv"))
    text = table.to_latex(index=False, escape=True, float_format="%.3f", na_rep="--", caption=caption)
    atomic_write_text(path.with_suffix(".tex"), "% \\usepackage{booktabs}\n" + text)


def write_curves(
    directory: Path, all_targets: Sequence[Target], weights: ClusterWeights, scored: str, suffix: str = ""
) -> None:
    """Writes operating points, ROC and precision-recall curves and the first target's decision curve.

    `scored` says in captions what was scored; `suffix`, such as `_fusion`, ends the names of the files.
    """
    points = operating_points(all_targets, weights)
    write_latex_table(points, directory / f"operating_points{suffix}", f"Operating points, {scored}")
    benefit = net_benefit(all_targets[0]).assign(target=all_targets[0].name)
    write_table(benefit, directory / f"decision_curve{suffix}.csv")
    curves, decision = _draw_curves(all_targets, weights), _draw_decision_curve(all_targets[0])
    for kind in FORMATS:
        save_figure(curves, directory / f"curves{suffix}{kind}")
        save_figure(decision, directory / f"decision_curve{suffix}{kind}")


def _result_tables(results: JsonObject) -> dict[str, pd.DataFrame]:
    """The headline metrics and those of each class, with their intervals, of an `eval_results.json`."""
    metrics, intervals = results["metrics"], results["intervals"]
    headline = [
        {"metric": metric_title(name), **{key: intervals[name][key] for key in ("estimate", "low", "high")}}
        for name in interval_metrics(results)
    ]
    per_class = [
        {"class": label, "images": row["support"]}
        | {name: row[name] for name in ("recall", "precision", "f1", "auroc")}
        | {f"{n} {end}": intervals["per_class"][label][n][end] for n in ("recall", "f1") for end in ("low", "high")}
        for label, row in metrics["per_class"].items()
    ]
    return {"results": pd.DataFrame(headline), "per_class": pd.DataFrame(per_class)}


def write_paper(
    directory: str | Path,
    results: JsonObject,
    predictions: Path,
    malignant: Sequence[str] = (),
    training: JsonObject | None = None,
    *,
    n_resamples: int = N_RESAMPLES,
) -> None:
    """Writes what a paper needs of one model: tables, figures and `checklist.md`, into a folder that it makes.

    Takes the content of `eval_results.json`, the path of the `predictions.csv` next to it, the labels that count as
    malignant, the content of `train_config.json`, and the number of resamples for bands and operating points.
    """
    directory = Path(directory)
    scored_images, labels, probabilities = read_predictions(predictions)
    names = predicted_labels(scored_images)
    weights = cluster_weights(scored_images["lesion_group"], n_resamples)
    found = targets(labels, probabilities, names, malignant)
    scored = f"{results['metrics']['n_images']:,} images of {weights.n_clusters:,} lesions; 95 % intervals."
    for name, table in _result_tables(results).items():
        write_latex_table(table, directory / name, f"{name.replace('_', ' ').capitalize()}, {scored}")
    if found:
        write_curves(directory, found, weights, scored)
    else:
        print("note: all scored images are of one class, so there are no curves and operating points")
    for kind in FORMATS:
        plot_results(results, directory, kind)
    atomic_write_text(directory / "checklist.md", checklist(results, training))


def checklist(results: JsonObject, training: JsonObject | None) -> str:
    """Items of CLAIM 2024 (10.1148/ryai.240300) and TRIPOD+AI (10.1136/bmj-2023-078378), as far as the files answer.

    Markdown; an item that only the authors can answer says so. `training` is None for a model not trained by this
    package.
    """
    template = md.markdown_template(Path(__file__).with_name("checklist.md.jinja"))
    portable = None if training is None else portable_training(training)
    return template.render(results=results, training=portable, metric_title=metric_title).strip() + "\n"
