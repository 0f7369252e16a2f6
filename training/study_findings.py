"""The study's answer in a few sentences, each drawn from a verdict or an interval and none going beyond it."""

from typing import Any

from ham10000.training.markdown_text import (
    bounds,
    decimal,
    defined,
    escape,
    interval,
    leaves_out_zero,
    p_phrase,
    percent,
    plural,
    words,
)
from ham10000.training.study_data import (
    SUBGROUP_TITLES,
    TITLES,
    comparisons,
    first_protocol,
    fusions,
    is_fusion,
    largest_gap,
    lead_variant,
    leak,
    n_seeds,
    seeds_phrase,
    smallest_detectable,
    subgroup,
)

VERDICTS = {
    "helps": "helps",
    "hurts": "hurts",
    "cannot be told apart": "cannot be shown to help or to hurt",
}


def model_name(variant: str) -> str:
    """A variant in a sentence: `image` and `metadata` are words of their own."""
    return f"the {variant} model" if variant in ("image", "metadata") else escape(variant)


def seed_note(study: dict[str, Any]) -> str:
    """What the number of seeds lets the intervals say, as the end of a sentence."""
    if n_seeds(study) == 1:
        return "each variant was trained once, so this holds for these trained models and another seed may change it"
    return f"the intervals cover the choice of lesions and of the {seeds_phrase(study)}"


def _difference(comparison: dict[str, Any]) -> str:
    primary = comparison["metrics"][comparison["primary"]]
    text = f"{TITLES[comparison['primary']]} {interval(primary, signed=True)}, {p_phrase(comparison['p_holm'])}"
    least = smallest_detectable(comparison)
    if comparison["verdict"] == "cannot be told apart" and defined(least):
        text += f"; {decimal(least)} would have been found with 80 % power"
    return text


def metadata_answer(name: str, protocol: dict[str, Any]) -> str:
    """Whether metadata helps under one protocol, by fusion; empty where no fusion was compared with the image."""
    found = comparisons(protocol, "metadata")
    parts = []
    for verdict in dict.fromkeys(comparison["verdict"] for comparison in found):
        named = [f"{escape(c['model'])} ({_difference(c)})" for c in found if c["verdict"] == verdict]
        parts.append(f"{VERDICTS.get(verdict, escape(verdict))} in {words(named)}")
    return f"under {escape(name)} it {words(parts)}" if parts else ""


def _helps(study: dict[str, Any]) -> str:
    answers = [text for item in study["protocols"].items() if (text := metadata_answer(*item))]
    if not answers:
        reason = "no fusion was compared with an image model"
        return f"**Does metadata help?** This study cannot say: {reason}."
    if len(answers) < len(study["protocols"]):
        answers.append("under the other protocol no fusion was compared with an image model")
    text = "; ".join(answers)
    return f"**Does metadata help?** {text[0].upper()}{text[1:]}. P-values are after Holm; {seed_note(study)}."


def _both_ways(change: dict[str, Any]) -> str:
    right, wrong = (change[name]["lesions"] for name in ("wrong_to_right", "right_to_wrong"))
    return f"{right:,} put right and {wrong:,} put wrong"


def _moves(study: dict[str, Any]) -> str:
    name, protocol = first_protocol(study)
    for fusion in fusions(protocol):
        changes = protocol["class_changes"].get(fusion)
        if not changes:
            continue
        total = {way: sum(c[way]["lesions"] for c in changes.values()) for way in ("wrong_to_right", "right_to_wrong")}
        moved = {
            label: change["wrong_to_right"]["lesions"] + change["right_to_wrong"]["lesions"]
            for label, change in changes.items()
        }
        if not any(moved.values()):
            return f"**What does it move?** Nothing: {escape(fusion)} is right wherever the image alone is."
        text = (
            f"Under {escape(name)}, {escape(fusion)} puts {plural(total['wrong_to_right'], 'lesion')} right that the "
            f"image alone gets wrong, and {total['right_to_wrong']:,} wrong that it gets right"
        )
        most = max(moved, key=lambda label: moved[label])
        named = [f"most are {escape(most)} ({_both_ways(changes[most])})"]
        if most != "mel" and "mel" in changes:
            named.append(f"of the melanomas {_both_ways(changes['mel'])}")
        return f"**What does it move?** {text}; {'; '.join(named)}."
    return ""


def _reads(study: dict[str, Any]) -> str:
    name, protocol = first_protocol(study)
    found = {key: values["shortcuts"] for key, values in protocol["variants"].items() if values["shortcuts"]}
    # What a model on metadata alone reads is no surprise; the question is what the image leaves it to add.
    found = {key: values for key, values in found.items() if is_fusion(key)} or found
    if not found:
        return ""
    by_fields: dict[tuple[str, ...], list[str]] = {}
    for key, values in found.items():
        by_fields.setdefault(tuple(values["named"]), []).append(key)
    parts = []
    for fields, models in by_fields.items():
        who = words([model_name(model) for model in models])
        if not fields:
            parts.append(f"no single field could be shown to matter to {who}")
            continue
        drops = [interval(found[models[0]]["fields"][field]["shuffled"]["macro_f1_drop"]) for field in fields]
        costs = words([f"{escape(field)} costs {drop}" for field, drop in zip(fields, drops, strict=True)])
        whose = f" in {model_name(models[0])}" if len(models) > 1 else ""
        verb = "read" if len(models) > 1 else "reads"
        parts.append(f"{who} {verb} {words([escape(field) for field in fields])} (shuffling {costs} macro-F1{whose})")
    return f"**Which fields are read?** Under {escape(name)}, {'; '.join(parts)}."


def gap_text(values: dict[str, Any], field: str, gap: dict[str, Any]) -> str:
    """Two groups of a field that differ in the share of malignant images found, and whether that means anything."""
    low, high = (
        f"{percent(row['malignant_sensitivity']['estimate'], 0)} ({escape(gap[end])})"
        for end in ("lowest", "highest")
        if (row := subgroup(values, field, gap[end])) is not None
    )
    text = f"{low} against {high}, a gap of {interval(gap['difference'])}"
    clear = leaves_out_zero(gap["difference"])
    if clear is None:
        return text
    return text + (", an interval that leaves 0 out" if clear else ", which chance may explain")


def _misses(study: dict[str, Any]) -> str:
    title = "**In whom are malignant lesions missed?**"
    name, protocol = first_protocol(study)
    lead = lead_variant(protocol)
    values = protocol["variants"][lead]
    if not values.get("subgroups"):
        return ""
    found = largest_gap(values)
    if found is None:
        least = values["subgroups"]["min_malignant_lesions"]
        return f"{title} No two groups hold the {least} malignant lesions each that a comparison takes."
    field, gap = found
    return (
        f"{title} Of the malignant images {model_name(lead)} finds, by {SUBGROUP_TITLES.get(field, escape(field))}, "
        f"{gap_text(values, field, gap)} (under {escape(name)}; picked as the largest gap and so overstated)."
    )


def _leaks(study: dict[str, Any]) -> str:
    title, parts = "**What leaks?**", []
    for name, protocol in study["protocols"].items():
        share = leak(protocol)
        if not defined(share):
            continue
        if share == 0:
            parts.append(f"under {escape(name)} no test image shows a lesion of the training set")
            continue
        text = f"under {escape(name)} {percent(share)} of the test images show a lesion that is in training too"
        lead = next((key for key in ("image", *protocol["variants"]) if _leak_difference(protocol, key)), None)
        if lead is not None:
            found = protocol["variants"][lead]["leakage"]
            seen, unseen = (decimal(found[part]["metrics"]["macro_f1"]["mean"]) for part in ("seen", "unseen"))
            difference = found["difference"]["macro_f1"]
            text += (
                f", and {model_name(lead)} scores macro-F1 {seen} on these and {unseen} on the others, a difference "
                f"of {decimal(difference['mean'], signed=True)}{bounds(difference, signed=True)}"
            )
        parts.append(text)
    if not parts:
        return ""
    text = "; ".join(parts)
    return f"{title} {text[0].upper()}{text[1:]}."


def _leak_difference(protocol: dict[str, Any], variant: str) -> bool:
    found = protocol["variants"].get(variant, {}).get("leakage")
    return bool(found) and all(
        defined(part["macro_f1"]["mean"])
        for part in (found["seen"]["metrics"], found["unseen"]["metrics"], found["difference"])
    )


def short_answer(study: dict[str, Any]) -> list[str]:
    """The study in up to five statements, without those it has no data for.

    Args:
        study: Content of study.json.

    Returns:
        Markdown, one paragraph each: whether metadata helps, what it moves, which fields are read, in whom malignant
        lesions are missed, what leaks.
    """
    return [text for make in (_helps, _moves, _reads, _misses, _leaks) if (text := make(study))]


__all__ = ["VERDICTS", "gap_text", "metadata_answer", "model_name", "seed_note", "short_answer"]
