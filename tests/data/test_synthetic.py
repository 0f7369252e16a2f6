import io
import subprocess
import sys
import zlib

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ham10000.modeling.configuration_ham10000 import LABELS, LOCALIZATIONS, SEXES, Ham10000Error
from ham10000.training.data import synthetic
from ham10000.training.data.sources import load_data


def draw_metadata(n_images: int, seed: int = 0) -> pd.DataFrame:
    """The metadata alone, by the generator's own steps: images for thousands of rows would take a minute."""
    rng = np.random.default_rng(seed)
    classes = synthetic._draw_classes(n_images, rng)
    repeats = synthetic._draw_repeats(len(classes), n_images, rng)
    return pd.DataFrame([{"dx": dx, **synthetic._draw_metadata(dx, rng)} for dx in classes]).assign(images=repeats)


def test_the_seed_decides_in_every_process() -> None:
    code = (
        "import zlib\nfrom ham10000.training.data.synthetic import make_synthetic\n"
        "print(zlib.crc32(repr(make_synthetic(8, seed=5)).encode()))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here, another_seed = (zlib.crc32(repr(synthetic.make_synthetic(8, seed=seed)).encode()) for seed in (5, 6))
    assert int(other.stdout) == here != another_seed


def test_exact_size_and_every_class() -> None:
    for size in (7, 8, 50, 211):
        frame = draw_metadata(size)
        assert frame["images"].sum() == size
        assert frame["images"].min() == 1
        assert set(frame["dx"]) == set(LABELS)
    _, report = load_data("synthetic:7")
    assert report.rows == 7
    assert "not patients" in " ".join(report.notes)
    with pytest.raises(Ham10000Error, match="6 synthetic images cannot contain 7 classes"):
        synthetic.make_synthetic(6)


def test_metadata_follows_the_published_marginals() -> None:
    frame = draw_metadata(10000)
    lesions = frame["dx"].value_counts(normalize=True)[list(LABELS)]
    np.testing.assert_allclose(lesions, np.array([228, 327, 727, 73, 614, 5403, 98]) / 7470, atol=0.002)
    per_lesion = frame["images"].value_counts(normalize=True)
    np.testing.assert_allclose(per_lesion[[1, 2]], np.array([5514, 1423]) / 7470, atol=0.025)
    assert set(frame["age"].dropna()) <= set(range(0, 90, 5))
    assert frame["age"].mean() == pytest.approx(51.9, abs=3)
    assert set(frame["sex"]) <= {*SEXES, "unknown"}
    assert set(frame["localization"]) == {*LOCALIZATIONS, "unknown"}
    assert 0.001 < frame["age"].isna().mean() < 0.02
    assert set(frame["dx"][frame["age"].isna()]) <= {"nv", "bkl", "mel"}
    for dx, other in (("bcc", "nv"), ("mel", "nv"), ("akiec", "df")):
        assert frame["age"][frame.dx == dx].mean() > frame["age"][frame.dx == other].mean() + 3
    faces = (frame["localization"] == "face").groupby(frame["dx"]).mean()
    assert faces["akiec"] > 3 * faces["nv"]


def test_lesions_keep_their_metadata_and_look_alike() -> None:
    rows = synthetic.make_synthetic(60, seed=2)
    frame = pd.DataFrame([{name: row[name] for name in row if name != "image"} for row in rows])
    varies = frame.drop(columns="image_id").groupby("lesion_id", dropna=False).nunique(dropna=False)
    assert varies.to_numpy().max() == 1
    assert frame["age"].isna().any()
    first = Image.open(io.BytesIO(rows[0]["image"]["bytes"]))
    assert (first.format, first.mode, first.size) == ("JPEG", "RGB", (200, 150))
    assert len({row["image"]["bytes"] for row in rows}) == 60


def test_learnable_and_not_trivial() -> None:
    """A linear model on 8x6 pixels: above chance (1/7), and far from perfect."""
    rows = synthetic.make_synthetic(420, seed=1)
    pictures = [Image.open(io.BytesIO(row["image"]["bytes"])).resize((8, 6), Image.Resampling.BOX) for row in rows]
    features = np.stack([np.asarray(picture, dtype=np.float32).ravel() for picture in pictures])
    labels = np.array([row["dx"] for row in rows])
    # Rows are in the order of lesions, so a cut parts at most one.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=300))
    model.fit(features[:280], labels[:280])
    score = balanced_accuracy_score(labels[280:], model.predict(features[280:]))
    assert 0.25 < score < 0.9
