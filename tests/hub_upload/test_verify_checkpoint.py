"""The proof that a folder loads without this package, and that it would notice if it did not."""

import shutil
from pathlib import Path

import pytest
import torch

from ham10000.hub_upload import bundle
from ham10000.hub_upload.bundle import verify_checkpoint
from ham10000.hub_upload.commands import verify as main
from ham10000.hub_upload.export_onnx import fixed_inputs
from ham10000.modeling import Ham10000Config, Ham10000Error, create_processor


@pytest.fixture
def copy(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["fusion"], tmp_path / "copy"))


def test_a_clean_process_gives_the_same_bits_and_has_no_token(copy: Path, capsys, monkeypatch) -> None:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
    for name in names:
        monkeypatch.setenv(name, "secret")
    code = copy / "modeling_ham10000.py"
    code.write_text(f"{code.read_text()}\nimport os\n\nassert not set(os.environ) & {set(names)}\n")
    assert main([str(copy)]) == 0
    assert "42 logits equal to the last bit" in capsys.readouterr().out  # 3 inputs, 7 classes, 2 Auto classes


def test_code_in_the_folder_that_computes_something_else_is_noticed(copy: Path) -> None:
    """So the clean process does run the folder's code, and the comparison does compare."""
    code = copy / "modeling_ham10000.py"
    text = code.read_text()
    assert text.count("/ self.config.temperature") == 1
    code.write_text(text.replace("/ self.config.temperature", "/ self.config.temperature * 1.001"))
    with pytest.raises(Ham10000Error, match=r"Logits of AutoModel\w* .* differ by up to"):
        verify_checkpoint(copy)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pipeline_ham10000.py", "image_processing_ham10000.py"])
def test_a_missing_code_file_is_noticed(name: str, copy: Path) -> None:
    (copy / name).unlink()
    with pytest.raises(Ham10000Error, match=f"(?s)does not load without this package.*{name.removesuffix('.py')}"):
        verify_checkpoint(copy)


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "model.safetensors"])
def test_a_missing_file_is_one_message_before_any_process_starts(name: str, copy: Path, monkeypatch, capsys) -> None:
    (copy / name).unlink()
    monkeypatch.setattr(bundle.subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert main([str(copy)]) == 2
    error = capsys.readouterr().err
    assert "error: " in error
    assert str(copy) in error
    assert ("holds no config.json" in error) == (name == "config.json")


@pytest.mark.parametrize("fields", [["age", "sex", "localization"], ["localization"], ["sex", "age"]])
def test_the_fixed_inputs_are_seeded_and_hold_missing_values(fields: list) -> None:
    words = {"sex_vocabulary": ["f", "m", "x"], "localization_vocabulary": ["arm", "leg"]}  # of somebody's own data
    config = Ham10000Config(backbone="test_vit", metadata_fields=fields, **words)
    processor = create_processor(config, image_size=(32, 48))
    inputs, again = fixed_inputs(processor), fixed_inputs(processor)
    assert inputs["pixel_values"].shape == (3, 3, 32, 48)
    assert inputs["metadata"].shape == (3, len(fields))
    assert inputs["metadata"].isnan().any(dim=1).tolist()[2]
    assert not inputs["metadata"].isnan()[0].any()
    assert torch.equal(inputs["pixel_values"], again["pixel_values"])
    assert not torch.equal(inputs["pixel_values"], fixed_inputs(processor, seed=1)["pixel_values"])
