"""Every command answers `--help` and a mistyped option before it imports what takes seconds, and says its version."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from ham10000.training.config import build_parser
from ham10000.training.data.split import SPLITS
from ham10000.training.evaluation.__main__ import _SPLITS, _VIEWS
from ham10000.training.inference.prediction import VIEWS

ROOT = Path(__file__).parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
CALL = """
import sys
from {} import {} as main
try:
    sys.exit(main(sys.argv[1:]))
finally:
    slow = ["torch", "accelerate", "datasets", "matplotlib", "numpy", "pandas", "scipy", "sklearn", "transformers"]
    print([name for name in slow if name in sys.modules], file=sys.stderr)
"""


def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = CALL.format(*SCRIPTS[command].split(":"))
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment)
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_a_mistyped_option_and_the_version_come_at_once(command: str) -> None:
    told, refused = call(command, "--help"), call(command, "--no-such-option")
    assert (told.returncode, refused.returncode) == (0, 2)
    assert told.stdout.startswith(f"usage: {command}")
    assert max(len(line) for line in told.stdout.splitlines()) <= 80
    assert re.search(rf"^{command}: error: ", refused.stderr, re.MULTILINE)
    assert [done.stderr.splitlines()[-1] for done in (told, refused)] == ["[]", "[]"]
    assert call(command, "--version").stdout == f"ham10000 {version('ham10000')}\n"


def test_the_options_of_training_are_grouped_and_each_is_there_once() -> None:
    text = build_parser().format_help()
    titles = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert titles[0] == "options"
    assert sorted(titles[1:]) == ["augmentation", "data", "loss", "machine", "model", "output", "schedule"]
    names = re.findall(r"^  (?:-h, )?(--\w+)", text, re.MULTILINE)
    assert len(names) == len(set(names)) > 50
    assert not re.search(r"--\w+-\w", text)  # hyphens are understood, and not listed as a second spelling


def test_what_is_written_out_for_speed_is_what_it_copies() -> None:
    assert (*SPLITS, "all") == _SPLITS
    assert tuple(VIEWS) == _VIEWS
