"""Renders what a search for a recipe tried, from recipes.json alone."""

from pathlib import Path
from typing import Any

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.plots import draw_interval, name_rows, panels, set_title
from ham10000.training.utils.figures import GREY, OKABE_ITO, plain, save_figure
from ham10000.training.utils.markdown_text import code, decimal, escape, interval, join, table, words

RECIPES_FORMAT = 2
METRICS = {
    "nll": "NLL*",
    "average_precision_macro": "AP*",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
}
# Ranked by together: no single one of them decides.
RANKED = ("nll", "average_precision_macro", "macro_f1")


def check_recipes(found: dict[str, Any]) -> None:
    """Refuses what is no result of a search of this format.

    Raises:
        Ham10000Error: For another format, or no trials.
    """
    if found.get("format") != RECIPES_FORMAT or not found.get("trials"):
        raise Ham10000Error(
            f"The search has format {found.get('format')!r} and {len(found.get('trials') or [])} trials; this version "
            f"reads format {RECIPES_FORMAT} with at least one. Make it anew with this version."
        )


def recipes_markdown(found: dict[str, Any], figures: str = "figures") -> str:
    """The table of what was tried, helpful or not.

    Args:
        found: Content of recipes.json.
        figures: Folder of the figure that `plot_recipes` drew, relative to the report.

    Returns:
        GitHub-flavoured Markdown.

    Raises:
        Ham10000Error: For a search of another format.
    """
    check_recipes(found)
    trials = found["trials"]
    rows = []
    for trial in trials:
        name = f"**{escape(trial['name'])}**" + (f" − {escape(trial['against'])}" if trial["against"] else "")
        values = trial["differences"] or trial["metrics"]
        cells = [interval(values[metric], signed=bool(trial["differences"])) for metric in RANKED]
        plain = [decimal(trial["metrics"][metric]["estimate"]) for metric in METRICS]
        rows.append([name, escape(trial["what"]), *cells, " / ".join(plain), _minutes(trial)])
    header = ["trial", "what it tries", *(f"{METRICS[name]}" for name in RANKED), " / ".join(METRICS.values()), "min"]
    settings = [
        [escape(trial["name"]), code(" ".join(_options(trial["settings"])) or "the shared settings")]
        for trial in trials
        if trial["settings"] is not None
    ]
    costs = [cost for trial in trials for cost in trial["cost"] or []]
    versions = ", ".join(f"{escape(name)} {escape(v)}" for name, v in found["environment"]["versions"].items() if v)
    first = trials[0]
    splits = words([code(split[:12]) for split in first["splits"]])
    plan = f"examples/configs/{found['plan']}"
    return (
        join(
            "# What was tried, and what it gave",
            f"On the {first['n_images']:,} **validation** images ({first['n_lesions']:,} lesions) of "
            f"{len(first['splits'])} folds of {found['folds']}, lesion-grouped (splits {splits}). No number here is "
            "of a test image of its own run. The first row of a kind gives values, the others paired differences from "
            "the trial they name, on the same resampled lesions; intervals are 95 %, from 2,000 resamples of lesions, "
            "and do not contain the chance of the training seed.",
            "NLL* (lower is better) and AP*, the macro average precision, are of probabilities from which the prior "
            "of class weights, sampling and logit adjustment was removed and to which one temperature was fitted: "
            "otherwise settings are ranked by how sure they are. Macro-F1, balanced accuracy and accuracy are of the "
            "most probable class as the model gives it. **Read the three together; each trial was trained once per "
            "fold, with one seed.**",
            f"![Difference of NLL*, AP* and macro-F1 of every trial]({figures}/recipes.png)",
            table(header, rows, align="lllllrr"),
            "## Settings of each trained trial",
            f"Over those that all share: {code(' '.join(_options(found['shared'])))}, weights "
            f"{code(found['pretrained'])}.",
            table(["trial", "settings"], settings, align="ll"),
            "## How to repeat",
            f"{code(f'python examples/benchmarks/recipes.py {plan} --data HAM10000/')}. Trained "
            f"on {words([escape(name) for name in dict.fromkeys(cost['hardware'] for cost in costs)])}; minutes "
            "are the mean of the folds, and no measure of cost where runs shared the machine. "
            f"Commits {words([code(name) for name in dict.fromkeys(cost['commit'] for cost in costs)])}; "
            f"{versions}.",
        )
        + "\n"
    )


def _minutes(trial: dict[str, Any]) -> str:
    cost = trial["cost"]
    return decimal(sum(row["training_seconds"] for row in cost) / len(cost) / 60, 0) if cost else "–"


def _options(settings: dict[str, Any]) -> list[str]:
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    ]


def plot_recipes(found: dict[str, Any], path: Path) -> Path:
    """Draws the differences of the ranking metrics of every trial that is compared with another.

    Args:
        found: Content of recipes.json.
        path: Destination.

    Returns:
        The destination.
    """
    check_recipes(found)
    compared = [trial for trial in found["trials"] if trial["differences"] is not None]
    figure, axes = panels(len(RANKED), 0.9 + 0.42 * len(compared), columns=len(RANKED))
    names = [f"{plain(trial['name'])} − {plain(trial['against'])}" for trial in compared]
    for column, (metric, panel) in enumerate(zip(RANKED, axes, strict=True)):
        for y, trial in enumerate(compared):
            draw_interval(panel, trial["differences"][metric], y, OKABE_ITO["blue"], "o")
        panel.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        better = "left is better" if metric == "nll" else "right is better"
        name_rows(panel, range(len(compared)), names if column == 0 else [""] * len(names), xlabel=METRICS[metric])
        panel.set_title(better, fontsize=10, color=GREY)
    set_title(figure, "Validation: difference from the trial each is compared with, and its 95 % interval")
    return save_figure(figure, path)


__all__ = ["RECIPES_FORMAT", "check_recipes", "plot_recipes", "recipes_markdown"]
