"""What surrounds a run: its launcher, its trackers, a user without a home directory, a log in place of a terminal."""

import dataclasses
import io
import pwd
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.tracking import TensorBoardTracker, get_available_trackers
from accelerate.utils import LoggerType
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from safetensors.torch import save_file

from ham10000.modeling import Ham10000Error
from ham10000.training.config import TrainConfig
from ham10000.training.train import build_accelerator, build_model, check_forward, check_trackers, main
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.files import default_cache_dir
from ham10000.training.utils.hardware import resolve_precision

OPTIONS = ["--modality", "metadata", "--data", "synthetic:220", "--epochs", "1", "--mixed_precision", "no"]
HOMES = ("HOME", "XDG_CACHE_HOME", "HAM10000_CACHE")
NOT_INSTALLED = sorted(set(LoggerType.list()) - {"all"} - {str(name) for name in get_available_trackers()})


@pytest.mark.parametrize("asked", ["no", "bf16"])
@pytest.mark.parametrize("own", ["auto", "no", "bf16"])
def test_auto_is_the_precision_of_the_launcher_and_a_named_one_is_its_own(asked, own, monkeypatch, tmp_path) -> None:
    # What `accelerate launch` tells a script by its environment.
    arguments = launch_command_parser().parse_args(["--cpu", "--mixed_precision", asked, "script.py"])
    environment = prepare_simple_launcher_cmd_env(_validate_launch_command(arguments)[0])[1]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment["ACCELERATE_MIXED_PRECISION"])
    config = TrainConfig(mixed_precision=own, output_dir=str(tmp_path))
    assert build_accelerator(config).mixed_precision == (asked if own == "auto" else own)


@pytest.mark.parametrize(
    ("asked", "message"), [("fp16", "needs a CUDA device"), ("fp8", "use no, bf16 or fp16"), ("half", "'half'")]
)
def test_a_precision_that_cannot_be_had_is_refused(asked: str, message: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
    with pytest.raises(Ham10000Error, match=message):
        build_accelerator(TrainConfig(output_dir=str(tmp_path)))


def test_auto_asks_the_device_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = resolve_precision("auto", "cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    # An older GPU, which only emulates bf16.
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert resolve_precision("auto") == resolve_precision("auto", "cuda") == "fp16"
    assert resolve_precision("auto", "cpu") == alone != "fp16"


@pytest.mark.parametrize("name", ["tensorbord", "", *NOT_INSTALLED[:1]])
def test_a_tracker_that_would_be_left_out_is_refused(name: str) -> None:
    problem = "not installed" if name in NOT_INSTALLED else "does not know"
    with pytest.raises(Ham10000Error, match=f"{re.escape(repr(name))}.*{problem}.*Installed here: .*tensorboard"):
        check_trackers(["tensorboard", name])
    check_trackers([*(str(name) for name in get_available_trackers()), "all"])
    check_trackers([])


def test_a_tracker_that_cannot_start_is_one_error(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(TensorBoardTracker, "start", Mock(side_effect=ConnectionError("not logged in")))
    assert main([*OPTIONS, "--output_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "The trackers ['tensorboard'] cannot start: ConnectionError: not logged in" in error
    assert "--trackers none" in error


def test_without_a_home_directory_the_cache_asks_for_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", Mock(side_effect=KeyError("uid not found")))
    with pytest.raises(Ham10000Error, match=r"no home directory.*--cache_dir"):
        default_cache_dir()
    monkeypatch.setenv("HAM10000_CACHE", "/somewhere")
    assert default_cache_dir() == Path("/somewhere")


def test_a_bar_in_a_log_file_is_quiet_for_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    lines = []
    for _ in progress_bar(iterable=range(2000), desc="Checking"):
        now[0] += 0.1
        lines.append(log.getvalue().count("\r"))
    assert lines[290] == 0
    # 200 seconds: one line for each half minute, and the last.
    assert 3 <= log.getvalue().count("\r") <= 8


def test_epochs_are_lines_of_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIONS, "--trackers", "none", "--output_dir", str(tmp_path / "run"), "--patience", "1"]) == 0
    output = capsys.readouterr().out
    assert "epoch  train loss  val. loss  macro-F1  balanced acc.  accuracy  images/s" in output
    assert re.search(r"^    1 .*  kept$", output, re.MULTILINE)
    own = output[output.index("\nModel ") : output.index("\nSaved ")]  # the last two lines are to be copied
    assert max(len(line) for line in own.splitlines()) <= 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "metablock", "batch_size": 4, "gradient_accumulation_steps": 4}, "more than 1 value per channel"),
        ({"backbone": "vit_tiny_patch16_224", "train_scales": [0.5, 1.0]}, r"112x112.*own size is 224x224"),
        ({"backbone": "test_vit", "image_size": [160], "backbone_kwargs": '{"dynamic_img_size": false}'}, None),
        ({"fusion": "concat", "batch_size": 4, "gradient_accumulation_steps": 4}, None),
    ],
)
def test_a_network_is_tried_at_every_size_and_stays_as_it_was(options: dict, message: str | None) -> None:
    config = TrainConfig(**{"backbone": "test_efficientnet", "backbone_kwargs": "{}", "pretrained": "none", **options})
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(Ham10000Error, match=message) if message else nullcontext():
        check_forward(model, config)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_frozen_backbone_takes_a_sample_at_a_time(tmp_path: Path) -> None:
    weights = tmp_path / "backbone.safetensors"
    free = TrainConfig(modality="image", backbone="test_efficientnet", backbone_kwargs="{}", pretrained="none")
    save_file(build_model(free).backbone.state_dict(), weights)
    # One pixel is left of 16 in the last stage: of one sample, batch norm has no variance there.
    config = dataclasses.replace(free, image_size=[16], batch_size=1, pretrained=str(weights), freeze_backbone=True)
    check_forward(build_model(config), config)
    with pytest.raises(Ham10000Error, match="more than 1 value per channel"):
        check_forward(build_model(config), dataclasses.replace(config, freeze_backbone=False))
