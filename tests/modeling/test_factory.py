"""Pretrained backbone weights: from a local file, from our own checkpoint, or one message that says what to do."""

import pickle
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
import torchvision
import yaml
from bad_checkpoints import Payload
from safetensors.torch import load_file, save_file
from tiny_models import shake

from ham10000.modeling import Ham10000Config, Ham10000Error, create_model

BACKBONES = ["test_efficientnet", "test_vit", "test_byobnet"]  # classifiers named classifier, head and head.fc


def timm_file(folder: Path, backbone: str, num_classes: int = 1000) -> tuple[Path, torch.nn.Module]:
    """A file as timm publishes them, without step counters as converted ones are, and the model it was saved from."""
    torch.manual_seed(11)
    bare = timm.create_model(backbone, num_classes=num_classes).eval()
    shake(bare)
    path = folder / f"{backbone}.safetensors"
    weights = bare.state_dict()
    save_file({name: weights[name] for name in weights if not name.endswith("num_batches_tracked")}, path)
    return path, bare


@pytest.mark.parametrize("num_classes", [1000, 7, 0])
@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_a_local_file_under_timms_names(backbone: str, num_classes: int, tmp_path: Path) -> None:
    """With the ImageNet classifier, with one of seven classes (also not ours), and without any."""
    path, bare = timm_file(tmp_path, backbone, num_classes)
    model = create_model(Ham10000Config(modality="image", backbone=backbone), pretrained=path)
    assert model.training
    pixels = torch.randn(2, 3, 160, 160)
    expected = bare.forward_head(bare.forward_features(pixels), pre_logits=True)
    assert torch.equal(model.eval().encode_image(pixels), expected)
    fresh = create_model(Ham10000Config(modality="image", backbone=backbone)).eval()
    assert not torch.allclose(fresh.encode_image(pixels), expected)


@pytest.mark.parametrize("as_folder", [True, False])
@pytest.mark.parametrize("source", ["image", "fusion"])
def test_our_own_checkpoint_gives_its_backbone(source: str, as_folder: bool, tmp_path: Path) -> None:
    torch.manual_seed(1)
    trained = create_model(Ham10000Config(modality=source, backbone="test_efficientnet"))
    trained.save_pretrained(tmp_path)
    torch.manual_seed(2)
    config = Ham10000Config(modality="fusion", fusion="gated", backbone="test_efficientnet")
    model = create_model(config, pretrained=tmp_path if as_folder else tmp_path / "model.safetensors")
    torch.testing.assert_close(model.backbone.state_dict(), trained.backbone.state_dict(), rtol=0, atol=0)
    assert model.classifier.weight.shape == (7, 256)  # the gated unit's own; the file's classifier is not looked at


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda w: w.pop("conv_stem.weight"), r"1 missing \['conv_stem\.weight'\], 0 unexpected"),
        (lambda w: w.pop("bn1.running_var"), r"1 missing \['bn1\.running_var'\]"),
        (lambda w: w.update(extra=torch.zeros(1)), r"0 missing \[\], 1 unexpected \['extra'\]"),
        (lambda w: w.update({"conv_stem.weight": torch.zeros(2, 3, 3, 3)}), r"1 of another shape \['conv_stem"),
    ],
    ids=["missing", "no statistics", "unexpected", "shape"],
)
def test_weights_that_do_not_fit_name_the_tensors(edit, message: str, tmp_path: Path) -> None:
    path, _ = timm_file(tmp_path, "test_efficientnet")
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)
    with pytest.raises(Ham10000Error, match=message) as caught:
        create_model(Ham10000Config(modality="image", backbone="test_efficientnet"), pretrained=path)
    assert f"in {str(path)!r} do not fit the backbone 'test_efficientnet'" in str(caught.value)


@pytest.mark.parametrize("name", ["weights.pth", "weights.bin", "weights.pt", "weights.safetensors"])
def test_a_pickle_is_refused_unread(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(Payload()))
    with pytest.raises(Ham10000Error, match=name):
        create_model(Ham10000Config(modality="image", backbone="test_vit"), pretrained=Path(name))
    assert not Path("payload-ran").exists()
    pickle.loads(Path(name).read_bytes())
    assert Path("payload-ran").exists()  # it would have


@pytest.mark.parametrize("kind", ["absent", "empty folder", "truncated"])
def test_a_file_that_cannot_be_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "test_vit.safetensors"
    if kind == "truncated":
        timm_file(tmp_path, "test_vit")
        path.write_bytes(path.read_bytes()[:-10])
    elif kind == "empty folder":
        path.mkdir()
    with pytest.raises(Ham10000Error, match=r"Cannot read|No pretrained weights at") as caught:
        create_model(Ham10000Config(modality="image", backbone="test_vit"), pretrained=path)
    assert str(path) in str(caught.value)


def test_without_network_and_file_one_message_names_both_ways_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With an empty cache: the client reads HF_HUB_OFFLINE once, when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    config = Ham10000Config(modality="image")
    with pytest.raises(Ham10000Error) as caught:
        create_model(config, pretrained=True)
    message = str(caught.value)
    for words in (config.backbone, "internet", "local safetensors file", "timm's names", "pretrained=False"):
        assert words in message
    assert "\n" not in message.split("Two ways out")[1]
    assert create_model(Ham10000Config(modality="metadata"), pretrained=True).backbone is None  # needs none


@pytest.fixture
def torchvision_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder in the place of torch.hub's."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


BASELINE = yaml.safe_load((Path(__file__).parents[2] / "examples" / "configs" / "baseline.yaml").read_text())
assert BASELINE["pretrained"] == "torchvision"
TORCHVISIONS = {name: BASELINE[name] for name in ("modality", "backbone", "backbone_kwargs")}


@torch.no_grad()
def test_torchvisions_weights_arrive_under_timms_names(torchvision_cache: Path) -> None:
    """Random weights in torchvision's own file, read by torchvision's own loader: features equal torchvision's."""
    torch.manual_seed(4)
    reference = torchvision.models.efficientnet_v2_s().eval()
    shake(reference)
    weights = torchvision.models.EfficientNet_V2_S_Weights.IMAGENET1K_V1
    torchvision_cache.mkdir()
    torch.save(reference.state_dict(), torchvision_cache / Path(weights.url).name)
    model = create_model(Ham10000Config(**TORCHVISIONS), pretrained="torchvision").eval()
    pixels = torch.randn(2, 3, 64, 64)
    expected = torch.flatten(reference.avgpool(reference.features(pixels)), 1)
    assert (model.encode_image(pixels) - expected).abs().max() == 0.0
    assert expected.std() > 1e-3


def test_torchvisions_weights_offline_are_a_message(torchvision_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(Ham10000Error, match=r"no network.*put that file at .*--pretrained none") as caught:
        create_model(Ham10000Config(**TORCHVISIONS), pretrained="torchvision")
    assert str(torchvision_cache) in str(caught.value)


@pytest.mark.parametrize("backbone", ["test_efficientnet", "efficientnetv2_s"])
def test_torchvision_has_weights_for_its_own_networks_only(backbone: str) -> None:
    """The second without torchvision's epsilon: the weights would fit, and the features would be others."""
    with pytest.raises(Ham10000Error, match=r"torchvision has no weights.*efficientnetv2_s.*0\.001"):
        create_model(Ham10000Config(modality="image", backbone=backbone), pretrained="torchvision")


@torch.no_grad()
def test_true_takes_timms_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm is asked with `pretrained=True`; what it returns arrives in the backbone, after construction."""
    torch.manual_seed(3)
    published = timm.create_model("test_efficientnet", num_classes=0)
    original, asked = timm.create_model, []

    def create(name: str, pretrained: bool = False, **kwargs):
        asked.append((name, pretrained, kwargs))
        return published if pretrained else original(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    config = Ham10000Config(backbone="test_efficientnet", backbone_kwargs={"bn_eps": 1e-4})
    model = create_model(config, pretrained=True)
    assert asked == [("test_efficientnet", flag, {"num_classes": 0, "bn_eps": 1e-4}) for flag in (False, True)]
    torch.testing.assert_close(model.backbone.state_dict(), published.state_dict(), rtol=0, atol=0)
