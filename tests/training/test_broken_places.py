"""Folders that cannot be written, are full, or vanish: one clear error each, and nothing that was there is lost."""

import ctypes
import json
import os
import re
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from run_checks import leftovers, one_error
from safetensors.torch import load_file
from torchvision.models import efficientnet_v2_s

from ham10000.hub_upload.commands import convert
from ham10000.hub_upload.commands import export as export_onnx
from ham10000.modeling import Ham10000Config, Ham10000Error, create_processor
from ham10000.training.data import loader
from ham10000.training.data.loader import cached_images, read_rows
from ham10000.training.data.sources import load_data
from ham10000.training.engine import Engine
from ham10000.training.evaluation.__main__ import main as evaluate
from ham10000.training.predict import main as predict
from ham10000.training.run_folder import begin_run, prepare_output_dir, replace_run, settings_path, training_states
from ham10000.training.study.__main__ import main as study
from ham10000.training.train import main as train
from ham10000.training.utils.files import atomic_path, remove_leftovers, scratch_folder

TINY = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32", "--pretrained", "none"]
TINY += ["--batch_size", "16", "--trackers", "none"]
STUDY = ["--config", str(Path(__file__).parents[2] / "examples" / "configs" / "study.yaml"), *TINY[2:-2]]
_CAP_DAC_OVERRIDE = 1


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Takes from folders the permission to write, and from root the power to write all the same.

    The power is a capability of this thread, given back at the end: the errors are the system's own.
    """
    modes = {folder: folder.stat().st_mode for folder in folders}
    is_root = os.geteuid() == 0
    # _LINUX_CAPABILITY_VERSION_3 and this thread; effective, permitted and inheritable, twice 32 bits of each.
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if is_root:
        if not hasattr(libc, "capset") or libc.capget(header, sets) != 0:
            pytest.skip("root writes everywhere on this system, and its capabilities cannot be dropped")
        effective = sets[0]
        sets[0] = effective & ~(1 << _CAP_DAC_OVERRIDE)
        assert libc.capset(header, sets) == 0
    try:
        for folder in folders:
            folder.chmod(0o555)
        with pytest.raises(PermissionError):
            (folders[0] / "probe").write_text("")
        yield
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
        if is_root:
            sets[0] = effective
            assert libc.capset(header, sets) == 0


@contextmanager
def disk_full_beyond(n_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond so many bytes: EFBIG where a full disk gives ENOSPC, at the same calls."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def places(synthetic_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--data", str(synthetic_folder), "--cache_dir", str(tmp_path_factory.mktemp("places") / "cache")]


@pytest.fixture(scope="module")
def finished(places: list[str]) -> Path:
    """A run of one epoch, evaluated."""
    folder = Path(places[-1]).with_name("run")
    assert train([*TINY, *places, "--epochs", "1", "--output_dir", str(folder)]) == 0
    assert evaluate([*places, "--checkpoint", str(folder), "--n_resamples", "20"]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to break."""
    return shutil.copytree(finished, tmp_path / "run")


def predict_one(run: str, data: str) -> int:
    picture = next(Path(data).rglob("*.jpg"))
    return predict([str(picture), "--checkpoint", run, "--output", f"{run}/table.csv"])


def convert_other_weights(run: str) -> int:
    weights = Path(run).with_name("weights.pt")
    torch.save(efficientnet_v2_s(weights=None, num_classes=7).state_dict(), weights)
    return convert(["--checkpoint", str(weights), "--output_dir", f"{run}/converted"])


COMMANDS = {
    "resume": lambda run, places: train([*TINY, *places, "--resume", "--output_dir", run]),
    "overwrite": lambda run, places: train([*TINY, *places, "--overwrite", "--output_dir", run]),
    "evaluate": lambda run, places: evaluate([*places, "--checkpoint", run, "--n_resamples", "20"]),
    "study-in-a-new-folder": lambda run, places: study([*STUDY, *places, "--output_dir", f"{run}/logs/study"]),
    "study": lambda run, places: study([*STUDY, *places, "--output_dir", run]),
    "export": lambda run, places: export_onnx([run]),
    "convert": lambda run, places: convert_other_weights(run),
    "predict": lambda run, places: predict_one(run, places[1]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_read_only_output_folder(command: str, run: Path, places: list[str], capsys) -> None:
    (run / "logs").mkdir(exist_ok=True)
    (run / "run.lock").unlink(missing_ok=True)
    before = content(run)
    with read_only(run, run / "logs", run / "figures"):
        assert COMMANDS[command](str(run), places) == 2
    assert re.match(f"error: Cannot write '{run}.*Permission denied", one_error(capsys))
    assert content(run) == before


def test_a_disk_that_fills_up_in_training(tmp_path: Path, places: list[str], capsys, monkeypatch) -> None:
    folder, save_state, calls = tmp_path / "run", Engine._save_state, []

    def third_is_too_much(self: Engine) -> None:
        calls.append(1)
        with disk_full_beyond(100_000 if len(calls) == 3 else resource.RLIM_INFINITY):
            save_state(self)

    monkeypatch.setattr(Engine, "_save_state", third_is_too_much)
    assert train([*TINY, *places, "--epochs", "1", "--save_every_steps", "3", "--output_dir", str(folder)]) == 2
    assert re.match(f"error: Cannot write '{folder}/training_state-.*Make room there", one_error(capsys))
    assert len(training_states(folder)) == 2
    assert leftovers(folder) == []
    for path in training_states(folder):  # whole, as `test_kill_stages.py` resumes from them
        load_file(path)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_full_disk_leaves_the_earlier_result(command: str, run: Path, places: list[str], capsys) -> None:
    (run / "table.csv").write_text("earlier\n")
    before = content(run)
    with disk_full_beyond(100):
        assert COMMANDS[command](str(run), places) == 2
    assert re.match(f"error: Cannot write '{run}.*File too large. Make room there, or name", one_error(capsys))
    assert content(run) == before


MISTAKES = {
    "data": (["--data", "no/such/folder"], "There is no folder"),
    "weights": (["--pretrained", "no.safetensors"], "no.safetensors"),
    "split": (["--split_file", "no.csv"], "no.csv"),
    "name": (["--backbone", "test_efficientnett"], "test_efficientnett"),
    "size": (["--backbone", "vit_tiny_patch16_224"], r"2 sample\(s\) of 32x32 .*doesn't match model \(224\)"),
    "pooling": (["--backbone_kwargs", '{"global_pool": ""}'], "global_pool"),
    "channels": (["--backbone_kwargs", '{"in_chans": 1}'], "to have 1 channels, but got 3"),
    "features": (["--backbone_kwargs", '{"features_only": true}'], "EfficientNetFeatures"),
    "shared weights": (["--backbone", "coat_lite_tiny", "--image_size", "224"], "one weight in several places"),
    "resumed by another rate": (["--resume", "--learning_rate", "0.5"], "learning_rate was 0.0005 and is now 0.5"),
    # With other parameters to train, whose moments the state does not have.
    "resumed frozen": (["--resume", "--freeze_backbone", "--pretrained", "timm"], "freeze_backbone was False and is"),
    "cache": (["--cache_dir", "/dev/null/cache"], "Cannot write the image cache .*--cache_dir"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_no_run(mistake: str, run: Path, places: list[str], capsys) -> None:
    before = content(run)
    options, message = MISTAKES[mistake]
    assert train([*TINY, *places, "--output_dir", str(run), "--overwrite", *options]) == 2
    assert re.search(message, one_error(capsys))
    assert content(run) == before


def test_a_picture_that_cannot_be_read_is_one_line(tmp_path: Path, places: list[str], capsys) -> None:
    data = shutil.copytree(places[1], tmp_path / "data")
    for path in data.rglob("*.jpg"):
        path.write_bytes(path.read_bytes()[:200])
    options = ["--data", str(data), "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "run")]
    assert train([*TINY, *options]) == 2
    assert re.match("error: Image '.*See `ham10000-data --check_images`", one_error(capsys))


def test_weights_without_a_run_are_not_replaced_unasked(tmp_path: Path, capsys) -> None:
    (tmp_path / "model.safetensors").write_text("converted")
    assert train([*TINY, "--data", "synthetic", "--output_dir", str(tmp_path)]) == 2
    assert "already holds a run. Continue it with --resume" in one_error(capsys)
    assert content(tmp_path) == {"model.safetensors": b"converted"}


def test_the_old_run_stays_until_the_new_one_has_saved(run, places, monkeypatch) -> None:
    before, save_state = content(run), Engine._save_state

    def save_and_stop(self: Engine) -> None:
        assert before.items() <= content(run).items()
        save_state(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "_save_state", save_and_stop)
    options = ["--seed", "1", "--overwrite", "--output_dir", str(run), "--epochs", "1", "--save_every_steps", "4"]
    assert train([*TINY, *places, *options]) == 130
    assert [path.name for path in training_states(run)] == ["training_state-00000004.safetensors"]
    assert json.loads((run / "train_config.json").read_text())["config"]["seed"] == 1
    for name in ("model.safetensors", "eval_results.json", "history.json", "figures/training_curves.png"):
        assert not (run / name).exists()


@pytest.mark.parametrize("killed_before", range(12))
def test_killed_while_replaced_a_folder_has_the_old_run_or_the_new_one(killed_before, tmp_path, monkeypatch) -> None:
    names = ["model.safetensors", "history.json", "training_state-00000009.safetensors", "config.json"]
    old = {"train_config.json": '{"finished": true}'} | dict.fromkeys([*names, "eval_results.json"], "old")
    names = ["model.safetensors", "training_state-00000004.safetensors", "config.json", "split.csv"]
    new = {"train_config.json": '{"config": {"seed": 1}, "finished": false}'} | dict.fromkeys(names, "new")
    for name, text in old.items():
        (tmp_path / name).write_text(text)
    place = begin_run(tmp_path, {"seed": 1})
    assert remove_leftovers(tmp_path) == []  # as an evaluation of the old run calls it, without the lock
    for name, text in new.items():
        (place / name).write_text(text)
    operations = []

    def counted(call: Callable[..., object]) -> Callable[..., object]:
        def operation(*arguments: object, **options: object) -> object:
            operations.append(call)
            if len(operations) > killed_before:
                raise KeyboardInterrupt  # from here on nothing is changed, as after a kill
            return call(*arguments, **options)

        return operation

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        for name in ("rename", "replace", "unlink", "rmdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        replace_run(tmp_path)
    assert (len(operations) > killed_before) == (killed_before < 11)
    seen = settings_path(tmp_path).read_text()
    prepare_output_dir(tmp_path, may_have_run=True)
    expected = new if killed_before else old
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == expected
    assert seen == expected["train_config.json"]


@pytest.fixture
def cached(synthetic_folder: Path) -> Callable[..., np.memmap]:
    """The pictures of the synthetic folder in a given `cache_dir`."""
    processor = create_processor(Ham10000Config(backbone="test_efficientnet"), image_size=32, resizer="torch")
    return partial(cached_images, load_data(str(synthetic_folder))[0], processor.image_processor, progress=False)


def test_a_cache_deleted_under_a_running_job(places, finished, tmp_path, monkeypatch) -> None:
    cache, step = tmp_path / "cache", Engine._step
    shutil.copytree(finished.parent / "cache", cache)

    def deleting_step(self: Engine, *arguments: object):
        shutil.rmtree(cache, ignore_errors=True)
        return step(self, *arguments)

    monkeypatch.setattr(Engine, "_step", deleting_step)
    options = ["--cache_dir", str(cache), "--epochs", "1", "--output_dir", str(tmp_path / "run")]
    assert train([*TINY, *places, *options]) == 0
    assert not cache.exists()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_cache_deleted_while_it_is_built_never_takes_anothers_half(cached, tmp_path, monkeypatch) -> None:
    cache, decode, calls, halves = tmp_path / "cache", loader.decode, [], []

    def decode_and_delete(*arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 200:
            (half,) = cache.glob("*.partial")
            shutil.rmtree(cache)
            cache.mkdir()
            half.write_bytes(b"another builder's first pictures")
            halves.append(half)
        return decode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loader, "decode", decode_and_delete)
        with pytest.raises(Ham10000Error, match=r"Cannot write the image cache .* the folder was deleted"):
            cached(cache_dir=cache)
    assert list(cache.iterdir()) == halves
    halves[0].unlink()
    assert len(cached(cache_dir=cache)) == 220


@pytest.mark.parametrize("damage", ["short", "empty", "other"])
def test_a_damaged_cache_is_built_again(damage, cached, tmp_path, capsys) -> None:
    source = Path(cached(cache_dir=tmp_path / "whole").filename)
    path, whole = tmp_path / source.name, source.read_bytes()
    path.write_bytes({"short": whole[:-1], "empty": b"", "other": bytes(len(whole))}[damage])
    images = cached(cache_dir=tmp_path)
    assert f"warning: the image cache '{path}' is damaged; building it again." in capsys.readouterr().err
    assert path.read_bytes() == whole
    assert read_rows(images, np.array([3])).tobytes() == whole[-220 * 3072 :][3 * 3072 : 4 * 3072]


def test_a_cache_without_permission_or_room(cached, tmp_path) -> None:
    message = r"Cannot write the image cache .*: Permission denied.*--cache_dir"
    with read_only(tmp_path), pytest.raises(Ham10000Error, match=message):
        cached(cache_dir=tmp_path)
    with disk_full_beyond(100_000), pytest.raises(Ham10000Error, match=r"File too large\. It takes 0\.00 GB; name"):
        cached(cache_dir=tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    built = np.array(cached(cache_dir=tmp_path))
    with read_only(tmp_path):  # complete, it serves
        assert (cached(cache_dir=tmp_path) == built).all()


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    scratch, own = ".ham10000-0a_45678.tmp", [".tmp", ".tmp_backup", ".tmpABCDEF", ".new_run.unsaved"]
    for name in ("figures", scratch, *own):
        (tmp_path / name).mkdir()
    left = [".model.0123456789ab.tmp.safetensors", ".tmpEaBVKG", "figures/.curves.0123456789ab.tmp.png"]
    kept = ["model.safetensors", "figures/curves.png", ".gitignore", "notes.tmp", ".notes.tmp", ".tmpfile.txt"]
    for name in [*left, *kept]:
        (tmp_path / name).write_text("x")
    assert remove_leftovers(tmp_path, older_than=60) == []
    removed = {str(path.relative_to(tmp_path)) for path in remove_leftovers(tmp_path)}
    assert removed == {*left, scratch}
    assert all((tmp_path / name).exists() for name in [*kept, *own])
    assert not any((tmp_path / name).exists() for name in removed)
    with scratch_folder(tmp_path) as folder, atomic_path(tmp_path / "table.csv") as file:
        file.touch()
        assert {*remove_leftovers(tmp_path)} == {folder, file}
        file.touch()
