"""The study's report as a Markdown parser reads it: the numbers of study.json, and text of the data as text."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from analysed_study import study_json
from card_runs import PARSER, tables, text_of

from ham10000.training.evaluation.metrics import METRIC_TITLES
from ham10000.training.study.config import StudyConfig, read_study_config
from ham10000.training.study.report import VARIANT_TITLES, comparison_sentence, study_markdown

METRICS = ("macro_f1", "balanced_accuracy", "accuracy", "auroc_macro", "melanoma_sensitivity_at_95_specificity")


@pytest.fixture
def study() -> Any:
    return study_json()


@pytest.fixture
def lead(study: Any) -> Any:
    return study["protocols"]["lesion-grouped"]


def number(value: Any, form: str = ".3f", unit: str = "", sd: bool = True) -> str:
    """How a figure must read, written down once more."""
    if value is None or value["estimate"] is None:
        return "–"
    scale = 100 if unit else 1
    estimate, low, high = (f"{scale * value[key]:{form}}{unit}" for key in ("estimate", "low", "high"))
    spread = "" if value.get("sd") is None or unit or not sd else f" ± {value['sd']:.3f}"
    return f"{estimate}{spread} [{low}, {high}]"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def find(markdown: str, *header: str) -> list[list[list[str]]]:
    """The tables whose header has these cells; their other rows."""
    found = [rows for rows in tables(markdown) if set(header) <= set(rows[0])]
    assert found, header
    return [rows[1:] for rows in found]


def test_results_hold_the_numbers_of_the_study(study: Any, lead: Any) -> None:
    markdown = study_markdown(study)
    results = find(markdown, "AUROC", METRIC_TITLES["macro_f1"])
    for table, protocol in zip(results, study["protocols"].values(), strict=True):
        rows = {row[0].partition(":")[0]: row[1:] for row in table}
        scores = {name: values["metrics"] for name, values in protocol["variants"].items()}
        for name, found in (scores | {row["name"]: row["scores"] for row in protocol["baselines"]}).items():
            assert rows[name] == [number(found.get(key)) for key in METRICS]
    assert {row[0] for row in results[0]} >= {f"{k}: {v}" for k, v in VARIANT_TITLES.items()}
    (calibration,) = find(markdown, "ECE before")
    for row, values in zip(calibration, lead["variants"].values(), strict=True):
        ece, nll = ([number(values[when][key]) for when in ("uncalibrated", "metrics")] for key in ("ece", "nll"))
        assert row[1:] == [*ece, f"{values['ece_floor']:.3f}", *nll]
    (sets,) = find(markdown, "promised")
    expected = [
        [name, f"{100 * row['coverage']:.0f} %"]
        + [f"{100 * found['estimate']:.0f} %" for found in row["per_class"].values()]
        + [number(row["size"], sd=False), f"{100 * row['single']:.0f} %", f"{100 * row['empty']:.1f} %"]
        for name, values in lead["variants"].items()
        for row in values["sets"]
    ]
    assert sets == expected


def test_comparisons_and_changes_hold_the_numbers_of_the_study(study: Any, lead: Any) -> None:
    lead["comparisons"][0]["p_holm"], lead["comparisons"][1]["mcnemar"]["p"] = 0.0004, 0.0312
    markdown = study_markdown(study)
    (table,) = find(markdown, "p (Holm)")
    for row, found in zip(table, lead["comparisons"], strict=True):
        mcnemar = found["mcnemar"]
        assert row == [
            f"{found['model']} - {found['other']}",
            number(found["metrics"]["macro_f1"]["estimate"], "+.3f"),
            p_value(found["p_holm"]),
            f"{found['smallest_detectable']:.3f}",
            f"{mcnemar['only_model_right']:,} / {mcnemar['only_other_right']:,}",
            p_value(mcnemar["p"]),
            found["verdict"],
        ]
    (classes,) = find(markdown, "net lesions")
    for row, (label, found) in zip(classes, lead["comparisons"][0]["changes"].items(), strict=True):
        net = found["lesions_gained"] - found["lesions_lost"]
        counts = [f"{found[f'images{way}']:,} ({found[f'lesions{way}']:,})" for way in ("", "_gained", "_lost")]
        assert row[0].startswith(f"{label}: ")
        assert row[1:] == [*counts, f"{net:+,}" if net else "0"]


def test_shortcuts_subgroups_and_leak_hold_the_numbers_of_the_study(study: Any, lead: Any) -> None:
    markdown = study_markdown(study)
    readers = [values["shortcuts"] for values in lead["variants"].values() if values["shortcuts"]]
    for table, found in zip(find(markdown, "shuffled: macro-F1 lost"), readers, strict=True):
        for row, (field, ways) in zip(table, found["fields"].items(), strict=True):
            expected = []
            for way in (ways["shuffled"], ways["unknown"]):
                p = way["p"] if field == "all" else way["p_holm"]
                expected += [number(way["drop"], "+.3f", sd=False), p_value(p), number(way["flips"], ".1f", " %")]
            assert row == ["all together" if field == "all" else field, *expected]
    (forbidden,) = find(markdown, "gain over the allowed alone")
    for row, found in zip(forbidden, lead["forbidden"], strict=True):
        scores = [number(found["scores"][key], sd=False) for key in ("macro_f1", "balanced_accuracy")]
        assert row == [found["name"], *scores, number(found["gain"], "+.3f")]
    (subgroups,) = find(markdown, "malignant images (lesions)")
    fields = [values["subgroups"]["fields"] for values in lead["variants"].values()]
    groups = [[group for name in fields[0] for group in of_variant[name]] for of_variant in fields]
    for row, found in zip(subgroups, zip(*groups, strict=True), strict=True):
        counts = f"{found[0]['n_malignant']:,} ({found[0]['n_malignant_lesions']:,})"
        shares = ["too few to say" if one["too_few"] else number(one["malignant_sensitivity"]) for one in found]
        assert row[0].endswith(f": {found[0]['group']}")
        assert row[1:] == [counts, *shares]
    (leak,) = find(markdown, "lesion seen in training")
    found = study["protocols"]["image-stratified"]["leakage"]
    for row, key in zip(leak, METRICS, strict=False):
        parts = [number(found[part]["metrics"][key]) for part in ("seen", "unseen")]
        assert row[1:] == [*parts, number(found["difference"][key], "+.3f")]


def test_the_report_says_only_what_this_study_did(study: Any, lead: Any) -> None:
    """Other comparisons, class weights and columns than the default ones, and one protocol with one seed."""
    usual, absent = study_markdown(study), "is absent from these data, or the same for all images"
    assert "metadata change the answer for" in usual
    assert "of a protocol with one seed, are of lesions alone" in usual
    assert usual.count("half-way") == 2
    assert absent not in usual
    study["study"]["heads"]["class_weights"] = "balanced"
    study["origin"] = None
    lead["comparisons"] = [row for row in lead["comparisons"] if (row["model"], row["other"]) == ("fusion", "image")]
    lead["comparisons"][0]["moved"], lead["forbidden"] = [], []
    other = study_markdown(study)
    assert "fusion and image answer differently for 0" in other
    assert "`fusion - image` is the primary comparison. All rows" in other
    assert other.count(absent) == 2
    of_ham10000 = ("torchvision EfficientNetV2-S", "--config examples/configs/study.yaml", "that HAM10000 joins")
    of_defaults = ("half-way", "Control is the same network with", "`fusion - control`", "gain over the allowed")
    for sentence in (*of_ham10000, *of_defaults):
        assert (sentence in usual, sentence in other) == (True, False), sentence


def test_a_sentence_follows_the_verdict_and_not_the_estimate(study: Any, lead: Any) -> None:
    comparison = lead["comparisons"][0]
    for verdict, end in (
        ("helps", "after Holm: it helps."),
        ("hurts", "after Holm: it hurts."),
        ("no significant difference", "an effect of 0.123 would have been found with 80 % power."),
    ):
        sentence = comparison_sentence({**comparison, "verdict": verdict, "smallest_detectable": 0.123}, study)
        assert sentence.startswith("Fusion against control: macro-F1 +")
        assert sentence.endswith(end)


@pytest.mark.parametrize(
    "site", ["<b>back</b>", "a | b", "**face**", "[x](https://x.test)", "`c`", "$z$", "https://x.test", "<img src=x>"]
)
def test_a_hostile_site_is_shown_as_text(site: str, study: Any, lead: Any) -> None:
    def inline(markdown: str) -> list[Any]:
        return [token for token in PARSER.parse(markdown) if token.type == "inline"]

    def markup(markdown: str) -> list[str]:
        return [child.type for token in inline(markdown) for child in token.children if child.type != "text"]

    plain, sweep = study_markdown(study), lead["variants"]["fusion"]["shortcuts"]["site_sweep"]
    means, text = [row["estimate"] for row in sweep["melanoma"]], json.dumps(study)
    group = lead["variants"]["image"]["subgroups"]["fields"]["site"][0]["group"]
    for name in (sweep["values"][means.index(max(means))], group):
        text = text.replace(json.dumps(name), json.dumps(site))
    hostile = study_markdown(json.loads(text))
    shown = [text_of(token).replace("\u00a0", " ") for token in inline(hostile)]
    assert any(f"highest for {site} and" in paragraph for paragraph in shown)
    assert f"site: {site}" in shown  # a whole cell
    assert markup(hostile) == markup(plain)


def test_the_committed_study_is_the_default_one() -> None:
    config = read_study_config(Path(__file__).parents[2] / "examples" / "configs" / "study.yaml")
    assert Path(config.recipe).is_file()
    assert config == dataclasses.replace(StudyConfig(), recipe=config.recipe, protocols=config.protocols)
