"""Code in a process of its own where packages are missing, as on somebody else's machine."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def run_alone(
    code: str,
    *arguments: object,
    cwd: Path,
    stdin: str | None = None,
    missing: Sequence[str] = ("ham10000",),
    **environment: str,
) -> str:
    """Returns what the code prints; every import of `missing` fails in it, installed or not."""
    # Sums are split by threads, and bits depend on that.
    environment |= {"HF_MODULES_CACHE": str(cwd / "modules"), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    code = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = os.environ | environment
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
