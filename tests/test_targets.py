from typing import Any

import pytest
from study_example import study_example

from ham10000.training.targets import TARGETS, Target, targets_table


@pytest.mark.parametrize(
    ("is_ceiling", "value", "found", "reached"),
    [(False, 0.76, 0.76, True), (False, 0.76, 0.759, False), (True, 0.03, 0.03, True), (True, 0.03, 0.031, False)],
)
def test_the_right_side_of_a_bound(is_ceiling: bool, value: float, found: float, reached: bool) -> None:
    assert Target("lesion-grouped", "ece", value, "", is_ceiling).is_reached(found) is reached


def test_the_table_says_how_far_each_model_came() -> None:
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


def test_a_protocol_that_was_not_run_has_no_rows() -> None:
    study: dict[str, Any] = study_example()
    del study["protocols"]["lesion-grouped"]
    assert "lesion-grouped" not in targets_table(study)
    assert {target.protocol for target in TARGETS} == {"lesion-grouped", "image-stratified"}
