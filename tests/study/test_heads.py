"""Heads on image logits: what they learn, and that the assembled checkpoint is the head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from study_tables import example_frame, example_image

from ham10000.modeling import Ham10000Config, Ham10000Error, Ham10000ForImageClassification, create_processor
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import save_checkpoint
from ham10000.training.study.heads import HeadSettings, absorb_calibration, assemble, fit_variant

CONFIG = Ham10000Config(modality="fusion", backbone="test_efficientnet", metadata_hidden_sizes=[32, 16])
SETTINGS = HeadSettings(epochs=8, batch_size=64)


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    frame = example_frame(400).sort_values("image_id", ignore_index=True)
    image, processor = example_image(frame), create_processor(CONFIG, image_size=32)
    rows = frame[processor.metadata_fields].to_dict("records")
    return image.logits[0], processor.encode_metadata(rows), image.labels


def fit(data, variant, settings=SETTINGS):
    return fit_variant(variant, *data, CONFIG, settings=settings, seed=0)


def test_a_head_starts_as_the_image_model(data) -> None:
    logits, metadata, _ = data
    head = fit(data, "fusion", HeadSettings(epochs=1, learning_rate=1e-12))
    np.testing.assert_allclose(head.predict(logits, metadata), logits, atol=1e-5)


def test_the_metadata_head_learns_what_a_logistic_regression_does(data) -> None:
    logits, metadata, labels = data
    head = fit(data, "metadata", HeadSettings(epochs=40, batch_size=64, class_weights="none", label_smoothing=0.0))
    inputs = head.encoder.encode(metadata).numpy()
    theirs = LogisticRegression(max_iter=2000).fit(inputs, labels).predict_proba(inputs)
    assert log_loss(labels, softmax(head.predict(logits, metadata))) < 1.15 * log_loss(labels, theirs)


def test_the_control_never_reads_metadata_in_its_fit(data) -> None:
    logits, metadata, labels = data
    theirs = fit((logits, torch.full_like(metadata, float("nan")), labels), "fusion").state_dict()
    torch.testing.assert_close(fit(data, "control").state_dict(), theirs, rtol=0, atol=0)


def test_the_same_seed_gives_the_same_head_and_leaves_the_global_one_alone(data) -> None:
    state = torch.get_rng_state()
    first, second = (fit(data, "fusion").state_dict() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_class_without_images_is_refused(data) -> None:
    logits, metadata, labels = data
    with pytest.raises(Ham10000Error, match="images of every class"):
        fit((logits, metadata, np.where(labels == 3, 5, labels)), "fusion")


@pytest.mark.parametrize("variant", ["fusion", "metadata"])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_assembled_checkpoint_is_the_head(data, tmp_path: Path, variant: str, temperature: float) -> None:
    torch.manual_seed(0)
    config = Ham10000Config(modality="image", backbone="test_efficientnet", temperature=temperature)
    image_model = Ham10000ForImageClassification(config).eval()
    pixels, metadata, head = torch.randn(6, 3, 32, 32), data[1][:6], fit(data, variant)
    with torch.inference_mode():
        expected = head.predict(image_model(pixels).logits.numpy(), metadata)
    model = assemble(None if variant == "metadata" else image_model, head, CONFIG)
    biases = np.linspace(-0.5, 0.5, 7)
    absorb_calibration(model, 1.5, biases)
    save_checkpoint(tmp_path / "model", model, create_processor(model.config, image_size=32))
    inputs = {"metadata": metadata} | ({} if variant == "metadata" else {"pixel_values": pixels})
    with torch.inference_mode():
        found = load_checkpoint(tmp_path / "model")[0](**inputs).logits.numpy()
    np.testing.assert_allclose(found, expected / 1.5 + biases, atol=1e-5)
