"""The table of predictions: what is written is read, and what does not fit together is said."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from study_tables import example_frame, example_image

from ham10000.modeling import Ham10000Error
from ham10000.training.study.predictions import read_logits, write_predictions


@pytest.fixture
def table() -> pd.DataFrame:
    image = example_image(example_frame(60), seeds=2)
    fusion = image.with_logits(image.logits + 1)
    parts = [image.frame("lesion-grouped", "image"), fusion.frame("lesion-grouped", "fusion")]
    return pd.concat(parts, ignore_index=True)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    image = example_image(example_frame(60), seeds=2)
    write_predictions(tmp_path / "p.parquet", {("lesion-grouped", "image"): image})
    assert pd.read_parquet(tmp_path / "p.parquet").dtypes["logit_mel"] == np.float32
    found = read_logits([tmp_path / "p.parquet"])["lesion-grouped", "image"]
    for name, value in vars(image).items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_the_classes_are_those_of_the_columns_and_several_files_are_one_table(tmp_path: Path, table) -> None:
    others = [name for name in table if name.startswith("logit_") and name not in ("logit_mel", "logit_nv")]
    two, paths = table[table["label"].isin(["mel", "nv"])].drop(columns=others), []
    for fold, rows in two.groupby("fold"):
        paths.append(tmp_path / f"{fold}.parquet")
        write_predictions(paths[-1], rows)
    write_predictions(tmp_path / "all.parquet", two)
    whole, parts = read_logits([tmp_path / "all.parquet"]), read_logits(paths)
    for key, found in whole.items():
        assert found.classes == ("mel", "nv")
        assert found.logits.shape[2] == 2
        np.testing.assert_array_equal(found.logits, parts[key].logits)


def changed(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="fold"), r"lacks the column\(s\) \['fold'\]"),
        (lambda table: table.drop(columns=[c for c in table if c.startswith("logit_")]), "logit_<class>"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "'IMG_00000_0' is scored twice for lesion-grouped, image"),
        (lambda table: table.iloc[1:], "seed 0 has no prediction for image 'IMG_00000_0'"),
        (
            lambda table: table[table["variant"].eq("image") | table["image_id"].ne("IMG_00000_0")],
            "fusion has no pred",
        ),
        (changed("label", "scc"), "label 'scc' has no column logit_scc"),
        (changed("logit_mel", np.nan), "logits of image 'IMG_00000_0' are not finite"),
        (changed("fold", 2), "another lesion, fold or label with seed 1"),
        (lambda table: table.assign(lesion_id="HAM_0"), "lesion 'HAM_0' is in two folds"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, table: pd.DataFrame, change: Callable, message: str) -> None:
    write_predictions(tmp_path / "p.parquet", change(table))
    with pytest.raises(Ham10000Error, match=message):
        read_logits([tmp_path / "p.parquet"])
    (tmp_path / "p.parquet").write_text("nothing")
    with pytest.raises(Ham10000Error, match="parquet table of predictions"):
        read_logits([tmp_path / "p.parquet"])
