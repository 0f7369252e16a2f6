"""The ONNX file says what PyTorch says, for every variant and batch size, also where torch is not installed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from strangers import run_alone
from tiny_models import shake

from ham10000.hub_upload import export_onnx as module
from ham10000.hub_upload.commands import export as main
from ham10000.hub_upload.export_onnx import compare_onnx, export_onnx
from ham10000.modeling import Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.inference.prediction import load_checkpoint, predict

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_without_torch.py"
CONFIGS: dict[str, dict[str, Any]] = {
    "image": {"modality": "image", "backbone": "test_resnet"},
    "metadata": {"modality": "metadata", "metadata_fields": ["localization", "age"]},
    "concat": {"fusion": "concat"},
    "gated": {"fusion": "gated"},
    "metablock": {"fusion": "metablock", "backbone": "test_resnet"},
    "film": {"fusion": "film", "temperature": 0.5, "metadata_fields": ["sex", "age", "localization"]},
}
ROWS = [{"age": 35, "localization": "scalp"}, {}, {"localization": "back"}, {"age": 80}, {"age": 0}]


def save_checkpoint(kind: str, folder: Path) -> Path:
    """A checkpoint whose logits depend on every input."""
    torch.manual_seed(0)
    config = Ham10000Config(**{"backbone": "test_efficientnet", **CONFIGS[kind]})
    model = create_model(config)
    shake(model)
    model.save_pretrained(folder)
    create_processor(config, image_size=(64, 48)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, exported when first asked for; read-only for tests."""

    class Exported(dict):
        def __missing__(self, kind: str) -> Path:
            self[kind] = save_checkpoint(kind, tmp_path_factory.mktemp(kind))
            export_onnx(self[kind])
            return self[kind]

    return Exported()


def copied(exported: dict[str, Path], kind: str, folder: Path) -> Path:
    return Path(shutil.copytree(exported[kind], folder / "copy"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run(file: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("gated", "metablock")]


@pytest.mark.parametrize("kind", ["image", "metadata", "concat", "film", *SLOW])
def test_logits_equal_those_of_pytorch_for_any_batch(kind: str, exported: dict[str, Path]) -> None:
    folder = exported[kind]
    assert names(folder / "onnx") == ["model.onnx"]
    file = folder / "onnx" / "model.onnx"
    model, processor = load_checkpoint(folder)
    inputs = {}
    if model.config.uses_image:
        inputs["pixel_values"] = torch.randn(5, 3, 64, 48)
    if model.config.uses_metadata:
        inputs["metadata"] = processor.encode_metadata(ROWS)
    with torch.inference_mode():
        for count in (1, 2, 5):
            batch = {name: value[:count] for name, value in inputs.items()}
            expected = model(**batch).logits
            assert (run(file, batch) - expected).abs().max() <= 1e-5
        assert expected.isfinite().all()
        for name, value in inputs.items():  # each input moves the logits by far more than that
            moved = model(**{**inputs, name: value.roll(1, dims=0)}).logits
            assert (moved - expected).abs().max(dim=1).values.min() > 1e-3
    graph = onnx.load(file, load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    given = {name: ["batch", *value.shape[1:]] for name, value in inputs.items()}
    assert shapes == given | {"logits": ["batch", 7]}
    for place in (str(Path(module.__file__).parent), str(Path(torch.__file__).parent), str(folder), 'File "'):
        assert place.encode() not in file.read_bytes()


def test_the_command_prints_the_difference_and_nothing_else(exported: dict[str, Path], tmp_path: Path, capfd) -> None:
    folder = copied(exported, "metadata", tmp_path)
    assert main([str(folder), "--output", str(tmp_path / "new" / "net.onnx")]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    checked, saved = printed.out.splitlines()
    assert float(checked.removeprefix("Checked   logits of onnxruntime differ from PyTorch's by at most ")) < 1e-5
    assert saved.startswith(f"Saved     {tmp_path / 'new' / 'net.onnx'} (")
    assert names(tmp_path / "new") == ["net.onnx"]


def test_a_changed_graph_is_noticed(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(exported, "concat", tmp_path)
    file = folder / "onnx" / "model.onnx"
    whole, (model, processor) = file.read_bytes(), load_checkpoint(folder)
    assert compare_onnx(file, model, processor) < 1e-5
    weight = model.classifier.weight.detach().numpy()
    assert whole.count(weight.tobytes()) == 1
    flipped = weight.copy()
    flipped.view(np.uint32)[3, 70] ^= 1 << 23  # one bit of one exponent
    changed = [values.astype(np.float32).tobytes() for values in (flipped, weight * 1.001, weight * np.nan)]
    cases = [(whole.replace(weight.tobytes(), values), "is not the network it was made from") for values in changed]
    cases += [(content, "onnxruntime cannot run") for content in (whole[: len(whole) // 2], b"")]
    for content, message in cases:
        file.write_bytes(content)
        with pytest.raises(Ham10000Error, match=message):
            compare_onnx(file, model, processor)


def test_a_file_that_fails_the_check_does_not_replace_a_good_one(exported: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(exported, "metadata", tmp_path)
    before = (folder / "onnx" / "model.onnx").read_bytes()
    model, _ = load_checkpoint(folder)
    model.classifier.weight.data = torch.full((7, 64), 3e38)  # finite, but no logit is
    model.save_pretrained(folder)
    with pytest.raises(Ham10000Error, match="is not the network it was made from"):
        export_onnx(folder)
    assert names(folder / "onnx") == ["model.onnx"]
    assert (folder / "onnx" / "model.onnx").read_bytes() == before


def test_weights_too_large_for_one_file_lie_beside_it(exported: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    folder = copied(exported, "metadata", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)
        file = export_onnx(folder)
    assert names(file.parent) == ["model.onnx", "model.onnx.data"]
    assert compare_onnx(file, *load_checkpoint(folder)) < 1e-5
    export_onnx(folder)
    assert names(file.parent) == ["model.onnx"]
    assert compare_onnx(file, *load_checkpoint(folder)) < 1e-5


@pytest.mark.parametrize("name", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_what_to_install(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # makes its import fail
    assert main([str(tmp_path)]) == 2
    assert f"needs {name}, which is not installed: pip install ham10000[onnx]" in capsys.readouterr().err


def test_wrong_places_are_one_message(exported: dict[str, Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    good = str(exported["metadata"])
    for arguments, message in (
        (["user/ham10000-fusion"], "There is no folder 'user/ham10000-fusion'"),
        ([str(tmp_path)], "has no config.json"),
        ([good, "--output", str(tmp_path)], "is a folder; --output names a file"),
        ([good, "--output", str(tmp_path / "file" / "model.onnx")], "Cannot write"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert names(tmp_path) == ["file"]


# Runs the example where importing torch and everything above it fails.
ABOVE_TORCH = ("torch", "torchvision", "transformers", "timm", "ham10000", "safetensors", "onnx")
WITHOUT_TORCH = """
import json, runpy, sys
example = runpy.run_path(sys.argv[1])
print(json.dumps([example["predict"](*case) for case in json.load(sys.stdin)]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def save_pictures(folder: Path) -> list[str]:
    """One picture in all the forms pictures come in; not of the network's size or aspect ratio."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth, exif = Image.fromarray(pixels).resize((130, 90)), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    grey, transparent = smooth.convert("L"), smooth.copy()
    transparent.putalpha(grey)
    forms = {"plain.jpg": smooth, "grey.jpg": grey, "cmyk.jpg": smooth.convert("CMYK"), "rgba.png": transparent}
    forms |= {"la.png": transparent.convert("LA"), "exact_size.png": smooth.resize((48, 64))}
    forms |= {"16bit.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)}
    forms |= {"float.tif": Image.fromarray(np.asarray(grey).astype(np.float32) / 255)}
    for name, image in forms.items():
        image.save(folder / name)
    smooth.save(folder / "turned.jpg", exif=exif)
    smooth.convert("P").save(folder / "palette.png", transparency=3)
    smooth.save(folder / "key.png", transparency=smooth.getpixel((0, 0)))
    return sorted(str(path) for path in folder.iterdir())


def test_the_example_needs_no_torch_and_agrees_with_the_processor(exported: dict[str, Path], tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path)
    rows = [{"age": 35.5, "sex": "Male", "localization": " scalp"}, {}, {"sex": None, "age": "unknown"}, {"age": 80}]
    cases: list[tuple[str, str | None, dict]] = []
    cases += [("film", picture, rows[index % len(rows)]) for index, picture in enumerate(pictures)]
    cases += [("image", picture, {}) for picture in pictures]
    cases += [("metadata", None, row) for row in ({}, {"age": 4, "localization": "lower extremity"}, {"age": 61})]

    stdin = json.dumps([(str(exported[kind]), picture, row) for kind, picture, row in cases])
    arguments = [EXAMPLE, exported["film"], pictures[0], "--age", "35.5", "--sex", "male"]
    printed = run_alone(WITHOUT_TORCH, *arguments, cwd=tmp_path, stdin=stdin, missing=ABOVE_TORCH)
    answers, *lines, notice = printed.splitlines()
    checkpoints = {kind: load_checkpoint(exported[kind]) for kind in ("film", "image", "metadata")}

    def expected(kind: str, picture: str | None, row: dict) -> dict[str, float]:
        model, processor = checkpoints[kind]
        metadata = [row] if model.config.uses_metadata else None
        shares = predict(model, processor, [picture] if picture else None, metadata)[0]
        return dict(zip(model.config.label_names, shares.tolist(), strict=True))

    distinct = set()
    for case, answer in zip(cases, json.loads(answers), strict=True):
        assert list(answer.values()) == sorted(answer.values(), reverse=True)
        assert answer == pytest.approx(expected(*case), rel=0, abs=1e-5), case
        distinct.add(tuple(round(answer[label], 4) for label in sorted(answer)))
    assert len(distinct) > 20  # the comparison is not one of equal answers to everything

    assert notice == "Research software, not a medical device: never for diagnosis or for decisions about a patient."
    shown = {line.split()[1]: float(line.split("%")[0]) / 100 for line in lines}
    shares = expected("film", pictures[0], {"age": 35.5, "sex": "male"})
    assert shown == pytest.approx(shares, rel=0, abs=1e-5)
    assert list(shown) == sorted(shares, key=lambda label: -shares[label])


def test_the_example_refuses_in_one_line(exported: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    film, image, black = str(exported["film"]), str(exported["image"]), str(tmp_path / "black.png")
    cases = [
        ([film, black, "--sex", "other"], "unknown sex 'other'; expected one of female, male"),
        ([film, black, "--age", "200"], "age 200 is outside 0..120 years"),
        ([film, black, "--age", "old"], "could not convert string to float: 'old'"),
        ([film], "this model needs an image"),
        ([image, black, "--age", "3"], "this model reads no metadata"),
        ([str(exported["metadata"]), "--sex", "male"], "this model does not read sex, only ['localization', 'age']"),
        ([film, str(tmp_path / "broken.jpg")], f"cannot read the image {str(tmp_path / 'broken.jpg')!r}"),
        ([str(tmp_path), black], "No such file or directory"),
    ]
    for arguments, message in cases:
        process = subprocess.run([sys.executable, EXAMPLE, *arguments], capture_output=True, text=True)
        assert process.returncode == 1
        assert re.fullmatch(f"error: .*{re.escape(message)}.*\n", process.stderr)
