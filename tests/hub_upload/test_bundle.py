"""The whole way of a model: trained, evaluated, verified, pushed to a Hub, loaded by its id by a stranger, used."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from card_runs import change_json
from hub_server import WRITER, HubServer
from safetensors.torch import load_file
from skin import skin_image
from transformers import AutoModel

from ham10000.hub_upload import bundle as bundle_module
from ham10000.hub_upload.bundle import assemble_bundle, describe_tree, read_sibling, verify_checkpoint
from ham10000.hub_upload.commands import push, verify
from ham10000.hub_upload.export_onnx import fixed_inputs
from ham10000.hub_upload.publish import is_owned
from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import LABELS, MODALITIES, Ham10000Config, Ham10000Error, create_processor
from ham10000.training.data.split import load_split
from ham10000.training.evaluation.__main__ import main as evaluate
from ham10000.training.inference.prediction import load_checkpoint, predict
from ham10000.training.run_folder import save_checkpoint
from ham10000.training.train import main as train

ROW = {"age": 60, "sex": "male", "localization": "back"}
# One process for several pushes, as most of its time goes into imports.
PUSH = """
import json, sys
from ham10000.hub_upload.commands import push
sys.exit(max(push(arguments) for arguments in json.loads(sys.argv[1])))
"""
# Runs where this package cannot be imported, as on a stranger's machine; prints what each repository predicts.
STRANGER = """
import json, sys
sys.modules["ham10000"] = None
import torch
from transformers import AutoModel, AutoProcessor, pipeline

picture, row, results = sys.argv[1], json.loads(sys.argv[2]), {}
for modality in ("image", "metadata", "fusion"):
    source = {"revision": "v1.0", "trust_remote_code": True}
    model = AutoModel.from_pretrained(f"user/ham10000-{modality}", **source)
    processor = AutoProcessor.from_pretrained(f"user/ham10000-{modality}", **source)
    given = {"pixel_values": {"images": picture}, "metadata": {"metadata": row}}
    inputs = processor(**{k: v for name in processor.model_input_names for k, v in given[name].items()})
    with torch.inference_mode():
        results[modality] = model(**inputs).logits.double().softmax(-1)[0].tolist()
classify = pipeline("image-metadata-classification", model="user/ham10000-fusion", **source)
results["pipeline"] = {row["label"]: row["score"] for row in classify({"image": picture, **row})}
assert not any(name.startswith("ham10000.") for name in sys.modules)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, synthetic_folder: Path) -> dict[str, Path]:
    """A trained and evaluated run of each variant."""
    parent = tmp_path_factory.mktemp("runs")
    common = ["--data", str(synthetic_folder), "--cache_dir", str(parent / "cache")]
    network = "--backbone test_efficientnet --pretrained none --backbone_kwargs {} --image_size 32"
    recipe = f"{network} --epochs 1 --mixed_precision no --trackers none --batch_size 20".split()
    for modality in MODALITIES:
        AcceleratorState._reset_state(True)
        folder = str(parent / modality)
        assert train(["--modality", modality, "--output_dir", folder, *common, *recipe]) == 0
        assert evaluate(["--checkpoint", folder, "--n_resamples", "50", *common]) == 0
    AcceleratorState._reset_state(True)
    return {modality: parent / modality for modality in MODALITIES}


def python(hub: HubServer, home: Path, *arguments: str, token: str | None = WRITER) -> str:
    """What a fresh interpreter prints whose Hub is the local one; `home` is its cache."""
    home.mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    environment |= {} if token is None else {"HF_TOKEN": token}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)
    assert done.returncode == 0, done.stderr
    assert WRITER not in done.stdout + done.stderr
    return done.stdout


def test_train_evaluate_push_load_predict(runs: dict[str, Path], hub: HubServer, tmp_path: Path) -> None:
    """Training and evaluation are the fixture's; the rest is what two people do, each on a machine of their own."""
    home, picture = tmp_path / "home", tmp_path / "lesion.jpg"
    skin_image(0).save(picture)
    pushes = []
    for modality, folder in runs.items():
        siblings = [f"--sibling={other}" for name, other in runs.items() if name != modality]
        pushes.append(["--checkpoint", str(folder), "--repo_id", f"user/ham10000-{modality}", *siblings])
    printed = python(hub, home, "-c", PUSH, json.dumps(pushes))
    assert printed.count("logits equal to the last bit") == len(runs)
    published = [line for line in printed.splitlines() if line.startswith("Published")]
    assert published == [f"Published {hub.url}/user/ham10000-{modality}/tree/v1.0" for modality in runs]

    printed = python(hub, tmp_path / "stranger", "-c", STRANGER, str(picture), json.dumps(ROW), token=None)
    results = json.loads(printed.splitlines()[-1])
    for modality, folder in runs.items():
        model, processor = load_checkpoint(folder)
        images = [picture] if modality != "metadata" else None
        expected = predict(model, processor, images, None if modality == "image" else [ROW])[0]
        np.testing.assert_allclose(results[modality], expected, rtol=0, atol=1e-6)
    fusion = dict(zip(LABELS, results["fusion"], strict=True))
    assert results["pipeline"] == pytest.approx(fusion, rel=0, abs=1e-6)

    # The command line takes the id, too; this machine has the package.
    arguments = ["--checkpoint", "user/ham10000-fusion", "--revision", "v1.0", "--age", "60", "--sex", "male"]
    arguments += ["--localization", "back", "--format", "json"]
    (row,) = json.loads(python(hub, home, "-m", "ham10000.training.predict", str(picture), *arguments, token=None))
    assert row["probabilities"] == pytest.approx(fusion, rel=0, abs=1e-6)


def assemble(run: Path, folder: Path, **options: Any) -> Path:
    assemble_bundle(run, folder, repo_id="user/ham10000-fusion", revision="v1.0", **options)
    return folder


@pytest.fixture(scope="module")
def bundle(runs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = read_run(runs["fusion"])
    siblings = [read_sibling(str(runs[name]), run, "user/ham10000-fusion") for name in ("image", "metadata")]
    assert all(sibling.comparison for sibling in siblings)
    assert [sibling.repo_id for sibling in siblings] == ["user/ham10000-image", "user/ham10000-metadata"]
    assert read_sibling(f"{runs['image']}=user/x", run, "user/ham10000-fusion").repo_id == "user/x"
    assert read_sibling(str(runs["image"]), run, "user/mine").repo_id is None
    return assemble(runs["fusion"], tmp_path_factory.mktemp("bundle") / "fusion", siblings=siblings)


def test_a_bundle_holds_what_is_published_and_nothing_else(bundle: Path, runs: dict[str, Path]) -> None:
    code = ("configuration", "image_processing", "image_statistics", "modeling", "pipeline", "processing")
    figures = ("confusion_matrix", "per_class", "reliability", "subgroups", "training_curves")
    expected = {
        *("README.md", "requirements.txt", "handler.py", "config.json", "processor_config.json", "model.safetensors"),
        *("split.csv", "split.json", "train_config.json", "history.json", "eval_results.json"),
        *(f"{name}_ham10000.py" for name in code),
        *(f"figures/{name}.png" for name in figures),
    }
    paths = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    assert paths == expected
    # The rest of a release is deleted where the next one lacks it; these four every release has.
    always = {"README.md", "requirements.txt", "config.json", "processor_config.json"}
    assert {path for path in paths if not is_owned(path)} == always
    # What `ham10000-evaluate` reads, so that a published folder can be scored again.
    assert load_split(bundle).sha256 == load_split(runs["fusion"]).sha256
    tree = describe_tree(bundle)
    assert all(f"  {path}" in tree for path in expected)
    assert f"bytes in {len(expected)} files" in tree
    for path in bundle.rglob("*"):
        if path.suffix in (".md", ".json", ".csv", ".py", ".txt"):  # no folder of this machine's
            assert str(runs["fusion"].parent) not in path.read_text(encoding="utf-8"), path


def test_shards_on_request_load_the_same_weights(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = assemble(runs["fusion"], tmp_path / "sharded", max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()
    whole, sharded = (load_checkpoint(path)[0] for path in (runs["fusion"], folder))
    weights = sharded.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.state_dict().items())


def test_half_precision_is_published_and_computes_in_float32(runs: dict[str, Path], tmp_path: Path) -> None:
    model, processor = load_checkpoint(runs["metadata"])
    save_checkpoint(tmp_path / "float16", model, processor, dtype="float16")
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
    processor.save_pretrained(tmp_path / "bfloat16")
    for dtype in (torch.float16, torch.bfloat16):
        folder = assemble(tmp_path / str(dtype)[6:], tmp_path / f"bundle {dtype}")
        assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {dtype}
    again = AutoModel.from_pretrained(tmp_path / "bundle torch.float16")
    assert again.dtype == torch.float32
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name


def test_an_unfinished_run_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(runs["metadata"], tmp_path / "unfinished")
    change_json(folder / "train_config.json", finished=False)
    with pytest.raises(Ham10000Error, match=r"not finished.*--resume"):
        assemble(folder, tmp_path / "bundle")


def test_dry_run_uploads_nothing(runs: dict[str, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    arguments = ["--checkpoint", str(runs["metadata"]), "--repo_id", "user/ham10000-metadata", "--dry_run"]
    assert push([*arguments, "--output_dir", str(tmp_path / "bundle")]) == 0
    output = capsys.readouterr().out
    assert "model.safetensors" in output
    assert "nothing was uploaded" in output
    assert (tmp_path / "bundle" / "README.md").is_file()
    assert push([*arguments, "--output_dir", str(tmp_path / "bundle")]) == 2
    assert "exists; give --output_dir a folder that does not" in capsys.readouterr().err


@pytest.fixture
def copied(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_checkpoints["fusion"], tmp_path / "copy")


def test_a_clean_process_gives_the_same_bits_and_has_no_token(copied: Path, capsys, monkeypatch) -> None:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
    for name in names:
        monkeypatch.setenv(name, "secret")
    code = copied / "modeling_ham10000.py"
    code.write_text(f"{code.read_text()}\nimport os\n\nassert not set(os.environ) & {set(names)}\n")
    assert verify([str(copied)]) == 0
    assert "42 logits equal to the last bit" in capsys.readouterr().out  # 3 inputs, 7 classes, 2 Auto classes


def test_code_in_the_folder_that_computes_something_else_is_noticed(copied: Path) -> None:
    """So the clean process does run the folder's code, and the comparison does compare."""
    code = copied / "modeling_ham10000.py"
    text = code.read_text()
    assert text.count("/ self.config.temperature") == 1
    code.write_text(text.replace("/ self.config.temperature", "/ self.config.temperature * 1.001"))
    with pytest.raises(Ham10000Error, match=r"Logits of AutoModel\w* .* differ by up to"):
        verify_checkpoint(copied)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pipeline_ham10000.py", "image_processing_ham10000.py"])
def test_a_missing_code_file_is_noticed(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(Ham10000Error, match=f"(?s)does not load without this package.*{name.removesuffix('.py')}"):
        verify_checkpoint(copied)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors"])
def test_a_missing_file_is_one_message_before_any_process_starts(name: str, copied: Path, monkeypatch, capsys) -> None:
    (copied / name).unlink()
    monkeypatch.setattr(bundle_module.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert verify([str(copied)]) == 2
    reason = "holds no config.json" if name == "config.json" else "is no complete checkpoint folder"
    assert f"error: {str(copied)!r} {reason}" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [["age", "sex", "localization"], ["localization"], ["sex", "age"]])
def test_the_fixed_inputs_are_seeded_and_hold_missing_values(fields: list) -> None:
    words = {"sex_vocabulary": ["f", "m", "x"], "localization_vocabulary": ["arm", "leg"]}  # of somebody's own data
    config = Ham10000Config(backbone="test_vit", metadata_fields=fields, **words)
    processor = create_processor(config, image_size=(32, 48))
    pixels, missing = (fixed_inputs(processor)[name] for name in ("pixel_values", "metadata"))
    assert (pixels.shape, missing.shape) == ((3, 3, 32, 48), (3, len(fields)))
    assert missing.isnan()[2].any()
    assert not missing.isnan()[0].any()
    assert torch.equal(pixels, fixed_inputs(processor)["pixel_values"])
    assert not torch.equal(pixels, fixed_inputs(processor, seed=1)["pixel_values"])
