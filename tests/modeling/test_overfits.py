"""Every variant and fusion can be fitted."""

import pytest
import torch

from ham10000.modeling import FUSIONS, LABELS, Ham10000Config, Ham10000ForImageClassification, create_processor
from ham10000.training.data.synthetic import make_synthetic


@pytest.mark.parametrize(
    ("modality", "fusion"), [("image", "concat"), ("metadata", "concat"), *(("fusion", fusion) for fusion in FUSIONS)]
)
def test_sixteen_images_are_fitted_to_100_percent(modality: str, fusion: str) -> None:
    """Seen in evaluation mode, so with the batch-norm statistics that it collected."""
    rows = make_synthetic(16, seed=3, image_size=(64, 64))
    labels = torch.tensor([LABELS.index(row["dx"]) for row in rows])
    assert len(labels.unique()) == 7
    torch.manual_seed(0)
    rates = ("metadata_field_dropout", "metadata_dropout", "classifier_dropout", "metadata_hidden_dropout")
    none = dict.fromkeys(rates, 0.0)
    config = Ham10000Config(modality=modality, backbone="test_efficientnet", fusion=fusion, **none)
    model, processor = Ham10000ForImageClassification(config).train(), create_processor(config, image_size=32)
    # Ages that tell the rows apart: two lesions may have the same metadata, and then nothing could fit both.
    metadata = [{"age": 5 * k, "sex": row["sex"], "localization": row["localization"]} for k, row in enumerate(rows)]
    images = None if modality == "metadata" else [row["image"]["bytes"] for row in rows]
    inputs = processor(images=images, metadata=None if modality == "image" else metadata)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(40):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(**inputs, labels=labels)
    assert output.logits.argmax(1).tolist() == labels.tolist()
    assert output.loss < 0.3
