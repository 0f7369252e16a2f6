"""Writes the figures of a study, each with its finding as title."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ham10000.training import study_plots_results, study_plots_shortcuts
from ham10000.training.plots import save_figure
from ham10000.training.study_data import available_figures, check_study

DRAW: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "results": study_plots_results.results,
    "calibration": study_plots_results.calibration,
    "comparisons": study_plots_results.comparison,
    "class_changes": study_plots_results.class_changes,
    "shortcuts": study_plots_shortcuts.shortcuts,
    "sweeps": study_plots_shortcuts.sweeps,
    "missing": study_plots_shortcuts.missing,
    "subgroups": study_plots_shortcuts.subgroups,
    "leakage": study_plots_results.leakage,
}


def plot_study(study: dict[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Draws every figure the study has data for; the others are neither written nor pointed to by the report.

    Args:
        study: Content of study.json.
        folder: Receives `results.png` and the like; made where it does not exist.

    Returns:
        The files written, in the order of the report.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    return [save_figure(DRAW[name](study), Path(folder, f"{name}.png")) for name in available_figures(study)]


__all__ = ["DRAW", "plot_study"]
