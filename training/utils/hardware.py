"""The machine: what a run was made with, mixed precision, and memory that malloc keeps for the next step."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from torch import nn

from ham10000.modeling import Ham10000Error
from ham10000.training import __version__
from ham10000.training.utils.files import JsonObject

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "accelerate", "numpy", "scikit-learn")
# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def peak_rss_mib() -> float:
    """Largest resident memory of this process so far, in MiB (children not counted)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # getrusage(2): kilobytes on Linux, bytes on macOS.
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def reset_memory() -> None:
    """Gives what `keep_freed_memory` kept back, and resets the peaks that `environment` reports: between two runs.

    Without glibc nothing is given back; on systems other than Linux the resident peak stays that of the whole process.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): resets the peak resident set
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def cpu_model() -> str:
    """Name of the processor, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.is_file() else ""
    if found := re.search(r"^(?:model name|Model)[ \t]*:[ \t]*(\S.*)", told, re.MULTILINE):
        return found[1].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    """Output of a git command in this package's folder; None where it fails or there is no git."""
    command = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def git_state() -> JsonObject | None:
    """`commit` of the checkout this package runs from, `dirty` (tracked files differ from it) and which: `changed`.

    None for an installed package: site-packages inside somebody's repository must not report that one's commit.
    """
    is_tracked = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    if not is_tracked or (commit := _git("rev-parse", "HEAD")) is None:
        return None
    changed = (_git("diff", "--no-relative", "--name-only", "HEAD") or "").splitlines()
    return {"commit": commit, "dirty": bool(changed), "changed": changed}


def environment() -> JsonObject:
    """Describes the software and the machine of this process at the time of the call, as strict JSON values."""
    gpu, cuda_peak = None, None
    if torch.cuda.is_available():
        gpu = {"model": torch.cuda.get_device_name(), "count": torch.cuda.device_count(), "cuda": torch.version.cuda}
        cuda_peak = round(torch.cuda.max_memory_allocated() / 2**20, 1)  # of tensors, on the current device
    # In a container or under taskset fewer cores are usable than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "versions": {"python": platform.python_version(), "ham10000": __version__}
        | {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": {"model": cpu_model(), "count": cores},
        "memory_mib": round(psutil.virtual_memory().total / 2**20),
        "gpu": gpu,
        "git": git_state(),  # None where this package is installed
        "peak_rss_mib": round(peak_rss_mib(), 1),
        "peak_cuda_mib": cuda_peak,
    }


def resolve_precision(name: str, device: str | None = None) -> str:
    """What `Accelerator(mixed_precision=…)` takes for `auto`, `no`, `bf16` or `fp16`; an error for fp16 without a GPU.

    `auto` is bf16 where a device of this type (None: `cuda` if there is one) computes it, fp16 on older GPUs, or `no`.
    """
    if name == "fp16" and not torch.cuda.is_available():
        raise Ham10000Error("mixed_precision=fp16 needs a CUDA device; use bf16, no or auto on a CPU.")
    if name != "auto":
        return name
    if device != "cpu" and torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Emulated bf16 is slower than fp32, so only processors with the instructions count.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bf16" if native else "no"


def keep_strided_depthwise_fp32(model: nn.Module) -> int:
    """Takes strided depthwise convolutions out of bf16 autocast on a CPU, and returns their number.

    oneDNN has no fast bf16 kernel for the gradient of their input: without them an EfficientNetV2-B0 training step is
    1.3 times as fast (`examples/results/strided_depthwise.json`). The class is swapped, not the method, so that a deep
    copy of the model computes with its own weights; the state dict stays the same.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.stride) > 1:
            module.__class__ = _fp32_class(type(module))
            count += 1
    return count


def _fp32_class(convolution: type[nn.Conv2d]) -> type[nn.Conv2d]:
    def forward(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return convolution.forward(self, x.float())

    return type(f"{convolution.__name__}Fp32", (convolution,), {"forward": forward})


def keep_freed_memory() -> bool:
    """Tells malloc to reuse the memory of large freed tensors instead of returning it; whether glibc took it.

    By default every large activation is a fresh mapping, whose pages the kernel zeroes one fault at a time. Kept, an
    EfficientNetV2-B0 training step at 192 px on two cores is about 1.2 times as fast
    (`examples/results/allocator.json`). The price is that the process stays as large as it ever was.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl, and other systems
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
