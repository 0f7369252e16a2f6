from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from sklearn.utils.class_weight import compute_class_weight

from ham10000.modeling.configuration_ham10000 import LABELS, Ham10000Error
from ham10000.training.data import split as splits
from ham10000.training.data.__main__ import main
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.data.split import SPLITS, apply_split, lesion_groups, load_split, make_split


@pytest.fixture(scope="module")
def data(synthetic_folder: Path) -> datasets.Dataset:
    return load_data(str(synthetic_folder))[0]


def test_known_duplicates_become_one_group() -> None:
    images = ["ISIC_0033481", "ISIC_0033421", "ISIC_0000001", "ISIC_0000002", "ISIC_0033556"]
    assert lesion_groups(["b", "a", "b", "c", "d"], images) == ["a", "a", "a", "c", "d"]
    assert len(splits.KNOWN_DUPLICATE_PAIRS) == 18
    assert len({image for pair in splits.KNOWN_DUPLICATE_PAIRS for image in pair}) == 36


def test_lesion_grouped_is_the_sklearn_fold_in_any_order_and_keeps_every_row(data: datasets.Dataset) -> None:
    split = make_split(data, seed=3, fold=9)
    assert split.sha256 == make_split(data.shuffle(seed=1), seed=3, fold=9).sha256 != make_split(data, fold=9).sha256
    frame = metadata_frame(data).sort_values("image_id", ignore_index=True)
    splitter = StratifiedGroupKFold(10, shuffle=True, random_state=3)
    folds = [set(frame.image_id[test]) for _, test in splitter.split(frame, frame.dx, frame.lesion_id)]
    assert set(split.ids("test")) == folds[9]
    assert set(split.ids("validation")) == folds[0]
    assert set(split.ids("train")) == set(frame.image_id) - folds[9] - folds[0]
    assert split.dropped == []
    assert split.leakage()["test"]["all"] == split.leakage()["validation"]["all"] == 0


def test_image_stratified_is_two_sklearn_calls_and_leaks(data: datasets.Dataset) -> None:
    split, frame = make_split(data, "image-stratified", seed=5), metadata_frame(data)
    aged = frame[frame.age.notna()]
    train, rest = train_test_split(aged, test_size=0.2, stratify=aged.dx, random_state=5)
    validation, test = train_test_split(rest, test_size=0.5, stratify=rest.dx, random_state=5)
    for part, expected in zip(SPLITS, (train, validation, test), strict=True):
        assert set(split.ids(part)) == set(expected.image_id)
    assert split.dropped == frame.image_id[frame.age.isna()].tolist()
    leaks = split.leakage()["test"]
    assert leaks["all"] == pytest.approx(test.lesion_id.isin(train.lesion_id).mean())
    assert leaks["all"] > 0
    assert leaks["mel"] == pytest.approx(test[test.dx == "mel"].lesion_id.isin(train.lesion_id).mean())


def test_class_weights(data: datasets.Dataset) -> None:
    split = make_split(data)
    labels = split.table.dx[split.table.split == "train"].to_numpy()
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=labels)
    np.testing.assert_allclose(split.class_weights(), expected, rtol=1e-12)
    np.testing.assert_allclose(split.class_weights("sqrt") ** 2, expected, rtol=1e-12)
    assert split.class_weights("none").tolist() == [1.0] * 7
    with pytest.raises(Ham10000Error, match="'inverse' do not exist"):
        split.class_weights("inverse")


@pytest.mark.parametrize("protocol", ["lesion-grouped", "image-stratified"])
def test_saved_split_is_read_back(data: datasets.Dataset, protocol: str, tmp_path: Path) -> None:
    split = make_split(data, protocol, seed=7)
    for given in (split.save(tmp_path), tmp_path):
        loaded = load_split(given)
        pd.testing.assert_frame_equal(loaded.table, split.table, check_dtype=False)
        assert loaded.summary() == split.summary()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["split.csv", "split.json"]
    parts = apply_split(data, loaded)
    assert {part: parts[part]["image_id"][:] for part in SPLITS} == {part: split.ids(part) for part in SPLITS}
    assert parts["test"].features == data.features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "random"}, "Protocol 'random' does not exist"),
        ({"folds": 2}, "expected at least 3 folds"),
        ({"fold": 10}, "0 <= fold < folds"),
        ({"protocol": "image-stratified", "fold": 1}, "needs `folds`"),
        ({"folds": 100}, r"the rarest, \w+, has \d+ lesions: join it with another by --label_map|use fewer --folds"),
    ],
)
def test_impossible_splits(data: datasets.Dataset, options: dict, message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        make_split(data, **options)


@pytest.mark.shared
def test_real_splits(shared_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The published baseline's, and that lesions and known duplicates stay together in ours."""
    real = load_data(str(shared_dir / "ham10000"))[0]
    split = make_split(real, "image-stratified", seed=42)
    assert list(split.class_counts["train"].values()) == [261, 411, 871, 92, 889, 5328, 114]
    assert list(split.class_counts["test"].values()) == [33, 52, 109, 11, 111, 666, 14]
    assert len(split.dropped) == 57
    assert main(["--data", str(shared_dir / "ham10000"), "--protocol", "image-stratified"]) == 0
    printed = capsys.readouterr().out
    assert "7,966/996/996" in printed
    assert "4.3602   2.7689   1.3065  12.3696   1.2801   0.2136   9.9825" in printed
    assert "39.8% of the test images" in printed
    published = pd.read_csv(shared_dir / "ham10000" / "known_duplicates.csv")
    assert set(splits.KNOWN_DUPLICATE_PAIRS) == set(zip(published.image_id_a, published.image_id_b, strict=True))
    split = make_split(real)
    side = dict(zip(split.table.image_id, split.table.split, strict=True))
    assert len(side) == 10015
    assert all(side[first] == side[second] for first, second in splits.KNOWN_DUPLICATE_PAIRS)
