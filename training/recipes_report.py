"""Renders what a search for a recipe tried, from recipes.json alone."""

from pathlib import Path
from typing import Any

from ham10000.modeling import Ham10000Error
from ham10000.training.markdown_text import code, decimal, escape, interval, join, over_seeds, section, table, words
from ham10000.training.plots import (
    GREY,
    OKABE_ITO,
    draw_interval,
    name_rows,
    panels,
    plain,
    save_figure,
    set_title,
)

RECIPES_FORMAT = 1
# The first one decides.
RECIPE_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", "nll")


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
    rows = [
        [
            escape(trial["name"]),
            escape(trial["what"]),
            str(trial["seeds"]),
            over_seeds(trial["metrics"]["macro_f1"]),
            "" if trial["against"] is None else escape(trial["against"]),
            "" if trial["differences"] is None else interval(trial["differences"]["macro_f1"], signed=True),
            *(over_seeds(_without_bounds(trial["metrics"][name])) for name in RECIPE_METRICS[1:]),
            _minutes(trial),
        ]
        for trial in trials
    ]
    header = [
        "trial",
        "what it tries",
        "seeds",
        "macro-F1",
        "against",
        "difference",
        "balanced accuracy",
        "accuracy",
        "NLL",
        "minutes a run",
    ]
    settings = [
        [
            escape(trial["name"]),
            code(" ".join(_options(trial["settings"])) or "the shared settings")
            + (f", from the backbone of {code(trial['start'])}" if trial["start"] else ""),
        ]
        for trial in trials
        if trial["settings"] is not None
    ]
    hardware = {cost["hardware"]: None for trial in trials for cost in trial["cost"] or []}
    commits = {cost["commit"]: None for trial in trials for cost in trial["cost"] or []}
    versions = ", ".join(f"{escape(name)} {escape(v)}" for name, v in found["environment"]["versions"].items() if v)
    shared = code(" ".join(_options(found["shared"])))
    first = trials[0]
    return (
        join(
            "# What was tried, and what it gave",
            f"On the {first['n_images']:,} **validation** images ({first['n_lesions']:,} lesions) of the "
            f"lesion-grouped split {code(first['split'][:12])}. No number here is of a test image. A difference is "
            "paired, trial minus the one it is compared with, on the same resampled lesions; intervals are 95 %, from "
            "2,000 resamples of lesions (and of seeds, where there are several). **One seed moves macro-F1 by "
            "some hundredths, and most intervals hold zero: read this as what was looked at, not as what is proven.**",
            f"![Difference of validation macro-F1 of every trial]({figures}/recipes.png)",
            table(header, rows, align="llrrlrrrrr"),
            section(
                "Settings of each trained trial",
                f"Over those that all share: {shared}, weights {code(found['pretrained'])}.",
                table(["trial", "settings"], settings, align="ll"),
            ),
            section(
                "How to repeat",
                f"{code('python -m ham10000.training.recipes ' + found['plan'] + ' --data HAM10000/')}, for trials "
                f"that name runs with {code('--study')}. Trained on {words([escape(name) for name in hardware])}, "
                "which ran two trials, and other work, at a time: minutes are no measure of the cost alone. Commits "
                f"{words([code(name) for name in commits])}; {versions}.",
            ),
        )
        + "\n"
    )


def _without_bounds(value: dict[str, Any]) -> dict[str, Any]:
    return {"mean": value["mean"], "sd": value["sd"]}


def _minutes(trial: dict[str, Any]) -> str:
    cost = trial["cost"]
    if not cost:
        return "in the study" if trial["runs"] else "no training"
    return decimal(sum(row["training_seconds"] for row in cost) / len(cost) / 60, 0)


def _options(settings: dict[str, Any]) -> list[str]:
    return [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    ]


def plot_recipes(found: dict[str, Any], path: Path) -> Path:
    """Draws the difference of validation macro-F1 of every trial that is compared with another.

    Args:
        found: Content of recipes.json.
        path: Destination.

    Returns:
        The destination.
    """
    check_recipes(found)
    compared = [trial for trial in found["trials"] if trial["differences"] is not None]
    figure, (axes,) = panels(1, 0.9 + 0.42 * len(compared))
    for y, trial in enumerate(compared):
        draw_interval(axes, trial["differences"]["macro_f1"], y, OKABE_ITO["blue"], "o")
    axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
    names = [f"{plain(trial['name'])} − {plain(trial['against'])}" for trial in compared]
    xlabel = "Difference of validation macro-F1, with 95 % interval"
    name_rows(axes, range(len(compared)), names, xlabel=xlabel)
    clear = [
        trial
        for trial in compared
        if (trial["differences"]["macro_f1"]["low"] or 0) > 0 or (trial["differences"]["macro_f1"]["high"] or 0) < 0
    ]
    set_title(figure, f"{len(clear)} of {len(compared)} differences leave out zero")
    return save_figure(figure, path)


__all__ = ["RECIPES_FORMAT", "RECIPE_METRICS", "check_recipes", "plot_recipes", "recipes_markdown"]
