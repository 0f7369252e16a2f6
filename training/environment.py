"""Where and with what a run was made: versions, machine, memory and commit, for every results file."""

import contextlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "ham10000",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "datasets",
    "accelerate",
    "numpy",
    "scikit-learn",
)


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, in MiB (children not counted)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): kilobytes on Linux, bytes on macOS.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def peak_cuda_mib() -> float | None:
    """Largest memory held by tensors on the current CUDA device so far, in MiB, or None without CUDA."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


def reset_peak_memory() -> None:
    """Begins `peak_rss_mib` and `peak_cuda_mib` anew, for the next of several runs in one process.

    On systems other than Linux the resident peak stays that of the whole process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak resident set
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cpu_model() -> str:
    """Name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def _usable_cpus() -> int:
    # In a container or under taskset fewer cores are usable than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _git(*arguments: str) -> str | None:
    """Output of a git command in this package's folder; None where it fails or there is no git."""
    try:
        completed = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).resolve().parent,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout this package runs from.

    Returns:
        `commit` and `dirty` (tracked files differ from it), or None for an installed package: site-packages inside
        somebody's repository must not report that repository's commit.
    """
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """Describes the software and the machine of this process, as it stands when called.

    Returns:
        `versions` (python and package to version, None where not installed), `platform`, `cpu` (model, cores usable by
        this process), `memory_mib` of the machine, `gpu` (model, count and CUDA version, or None), `git` (commit and
        dirty, or None), `peak_rss_mib` and `peak_cuda_mib` so far. Strict JSON as it stands.
    """
    gpu = None
    if torch.cuda.is_available():
        gpu = {
            "model": torch.cuda.get_device_name(),
            "count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    cuda_peak = peak_cuda_mib()
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "count": _usable_cpus()},
        "memory_mib": round(psutil.virtual_memory().total / 2**20),
        "gpu": gpu,
        "git": git_state(),
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "peak_cuda_mib": None if cuda_peak is None else round(cuda_peak, 1),
    }


__all__ = ["cpu_model", "environment", "git_state", "peak_cuda_mib", "peak_rss_mib", "reset_peak_memory"]
