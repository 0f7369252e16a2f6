"""Renders a study for sceptical readers: study.md and the README's results, from study.json alone."""

from typing import Any

from ham10000.training.evaluation_report import METRIC_TITLES, SUMMARY_METRICS
from ham10000.training.markdown_text import (
    bullets,
    code,
    escape,
    interval,
    join,
    over_seeds,
    percent,
    plural,
    section,
    table,
    words,
)
from ham10000.training.published import published_baseline
from ham10000.training.study_data import check_study, leak, metric, n_seeds, seeds_phrase
from ham10000.training.study_findings import short_answer
from ham10000.training.study_methods import limits, methods, repeat
from ham10000.training.study_sections import class_changes, comparison, forbidden, results
from ham10000.training.study_sections_shortcuts import cost, leakage, shortcuts, subgroups
from ham10000.training.targets import targets_table

_RESEARCH_ONLY = (
    "> **Research only. No model here is a medical device, and none must ever be used for diagnosis or for decisions "
    "about a patient.**"
)


def study_markdown(study: dict[str, Any], figures: str = "figures") -> str:
    """The whole report.

    Args:
        study: Content of study.json.
        figures: Folder of the figures that `plot_study` drew, relative to the report.

    Returns:
        GitHub-flavoured Markdown; it points to the figures the study has data for and to no other.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    return (
        join(
            "# Does metadata help, and at what price?",
            _RESEARCH_ONLY,
            section("In short", bullets(short_answer(study))),
            results(study, figures),
            comparison(study, figures),
            class_changes(study, figures),
            shortcuts(study, figures),
            forbidden(study),
            subgroups(study, figures),
            leakage(study, figures),
            cost(study),
            methods(study),
            limits(study),
            repeat(study),
        )
        + "\n"
    )


def _network(study: dict[str, Any], variant: str) -> str:
    if variant == "metadata":
        return "ours: metadata"
    config = study["settings"]["config"]
    return f"ours: {variant}, {config['backbone']}, {' x '.join(map(str, config['image_size']))} px"


def _notes(study: dict[str, Any]) -> str:
    settings, protocols = study["settings"], study["protocols"]
    share = percent(settings["confidence"], 0)
    seeds = n_seeds(study)
    resampled = "lesions and seeds" if seeds > 1 else "lesions"
    values = f"Mean ± SD over {seeds_phrase(study)}" if seeds > 1 else "One training seed each"
    scored = [
        f"{escape(name)}: {plural(protocol['evaluated']['n_images'], 'image')} of "
        f"{plural(protocol['evaluated']['n_lesions'], 'lesion')}"
        + (f", out of {settings['folds']} folds" if settings["folds"] else "")
        + f", split {code(protocol['split']['sha256'][:12])}"
        for name, protocol in protocols.items()
    ]
    hardware = {v["cost"]["hardware"]: None for p in protocols.values() for v in p["variants"].values()}
    return (
        f"{values}, calibrated; {share} intervals from a bootstrap that resamples {resampled}, the published row's "
        f"resamples images. Numbers of different protocols do not compare. {'; '.join(scored)}; trained on "
        f"{words([escape(name) for name in hardware])}."
    )


def results_table(study: dict[str, Any]) -> str:
    """The README's tables: the published baseline, every variant under each protocol, notes, and the targets.

    Args:
        study: Content of study.json.

    Returns:
        Markdown.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    published = published_baseline()
    rows = [
        [escape(published["name"]), escape(published["protocol"]), percent(published["leak"])]
        + [interval(published["intervals"].get(name)) for name in SUMMARY_METRICS]
    ]
    for protocol_name, protocol in study["protocols"].items():
        for variant, values in protocol["variants"].items():
            rows.append(
                [escape(_network(study, variant)), escape(protocol_name), percent(leak(protocol))]
                + [over_seeds(metric(values, name)) for name in SUMMARY_METRICS]
            )
    header = [
        "model",
        "protocol",
        "test images whose lesion is in train",
        *(METRIC_TITLES[n] for n in SUMMARY_METRICS),
    ]
    # Nine columns fit a page only if an interval may be broken.
    cells = [[cell.replace("\u00a0", " ") for cell in row] for row in rows]
    return join(table(header, cells, align="llr" + "r" * len(SUMMARY_METRICS)), _notes(study), targets_table(study))


__all__ = ["results_table", "study_markdown"]
