"""The study's figures: which are drawn, what their titles find, and that nothing is cut off."""

import copy
import itertools
import json
import re
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image
from study_example import EXAMPLES, study_example

from ham10000.modeling import Ham10000Error
from ham10000.training.study.figures import DRAW, plot_study
from ham10000.training.study.report import available_figures


def title(figure: Figure) -> str:
    return figure.get_suptitle()


DRAWN = ("all fusions", "image only", "small and undefined")


@pytest.mark.parametrize("example", DRAWN)
def test_every_figure_fits_its_page_and_says_a_finding(example: str) -> None:
    study = study_example(**EXAMPLES[example])
    before = copy.deepcopy(study)
    for name in available_figures(study):
        figure = DRAW[name](study)
        figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
        assert title(figure)
        assert not re.search(r"\b(None|nan)\b|…", title(figure)), (name, title(figure))
        # What is drawn, in inches; eight of them, as the report shows it 800 pixels wide.
        drawn, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        assert width == 8
        assert min(drawn.x0, drawn.y0) >= 0, (name, drawn)
        assert drawn.x1 <= width, (name, drawn)
        assert drawn.y1 <= height, (name, drawn)
        for axes in figure.axes:
            assert axes.get_xlabel(), name
            low, high = sorted(axes.get_ylim())
            ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
            boxes = [text.get_window_extent(renderer) for place, text in ticks if low <= place <= high]
            boxes.sort(key=lambda box: box.y0)
            for one, next_one in itertools.pairwise(boxes):
                assert one.y1 <= next_one.y0 + 1, (name, axes.get_title(loc="left"))
    assert study == before


def test_files_are_images_and_only_those_with_data(tmp_path) -> None:
    paths = plot_study(study_example(variants=("image",), forbidden=False), tmp_path / "figures")
    assert [path.name for path in paths] == ["results.png", "calibration.png", "subgroups.png"]
    assert sorted(tmp_path.rglob("*")) == sorted([tmp_path / "figures", *paths])
    for path in paths:
        with Image.open(path) as picture:
            assert picture.width == 1200
            assert len(picture.convert("L").getcolors() or []) > 10  # neither blank nor one colour


def test_all_kinds_are_drawn_where_there_is_everything() -> None:
    study = study_example(protocols=("lesion-grouped", "image-stratified"))
    assert available_figures(study) == tuple(DRAW)


def test_the_same_study_gives_the_same_files(tmp_path) -> None:
    study = study_example(variants=("image",), forbidden=False)
    first, second = (plot_study(json.loads(json.dumps(study)), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_title_of_the_comparison_follows_the_verdict() -> None:
    titles = {
        verdict: title(DRAW["comparisons"](study_example(verdict=verdict)))
        for verdict in ("helps", "hurts", "cannot be told apart")
    }
    assert titles["helps"].startswith("Metadata helps: fusion-concat +")
    assert titles["hurts"].startswith("Metadata hurts: fusion-concat -")
    assert titles["cannot be told apart"].startswith("Metadata makes no significant difference: fusion-concat")


def test_the_title_counts_fusions_that_disagree() -> None:
    study = study_example(variants=("image", "fusion-concat", "fusion-gated", "fusion-film"))
    found = study["protocols"]["lesion-grouped"]["comparisons"]
    found[1]["verdict"] = "hurts"
    assert title(DRAW["comparisons"](study)).startswith("Metadata helps in 2 of 3 fusions and hurts in 1")
    for row in found:
        row["verdict"] = "cannot be told apart"
    assert title(DRAW["comparisons"](study)).startswith("None of 3 fusions differs significantly from the image alone")


def test_the_title_of_the_shortcuts_names_the_dearest_field() -> None:
    study = study_example(named=("age", "localization"))
    fields = study["protocols"]["lesion-grouped"]["variants"]["fusion-concat"]["shortcuts"]["fields"]
    fields["age"]["shuffled"]["macro_f1_drop"]["estimate"] = 0.31
    assert title(DRAW["shortcuts"](study)) == (
        "fusion-concat reads age and localization: shuffling age costs 0.31 macro-F1"
    )
    quiet = title(DRAW["shortcuts"](study_example(named=())))
    assert quiet == "No single field could be shown to matter to fusion-concat"


def test_the_other_titles_hold_the_numbers_of_the_study() -> None:
    study = study_example(protocols=("lesion-grouped", "image-stratified"))
    variants = study["protocols"]["lesion-grouped"]["variants"]
    fusion = variants["fusion-concat"]
    fusion["metrics"]["macro_f1"]["mean"], variants["image"]["metrics"]["macro_f1"]["mean"] = 0.912, 0.345
    assert title(DRAW["results"](study)) == (
        "Highest macro-F1, lesion-grouped: fusion-concat 0.912, the image alone 0.345"
    )
    fusion["metrics"]["ece_uncalibrated"]["mean"] = fusion["metrics"]["ece"]["mean"] = 0.021
    assert title(DRAW["calibration"](study)) == "Temperature scaling leaves the ECE of fusion-concat at 0.021"
    fusion["metrics"]["ece"]["mean"] = 0.043
    assert title(DRAW["calibration"](study)) == (
        "Temperature scaling raises the ECE of fusion-concat from 0.021 to 0.043"
    )
    slope = fusion["shortcuts"]["age_sweep"]["slope_per_decade"]
    slope |= {"estimate": -0.0123, "low": -0.02, "high": -0.01}
    assert "falls by 0.012 per decade" in title(DRAW["sweeps"](study))
    slope["high"] = 0.01
    assert "no trend of melanoma probability over age beyond chance" in title(DRAW["sweeps"](study))
    fusion["shortcuts"]["missing"][-1]["macro_f1"]["estimate"] = 0.11
    assert "without any metadata: macro-F1 0.11" in title(DRAW["missing"](study))
    changes = study["protocols"]["lesion-grouped"]["class_changes"]["fusion-concat"]
    for change in changes.values():
        change["wrong_to_right"]["lesions"], change["right_to_wrong"]["lesions"] = 3, 1
    assert title(DRAW["class_changes"](study)).startswith("fusion-concat corrects 21 lesions and breaks 7")
    seen = study["protocols"]["image-stratified"]["variants"]["image"]["leakage"]["seen"]
    seen["metrics"]["macro_f1"]["mean"] = 0.991
    assert "0.99 on lesions seen in training" in title(DRAW["leakage"](study))


def test_the_title_of_the_subgroups_names_the_widest_gap() -> None:
    study = study_example()
    subgroups = study["protocols"]["lesion-grouped"]["variants"]["fusion-concat"]["subgroups"]
    female, male = subgroups["fields"]["sex"][:2]
    female["malignant_sensitivity"]["estimate"], male["malignant_sensitivity"]["estimate"] = 0.12, 0.97
    difference = {"estimate": 0.85, "low": 0.7, "high": 0.9}
    subgroups["largest_gaps"]["sex"] = {"lowest": "female", "highest": "male", "difference": difference}
    assert title(DRAW["subgroups"](study)).startswith(
        "fusion-concat finds 12% of malignant images at sex female, 97% at male (lesion-grouped)"
    )
    difference["low"] = -0.1
    assert title(DRAW["subgroups"](study)).endswith("97% at male (lesion-grouped; within chance)")


def test_intervals_are_drawn_where_the_numbers_say() -> None:
    study = study_example(variants=("image", "fusion-concat"), seeds=3)
    comparison = study["protocols"]["lesion-grouped"]["comparisons"][0]
    comparison["metrics"]["macro_f1"] |= {"estimate": 0.25, "low": 0.125, "high": 0.375, "per_seed": [0.2, 0.25, 0.3]}
    lines = {tuple(line.get_xdata()) for line in DRAW["comparisons"](study).axes[0].get_lines()}  # type: ignore[arg-type]
    assert {(0.125, 0.375), (0.2, 0.25, 0.3), (0.25,), (0, 0)} == lines


def test_groups_that_are_too_small_get_words_and_no_point() -> None:
    axes = DRAW["subgroups"](study_example()).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words.count("too few malignant lesions") == 1  # acral or genital
    assert words.count("no malignant lesion") == 3  # unknown age, sex and site
    points = [line for line in axes.get_lines() if line.get_marker() not in ("None", None, "")]
    assert len(points) == 2 * (17 - 4)  # two models, 17 groups


def test_text_of_the_data_is_no_mathematics() -> None:
    sites = ("a$b$", "$\\frac{", "c_d", "x" * 30)
    figure = DRAW["sweeps"](study_example(sites=sites))
    figure.canvas.draw()  # a formula that does not parse would raise here
    assert len([text for text in figure.axes[1].get_yticklabels() if text.get_text()]) == 4


def test_a_title_too_long_for_any_font_is_cut_at_a_word() -> None:
    study = study_example(named=("localization " * 30,))
    values = study["protocols"]["lesion-grouped"]["variants"]["fusion-concat"]["shortcuts"]
    values["fields"]["localization " * 30] = values["fields"]["localization"]
    figure = DRAW["shortcuts"](study)
    assert title(figure).endswith("localization …")
    box = figure._suptitle.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined, union-attr]
    assert box.x1 <= figure.bbox.width


@pytest.mark.parametrize(
    "study", [{"format": 2, "protocols": {"lesion-grouped": {}}}, {}, {"format": 1, "protocols": {}}]
)
def test_what_is_no_study_is_refused(study: dict[str, Any], tmp_path) -> None:
    with pytest.raises(Ham10000Error, match="The study h"):
        plot_study(study, tmp_path)
    assert not list(tmp_path.iterdir())
