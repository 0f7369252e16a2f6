"""Renders a study from its study.json: study.md, by study_report.md.jinja, and a table of results for a README."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from ham10000.modeling import LABEL_DESCRIPTIONS, MALIGNANT, Ham10000Error
from ham10000.training.evaluation.report import METRIC_TITLES, published_baseline
from ham10000.training.study.analysis import Comparison, ProtocolResult, VariantResult
from ham10000.training.utils import markdown_text as md
from ham10000.training.utils.files import JsonObject

STUDY_FORMAT = 2
TITLES = METRIC_TITLES | {"auroc_macro": "AUROC", "ece": "ECE", "nll": "NLL (nats)"}
# What a variant is, where it is named first.
VARIANT_TITLES = {
    "image": "the image alone",
    "metadata": "age, sex and site alone",
    "fusion": "image and metadata",
    "control": "fusion's network with metadata always hidden",
}


class Study(TypedDict):
    """A study.json: the settings, what the image runs say of themselves, the machine, and each protocol's results."""

    format: int
    study: JsonObject
    recipe: JsonObject | None
    environment: JsonObject
    origin: NotRequired[str | None]  # `HAM10000`, `synthetic`, or None for other images; earlier files are of HAM10000
    protocols: dict[str, ProtocolResult]


def check_study(study: Study) -> None:
    """Refuses what is not a study of this format.

    Raises:
        Ham10000Error: For another format, or a study without a protocol.
    """
    if study.get("format") != STUDY_FORMAT:
        raise Ham10000Error(
            f"The study has format {study.get('format')!r}; this version reads format {STUDY_FORMAT}. "
            "Run `ham10000-study report` again with this version."
        )
    if not study.get("protocols"):
        raise Ham10000Error("The study has no protocol; finish at least one before it is reported.")


def lead(study: Study) -> ProtocolResult:
    """The first protocol, the only one with heads."""
    return next(iter(study["protocols"].values()))


def all_scores(protocol: ProtocolResult) -> JsonObject:
    """Every variant, and then every baseline, to its scores."""
    scores = {name: values["metrics"] for name, values in protocol["variants"].items()}
    return scores | {row["name"]: row["scores"] for row in protocol["baselines"]}


def cell(value: Mapping[str, object] | None, *, signed: bool = False) -> str:
    """`estimate ± SD [low, high]`, without what is undefined."""
    text = md.interval(value, signed=signed)
    if value is None or text == md.ABSENT or not md.defined(value.get("sd")):
        return text
    estimate, bracket, rest = text.partition(" [")
    return f"{estimate}{md.NO_BREAK}±{md.NO_BREAK}{value['sd']:.3f}{bracket}{rest}"


def comparison_sentence(comparison: Comparison, study: Study) -> str:
    """A comparison and its verdict as one sentence."""
    primary = study["study"]["primary"]
    difference = md.interval(comparison["metrics"][primary]["estimate"], signed=True)
    p = md.p_text(comparison["p_holm"])
    facts = (
        f"{comparison['model'].capitalize()} against {comparison['other']}: {TITLES[primary]} {difference}, "
        f"p {'' if p.startswith('<') else '= '}{p} after Holm"
    )
    if comparison["verdict"] in ("helps", "hurts"):
        return f"{facts}: it {comparison['verdict']}."
    return (
        f"{facts}: no significant difference; an effect of {comparison['smallest_detectable']:.3f} would have been "
        "found with 80 % power."
    )


def moved_malignant(comparison: Comparison) -> list[dict[str, str]]:
    """The malignant images that the two variants call differently: first those that become wrong, then by lesion."""
    found = [row for row in comparison["moved"] if row["label"] in MALIGNANT]
    return sorted(found, key=lambda row: (row["before"] != row["label"], row["after"] != row["label"]))


def gaps(variant: VariantResult) -> JsonObject:
    """Field to the gap between its groups in sensitivity to malignancy, where there is one."""
    return {field: gap for field, gap in variant["subgroups"]["largest_gaps"].items() if gap}


def subgroup(variant: VariantResult, field: str, group: str) -> JsonObject:
    """One group of one variant; every variant has the same groups."""
    return next(row for row in variant["subgroups"]["fields"][field] if row["group"] == group)


def largest_fall(protocol: ProtocolResult) -> JsonObject | None:
    """The age band whose share of malignant images found falls most from control to fusion; None where none falls."""
    fallen, variants = [], [protocol["variants"][name] for name in ("control", "fusion")]
    for row in variants[0]["subgroups"]["fields"]["age"]:
        pair = [subgroup(variant, "age", row["group"])["malignant_sensitivity"]["estimate"] for variant in variants]
        if not row["too_few"] and pair[1] < pair[0]:
            counts = {"images": row["n_malignant"], "lesions": row["n_malignant_lesions"]}
            fallen.append({"group": row["group"], "before": pair[0], "after": pair[1], **counts})
    return max(fallen, key=lambda row: row["before"] - row["after"], default=None)


def of_ham10000(study: Study) -> bool:
    """Whether the study is of HAM10000's own images, which published results are compared with."""
    return study.get("origin", "HAM10000") == "HAM10000"


def study_command(study: Study) -> str:
    """The command that makes the report again from the published predictions."""
    if not of_ham10000(study):
        return "ham10000-study report --config STUDY.yaml --data DATA --predictions predictions.parquet"
    data = Path(str(((study["recipe"] or {}).get("config") or {}).get("data") or "HAM10000")).name
    words = ["ham10000-study", "report", "--config", "examples/configs/study.yaml", "--data", data]
    return shlex.join([*words, "--predictions", "examples/results/predictions.parquet"])


def study_markdown(study: Study) -> str:
    """The whole report as GitHub-flavoured Markdown, with the figures of `plot_study` in `figures/` next to it.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    protocol, path = lead(study), Path(__file__).with_name("study_report.md.jinja")
    template = md.markdown_template(path, thousands="{:,}".format, cell=cell)
    functions = (all_scores, comparison_sentence, gaps, largest_fall, moved_malignant, study_command, subgroup)
    markdown = template.render(
        {function.__name__: function for function in functions},
        TITLES=TITLES,
        VARIANT_TITLES=VARIANT_TITLES,
        study=study,
        settings=study["study"],
        lead=protocol,
        labels=LABEL_DESCRIPTIONS,
        malignant=MALIGNANT,
        readers={name: found for name, values in protocol["variants"].items() if (found := values["shortcuts"])},
        published=published_baseline() if of_ham10000(study) else None,
        of_ham10000=of_ham10000(study),
    )
    # In the template a line that is indented goes on the line before, and empty parts leave empty lines.
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"\n {2,}", " ", markdown)).strip() + "\n"


def short_answer(study: Study) -> list[str]:
    """The statements at the top of the report, as Markdown paragraphs."""
    in_short = study_markdown(study).split("\n## ")[1]
    return [line for line in in_short.splitlines()[1:] if line]


# The README

README_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", "melanoma_sensitivity_at_95_specificity")


def results_table(study: Study) -> str:
    """The README's table as Markdown: the published baseline, every variant and baseline, and what was scored.

    Raises:
        Ham10000Error: For a study of another format, or without a protocol.
    """
    check_study(study)
    published = published_baseline()
    rows = [(published["name"], published["protocol"], published["intervals"])] * of_ham10000(study)
    titles = {key: f"ours: {title}" for key, title in VARIANT_TITLES.items()}
    for name, protocol in study["protocols"].items():
        rows += [(titles.get(key, key), name, scores) for key, scores in all_scores(protocol).items()]
    # They fit a page only if an interval may be broken.
    cells = [
        [md.escape(title), md.escape(name)]
        + [cell(scores.get(key)).replace(md.NO_BREAK, " ") for key in README_METRICS]
        for title, name, scores in rows
    ]
    scored = [
        f"{md.escape(name)}: {md.plural(protocol['n_images'], 'image')} of "
        f"{md.plural(protocol['n_lesions'], 'lesion')} out of {md.plural(protocol['folds'], 'fold')}, "
        f"{md.plural(len(protocol['seeds']), 'training seed')}"
        for name, protocol in study["protocols"].items()
    ]
    notes = (
        f"{'; '.join(scored)}. Answers by the rule `{study['study']['rule']}`; 95 % intervals from a bootstrap of "
        f"lesions and, where there are several, seeds{', the published row of images' if of_ham10000(study) else ''}. "
        "Numbers of different protocols do not compare."
    )
    header = ["model", "protocol", *(METRIC_TITLES[name] for name in README_METRICS)]
    table = md.table(header, cells, align="ll" + "r" * len(README_METRICS))
    return md.join(table, notes)
