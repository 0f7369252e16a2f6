"""Sections of the study's report on how good the variants are, how they compare and what metadata moves."""

from typing import Any

from ham10000.modeling.configuration_ham10000 import LABEL_DESCRIPTIONS, LABELS, MALIGNANT
from ham10000.training.markdown_text import (
    ABSENT,
    bullets,
    code,
    decimal,
    details,
    escape,
    interval,
    join,
    over_seeds,
    p_text,
    percent,
    plural,
    section,
    table,
    words,
)
from ham10000.training.study_data import TITLES, available_figures, fusions, metric, n_seeds, smallest_detectable
from ham10000.training.study_findings import seed_note

_RESULT_METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "auroc_macro",
    "melanoma_sensitivity_at_95_specificity",
)
_COMPARED = (*_RESULT_METRICS, "weighted_f1", "ece", "nll")
_MAX_MOVED = 10
_DIRECTIONS = {
    "right_to_wrong": "right to wrong",
    "wrong_to_right": "wrong to right",
    "wrong_to_wrong": "wrong to wrong",
}


def picture(study: dict[str, Any], figures: str, name: str, text: str) -> str:
    """One figure of the study, or nothing where it has none of that name."""
    return f"![{text}]({figures}/{name}.png)" if name in available_figures(study) else ""


def by_protocol(study: dict[str, Any], render: Any) -> str:
    """What `render(name, protocol)` makes of each protocol, below its name where there are two."""
    parts = {name: render(name, protocol) for name, protocol in study["protocols"].items()}
    if len(study["protocols"]) == 1:
        return next(iter(parts.values()))
    return join(*(section(escape(name), part, level=3) for name, part in parts.items()))


def _evaluated(study: dict[str, Any], name: str, protocol: dict[str, Any]) -> str:
    evaluated, split = protocol["evaluated"], protocol["split"]
    scored = f"{plural(evaluated['n_images'], 'image')} of {plural(evaluated['n_lesions'], 'lesion')}"
    if study["settings"]["folds"]:
        return (
            f"Protocol {escape(name)}: {scored}, each predicted by the models of the fold that held it out "
            f"({study['settings']['folds']} folds, split of the first `{split['sha256'][:12]}`)."
        )
    return f"Protocol {escape(name)}: {scored} in the test set (split `{split['sha256'][:12]}`)."


def _arrow(values: dict[str, Any], name: str, *, short: bool = False) -> str:
    """A figure before and after temperature scaling; `short` leaves out spread and interval."""
    before, after = (metric(values, key) for key in (f"{name}_uncalibrated", name))
    shown = [decimal(value["mean"]) if short else over_seeds(value) for value in (before, after) if value]
    return " → ".join(shown)


def _scored(protocol: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(ready name, values) of every variant and of its average over views, where it was scored."""
    rows = []
    for name, values in protocol["variants"].items():
        rows.append((escape(name), values))
        if values["tta"]:
            rows.append((f"{escape(name)}, {values['tta']['views']} views", {"metrics": values["tta"]["metrics"]}))
    return rows


def _result_table(protocol: dict[str, Any]) -> str:
    rows = [
        [name, *(over_seeds(metric(values, key)) for key in _RESULT_METRICS), _arrow(values, "ece", short=True)]
        for name, values in _scored(protocol)
    ]
    return table(["variant", *(TITLES[key] for key in _RESULT_METRICS), "ECE before → after scaling"], rows)


def _calibration(study: dict[str, Any], figures: str) -> str:
    rows = [
        [
            name,
            escape(protocol_name),
            ", ".join(decimal(value, 2) for value in values.get("temperatures") or []),
            _arrow(values, "ece"),
            _arrow(values, "nll"),
            over_seeds(metric(values, "weighted_f1")),
        ]
        for protocol_name, protocol in study["protocols"].items()
        for name, values in _scored(protocol)
    ]
    header = ["variant", "protocol", "temperature, by seed", "ECE before → after", "NLL (nats) before → after"]
    numbers = table([*header, TITLES["weighted_f1"]], rows, align="lllrrr")
    image = picture(study, figures, "calibration", "Expected calibration error before and after temperature scaling")
    return section("Calibration", image, details("ECE, NLL and weighted F1 as numbers", numbers), level=3)


def results(study: dict[str, Any], figures: str) -> str:
    """How good each variant is, under each protocol."""
    settings = study["settings"]
    spread = "mean over the seeds ± their standard deviation" if n_seeds(study) > 1 else "the one trained model"
    note = (
        f"Cells hold {spread}, and in brackets {percent(settings['confidence'], 0)} intervals; {seed_note(study)}. "
        "ECE and NLL are lower where better. "
        + (
            "**Numbers of the two protocols do not compare**: other test images."
            if len(study["protocols"]) > 1
            else ""
        )
    )
    return section(
        "Results",
        by_protocol(
            study,
            lambda name, protocol: join(_evaluated(study, name, protocol), _result_table(protocol)),
        ),
        note.strip(),
        picture(study, figures, "results", "Scores of every variant with intervals and seeds"),
        _calibration(study, figures),
    )


def _comparison_table(protocol: dict[str, Any]) -> str:
    rows = []
    for item in protocol["comparisons"]:
        primary, lesions = item["metrics"][item["primary"]], item["mcnemar"]["lesions"]
        rows.append(
            [
                escape(item["name"]),
                f"{TITLES[item['primary']]} {interval(primary, signed=True)}",
                p_text(item["p_holm"]),
                decimal(smallest_detectable(item)),
                f"{lesions['only_model_right']:,} / {lesions['only_other_right']:,}",
                p_text(item["mcnemar"]["p_holm"]),
                escape(item["verdict"]),
            ]
        )
    header = [
        "difference",
        "of the primary metric",
        "p (Holm)",
        "smallest detectable",
        "lesions only the first / only the second gets right",
        "McNemar p (Holm)",
        "verdict",
    ]
    return table(header, rows, align="lrrrrrl")


def _all_differences(protocol: dict[str, Any]) -> str:
    rows = [
        [escape(item["name"]), TITLES[key], interval(item["metrics"][key], signed=True)]
        + [p_text(item["metrics"][key].get("p")), decimal(item["metrics"][key].get("smallest_detectable"))]
        for item in protocol["comparisons"]
        for key in _COMPARED
        if key in item["metrics"]
    ]
    header = ["difference", "metric", "estimate", "p, not adjusted", "smallest detectable"]
    return table(header, rows, align="llrrr")


def comparison(study: dict[str, Any], figures: str) -> str:
    """Paired differences between variants, in numbers and in words."""

    def render(name: str, protocol: dict[str, Any]) -> str:
        if not protocol["comparisons"]:
            return f"No two variants of {escape(name)} are to be compared."
        return join(
            _comparison_table(protocol),
            bullets(escape(item["sentence"]) for item in protocol["comparisons"]),
            details("Differences of every metric", _all_differences(protocol)),
        )

    text = by_protocol(study, render)
    if not any(protocol["comparisons"] for protocol in study["protocols"].values()):
        return section("Comparisons", "There are none: a comparison takes two variants with an image, or two views.")
    note = (
        "Both sides are scored on the same images, resample by resample. A verdict rests on the primary metric after "
        "Holm, over the comparisons of one protocol; the other metrics are there to be read, not to be picked from. "
        "*Smallest detectable* is the difference that would have been found with 80 % power: a smaller one "
        "is found less often and may be there unseen."
    )
    image = picture(study, figures, "comparisons", "Paired differences with intervals and the smallest detectable one")
    return section("Comparisons", text, note, image)


def _net(row: dict[str, Any]) -> str:
    net = row["wrong_to_right"]["lesions"] - row["right_to_wrong"]["lesions"]
    return f"{net:+,}" if net else "0"


def _class_table(changes: dict[str, Any]) -> str:
    rows = [
        [f"{label}: {LABEL_DESCRIPTIONS[label]}", f"{row['n_images']:,} ({row['n_lesions']:,})"]
        + [f"{row[way]['images']:,} ({row[way]['lesions']:,})" for way in ("wrong_to_right", "right_to_wrong")]
        + [_net(row)]
        for label, row in changes.items()
    ]
    header = ["class", "images (lesions)", "wrong to right", "right to wrong", "net lesions"]
    return table(header, rows)


def _moved(moved: list[dict[str, Any]]) -> str:
    order = list(_DIRECTIONS)
    malignant = [row for row in moved if row["dx"] in MALIGNANT]
    malignant.sort(key=lambda row: (order.index(row["direction"]), row["lesion_id"], row["image_id"]))
    rows = [
        [code(row["lesion_id"]), code(row["image_id"]), escape(row["dx"]), escape(row["before"]), escape(row["after"])]
        + [_DIRECTIONS[row["direction"]]]
        for row in malignant[:_MAX_MOVED]
    ]
    total = plural(len(malignant), "malignant image")
    rest = f", {_MAX_MOVED} of them here and all in study.json" if len(malignant) > _MAX_MOVED else ""
    header = ["lesion", "image", "true class", "image alone says", "with metadata", "change"]
    return details(f"{total} moved{rest}", table(header, rows, align="llllll"))


def _recalls(protocol: dict[str, Any]) -> str:
    evaluated = protocol["evaluated"]
    rows = [
        [label, f"{evaluated['class_counts'].get(label, 0):,} ({evaluated['class_lesions'].get(label, 0):,})"]
        + [over_seeds(values["per_class"].get(label, {}).get("recall")) for values in protocol["variants"].values()]
        for label in LABELS
    ]
    table_text = table(["recall", "images (lesions)", *map(escape, protocol["variants"])], rows)
    return details("Share of each class that every variant finds", table_text)


def class_changes(study: dict[str, Any], figures: str) -> str:
    """Which classes metadata moves, both ways, and the malignant lesions among them."""

    def render(name: str, protocol: dict[str, Any]) -> str:
        parts = []
        for fusion in fusions(protocol):
            changes = protocol["class_changes"].get(fusion)
            if changes:
                moved = protocol["moved"].get(fusion) or []
                parts += [f"**{escape(fusion)}** against the image alone:", _class_table(changes), _moved(moved)]
        missing = f"Under {escape(name)} no fusion stands beside an image model, so nothing is seen to move."
        return join(*(parts or [missing]), _recalls(protocol))

    counted = any(protocol["class_changes"] for protocol in study["protocols"].values())
    note = (
        "Images, and in brackets lesions, that one model gets right and the other wrong. These are counts, not tests"
        + (", from probabilities averaged over the seeds" if n_seeds(study) > 1 else "")
        + f". Malignant are {words(MALIGNANT)}."
    )
    return section(
        "What metadata moves, by class",
        note if counted else "",
        by_protocol(study, render),
        picture(study, figures, "class_changes", "Lesions put right and put wrong by metadata, by class"),
    )


def forbidden(study: dict[str, Any]) -> str:
    """What the columns that give the diagnosis away would have bought."""

    def render(_: str, protocol: dict[str, Any]) -> str:
        found = protocol.get("forbidden")
        if not found or not found["rows"]:
            return ""
        rows = [
            [escape(row["features"]), escape(row["trained_on"]), f"{row['n_columns']:,}", interval(row["macro_f1"])]
            + [interval(row["balanced_accuracy"]), interval(row["gain"], signed=True) if row["gain"] else ABSENT]
            for row in found["rows"]
        ]
        header = ["features", "trained on", "columns", "macro-F1", "balanced accuracy", "gain over the allowed alone"]
        return join(escape(found["sentence"]), table(header, rows, align="llrrrr"))

    note = (
        "`dx_type` (how the diagnosis was made) and `dataset` (the source collection) were never inputs of a model "
        "here and cannot be. A logistic regression on them shows what a model would gain by reading them, and so what "
        "a correlate of them could leak."
    )
    text = by_protocol(study, render)
    return section("Forbidden columns", note, text) if text else ""


__all__ = ["by_protocol", "class_changes", "comparison", "forbidden", "picture", "results"]
