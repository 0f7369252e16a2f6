"""The table of predictions: what is written is read, and what does not fit together is said."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_tables import example_frame, example_image

from ham10000.modeling import Ham10000Error
from ham10000.training.study.predictions import read_logits, write_predictions

IMAGE = example_image(example_frame(60), seeds=2)
TABLE = IMAGE.frame("lesion-grouped", "image")


def test_a_table_is_read_as_it_was_written_and_other_variants_left_out(tmp_path: Path) -> None:
    fusion = dataclasses.replace(IMAGE, logits=IMAGE.logits + 1).frame("lesion-grouped", "fusion")
    write_predictions(tmp_path / "p.parquet", pd.concat([fusion, TABLE]))
    assert pd.read_parquet(tmp_path / "p.parquet").dtypes["logit_mel"] == np.float32
    found = read_logits([tmp_path / "p.parquet"])["lesion-grouped"]
    for name, value in vars(IMAGE).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_the_classes_are_those_of_the_columns_and_several_files_are_one_table(tmp_path: Path) -> None:
    others = [name for name in TABLE if name.startswith("logit_") and name not in ("logit_mel", "logit_nv")]
    two = TABLE[TABLE["label"].isin(["mel", "nv"])].drop(columns=others)
    files = {tmp_path / f"{fold}.parquet": rows for fold, rows in two.groupby("fold")}
    for path, rows in [*files.items(), (tmp_path / "all.parquet", two)]:
        write_predictions(path, rows)
    whole, parts = read_logits([tmp_path / "all.parquet"]), read_logits([*files])
    for key, found in whole.items():
        assert found.classes == ("mel", "nv")
        assert found.logits.shape[2] == 2
        np.testing.assert_array_equal(found.logits, parts[key].logits)


def in_the_first_row(name: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{name: table[name].where(table.index > 0, value)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="fold"), r"lacks the column\(s\) \['fold'\]"),
        (lambda table: table.drop(columns=[c for c in table if c.startswith("logit_")]), "logit_<class>"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "'IMG_00000_0' is scored twice for lesion-grouped, image"),
        (lambda table: table.iloc[1:], "seed 0 has no prediction for image 'IMG_00000_0'"),
        (in_the_first_row("label", "scc"), "label 'scc' has no column logit_scc"),
        (in_the_first_row("logit_mel", np.nan), "logits of image 'IMG_00000_0' are not finite"),
        (in_the_first_row("fold", 2), r"'IMG_00000_0' does not have the same fold with every seed: \{0: 2, 1: 0\}"),
        (lambda table: table.assign(lesion_id="HAM_0"), "lesion 'HAM_0' is in two folds"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, change: Callable, message: str) -> None:
    write_predictions(tmp_path / "p.parquet", change(TABLE))
    with pytest.raises(Ham10000Error, match=message):
        read_logits([tmp_path / "p.parquet"])
    (tmp_path / "p.parquet").write_text("nothing")
    with pytest.raises(Ham10000Error, match="parquet table of predictions"):
        read_logits([tmp_path / "p.parquet"])
