"""For the tests of the study: image logits of a size that a test can afford, with metadata that say something too."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from ham10000.modeling import LABELS, LOCALIZATIONS, MALIGNANT
from ham10000.training.study.command import report
from ham10000.training.study.config import ProtocolPlan, StudyConfig
from ham10000.training.study.heads import HeadSettings
from ham10000.training.study.predictions import Predictions

SHARES = np.array([0.08, 0.1, 0.14, 0.06, 0.14, 0.4, 0.08])


def example_frame(n_lesions: int = 300, seed: int = 0) -> pd.DataFrame:
    """Metadata as `metadata_frame` gives them: one or two images per lesion, the age and site tied to the class."""
    draws = np.random.default_rng(seed)
    rows = []
    for lesion in range(n_lesions):
        k = lesion % 7 if lesion < 70 else int(draws.choice(7, p=SHARES))
        age = 5.0 * draws.integers(4, 10) + 5 * k * (k != 5)
        common = {
            "lesion_id": f"HAM_{lesion:07d}",
            "dx": LABELS[k],
            "dx_type": "histo" if LABELS[k] in MALIGNANT else str(draws.choice(["follow_up", "consensus"])),
            "age": np.nan if draws.random() < 0.05 else min(age, 85.0),
            "sex": str(draws.choice(["female", "male", "unknown"], p=[0.45, 0.5, 0.05])),
            "localization": LOCALIZATIONS[(2 * k + int(draws.integers(0, 4))) % 14],
            "dataset": str(draws.choice(["rosendahl", "vidir_modern"])),
        }
        rows += [{"image_id": f"IMG_{lesion:05d}_{i}", **common} for i in range(1 + (draws.random() < 0.3))]
    return pd.DataFrame(rows)


def example_image(frame: pd.DataFrame, seeds: int = 1, folds: int = 3, strength: float = 1.6) -> Predictions:
    """An image variant's out-of-fold logits: right more often than not, and too sure."""
    frame = frame.sort_values("image_id", ignore_index=True)
    draws = np.random.default_rng(7)
    labels = frame["dx"].map(LABELS.index).to_numpy()
    logits = draws.normal(size=(seeds, len(frame), 7)) * 0.6 + draws.normal(size=(1, len(frame), 7))
    logits += strength * np.eye(7)[labels] + np.log(SHARES) / 2
    return Predictions(
        classes=LABELS,
        image_ids=frame["image_id"].to_numpy(dtype=str),
        lesion_ids=frame["lesion_id"].to_numpy(dtype=str),
        groups=frame["lesion_id"].to_numpy(dtype=str),
        folds=pd.factorize(frame["lesion_id"])[0] % folds,
        labels=labels,
        seeds=tuple(range(seeds)),
        logits=(2.0 * logits).astype(np.float32),
    )


def stratified(frame: pd.DataFrame, image: Predictions) -> Predictions:
    """Those of a single split by image, whose test part has lesions of training too."""
    known = frame.set_index("image_id")["age"].loc[image.image_ids].notna().to_numpy()
    rows = np.flatnonzero(known & (np.random.default_rng(0).random(len(known)) < 0.5))
    fields = {name: getattr(image, name)[rows] for name in ("image_ids", "lesion_ids", "groups", "labels")}
    return dataclasses.replace(image, **fields, folds=np.zeros(len(rows), int), logits=image.logits[:, rows])


def small_report(folder: Path) -> None:
    """A finished report, quickly: one seed, few resamples, heads of one epoch."""
    frame, heads = example_frame(200), HeadSettings(epochs=1, batch_size=64)
    config = StudyConfig(protocols={"lesion-grouped": ProtocolPlan(3)}, n_resamples=20, heads=heads)
    report({"lesion-grouped": example_image(frame)}, frame, config, None, folder)
