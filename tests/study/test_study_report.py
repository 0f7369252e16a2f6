"""The study's report: well-formed Markdown, every number that of study.json, no claim beyond its verdict."""

import copy
import re
import shlex
from typing import Any

import pytest
from card_runs import PARSER, find_table, spaces, tables, text_of
from study_example import EXAMPLES, study_example

from ham10000.modeling import LABELS, Ham10000Error
from ham10000.training.study.command import parse_study
from ham10000.training.study.report import (
    TARGETS,
    Target,
    available_figures,
    results_table,
    short_answer,
    study_command,
    study_markdown,
    targets_table,
)
from ham10000.training.utils.published import published_baseline

BOTH = ("lesion-grouped", "image-stratified")


def grouped(study: dict[str, Any]) -> dict[str, Any]:
    return study["protocols"]["lesion-grouped"]


def over_seeds(value: dict[str, Any], form: str = ".3f") -> str:
    """How a mean over seeds must read, written down anew."""
    spread = "" if value["sd"] is None else f" ± {value['sd']:.3f}"
    return f"{value['mean']:{form}}{spread} [{value['low']:{form}}, {value['high']:{form}}]"


def cell(value: dict[str, Any], form: str = ".3f") -> str:
    return f"{value['estimate']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


def part(markdown: str, title: str) -> str:
    """A section without its heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE)
    assert found, (title, re.findall(r"^## (.*)$", markdown, re.MULTILINE))
    return found[1].replace("\u00a0", " ")


def bullet(study: dict[str, Any], start: str) -> str:
    found = [text for text in short_answer(study) if text.startswith(f"**{start}")]
    return found[0].replace("\u00a0", " ") if found else ""


@pytest.mark.parametrize("options", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_the_report_is_well_formed_whatever_the_study_holds(options: dict[str, Any]) -> None:
    study = study_example(**options)
    before = copy.deepcopy(study)
    for markdown in (study_markdown(study), results_table(study)):
        assert study == before
        tokens = PARSER.parse(markdown)
        shown = "\n".join(text_of(token) for token in tokens if token.type == "inline")
        assert not re.search(r"\b(None|nan|NaN|inf|True|False)\b", shown)
        assert "{" not in shown
        found = list(tables(markdown))
        assert found
        for rows in found:
            assert len({len(row) for row in rows}) == 1, rows[0]
            assert all(text.strip() for row in rows for text in row), rows
            assert len(rows) > 1
        # What a parser takes for no table, because its rows do not fit its header, stays a paragraph with bars.
        assert "|" not in shown
        for one, next_one in zip(tokens, tokens[1:] + [None], strict=True):
            if one.type == "heading_close" and one.tag != "h1":
                assert next_one is not None
                deeper = next_one.type == "heading_open" and next_one.tag > one.tag
                assert next_one.type != "heading_open" or deeper, "an empty section"
        lines = {re.sub(r"<(/?details|/?summary)>", "", line) for line in markdown.split("\n")}
        assert not any(re.search(r"<[a-z]", line) for line in lines), "HTML beyond the folded parts"
        assert not re.search(r"\n{3,}|[ \t]\n", markdown)
        assert not re.search(r"^ |\S  | [.,;)]", markdown, re.MULTILINE), "a line is not joined as it should be"


@pytest.mark.parametrize("options", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_the_report_points_to_the_figures_there_are(options: dict[str, Any]) -> None:
    study = study_example(**options)
    pointed = re.findall(r"!\[[^\]]+\]\(pictures/(\w+)\.png\)", study_markdown(study, "pictures"))
    assert sorted(pointed) == sorted(available_figures(study))
    assert study_markdown(study).count("](figures/") == len(pointed)


@pytest.mark.parametrize("options", EXAMPLES.values(), ids=EXAMPLES.keys())
def test_the_short_answer_is_short(options: dict[str, Any]) -> None:
    answer = short_answer(study_example(**options))
    assert 3 <= len(answer) <= 5
    assert answer[0].startswith("**Does metadata help?**")
    assert all(text.startswith("**") and text.endswith(".") for text in answer)


@pytest.mark.parametrize("seeds", [1, 3])
def test_results_hold_the_numbers_of_the_study(seeds: int) -> None:
    study = study_example(seeds=seeds, tta=True)
    rows = find_table(study_markdown(study), "AUROC", "macro-F1")
    columns = ("macro_f1", "balanced_accuracy", "accuracy", "auroc_macro", "melanoma_sensitivity_at_95_specificity")
    for name, values in grouped(study)["variants"].items():
        for title, metrics in ((name, values["metrics"]), (f"{name}, 4 views", (values["tta"] or {}).get("metrics"))):
            if metrics is None:
                assert title not in rows
                continue
            expected = [over_seeds(metrics[key]) for key in columns]
            arrow = f"{metrics['ece_uncalibrated']['mean']:.3f} → {metrics['ece']['mean']:.3f}"
            assert spaces(rows[title]) == [*expected, arrow]
    calibration = find_table(study_markdown(study), "NLL (nats) before → after")
    metrics = grouped(study)["variants"]["image"]["metrics"]
    arrow = " → ".join(over_seeds(metrics[name]) for name in ("nll_uncalibrated", "nll"))
    assert spaces(calibration["image"])[3:] == [arrow, over_seeds(metrics["weighted_f1"])]


def test_comparisons_hold_the_numbers_and_sentences_of_the_study() -> None:
    study = study_example(seeds=2)
    comparison = grouped(study)["comparisons"][0]
    comparison["p_holm"], comparison["mcnemar"]["p_holm"] = 0.0004, 0.0312
    comparison["sentence"] = "A sentence with a | bar and *stars*."
    markdown = study_markdown(study)
    row = find_table(markdown, "p (Holm)", "verdict")["fusion-concat - image"]
    primary = comparison["metrics"]["macro_f1"]
    assert spaces(row) == [f"macro-F1 {cell(primary, '+.3f')}", "< 0.001", "0.051", "40 / 31", "0.031", "helps"]
    shown = [text_of(token) for token in PARSER.parse(markdown) if token.type == "inline"]
    assert comparison["sentence"] in shown
    nll = next(rows for rows in tables(markdown) if "p, not adjusted" in rows[0])[-1]
    assert spaces(nll)[1:3] == ["NLL (nats)", cell(comparison["metrics"]["nll"], "+.3f")]


def test_the_words_follow_the_verdict_and_not_the_estimate() -> None:
    study = study_example(seeds=2)
    comparison = grouped(study)["comparisons"][0]
    said = {}
    for verdict in ("helps", "hurts", "cannot be told apart"):
        comparison["verdict"] = verdict
        said[verdict] = bullet(study, "Does metadata help?")
    assert "fusion-concat helps (macro-F1" in said["helps"]
    assert "fusion-concat hurts (macro-F1" in said["hurts"]
    assert "fusion-concat makes no significant difference (macro-F1" in said["cannot be told apart"]
    assert "0.051 would have been found with 80 % power" in said["cannot be told apart"]
    assert "helps" not in said["cannot be told apart"] + said["hurts"]


def test_fusions_that_disagree_are_named_apart() -> None:
    study = study_example(variants=("image", "fusion-concat", "fusion-film"), protocols=BOTH)
    grouped(study)["comparisons"][1]["verdict"] = "cannot be told apart"
    text = bullet(study, "Does metadata help?")
    first, second = text.split(". Under image-stratified")
    assert "fusion-concat helps (" in first
    assert "fusion-film makes no significant difference (" in first
    assert "fusion-concat helps" in second
    assert "no significant difference" not in second


@pytest.mark.parametrize(
    ("stored", "shown"),
    [("cannot be told apart", "no significant difference"), ("helps", "helps"), ("no significant difference",) * 2],
)
def test_a_verdict_of_an_earlier_version_is_shown_in_the_words_of_this_one(stored: str, shown: str) -> None:
    study = study_example()
    grouped(study)["comparisons"][0] |= {"verdict": stored, "sentence": f"A against B: {stored} at this size."}
    markdown = study_markdown(study)
    assert find_table(markdown, "p (Holm)", "verdict")["fusion-concat - image"][-1] == shown
    assert f"- A against B: {shown} at this size." in markdown
    assert "told apart" not in markdown


def test_one_seed_says_that_it_is_one() -> None:
    one, three = study_example(seeds=1), study_example(seeds=3)
    assert "this holds for these trained models and another seed may change it" in bullet(one, "Does")
    assert "another seed may change it" not in study_markdown(three)
    assert "the 3 training seeds" in bullet(three, "Does")
    assert "One training seed: differences between trainings" in part(study_markdown(one), "Limits")
    assert "Owen" not in part(study_markdown(one), "Methods").split("References:")[0]
    assert "Owen 2007" in part(study_markdown(three), "Methods").split("References:")[0]


def test_classes_and_moved_lesions() -> None:
    study = study_example()
    changes = grouped(study)["class_changes"]["fusion-concat"]
    for label in LABELS:
        changes[label] |= {
            "right_to_wrong": {"images": 0, "lesions": 0},
            "wrong_to_right": {"images": 0, "lesions": 0},
        }
    changes["nv"] |= {"right_to_wrong": {"images": 9, "lesions": 8}, "wrong_to_right": {"images": 3, "lesions": 2}}
    changes["mel"] |= {"right_to_wrong": {"images": 1, "lesions": 1}, "wrong_to_right": {"images": 7, "lesions": 5}}
    markdown = study_markdown(study)
    rows = find_table(markdown, "wrong to right", "net lesions")
    assert rows["mel: melanoma"] == ["111 (61)", "7 (5)", "1 (1)", "+4"]
    assert rows["nv: melanocytic nevus"] == ["671 (538)", "3 (2)", "9 (8)", "-6"]
    text = bullet(study, "What does it move?")
    assert "corrects 7 lesions that the image alone gets wrong, and breaks 9" in text
    assert "most are nv (2 corrected and 8 broken); of the melanomas 5 corrected and 1 broken" in text
    moved = [rows for rows in tables(markdown) if rows[0][0] == "lesion"]
    assert [len(rows) for rows in moved] == [11]  # ten and the header
    assert moved[0][1] == ["HAM_0000000", "ISIC_0000001", "mel", "mel", "nv", "right to wrong"]
    assert "30 malignant images moved, 10 of them here and all in study.json" in markdown
    assert "ISIC_0009999" not in markdown  # benign
    for change in changes.values():
        change |= {key: {"images": 0, "lesions": 0} for key in ("right_to_wrong", "wrong_to_right")}
    assert "Nothing: fusion-concat is right wherever" in bullet(study, "What does it move?")


def test_shortcuts_hold_the_numbers_of_the_study() -> None:
    study = study_example(variants=("image", "fusion-concat"))
    found = grouped(study)["variants"]["fusion-concat"]["shortcuts"]
    markdown = study_markdown(study)
    row = spaces(find_table(markdown, "shuffled: macro-F1 lost")["localization"])
    shuffled = found["fields"]["localization"]["shuffled"]
    flips = {key: f"{100 * shuffled['flip_share'][key]:.1f} %" for key in ("estimate", "low", "high")}
    assert row[:3] == [
        cell(shuffled["macro_f1_drop"], "+.3f"),
        "0.003",
        "{estimate} [{low}, {high}]".format(**flips),
    ]
    text = part(markdown, "Shortcuts")
    assert f"{cell(found['age_sweep']['slope_per_decade'], '+.3f')} per decade" in text
    means = found["site_sweep"]["melanoma"]["mean"]
    highest, lowest = (found["site_sweep"]["sites"][means.index(end(means))] for end in (max, min))
    assert f"highest for {highest} and lowest for {lowest}, {cell(found['site_sweep']['range'])} apart" in text
    missing = next(rows for rows in tables(markdown) if rows[0][0] == "fields missing at random")
    assert [row[0].replace("\u00a0", " ") for row in missing[1:]] == [f"{10 * k} %" for k in range(11)]


def test_a_planted_shortcut_is_named_and_its_absence_too() -> None:
    said = bullet(study_example(named=("age",)), "Which fields are read?")
    assert "fusion-concat reads age (shuffling age costs 0.080 [" in said
    assert "localization" not in said
    silent = bullet(study_example(named=()), "Which fields are read?")
    assert "no single field could be shown to matter to fusion-concat" in silent
    mixed = study_example(variants=("image", "fusion-concat", "fusion-film"))
    grouped(mixed)["variants"]["fusion-film"]["shortcuts"]["named"] = []
    said = bullet(mixed, "Which fields are read?")
    assert "fusion-concat reads localization" in said
    assert "no single field could be shown to matter to fusion-film" in said


def test_a_field_the_model_does_not_have_leaves_no_gap() -> None:
    study = study_example(variants=("image", "fusion-concat"))
    found = grouped(study)["variants"]["fusion-concat"]["shortcuts"]
    found |= {"age_sweep": None, "site_sweep": None, "missing": []}
    markdown = study_markdown(study)
    assert "Age set to" not in markdown
    assert "Site set to" not in markdown
    assert "figures/sweeps.png" not in markdown
    assert "figures/missing.png" not in markdown


def test_subgroups_stand_beside_each_other_and_name_the_gap() -> None:
    study = study_example()
    variants = grouped(study)["variants"]
    rows = find_table(study_markdown(study), "group", "malignant images (lesions)")
    image, fusion = (variants[name]["subgroups"]["fields"]["age"][0] for name in ("image", "fusion-concat"))
    expected = ["40 (30)", cell(image["malignant_sensitivity"]), cell(fusion["malignant_sensitivity"])]
    assert spaces(rows["age: under 30"]) == expected
    assert rows["site: acral or genital"][1:] == ["too few to say", "too few to say"]
    assert set(find_table(study_markdown(study), "group", "images (lesions)")) == set(rows)
    subgroups = variants["fusion-concat"]["subgroups"]
    gap = {"lowest": "female", "highest": "male", "difference": {"estimate": 0.5, "low": -0.1, "high": 0.9}}
    subgroups["largest_gaps"]["sex"] = gap
    said = bullet(study, "Which patient groups")
    assert (
        "by sex, 57 % (female) against 65 % (male), a gap of 0.500 [-0.100, 0.900], which chance may explain" in said
    )
    gap["difference"]["low"] = 0.1
    assert "an interval that excludes 0" in bullet(study, "Which patient groups")
    small = study_example(too_small=True)
    assert "No two groups have the 10 malignant lesions" in bullet(small, "Which patient groups")
    assert "No field has two groups" in part(study_markdown(small), "Subgroups")


def test_leakage_under_both_protocols() -> None:
    study = study_example(protocols=BOTH, seeds=2)
    markdown = study_markdown(study)
    both = find_table(markdown, "what", *BOTH)
    expected = [over_seeds(study["protocols"][name]["variants"]["image"]["metrics"]["macro_f1"]) for name in BOTH]
    assert spaces(both["image: macro-F1"]) == expected
    assert spaces(both["test images whose lesion is in train"]) == ["0.0 %", "39.8 %"]
    found = study["protocols"]["image-stratified"]["variants"]["image"]["leakage"]
    rows = next(rows for rows in tables(markdown) if "lesion seen in training" in rows[0])
    row = next(row for row in rows if row[:2] == ["image", "macro-F1"])
    seen, unseen = (over_seeds(found[side]["metrics"]["macro_f1"]) for side in ("seen", "unseen"))
    assert spaces(row)[2:] == [seen, unseen, over_seeds(found["difference"]["macro_f1"], "+.3f")]
    said = bullet(study, "What leaks?")
    assert "no test image shows a lesion of the training set. Under image-stratified 39.8 % of" in said
    assert f"scores macro-F1 {seen.split()[0]} on these and {unseen.split()[0]} on the others" in said


def test_a_leak_without_scores_is_still_told() -> None:
    study = study_example(protocols=("image-stratified",), leakage=False)
    assert "39.8 % of the test images" in bullet(study, "What leaks?")
    assert "39.8 % of the test images" in part(study_markdown(study), "Leakage")


def test_sections_without_data_say_why_or_are_absent() -> None:
    image_only = study_markdown(study_example(variants=("image",), forbidden=False))
    assert "No variant reads metadata" in part(image_only, "Shortcuts")
    assert "There are none" in part(image_only, "Comparisons")
    assert "## Forbidden columns" not in image_only
    assert "This study cannot say" in image_only
    no_image = study_markdown(study_example(variants=("metadata", "fusion-film")))
    assert "no fusion was compared with an image model" in part(no_image, "What metadata moves, by class")


def test_values_of_the_data_are_text() -> None:
    sites = ("<b>back</b>", "a | b", "**face**", "[x](y)", "`c`", "$z$")
    study = study_example(sites=sites)
    found = grouped(study)["variants"]["fusion-concat"]
    for site in sites:
        found["shortcuts"]["site_sweep"]["melanoma"]["mean"] = [0.9 if name == site else 0.1 for name in sites]
        found["subgroups"]["fields"]["site"][0]["group"] = site
        found["subgroups"]["largest_gaps"]["site"]["lowest"] = site
        found["shortcuts"]["sentence"] = f"It reads {site}."
        found["cost"]["hardware"] = site
        markdown = study_markdown(study)
        tokens = [token for token in PARSER.parse(markdown) if token.type == "inline"]
        shown = "\n".join(text_of(token) for token in tokens).replace("\u00a0", " ")
        assert f"highest for {site} and" in shown
        assert f"It reads {site}." in shown
        assert f"Hardware: {site}" in shown or f"and {site}." in shown
        kinds = {child.type for token in tokens for child in token.children or []}
        assert "html_inline" not in kinds
        assert not any("href" in child.attrs for token in tokens for child in token.children or [])
        assert all(len({len(row) for row in rows}) == 1 for rows in tables(markdown))


def test_a_study_can_be_repeated_from_its_report() -> None:
    study = study_example(seeds=3, folds=5, protocols=BOTH, tta=True)
    study["settings"]["config"]["pretrained"] = "/home/anna/weights/net.safetensors"
    study["settings"]["data"] = "/home/anna/HAM 10000"
    study["settings"]["config"]["image_size"] = [192, 256]
    text = part(study_markdown(study), "How to repeat")
    assert "--protocol lesion-grouped --protocol image-stratified --seeds 3" in text
    assert "--folds 5 --views 4 --n_resamples 2000" in text
    assert "--data 'HAM 10000'" in text
    assert "--pretrained net.safetensors" in text
    assert "--image_size 192 256" in text
    assert "anna" not in study_markdown(study)
    assert "--seed " not in text
    assert "--batch_size" not in text  # the default
    for words in ("ab" * 32, "cd" * 32, "torch 2.15.0", "2 cores of AMD EPYC", "`c0ffee0000`", "0, 1 and 2"):
        assert words in text
    assert "datasets" not in text  # not installed there


@pytest.mark.parametrize("last_seeds", [[0], [0, 1]])
def test_the_command_of_the_report_is_read_as_the_study_it_came_from(last_seeds: list[int]) -> None:
    settings = study_example(seeds=2, folds=5, tta=True)["settings"] | {"protocols": list(BOTH)}
    changed = {
        "image_size": [192, 256],
        "augment_flip": False,
        "max_gradient_norm": 1.5,
        "metadata_fields": ["age"],
        "backbone_kwargs": '{"drop_path_rate": 0.3}',
        "data_fixes": ["drop_unreadable"],
    }
    settings["config"] |= changed | {"data": "ham10000"}
    settings["seeds"] = dict(zip(BOTH, [[0, 1], last_seeds], strict=True))
    program, *argv = shlex.split(study_command(settings))
    options, config = parse_study(argv)
    assert program == "ham10000-study"
    assert (options.protocol, options.variants) == (list(BOTH), settings["variants"])
    assert (options.seeds, options.folds, options.views, options.n_resamples) == (settings["seeds"], 5, 4, 2000)
    found = config.to_dict()
    assert {name: found[name] for name in changed} == changed
    # Everything that is not said is the default there, too.
    assert {name for name in found if found[name] != settings["config"][name]} <= {"output_dir", "modality", "fusion"}


def test_methods_cite_what_they_name() -> None:
    methods = part(study_markdown(study_example(seeds=2)), "Methods")
    text, references = methods.split("References:")
    assert references.count("\n- ") == 8
    for name, year in (
        ("Efron & Tibshirani", 1993),
        ("Owen", 2007),
        ("Fagerland", 2013),
        ("Guo", 2017),
        ("Davison & Hinkley", 1997),
    ):
        assert re.search(rf"{name}( et al\.)? {year}", text)
        assert re.search(rf"- {name}.* {year}", references)
    for name, year in (("Holm", 1979), ("Tschandl", 2018), ("Field & Welsh", 2007)):
        assert re.search(rf"- {name}.* {year}", references)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_readme_table(seeds: int) -> None:
    study = study_example(seeds=seeds, protocols=BOTH)
    markdown = results_table(study)
    rows, targets = tables(markdown)
    assert len(targets) == 9  # a head, and four targets for the image and the fusion model
    assert [row[:3] for row in rows[1:]] == [
        [published_baseline()["name"], "image-stratified", "39.8\u00a0%".replace("\u00a0", " ")],
        ["ours: metadata", "lesion-grouped", "0.0 %"],
        ["ours: image, tf_efficientnetv2_b0, 192 px", "lesion-grouped", "0.0 %"],
        ["ours: fusion-concat, tf_efficientnetv2_b0, 192 px", "lesion-grouped", "0.0 %"],
        ["ours: metadata", "image-stratified", "39.8 %"],
        ["ours: image, tf_efficientnetv2_b0, 192 px", "image-stratified", "39.8 %"],
        ["ours: fusion-concat, tf_efficientnetv2_b0, 192 px", "image-stratified", "39.8 %"],
    ]
    assert rows[1][3] == "0.804 [0.753, 0.847]"  # the model card's macro-F1
    assert rows[1][6:] == ["–", "–", "–"]
    metrics = grouped(study)["variants"]["image"]["metrics"]
    columns = ("macro_f1", "balanced_accuracy", "accuracy", "auroc_macro", "ece")
    expected = [over_seeds(metrics[name]) for name in (*columns, "melanoma_sensitivity_at_95_specificity")]
    assert rows[3][3:] == expected
    notes = markdown.split("\n\n")[-2]
    assert "\n" not in notes
    for words in ("split `abababababab`", "1,002 images of 745 lesions", "2 cores of AMD EPYC"):
        assert words in notes
    assert ("Mean ± SD over 2 training seeds" in notes) == (seeds == 2)
    assert ("One training seed each" in notes) == (seeds == 1)


@pytest.mark.parametrize("render", [study_markdown, results_table])
def test_what_is_no_study_is_refused(render: Any) -> None:
    with pytest.raises(Ham10000Error, match="The study has format 2; this version reads format 1"):
        render({"format": 2})
    with pytest.raises(Ham10000Error, match="has no protocol"):
        render({"format": 1, "protocols": {}})


@pytest.mark.parametrize(
    ("is_ceiling", "value", "found", "reached"),
    [(False, 0.76, 0.76, True), (False, 0.76, 0.759, False), (True, 0.03, 0.03, True), (True, 0.03, 0.031, False)],
)
def test_the_right_side_of_a_bound(is_ceiling: bool, value: float, found: float, reached: bool) -> None:
    assert Target("lesion-grouped", "ece", value, "", is_ceiling).is_reached(found) is reached


def test_the_targets_say_how_far_each_model_came() -> None:
    study: dict[str, Any] = study_example()
    variants = study["protocols"]["lesion-grouped"]["variants"]
    variants["image"]["metrics"]["macro_f1"]["mean"] = 0.7449
    text = targets_table(study)
    row = next(line for line in text.splitlines() if "macro-F1" in line and "| image," in line)
    assert "≥ 0.76" in row
    assert row.endswith("| 0.745 | 0.015 short |")
    assert "| metadata," not in text
    variants["image"]["metrics"]["macro_f1"]["mean"] = 0.77
    assert "| 0.770 | reached |" in targets_table(study)


def test_a_protocol_that_was_not_run_has_no_targets() -> None:
    study: dict[str, Any] = study_example()
    del study["protocols"]["lesion-grouped"]
    assert "lesion-grouped" not in targets_table(study)
    assert {target.protocol for target in TARGETS} == {"lesion-grouped", "image-stratified"}
