"""The metadata variant never opens an image."""

from pathlib import Path

import datasets
import pytest
import torch

from ham10000.modeling import Ham10000Config, create_processor
from ham10000.training.data import loader
from ham10000.training.data.augment import Augment
from ham10000.training.data.loader import EvalLoader, Samples, TrainLoader, open_images
from ham10000.training.data.sources import load_data

CPU = torch.device("cpu")


@pytest.mark.parametrize("train_size", [None, (24, 32)], ids=["evaluation", "training"])
def test_metadata_only_opens_no_images(
    train_size: tuple[int, int] | None, synthetic_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_data(str(synthetic_folder))[0]
    # Whoever decoded an image would fail.
    missing = [{"bytes": None, "path": str(tmp_path / "no-image.jpg")}] * len(dataset)
    dataset = dataset.remove_columns("image").add_column("image", missing, feature=datasets.Image(decode=False))
    monkeypatch.setattr(loader, "decode", lambda *_: pytest.fail("an image was opened"))
    processor = create_processor(Ham10000Config(modality="metadata"))
    images = open_images(dataset, processor, CPU, train_size=train_size, cache_dir=tmp_path / "cache", progress=False)
    assert images is None
    samples = Samples.from_dataset(dataset, processor)
    if train_size is None:
        batches = list(EvalLoader(samples, images, processor, CPU, batch_size=64))
        metadata = torch.cat([batch.metadata for batch in batches])
        torch.testing.assert_close(metadata, samples.metadata, equal_nan=True, rtol=0, atol=0)
        assert not metadata.isnan().all()
    else:
        training = TrainLoader(samples, images, processor, CPU, augment=Augment(), batch_size=16, seed=3)
        batches = [batch for _, of_step in training.epoch(0) for batch in of_step]
        assert len(batches) == len(dataset) // 16
    assert all(set(batch.inputs) == {"metadata"} for batch in batches)
    assert not (tmp_path / "cache").exists()
