"""Keeps freed memory for the next step, on Linux with glibc."""

import contextlib
import ctypes
import sys

# From malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tells malloc to reuse the memory of large freed tensors instead of returning it to the system.

    By default every large activation is a fresh mapping, whose pages the kernel zeroes one fault at a time, step after
    step. Kept, an EfficientNetV2-B0 training step at 192 px on two cores is about 1.2 times as fast
    (`examples/benchmarks/allocator.py`, measured in `examples/results/allocator.json`). The price is that the process
    stays as large as it ever was.

    Returns:
        Whether the settings took effect: False anywhere but with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def release_freed_memory() -> None:
    """Gives what was kept back to the system, between two runs of one process; does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


__all__ = ["keep_freed_memory", "release_freed_memory"]
