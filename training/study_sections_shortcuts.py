"""Sections of the study's report on the price: shortcuts through metadata, subgroups and leakage."""

from typing import Any

from ham10000.modeling.configuration_ham10000 import MALIGNANT
from ham10000.training.markdown_text import (
    bullets,
    defined,
    details,
    escape,
    interval,
    join,
    over_seeds,
    p_text,
    percent,
    section,
    table,
    words,
)
from ham10000.training.study_data import SUBGROUP_TITLES, TITLES, leak, subgroup, subgroup_rows, subgroup_variants
from ham10000.training.study_findings import gap_text
from ham10000.training.study_sections import by_protocol, picture

_LEAK_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")


def _field_table(fields: dict[str, Any]) -> str:
    rows = []
    for field, ways in fields.items():
        row = ["all together" if field == "all" else escape(field)]
        for way in ("shuffled", "unknown"):
            drop = ways[way]["macro_f1_drop"]
            row += [interval(drop, signed=True), p_text(drop["p"] if field == "all" else ways[way]["p_holm"])]
            row.append(interval(ways[way]["flip_share"], shares=True))
        rows.append(row)
    header = ["field", "shuffled: macro-F1 lost", "p", "flips", "unknown: macro-F1 lost", "p", "flips"]
    return table(header, rows)


def _extreme_sites(sweep: dict[str, Any]) -> tuple[str, str]:
    means = sweep["melanoma"]["mean"]
    ordered = sorted(range(len(means)), key=means.__getitem__)
    return escape(sweep["sites"][ordered[-1]]), escape(sweep["sites"][ordered[0]])


def _sweeps(values: dict[str, Any]) -> list[str]:
    lines = []
    if age := values.get("age_sweep"):
        lines.append(
            f"Age set to {age['ages'][0]} to {age['ages'][-1]} years with the picture fixed: the first class changes "
            f"somewhere for {interval(age['flip_share'], shares=True)} of the images, and the mean melanoma "
            f"probability by {interval(age['slope_per_decade'], signed=True)} a decade."
        )
    if site := values.get("site_sweep"):
        high, low = _extreme_sites(site)
        lines.append(
            f"Site set to each of {len(site['sites'])} with the picture fixed: the first class changes somewhere for "
            f"{interval(site['flip_share'], shares=True)} of the images; the mean melanoma probability is highest for "
            f"{high} and lowest for {low}, {interval(site['range'])} apart."
        )
    return lines


def _missing_table(values: dict[str, Any]) -> str:
    rows = [
        [percent(row["share"], 0), interval(row["macro_f1"]), interval(row["flip_share"], shares=True)]
        for row in values.get("missing") or []
    ]
    return table(["fields missing at random", "macro-F1", "flips"], rows, align="rrr")


def shortcuts(study: dict[str, Any], figures: str) -> str:
    """What each variant that reads metadata does when the metadata is wrong, missing or swept."""

    def render(name: str, protocol: dict[str, Any]) -> str:
        parts = []
        for variant, values in protocol["variants"].items():
            found = values["shortcuts"]
            if not found:
                continue
            parts += [
                f"**{escape(variant)}** (macro-F1 {interval(found['macro_f1'])} as is): {escape(found['sentence'])}",
                _field_table(found["fields"]),
                bullets(_sweeps(found)),
                details("With fields missing at random, as numbers", _missing_table(found)),
            ]
        return join(*(parts or [f"Under {escape(name)} no variant reads metadata."]))

    if not any(v["shortcuts"] for p in study["protocols"].values() for v in p["variants"].values()):
        return section("Shortcuts", "No variant reads metadata, so there is no shortcut through it to look for.")
    note = (
        "*Shuffled* deals a field's values out anew among the scored images, which keeps their frequencies and cuts "
        "their tie to the picture; *unknown* sets it to the missing state the model was trained with. *Flips* is the "
        "share of images whose first class changes. P-values are adjusted by Holm over the single fields; that of all "
        "together is not. That a model reads a field is not by itself wrong, age is a risk factor; what to worry "
        "about is an answer that flips with the site or the age while the picture stays the same."
    )
    return section(
        "Shortcuts",
        note,
        by_protocol(study, render),
        picture(study, figures, "shortcuts", "Macro-F1 lost when a field is shuffled or unknown"),
        picture(study, figures, "sweeps", "Mean melanoma probability over age and over site, the picture fixed"),
        picture(study, figures, "missing", "Macro-F1 and flips against the share of missing fields"),
    )


def _group_table(protocol: dict[str, Any], statistic: str, counts: tuple[str, str]) -> str:
    shown, rows = subgroup_variants(protocol), []
    for field, group in subgroup_rows(protocol):
        found = [subgroup(protocol["variants"][name], field, group) for name in shown]
        first = next((row for row in found if row), None)
        if first is None:
            continue
        cells = []
        for row in found:
            too_few = row is None or (statistic == "malignant_sensitivity" and row["too_few"])
            cells.append("too few to say" if row is None or too_few else interval(row[statistic]))
        title = f"{SUBGROUP_TITLES.get(field, escape(field))}: {escape(group)}"
        rows.append([title, f"{first[counts[0]]:,} ({first[counts[1]]:,})", *cells])
    header = ["group", f"{counts[0].replace('n_', '').replace('_', ' ')} (lesions)", *map(escape, shown)]
    return table(header, rows).replace("malignant (lesions)", "malignant images (lesions)", 1)


def subgroups(study: dict[str, Any], figures: str) -> str:
    """In whom malignant lesions are found, the image model beside each fusion."""

    def render(_: str, protocol: dict[str, Any]) -> str:
        shown = subgroup_variants(protocol)
        if not shown:
            return ""
        lines = []
        for name in shown:
            values = protocol["variants"][name]
            gaps = values["subgroups"].get("largest_gaps") or {}
            texts = [
                f"by {SUBGROUP_TITLES.get(field, escape(field))} {gap_text(values, field, gap)}"
                for field, gap in gaps.items()
                if gap and gap["difference"]["estimate"] is not None
            ]
            lines.append(f"**{escape(name)}** finds, of the malignant images: {'; '.join(texts)}." if texts else "")
        if not any(lines):
            lines = ["No field has two groups that are large enough to compare."]
        return join(
            _group_table(protocol, "malignant_sensitivity", ("n_malignant", "n_malignant_lesions")),
            bullets(lines),
            details(
                "Specificity: share of benign images called benign",
                _group_table(protocol, "malignant_specificity", ("n_images", "n_lesions")),
            ),
        )

    text = by_protocol(study, render)
    if not text:
        return section("Subgroups", "They were not computed: the data lack age, sex or site.")
    least = next(v["subgroups"] for p in study["protocols"].values() for v in p["variants"].values() if v["subgroups"])
    note = (
        f"Share of the malignant images ({words(MALIGNANT)}) whose first class is any of the three. With fewer than "
        f"{least['min_malignant_lesions']} malignant lesions a group is too small to say anything. The pairs below "
        "were picked for their gap, which is therefore overstated on average, and their intervals are not adjusted "
        "for the search."
    )
    return section(
        "Subgroups", note, text, picture(study, figures, "subgroups", "Malignant images found, by subgroup and model")
    )


def _protocols_table(study: dict[str, Any]) -> str:
    protocols = study["protocols"]
    names = list(dict.fromkeys(name for protocol in protocols.values() for name in protocol["variants"]))
    shares = ["test images whose lesion is in train", *(percent(leak(protocol)) for protocol in protocols.values())]
    rows = [shares] + [
        [f"{escape(name)}: {TITLES[key]}"]
        + [over_seeds((p["variants"].get(name) or {"metrics": {}})["metrics"].get(key)) for p in protocols.values()]
        for name in names
        for key in ("macro_f1", "balanced_accuracy")
    ]
    return table(["what", *map(escape, protocols)], rows)


def _seen_table(protocol: dict[str, Any]) -> str:
    rows = []
    for name, values in protocol["variants"].items():
        if not values["leakage"]:
            continue
        for key in _LEAK_METRICS:
            seen, unseen = (values["leakage"][part]["metrics"].get(key) for part in ("seen", "unseen"))
            difference = values["leakage"]["difference"].get(key)
            rows.append([escape(name), TITLES[key], over_seeds(seen), over_seeds(unseen)])
            rows[-1].append(over_seeds(difference, signed=True))
    header = ["variant", "metric", "lesion seen in training", "lesion not seen", "difference"]
    return table(header, rows, align="llrrr")


def _classes(found: dict[str, Any]) -> str:
    """Which classes the means over classes take, where that is recorded."""
    if not found.get("classes"):
        return ""
    named = words([escape(label) for label in found["classes"]])
    return f"Macro-F1 and balanced accuracy average the classes that both parts hold ({named}). "


def leakage(study: dict[str, Any], figures: str) -> str:
    """What photographs of one lesion on both sides of the split are worth."""
    parts = []
    if len(study["protocols"]) > 1:
        parts += [
            "The same networks under both protocols. Test images and training sets differ, so a difference between "
            "the columns is no paired one and holds more than the leak.",
            _protocols_table(study),
        ]
    for name, protocol in study["protocols"].items():
        found = next((values["leakage"] for values in protocol["variants"].values() if values["leakage"]), None)
        share = leak(protocol)
        if found is not None:
            seen, unseen = found["seen"], found["unseen"]
            parts += [
                f"Under {escape(name)}, {seen['n_images']:,} scored images of {seen['n_lesions']:,} lesions show a "
                f"lesion that another photograph shows in training, {unseen['n_images']:,} of {unseen['n_lesions']:,} "
                f"do not. {_classes(found)}Lesions with several photographs differ from others in more than that, so "
                "the difference is not all memory.",
                _seen_table(protocol),
            ]
        elif share == 0:
            parts.append(f"Under {escape(name)} no test image shows a lesion of the training set: nothing to compare.")
        elif defined(share):
            parts.append(
                f"Under {escape(name)}, {percent(share)} of the test images show a lesion of the training set."
            )
    return section("Leakage", *parts, picture(study, figures, "leakage", "Scores on lesions seen and not seen"))


def cost(study: dict[str, Any]) -> str:
    """What training each variant took."""

    def spread(values: list[float] | None, factor: float = 1.0, digits: int = 1) -> str:
        known = [value * factor for value in values or [] if defined(value)]
        if not known:
            return ""
        mean = f"{sum(known) / len(known):,.{digits}f}"
        same = f"{min(known):,.{digits}f}" == f"{max(known):,.{digits}f}"
        return mean if same else f"{mean} ({min(known):,.{digits}f} to {max(known):,.{digits}f})"

    found = [
        (name, protocol_name, values["cost"])
        for protocol_name, protocol in study["protocols"].items()
        for name, values in protocol["variants"].items()
    ]
    with_cuda = any(value.get("peak_cuda_mib") for _, _, value in found)
    rows = [
        [
            escape(name),
            escape(protocol_name),
            f"{len(value['training_seconds']):,}",
            f"{value['parameters'] / 1e6:.2f}",
        ]
        + [spread(value["training_seconds"], 1 / 60), spread(value["images_per_second"], digits=0)]
        + [spread(value["best_epoch"], digits=0), spread(value["epochs"], digits=0)]
        + [spread(value["peak_rss_mib"], 1 / 1024)]
        + ([spread(value.get("peak_cuda_mib"), 1 / 1024)] if with_cuda else [])
        for name, protocol_name, value in found
    ]
    header = ["variant", "protocol", "runs", "parameters (M)", "minutes a run", "images/s", "best epoch", "epochs"]
    header += ["peak memory (GiB)"] + (["peak GPU memory (GiB)"] if with_cuda else [])
    hardware = words([escape(name) for name in dict.fromkeys(value["hardware"] for _, _, value in found)])
    note = f"Training on {hardware}: means over the runs, with the lowest and highest in brackets where they differ."
    return section("Cost", note, table(header, rows, align="ll" + "r" * (len(header) - 2)))


__all__ = ["cost", "leakage", "shortcuts", "subgroups"]
