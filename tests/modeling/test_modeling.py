"""The model: bare timm's and torchvision's logits, the published fusion formulas, missing metadata, loading."""

import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from tiny_models import NAN, make_inputs, make_model, shake
from torch import nn
from torchvision.models import efficientnet_v2_s
from transformers import PreTrainedModel

from ham10000.modeling import FUSIONS, LABELS, Ham10000Error, Ham10000ForImageClassification, create_processor
from ham10000.training.data.synthetic import make_synthetic

VARIANTS = [("image", "concat"), ("metadata", "concat"), *(("fusion", fusion) for fusion in FUSIONS)]
BACKBONES = [
    ("test_efficientnet", {}),
    ("test_efficientnet", {"bn_eps": 1e-2}),
    ("test_vit", {"img_size": 64}),
    ("test_resnet", {}),
    ("test_convnext", {"drop_path_rate": 0.1}),
    ("test_byobnet", {}),
]


@pytest.mark.parametrize(("backbone", "kwargs"), BACKBONES, ids=str)
@torch.no_grad()
def test_image_logits_equal_bare_timm(backbone: str, kwargs: dict) -> None:
    bare = timm.create_model(backbone, num_classes=7, **kwargs).eval()
    shake(bare)
    model = make_model("image", backbone=backbone, backbone_kwargs=kwargs)
    weights = bare.state_dict()
    classifier = bare.pretrained_cfg["classifier"]
    model.classifier.load_state_dict({name: weights[f"{classifier}.{name}"] for name in ("weight", "bias")})
    model.backbone.load_state_dict({name: weights[name] for name in model.backbone.state_dict()})
    pixels = make_inputs(model.config.modality)["pixel_values"]
    output = model(pixels)
    assert torch.equal(output.logits, bare(pixels))
    assert torch.equal(output.image_embedding, bare.forward_head(bare.forward_features(pixels), pre_logits=True))
    assert output.logits.std() > 0.01  # the comparison is not one of zeros


@torch.no_grad()
def test_the_baselines_network_equals_torchvision() -> None:
    """Tensor for tensor in state-dict order; the statistics are random, so a wrong epsilon would show."""
    reference = efficientnet_v2_s(num_classes=7).eval()
    shake(reference)
    model = make_model("image", backbone="efficientnetv2_s", backbone_kwargs={"bn_eps": 1e-3})
    ours, theirs = model.state_dict(), reference.state_dict()
    assert len(ours) == len(theirs) == 782
    model.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    pixels = make_inputs(model.config.modality, batch=1)["pixel_values"]
    expected = reference(pixels)
    assert (model(pixels).logits - expected).abs().max() == 0.0
    model.backbone.bn1.eps = 1e-5  # timm's default: the test above would have noticed
    assert (model(pixels).logits - expected).abs().max() > 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_our_layers_are_initialised_as_torch_does(fusion: str) -> None:
    model = make_model("fusion", fusion)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {"classifier", "metadata_encoder.mlp.0"} <= set(linears)
    for name, module in linears.items():
        if name.startswith(("backbone.", "fusion.modulation")):  # FiLM starts as the identity
            continue
        bound = 1 / math.sqrt(module.in_features)  # uniform in +- bound
        assert module.weight.abs().max() <= bound, name
        assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1), name


# --- the fusion blocks against their publications


class PaaatchaMetaBlock(nn.Module):
    """The module of github.com/paaatcha/MetaBlock, models/metablock.py, as published."""

    def __init__(self, V: int, U: int):
        super().__init__()
        self.fb = nn.Sequential(nn.Linear(U, V), nn.BatchNorm1d(V))
        self.gb = nn.Sequential(nn.Linear(U, V), nn.BatchNorm1d(V))

    def forward(self, V: torch.Tensor, U: torch.Tensor) -> torch.Tensor:
        t1 = self.fb(U)
        t2 = self.gb(U)
        return torch.sigmoid(torch.tanh(V * t1.unsqueeze(-1)) + t2.unsqueeze(-1))


def embeddings(model: Ham10000ForImageClassification) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sizes = (model.backbone.num_features, model.metadata_encoder.output_size)
    return tuple(torch.randn(5, size, generator=generator) for size in sizes)


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_metablock_is_its_authors_module(training: bool) -> None:
    model = make_model(fusion="metablock")
    shake(model.fusion)
    image, metadata = embeddings(model)
    reference = PaaatchaMetaBlock(image.shape[1], metadata.shape[1])
    names = {"fb": "scale", "gb": "shift"}
    weights = model.fusion.state_dict()
    reference.load_state_dict({name: weights[names[name[:2]] + name[2:]] for name in reference.state_dict()})
    reference.train(training)
    model.train(training)
    assert torch.equal(model.fuse(image, metadata), reference(image.unsqueeze(-1), metadata).squeeze(-1))


@torch.no_grad()
def test_gated_is_arevalos_unit() -> None:
    """h = z * tanh(W_v x_v) + (1 - z) * tanh(W_t x_t), z = sigmoid(W_z [x_v, x_t]); arXiv:1702.01992, section 3.1."""
    model = make_model(fusion="gated")
    shake(model.fusion)
    image, metadata = embeddings(model)
    h_v = np.tanh(image.numpy() @ model.fusion.image.weight.numpy().T)
    h_t = np.tanh(metadata.numpy() @ model.fusion.metadata.weight.numpy().T)
    both = np.concatenate([image.numpy(), metadata.numpy()], axis=1)
    z = 1 / (1 + np.exp(-(both @ model.fusion.gate.weight.numpy().T)))
    np.testing.assert_allclose(model.fuse(image, metadata).numpy(), z * h_v + (1 - z) * h_t, atol=1e-5)
    assert [name for name, _ in model.fusion.named_parameters()] == ["image.weight", "metadata.weight", "gate.weight"]


@torch.no_grad()
def test_film_is_feature_wise_linear_and_starts_as_identity() -> None:
    model = make_model(fusion="film")
    image, metadata = embeddings(model)
    assert torch.equal(model.fuse(image, metadata), image)
    shake(model.fusion)
    weight, bias = (value.numpy() for value in (model.fusion.modulation.weight, model.fusion.modulation.bias))
    gamma, beta = np.split(metadata.numpy() @ weight.T + bias, 2, axis=1)
    expected = (1 + gamma) * image.numpy() + beta
    np.testing.assert_allclose(model.fuse(image, metadata).numpy(), expected, atol=1e-5)


@torch.no_grad()
def test_concat_logits_are_an_image_part_plus_a_metadata_part() -> None:
    model = make_model(fusion="concat")
    shake(model.classifier)
    output = model(**make_inputs(model.config.modality))
    split = output.image_embedding.shape[1]
    weight = model.classifier.weight
    parts = output.image_embedding @ weight[:, :split].T + output.metadata_embedding @ weight[:, split:].T
    torch.testing.assert_close(output.logits, parts + model.classifier.bias)


# --- metadata and its missing states


def test_the_encoding_is_one_hot_with_a_missing_flag_for_each_field() -> None:
    model = make_model("metadata", localization_vocabulary=["back", "ear", "face"])
    rows = torch.tensor([[70.0, 1, 2], [0.0, NAN, 0], [NAN, 0, NAN]])
    #            age  -    f  m  -    back ear face  -
    expected = [
        [1.0, 0, 0, 1, 0, 0, 0, 1, 0],  # (70 - 50) / 20
        [-2.5, 0, 0, 0, 1, 1, 0, 0, 0],
        [0.0, 1, 1, 0, 0, 0, 0, 0, 1],
    ]
    assert model.metadata_encoder.encode(rows).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modality", ["metadata", "fusion"])
@torch.no_grad()
def test_an_int8_matrix_does_not_decide_the_type_of_the_inputs(modality: str, dtype: torch.dtype) -> None:
    class Int8Linear(nn.Module):
        """As bitsandbytes' Linear8bitLt: the weights are int8, and what goes in and out keeps its type."""

        def __init__(self, linear: nn.Linear):
            super().__init__()
            self.scale = linear.weight.abs().max() / 127
            self.weight = nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(x, (self.weight * self.scale).to(x.dtype))

    model = make_model(modality).to(dtype)
    inputs = make_inputs(model.config.modality)
    linear = model.metadata_encoder.mlp[0]
    linear.bias.zero_()
    expected = model(**inputs).logits
    model.metadata_encoder.mlp[0] = Int8Linear(linear)
    assert next(model.metadata_encoder.parameters()).dtype == torch.int8
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("backbone", "kwargs", "message"),
    [
        ("coat_lite_tiny", {}, "one weight in several places"),
        ("test_efficientnet", {"features_only": True}, "EfficientNetFeatures"),
        ("test_efficientnet", {"global_pool": "nonsense"}, "Invalid pool type: nonsense"),
        ("test_vit", {"patch_size": 0}, "by zero"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_refused_when_it_is_built(backbone: str, kwargs: dict, message: str) -> None:
    with pytest.raises(Ham10000Error, match=f"{backbone}.*{message}"):
        make_model("image", backbone=backbone, backbone_kwargs=kwargs)


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.no_grad()
def test_an_image_alone_is_an_image_with_all_metadata_missing(fusion: str) -> None:
    model = make_model(fusion=fusion)
    shake(model.fusion)
    pixels = make_inputs(model.config.modality)["pixel_values"]
    alone = model(pixels)
    assert alone.logits.isfinite().all()
    assert torch.equal(alone.logits, model(pixel_values=pixels, metadata=torch.full((4, 3), NAN)).logits)
    assert not torch.allclose(alone.logits, model(pixels, torch.zeros(4, 3)).logits)


@pytest.mark.parametrize(("field_rate", "row_rate"), [(0.2, 0.3), (0.3, 0.0), (0.0, 0.4)])
@torch.no_grad()
def test_metadata_dropout_has_the_configured_rates_in_training_only(field_rate: float, row_rate: float) -> None:
    rates = {"metadata_field_dropout": field_rate, "metadata_dropout": row_rate}
    model, missing = make_model("metadata", metadata_hidden_sizes=[4], **rates), []
    model.metadata_encoder.register_forward_pre_hook(lambda _, inputs: missing.append(inputs[0].isnan().numpy()))
    metadata = torch.tensor([[60.0, 1, 2]]).repeat(20000, 1)
    model(metadata=metadata)
    model.train()(metadata=metadata)
    assert not missing[0].any()
    assert not metadata.isnan().any()  # the caller's tensor is left alone
    # Binomial with 20,000 draws: four standard deviations are at most 0.0142.
    np.testing.assert_allclose(missing[1].mean(axis=0), row_rate + (1 - row_rate) * field_rate, atol=0.0142)
    expected = row_rate + (1 - row_rate) * field_rate**3
    assert missing[1].all(axis=1).mean() == pytest.approx(expected, abs=0.0142)


# --- outputs, refused inputs, gradients


@pytest.mark.parametrize(("modality", "fusion"), VARIANTS)
def test_shapes_loss_tuple_and_temperature(modality: str, fusion: str) -> None:
    model = make_model(modality, fusion, metadata_hidden_sizes=[16, 12])
    inputs = make_inputs(model.config.modality)
    labels = torch.tensor([4, 0, 6, 5])
    output = model(**inputs, labels=labels)
    assert output.logits.shape == (4, 7)
    assert torch.equal(output.loss, F.cross_entropy(output.logits, labels))
    shapes = {"image_embedding": (4, 256), "metadata_embedding": (4, 12)}
    present = {"image": ["image_embedding"], "metadata": ["metadata_embedding"], "fusion": list(shapes)}[modality]
    for name, shape in shapes.items():
        value = getattr(output, name)
        assert (None if value is None else value.shape) == (shape if name in present else None)
    as_tuple = model(**inputs, labels=labels, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for part, name in zip(as_tuple, ["loss", "logits", *present], strict=True):
        assert torch.equal(part, getattr(output, name))
    assert model(**inputs).loss is None
    model.config.return_dict = False
    first, *_ = model(**inputs)  # of an output that is no tuple this would be a name
    assert torch.equal(first, output.logits)
    model.config.temperature = 2.5
    cooled = model(**inputs, labels=labels, return_dict=True)  # the call wins over the config
    assert torch.equal(cooled.logits, output.logits / 2.5)
    assert torch.equal(cooled.loss, F.cross_entropy(cooled.logits, labels))


@pytest.mark.parametrize(
    ("modality", "inputs", "message"),
    [
        ("image", {}, "needs `pixel_values`"),
        ("image", {"pixel_values": torch.zeros(1, 3, 64, 64), "metadata": torch.zeros(1, 3)}, "leave `metadata` out"),
        ("image", {"pixel_values": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, "must be floating point.*uint8"),
        ("metadata", {}, "needs `metadata`"),
        ("metadata", {"pixel_values": torch.zeros(1, 3, 64, 64)}, "leave `pixel_values` out"),
        ("metadata", {"metadata": torch.zeros(1, 2)}, r"\(batch, 3\).*age.*sex.*localization.*\(1, 2\)"),
        ("metadata", {"metadata": torch.zeros(3)}, r"\(batch, 3\)"),
        ("metadata", {"metadata": torch.zeros(1, 3, dtype=torch.int64)}, "floating point.*int64"),
        ("fusion", {"pixel_values": torch.zeros(3, 64, 64)}, r"\(batch, 3, height, width\), got \(3, 64, 64\)"),
        ("fusion", {"pixel_values": torch.zeros(2, 3, 64, 64), "metadata": torch.zeros(1, 3)}, "2 images but 1 row"),
    ],
)
def test_wrong_inputs_say_what_was_expected(modality: str, inputs: dict, message: str) -> None:
    # FiLM, because it would broadcast a single row of metadata over all images without any error
    with pytest.raises(Ham10000Error, match=message):
        make_model(modality, "film")(**inputs)


@pytest.mark.parametrize(("modality", "fusion"), VARIANTS)
def test_sixteen_images_are_fitted_and_every_parameter_gets_a_gradient(modality: str, fusion: str) -> None:
    """Fitted in evaluation mode, so with the batch-norm statistics that it collected."""
    rows = make_synthetic(16, seed=3, image_size=(64, 64))
    labels = torch.tensor([LABELS.index(row["dx"]) for row in rows])
    assert len(labels.unique()) == 7
    rates = ("metadata_field_dropout", "metadata_dropout", "classifier_dropout", "metadata_hidden_dropout")
    model = make_model(modality, fusion, **dict.fromkeys(rates, 0.0)).train()
    # Ages that tell the rows apart: two lesions may have the same metadata, and then nothing could fit both.
    metadata = [{"age": 5 * k, "sex": row["sex"], "localization": row["localization"]} for k, row in enumerate(rows)]
    images = None if modality == "metadata" else [row["image"]["bytes"] for row in rows]
    processor = create_processor(model.config, image_size=32)
    inputs = processor(images=images, metadata=None if modality == "image" else metadata)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(40):
        optimizer.zero_grad()
        model(**inputs, labels=labels).loss.backward()
        # FiLM begins as the identity, through which no gradient reaches the metadata encoder; after one step it does.
        if step == (fusion == "film"):
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            silent = [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
            # A bias right before a batch norm in training mode has no effect; MetaBlock's linear layers have one.
            assert [name for name in silent if not name.endswith((".scale.0.bias", ".shift.0.bias"))] == []
        optimizer.step()
    with torch.no_grad():
        output = model.eval()(**inputs, labels=labels)
    assert output.logits.argmax(1).tolist() == labels.tolist()
    assert output.loss < 0.3


# --- saving and loading


@pytest.mark.parametrize(("modality", "fusion"), VARIANTS)
@torch.no_grad()
def test_a_reloaded_model_gives_the_same_bits(modality: str, fusion: str, tmp_path: Path) -> None:
    model = make_model(modality, fusion, temperature=1.7)
    shake(model)
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded, info = Ham10000ForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not loaded.training
    assert not info["missing_keys"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    inputs = make_inputs(modality)
    # A single sample is where weights that lie at odd addresses of a mapped file would give other last bits.
    for given in (inputs, {name: value[:1] for name, value in inputs.items()}):
        assert torch.equal(loaded(**given).logits, model(**given).logits)


SMALL = {
    "swin_tiny_patch4_window7_224": {"window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (1, 2)},
    "eva02_tiny_patch14_224": {"img_size": 56, "depth": 1},
    "beit_base_patch16_224": {"embed_dim": 24, "depth": 1, "num_heads": 2},
}


@pytest.mark.parametrize("backbone", SMALL)
@torch.no_grad()
def test_buffers_that_no_checkpoint_holds_are_computed_again(backbone: str, tmp_path: Path) -> None:
    """transformers builds on the meta device and fills non-persistent buffers with whatever memory holds."""
    kwargs = {"img_size": 64, **SMALL[backbone]}
    model = make_model("image", backbone=backbone, backbone_kwargs=kwargs)
    buffers = {name: value for name, value in model.named_buffers() if name not in model.state_dict()}
    assert buffers
    model.save_pretrained(tmp_path)
    loaded = Ham10000ForImageClassification.from_pretrained(tmp_path)
    for name, value in buffers.items():
        assert torch.equal(loaded.get_buffer(name), value), name
    pixels = make_inputs("image", size=kwargs["img_size"])["pixel_values"]
    assert torch.equal(loaded(pixels).logits, model(pixels).logits)


def test_a_pickle_is_never_read_nor_a_misspelled_argument_passed_over(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="temprature"):
        Ham10000ForImageClassification.from_pretrained(tmp_path, temprature=2.0)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    # Without our override transformers reads it:
    PreTrainedModel.from_pretrained.__func__(Ham10000ForImageClassification, tmp_path)
    with pytest.raises(OSError, match="safetensors"):
        Ham10000ForImageClassification.from_pretrained(tmp_path)
