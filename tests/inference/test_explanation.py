import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from skin import knows_skin
from torch import nn

from ham10000.modeling import LABELS, LOCALIZATIONS, Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.inference.explanation import ALL_FIELDS, UNKNOWN, explain, metadata_effects
from ham10000.training.inference.explanation_figure import overlay_heatmap, plot_explanation
from ham10000.training.inference.output import DISCLAIMER

BACK = {"age": 60, "sex": "male", "localization": "back"}


def build(modality: str = "fusion", backbone: str = "test_efficientnet", **settings: Any) -> Any:
    torch.manual_seed(0)
    config = Ham10000Config(modality=modality, backbone=backbone, **settings)
    model: Any = create_model(config)
    nn.init.normal_(model.classifier.weight)  # freshly drawn it is so small that nothing matters
    return model.eval(), knows_skin(create_processor(config, image_size=96))


def texts_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(lambda item: hasattr(item, "get_text"))]


def photograph(width: int = 120, height: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("modality", ["image", "fusion"])
def test_grad_cam_equals_the_paper_by_hand_and_lies_on_the_picture(modality: str) -> None:
    model, processor = build(modality)
    row = BACK if modality == "fusion" else None
    inputs = processor(images=photograph(240, 120), metadata=row)
    seen: list[torch.Tensor] = []
    handle = model.backbone.bn2.register_forward_hook(lambda _, __, output: seen.append(output))
    logits = model(**inputs).logits[0]
    handle.remove()
    (features,) = seen  # (1, C, 3, 3)
    heatmaps = explain(model, processor, photograph(240, 120), row, label="df").heatmaps
    assert list(heatmaps) == [LABELS[logits.argmax()], "df"]
    for label, heatmap in heatmaps.items():
        gradient = torch.autograd.grad(logits[LABELS.index(label)], features, retain_graph=True)[0]
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        expected = torch.relu((weights * features).sum(dim=1, keepdim=True))
        expected = F.interpolate(expected, (96, 96), mode="bilinear")
        expected = F.interpolate(expected / expected.max(), (120, 240), mode="bilinear", antialias=True)
        np.testing.assert_allclose(heatmap, expected[0, 0].detach(), atol=1e-5)
    first, second = heatmaps.values()
    assert np.abs(first - second).max() > 0.05


def test_explaining_leaves_the_model_as_it_was() -> None:
    model, processor = build()
    expected = explain(model, processor, photograph(), BACK).heatmaps
    model.train().requires_grad_(False)
    model.backbone.blocks.eval()  # what is frozen stays in evaluation mode
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        again = explain(model, processor, photograph(), BACK).heatmaps
    for label, heatmap in expected.items():
        np.testing.assert_allclose(again[label], heatmap, atol=1e-5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "test_byobnet"])
def test_grad_cam_on_other_backbones(backbone: str) -> None:
    model, processor = build("image", backbone)
    picture = photograph(96, 96)
    maps = np.stack([explain(model, processor, picture, label=label).heatmaps[label] for label in LABELS])
    assert (maps.min(), maps.max()) == (0, 1)
    assert set(maps.max(axis=(1, 2)).tolist()) <= {0, 1}
    # The path through `forward_features` and `forward_head` is the model's own.
    with torch.inference_mode():
        expected = model(**processor(images=picture)).logits.softmax(-1)[0]
    np.testing.assert_allclose(metadata_effects(model, processor, picture).baseline, expected, atol=1e-6)
    rounded = explain(model.to(torch.bfloat16), processor, picture, label="mel").heatmaps["mel"]
    assert rounded.dtype == np.float32
    assert np.abs(rounded - maps[LABELS.index("mel")]).mean() < 0.02


def test_what_cannot_be_drawn_is_predicted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Ham10000Error, match=r"'test_vit' gives features of shape .* use a convolutional backbone"):
        explain(*build("image", "test_vit", backbone_kwargs={"img_size": 96}), photograph())
    model, processor = build()
    expected = metadata_effects(model, processor, photograph(), BACK).baseline
    features, head = model.backbone.forward_features, model.backbone.forward_head
    # As CrossViT's, which returns a list.
    monkeypatch.setattr(model.backbone, "forward_features", lambda x: [features(x)])
    monkeypatch.setattr(model.backbone, "forward_head", lambda maps: head(maps[0]))
    np.testing.assert_array_equal(metadata_effects(model, processor, photograph(), BACK).baseline, expected)
    with pytest.raises(Ham10000Error, match="not a spatial feature map"):
        explain(model, processor, photograph(), BACK)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(Ham10000Error, match=r"pip install ham10000\[explain\]"):
        explain(model, processor, photograph())


@pytest.mark.parametrize("modality", ["metadata", "fusion"])
def test_metadata_effects_equal_the_model(modality: str) -> None:
    model, processor = build(modality, temperature=1.7)
    picture = photograph() if modality == "fusion" else None
    effects = metadata_effects(model, processor, picture, BACK)
    assert effects.given == {"age": "60", "sex": "male", "localization": "back"}

    def direct(metadata: dict[str, Any]) -> np.ndarray:
        inputs = processor(images=picture, metadata=metadata)
        with torch.inference_mode():
            return model(**inputs).logits.double().softmax(-1)[0].numpy()

    np.testing.assert_allclose(effects.baseline, direct(BACK), atol=1e-6)
    for row in effects.rows:
        changed: dict[str, Any] = {**BACK, row.field: row.value} if row.field != ALL_FIELDS else {}
        np.testing.assert_allclose(row.probabilities, direct(changed), atol=1e-6, err_msg=f"{row.field} {row.value}")
    names = [(row.field, row.value) for row in effects.rows]
    expected = [(field, UNKNOWN) for field in (*BACK, ALL_FIELDS)]
    expected += [("age", str(age)) for age in range(0, 90, 5)]
    expected += [("sex", "female"), ("sex", "male"), *(("localization", site) for site in LOCALIZATIONS)]
    assert names == expected
    assert np.abs(effects.unknown() - effects.baseline).max() > 1e-3
    assert [row.value for row in effects.varied("sex")] == ["female", "male"]


def test_metadata_effects_of_other_inputs() -> None:
    model, processor = build("image")
    effects = metadata_effects(model, processor, photograph())
    assert effects.rows == ()
    assert effects.unknown() is None
    one_field = build("metadata", metadata_fields=["age"])
    effects = metadata_effects(*one_field, metadata={"age": 60})
    assert effects.unknown() is not None
    assert [row.field for row in effects.rows] == ["age"] * 19
    for built, arguments, message in (
        ((model, processor), (photograph(), {"age": 60}), "reads no metadata"),
        ((model, processor), (), "needs an image"),
        (one_field, (photograph(),), "leave `image` out"),
        (build(), (photograph(), {"sex": "other"}), "unknown sex 'other'"),
    ):
        with pytest.raises(Ham10000Error, match=message):
            metadata_effects(*built, *arguments)


def test_overlay() -> None:
    picture = photograph(60, 40)
    assert np.array_equal(overlay_heatmap(picture, np.zeros((7, 7))), picture)
    corner = np.zeros((4, 6))
    corner[0, 5] = 1
    grey = picture.convert("L")
    overlaid = np.asarray(overlay_heatmap(grey, corner), float)
    changed = np.abs(overlaid - np.asarray(grey.convert("RGB"))).sum(axis=2)
    assert changed[:10, 50:].mean() > 50
    assert changed[20:].max() == 0
    assert changed[:, :30].max() == 0


@pytest.mark.parametrize("modality", ["metadata", "fusion"])
def test_figure(modality: str, tmp_path: Path) -> None:
    model, processor = build(modality, temperature=1.5)
    picture = photograph() if modality != "metadata" else None
    explanation = explain(model, processor, picture, BACK, label="df", name="a_$b$.jpg")
    best = LABELS[explanation.effects.baseline.argmax()]
    assert bool(explanation.warning) == (modality != "metadata")  # of noise, which is no skin
    if explanation.warning:
        warned = plot_explanation(explanation).get_suptitle()
        assert warned.startswith("This image is unlike those the model was trained on")
        assert "Most probable" not in warned
    figure = plot_explanation(dataclasses.replace(explanation, warning=None), tmp_path / "new" / "figure.png")
    texts = texts_of(figure)
    assert DISCLAIMER in texts
    assert any(text.startswith(f"Most probable: {best}") and "temperature-scaled (T = 1.5)" in text for text in texts)
    for label in (best, "df"):
        assert (modality != "metadata") == any(text.startswith(f"What speaks for {label}") for text in texts)
    assert "back (given)" in texts
    assert Image.open(tmp_path / "new" / "figure.png").width == 1800
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
    with pytest.raises(Ham10000Error, match="`label` must be one of"):
        explain(model, processor, picture, BACK, label="melanoma")


def test_no_label_or_site_is_read_as_mathematics() -> None:
    model, processor = build(id2label={0: "$a$", 1: "$b$"}, localization_vocabulary=["$x$", "$y$"])
    figure = plot_explanation(explain(model, processor, photograph(), {"age": 60, "localization": "$x$"}))
    texts = texts_of(figure)
    assert any(text.startswith(r"What speaks for \$a\$") for text in texts)
    assert r"\$x\$ (given)" in texts
    assert [text for text in texts if text.count("$") != text.count(r"\$")] == []
