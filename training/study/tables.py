"""The study's tables as csv and LaTeX, and its figures as PDF and SVG, for a paper."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from ham10000.training.evaluation.bootstrap import cluster_weights
from ham10000.training.evaluation.paper import FORMATS, N_RESAMPLES, targets, write_curves, write_latex_table
from ham10000.training.study.analysis import ProtocolResult, malignant_classes
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.figures import plot_study
from ham10000.training.study.report import TITLES, Study, lead

_ENDS = ("estimate", "low", "high")


def study_tables(protocol: ProtocolResult) -> dict[str, pd.DataFrame]:
    """Results, classes, comparisons and subgroups of one protocol, one row per figure."""
    results, classes, comparisons, subgroups = [], [], [], []
    for variant, values in protocol["variants"].items():
        results += [
            {"variant": variant, "metric": TITLES[name], **_interval(found)}
            for name, found in values["metrics"].items()
        ]
        classes += [
            {"variant": variant, "class": label, "metric": name, **_interval(found)}
            for label, row in values["per_class"].items()
            for name, found in row.items()
        ]
        subgroups += [
            {
                "variant": variant,
                "field": field,
                "group": group["group"],
                "images": group["n_images"],
                "malignant lesions": group["n_malignant_lesions"],
                **_interval(None if group["too_few"] else group["malignant_sensitivity"]),
            }
            for field, groups in values["subgroups"]["fields"].items()
            for group in groups
        ]
    for row in protocol["comparisons"]:
        pair = {"model": row["model"], "other": row["other"], "p (Holm)": row["p_holm"], "verdict": row["verdict"]}
        comparisons += [
            {**pair, "metric": TITLES[name], **_interval(found["estimate"]), "p": found["p"]}
            for name, found in row["metrics"].items()
        ]
    names = ("results", "per_class", "comparisons", "subgroups")
    tables = [pd.DataFrame(rows) for rows in (results, classes, comparisons, subgroups)]
    return {name: table for name, table in zip(names, tables, strict=True) if len(table)}


def _interval(value: Mapping[str, object] | None) -> dict[str, object]:
    return {end: None if value is None else value.get(end) for end in _ENDS}


def write_study_tables(study: Study, variants: Mapping[str, CrossFitted], directory: str | Path) -> Path:
    """Writes the first protocol's tables, curves and operating points of image and fusion, and all figures.

    Args:
        study: Content of study.json.
        variants: The first protocol's calibrated variants.
        directory: Receives the files; made where it does not exist.

    Returns:
        The folder.

    Raises:
        Ham10000Error: If it cannot be written.
    """
    directory, protocol = Path(directory), lead(study)
    about = f"{protocol['n_images']:,} images of {protocol['n_lesions']:,} lesions, cross-validated; 95 % intervals."
    for name, table in study_tables(protocol).items():
        write_latex_table(table, directory / name, f"{name.replace('_', ' ').capitalize()}, {about}")
    for variant in ("image", "fusion"):
        if variant not in variants:
            continue
        predictions, probabilities = variants[variant].predictions, variants[variant].probabilities.mean(axis=0)
        weights = cluster_weights(predictions.groups, N_RESAMPLES)
        classes = list(predictions.classes)
        found = targets(predictions.labels, probabilities, classes, malignant_classes(classes))
        write_curves(directory, found, weights, about, f"_{variant}")
    for suffix in FORMATS:
        plot_study(study, directory, suffix)
    return directory
