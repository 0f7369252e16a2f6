"""SIGKILL while a run overwrites another one: the old run is whole, or the new one goes on to its end."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from fork_server import Child, ForkServer
from run_checks import assert_same_run, leftovers

from ham10000.training.run_folder import settings_path

TINY = ["--modality", "fusion", "--backbone", "test_efficientnet", "--image_size", "32", "--pretrained", "none"]
TINY += ["--epochs", "1", "--batch_size", "16", "--trackers", "none", "--save_every_steps", "3"]
NEW = ("--overwrite", "--seed", "1")


@pytest.mark.slow
def test_killed_while_it_overwrites(forks: ForkServer, synthetic_folder: Path, tmp_path: Path) -> None:
    def train(folder: Path, *options: str, **moment: Any) -> Child:
        places = ["--data", synthetic_folder, "--output_dir", folder, "--cache_dir", tmp_path / "cache"]
        return forks.run("train", [*TINY, *places, *options], **moment)

    old, expected, counter = tmp_path / "old", tmp_path / "expected", tmp_path / "operations"
    assert train(old).wait() == 0
    files = {path.name: path.read_bytes() for path in old.iterdir() if path.is_file()}
    shutil.copytree(old, expected)
    child = train(expected, *NEW, watched=str(expected), counter=str(counter))
    assert child.wait() == 0, child.text
    total, stayed = int(counter.read_text()), []
    assert total > 30
    for moment in (*random.Random(4).sample(range(3, total), 4), 2, total):
        folder = tmp_path / str(moment)
        shutil.copytree(old, folder, dirs_exist_ok=True)
        assert train(folder, *NEW, watched=str(folder), file_operation=moment).wait() == -9
        stayed.append(json.loads(settings_path(folder).read_text())["config"]["seed"] != 1)
        if stayed[-1]:
            assert {name: (folder / name).read_bytes() for name in files} == files
        child = train(folder, *(NEW if stayed[-1] else ["--resume"]))
        assert child.wait() == 0, child.text
        assert_same_run(folder, expected)
        assert [*leftovers(folder), *folder.glob(".new_run*")] == []
    assert 0 < sum(stayed) < len(stayed), "no kill fell before, or none after, the exchange of the runs"
