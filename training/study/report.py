"""Renders a study from its study.json: study.md, by study_report.md.jinja, and the tables of the README.

Prose stands in the template; here is what it asks for. The figures (figures.py) read the study through the same
functions, so that report and figures agree on what there is.
"""

import dataclasses
import functools
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2

from ham10000.modeling.configuration_ham10000 import LABEL_DESCRIPTIONS, MALIGNANT, Ham10000Error
from ham10000.training.config import TrainConfig
from ham10000.training.evaluation.report import METRIC_TITLES, SUMMARY_METRICS
from ham10000.training.run_folder import portable_training
from ham10000.training.study.runs import IMAGE_RUN
from ham10000.training.utils import markdown_text as md
from ham10000.training.utils.published import published_baseline

# A study.json, or a part of one.
Study: TypeAlias = dict[str, Any]

STUDY_FORMAT = 1
TITLES = METRIC_TITLES | {"auroc_macro": "AUROC", "ece": "ECE"}
SUBGROUP_TITLES = {"age": "age", "sex": "sex", "site": "site", "photographs": "photographs of the lesion"}
# Words of a study.json, some of an earlier version, and what the report says instead.
_REWORDED = {
    "cannot be told apart": "no significant difference",
    "would have bought": "would have gained",
    "where a picture came from": "where an image came from",
}
# Settings that are said elsewhere in the command, or that differ from run to run of one study.
_NOT_SHARED = {"data", "output_dir", "cache_dir", "protocol", "folds", "fold", "split_file", "modality", "fusion"}
_NOT_SHARED |= {"seed", "trackers", "resume", "overwrite"}


# Reading a study


def check_study(study: Study) -> None:
    """Refuses what is not a study of this format.

    Raises:
        Ham10000Error: For another format, or a study without a protocol.
    """
    if study.get("format") != STUDY_FORMAT:
        raise Ham10000Error(
            f"The study has format {study.get('format')!r}; this version reads format {STUDY_FORMAT}. "
            "Run `ham10000-study` again with this version."
        )
    if not study.get("protocols"):
        raise Ham10000Error("The study has no protocol; finish at least one before it is reported.")


def reworded(text: str) -> str:
    """A verdict or sentence of a study.json in the words of the report."""
    return functools.reduce(lambda found, old: found.replace(old, _REWORDED[old]), _REWORDED, text)


def is_fusion(variant: str) -> bool:
    """Whether a variant reads both the image and the metadata."""
    return variant.startswith("fusion-")


def fusions(protocol: Study) -> list[str]:
    """The fusion variants of a protocol, in the order of the study."""
    return [name for name in protocol["variants"] if is_fusion(name)]


def lead_variant(protocol: Study) -> str:
    """The variant a single sentence is about: the first fusion, else the image, else the first.

    The first and not the best: a variant picked for its result would look better than it is.
    """
    variants = protocol["variants"]
    return next(iter([*fusions(protocol), *(["image"] if "image" in variants else []), *variants]))


def first_protocol(study: Study) -> tuple[str, Study]:
    """The protocol a single sentence is about; lesion-grouped where it was run, as the study's order says."""
    return next(iter(study["protocols"].items()))


def seed_counts(study: Study) -> dict[str, int]:
    """Number of training seeds under each protocol."""
    seeds = study["settings"]["seeds"]
    if isinstance(seeds, list):  # as written before each protocol had its own
        seeds = dict.fromkeys(study["protocols"], seeds)
    return {name: len(seeds[name]) for name in study["protocols"]}


def n_seeds(study: Study) -> int:
    """Number of training seeds, the largest of all protocols."""
    return max(seed_counts(study).values())


def seeds_phrase(study: Study) -> str:
    """Such as `3 training seeds`, or `3 (lesion-grouped) and 1 (image-stratified) training seeds`."""
    counts = seed_counts(study)
    if len(set(counts.values())) == 1:
        return md.plural(n_seeds(study), "training seed")
    return f"{md.words([f'{number} ({md.escape(name)})' for name, number in counts.items()])} training seeds"


def metric(variant: Study, name: str) -> Study | None:
    """A metric of a variant, None where it is absent or undefined."""
    value = variant["metrics"].get(name)
    return None if value is None or value.get("mean") is None else value


def variants(study: Study) -> Iterator[tuple[str, str, Study]]:
    """Yields (protocol, variant, values) of everything that was trained."""
    for protocol_name, protocol in study["protocols"].items():
        for name, values in protocol["variants"].items():
            yield protocol_name, name, values


def shortcuts(study: Study) -> list[tuple[str, str, Study]]:
    """(protocol, variant, shortcuts) of every variant that reads metadata."""
    return [(protocol, name, values["shortcuts"]) for protocol, name, values in variants(study) if values["shortcuts"]]


def comparisons(protocol: Study, kind: str | None = None) -> list[Study]:
    """The comparisons of a protocol, of one kind or all, whose primary difference is defined."""
    return [
        item
        for item in protocol["comparisons"]
        if kind in (None, item["kind"]) and item["metrics"][item["primary"]].get("estimate") is not None
    ]


def smallest_detectable(comparison: Study) -> float | None:
    """The difference of the primary metric that would have been found with 80 % power, after Holm where recorded."""
    primary = comparison["metrics"][comparison["primary"]]
    return comparison.get("smallest_detectable", primary.get("smallest_detectable"))


def leak(protocol: Study) -> float | None:
    """Share of the test images whose lesion another photograph shows in train; None where it is not recorded."""
    return ((protocol["split"].get("leakage") or {}).get("test") or {}).get("all")


def subgroup_variants(protocol: Study) -> list[str]:
    """The variants whose subgroups are shown: the image and each fusion; where there is neither, all."""
    names = [*(["image"] if "image" in protocol["variants"] else []), *fusions(protocol)]
    return [key for key in names or list(protocol["variants"]) if protocol["variants"][key].get("subgroups")]


def subgroup_rows(protocol: Study) -> list[tuple[str, str]]:
    """(field, group) of every subgroup with images; the variants of a protocol have the same."""
    fields = [protocol["variants"][name]["subgroups"]["fields"] for name in subgroup_variants(protocol)[:1]]
    return [(field, row["group"]) for found in fields for field, rows in found.items() for row in rows]


def subgroup(values: Study, field: str, group: str) -> Study | None:
    """One group of one variant, None where the variant has no such group."""
    rows = (values.get("subgroups") or {"fields": {}})["fields"].get(field, [])
    return next((row for row in rows if row["group"] == group), None)


def gaps(values: Study) -> dict[str, Study]:
    """Field to the gap between its groups in sensitivity to malignancy, of a variant, where there is one."""
    found = (values.get("subgroups") or {}).get("largest_gaps") or {}
    return {field: gap for field, gap in found.items() if gap and gap["difference"]["estimate"] is not None}


def largest_gap(values: Study) -> tuple[str, Study] | None:
    """The field and gap in which a variant's sensitivity to malignancy differs most; None where none compares."""
    return max(gaps(values).items(), key=lambda item: item[1]["difference"]["estimate"], default=None)


def available_figures(study: Study) -> tuple[str, ...]:
    """Names of the figures the study has data for, in the order of the report.

    `plot_study` draws these and the report points to these.
    """
    protocols = study["protocols"].values()
    trained = [values for _, _, values in variants(study)]
    found = [values for _, _, values in shortcuts(study)]
    groups = [
        subgroup(protocol["variants"][name], *row)
        for protocol in protocols
        for name in subgroup_variants(protocol)
        for row in subgroup_rows(protocol)
    ]
    has = {
        "results": any(metric(values, "macro_f1") for values in trained),
        "calibration": any(metric(v, "ece") and metric(v, "ece_uncalibrated") for v in trained),
        "comparisons": any(comparisons(protocol) for protocol in protocols),
        "class_changes": any(protocol["class_changes"] for protocol in protocols),
        "shortcuts": any(values["fields"] for values in found),
        "sweeps": any(values.get("age_sweep") or values.get("site_sweep") for values in found),
        "missing": any(values.get("missing") for values in found),
        "subgroups": any(
            row and not row["too_few"] and row["malignant_sensitivity"]["estimate"] is not None for row in groups
        ),
        "leakage": len(protocols) > 1 or any(values["leakage"] for values in trained),
    }
    return tuple(name for name, drawn in has.items() if drawn)


# What the template asks for


def model_name(variant: str) -> str:
    """A variant in a sentence: `image` and `metadata` are words of the language, too."""
    return f"the {variant} model" if variant in ("image", "metadata") else md.escape(variant)


def scored(protocol: Study) -> list[tuple[str, Study, list[float]]]:
    """(escaped name, metrics, temperatures) of every variant and of its average over views, where it was scored."""
    rows = []
    for name, values in protocol["variants"].items():
        rows.append((md.escape(name), values["metrics"], values.get("temperatures") or []))
        if values["tta"]:
            rows.append((f"{md.escape(name)}, {values['tta']['views']} views", values["tta"]["metrics"], []))
    return rows


def before_after(metrics: Study, name: str, *, short: bool = False) -> str:
    """A metric before and after temperature scaling, where it is defined; `short` shows the means alone."""
    found = [value for key in (f"{name}_uncalibrated", name) if (value := metric({"metrics": metrics}, key))]
    return " → ".join(md.decimal(value["mean"]) if short else md.over_seeds(value) for value in found) or md.ABSENT


def readers(protocol: Study) -> list[tuple[str, Study]]:
    """(variant, shortcuts) of the fusions, or of what else reads metadata.

    What a model of metadata alone reads is no surprise; the question is what the image leaves it to add.
    """
    found = [(name, values["shortcuts"]) for name, values in protocol["variants"].items() if values["shortcuts"]]
    return [row for row in found if is_fusion(row[0])] or found


def spread(values: list[float] | None, factor: float = 1.0, digits: int = 0) -> str:
    """The mean over runs, with the lowest and highest where they differ."""
    known = [value * factor for value in values or [] if md.defined(value)]
    if not known:
        return md.ABSENT
    mean, low, high = (f"{value:,.{digits}f}" for value in (sum(known) / len(known), min(known), max(known)))
    return mean if low == high else f"{mean} ({low} to {high})"


def leak_scores(protocol: Study) -> tuple[str, Study] | None:
    """(variant, leakage) of the image model, or of the first other, with macro-F1 on lesions seen and not seen."""
    for name in ("image", *protocol["variants"]):
        found = protocol["variants"].get(name, {}).get("leakage")
        parts = (found["seen"]["metrics"], found["unseen"]["metrics"], found["difference"]) if found else ()
        if parts and all(md.defined(part["macro_f1"]["mean"]) for part in parts):
            return name, found
    return None


def hardware(study: Study) -> str:
    """The machines of all runs."""
    names = dict.fromkeys(values["cost"]["hardware"] for _, _, values in variants(study))
    return md.words([md.escape(name) for name in names])


def moved_malignant(moved: list[Study] | None) -> list[Study]:
    """The malignant images whose class metadata changes: first those that it breaks."""
    order = ("right_to_wrong", "wrong_to_right", "wrong_to_wrong")
    found = [row for row in moved or [] if row["dx"] in MALIGNANT]
    return sorted(found, key=lambda row: (order.index(row["direction"]), row["lesion_id"], row["image_id"]))


def most_moved(changes: Study) -> str:
    """The class with the most lesions that one model gets right and the other wrong."""
    return max(
        changes, key=lambda k: changes[k]["wrong_to_right"]["lesions"] + changes[k]["right_to_wrong"]["lesions"]
    )


def study_command(settings: Study) -> str:
    """The command that makes the study again, with every setting that differs from the default.

    Args:
        settings: `settings` of a study.json, with `protocols` added.

    Returns:
        One shell command; paths are cut to their last part.
    """
    seeds = seed_counts({"settings": settings, "protocols": settings["protocols"]})
    numbers = list(seeds.values()) if len(set(seeds.values())) > 1 else [max(seeds.values())]
    config = portable_training({"config": {**settings["config"], "data": settings["data"]}})["config"]
    arguments = ["ham10000-study", "--data", str(config["data"])]
    for modality, entry in settings.get("variant_config", {}).items():
        arguments += ["--variant_config", f"{modality}={entry['file']}"]
    for protocol in settings["protocols"]:
        arguments += ["--protocol", protocol]
    arguments += ["--seeds", *map(str, numbers), "--variants", *settings["variants"]]
    if settings["folds"]:
        arguments += ["--folds", str(settings["folds"])]
    # The study's own defaults live in its parser; saying these two always needs no copy of them.
    arguments += ["--views", str(settings["views"]), "--n_resamples", str(settings["n_resamples"])]
    for field in dataclasses.fields(TrainConfig):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = config.get(field.name, default)
        if field.name not in _NOT_SHARED and value != default and value is not None:
            values = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            arguments += [f"--{field.name}", *map(str, values)]
    return shlex.join([*arguments, "--output_dir", "runs/study"])


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(md, name) for name in md.__all__ if name != "join"}
    environment.filters["thousands"] = "{:,}".format
    environment.filters |= {"reworded": reworded, "model_name": model_name, "spread": spread}
    environment.filters["e"] = md.escape  # as `escape`: the built-in ones know HTML, but not Markdown
    environment.globals |= globals()  # the template may call whatever this module defines
    return environment.get_template("study_report.md.jinja")


def study_markdown(study: Study, figures: str = "figures") -> str:
    """The whole report.

    Args:
        study: Content of study.json.
        figures: Folder of the figures that `plot_study` drew, relative to the report.

    Returns:
        GitHub-flavoured Markdown; it points to the figures the study has data for and to no others.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    markdown = _template().render(
        study=study,
        settings=study["settings"],
        protocols=study["protocols"],
        trained=list(variants(study)),  # (protocol, variant, values)
        figures=figures,
        labels=LABEL_DESCRIPTIONS,
        malignant=MALIGNANT,
        image_run=IMAGE_RUN,
    )
    # In the template a line that is indented goes on the line before, and empty parts leave empty lines.
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n {2,}", " ", markdown)).strip() + "\n"


def short_answer(study: Study) -> list[str]:
    """The study in up to five statements: the list at the top of the report.

    Args:
        study: Content of study.json.

    Returns:
        Markdown, one paragraph per statement.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    in_short = study_markdown(study).split("\n## ")[1]
    return [line.removeprefix("- ") for line in in_short.splitlines() if line.startswith("- ")]


# The README


@dataclass(frozen=True)
class Target:
    """A number to reach on HAM10000 at 200x150 pixels, set before the models were trained.

    Attributes:
        protocol: Protocol of the split.
        metric: Name of the metric.
        value: The bound.
        because: Where the bound comes from.
        is_ceiling: Whether lower is better.
    """

    protocol: str
    metric: str
    value: float
    because: str
    is_ceiling: bool = False

    def is_reached(self, found: float) -> bool:
        """Whether a value is on the right side of the bound."""
        return found <= self.value if self.is_ceiling else found >= self.value


TARGETS = (
    Target("lesion-grouped", "macro_f1", 0.76, "above 0.746, the best single CNN of the most careful public study"),
    Target("lesion-grouped", "ece", 0.03, "after temperature scaling", is_ceiling=True),
    Target("image-stratified", "macro_f1", 0.82, "above the published baseline's 0.8042"),
    Target("image-stratified", "accuracy", 0.88, "above the published baseline's 0.8665"),
)


def targets_table(study: Study) -> str:
    """Every target of a protocol that was run, with the mean over seeds that the image and fusion variants reached.

    Args:
        study: Content of study.json.

    Returns:
        Markdown; nothing where the study has none of the protocols.
    """
    rows = []
    for target in TARGETS:
        for protocol, variant, values in variants(study):
            found = metric(values, target.metric)
            if protocol != target.protocol or variant == "metadata" or found is None:
                continue
            mean = found["mean"]
            rows.append(
                [
                    f"{md.escape(protocol)}, {TITLES[target.metric]}",
                    f"{'≤' if target.is_ceiling else '≥'} {target.value:g}, {md.escape(target.because)}",
                    f"{md.escape(variant)}, {md.plural(seed_counts(study)[protocol], 'seed')}",
                    md.decimal(mean),
                    "reached" if target.is_reached(mean) else f"{md.decimal(abs(mean - target.value))} short",
                ]
            )
    return md.table(["target", "bound", "model", "measured", "gap"], rows, align="lllrl")


def results_table(study: Study) -> str:
    """The README's tables: the published baseline, every variant under each protocol, notes, and the targets.

    Args:
        study: Content of study.json.

    Returns:
        Markdown.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    settings, protocols, published = study["settings"], study["protocols"], published_baseline()
    rows = [
        [md.escape(published["name"]), md.escape(published["protocol"]), md.percent(published["leak"])]
        + [md.interval(published["intervals"].get(name)) for name in SUMMARY_METRICS]
    ]
    for protocol, variant, values in variants(study):
        model = f"ours: {variant}"
        if variant != "metadata":
            model += f", {settings['config']['backbone']}, {' x '.join(map(str, settings['config']['image_size']))} px"
        rows.append(
            [md.escape(model), md.escape(protocol), md.percent(leak(protocols[protocol]))]
            + [md.over_seeds(metric(values, name)) for name in SUMMARY_METRICS]
        )
    header = [
        "model",
        "protocol",
        "test images whose lesion is in train",
        *(METRIC_TITLES[name] for name in SUMMARY_METRICS),
    ]
    # Nine columns fit a page only if an interval may be broken.
    cells = [[cell.replace("\u00a0", " ") for cell in row] for row in rows]
    several = n_seeds(study) > 1
    shown = f"Mean ± SD over {seeds_phrase(study)}" if several else "One training seed each"
    evaluated = [
        f"{md.escape(name)}: {md.plural(protocol['evaluated']['n_images'], 'image')} of "
        f"{md.plural(protocol['evaluated']['n_lesions'], 'lesion')}"
        + (f", out of {settings['folds']} folds" if settings["folds"] else "")
        + f", split {md.code(protocol['split']['sha256'][:12])}"
        for name, protocol in protocols.items()
    ]
    notes = (
        f"{shown}, calibrated; {md.percent(settings['confidence'], 0)} intervals from a bootstrap that resamples "
        f"{'lesions and seeds' if several else 'lesions'}, the published row's resamples images. Numbers of different "
        f"protocols do not compare. {'; '.join(evaluated)}; trained on {hardware(study)}."
    )
    return md.join(md.table(header, cells, align="llr" + "r" * len(SUMMARY_METRICS)), notes, targets_table(study))


__all__ = [
    "STUDY_FORMAT",
    "TARGETS",
    "Target",
    "available_figures",
    "check_study",
    "results_table",
    "short_answer",
    "study_command",
    "study_markdown",
    "targets_table",
]
