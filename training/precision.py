"""Mixed precision: which one the hardware computes natively, and the one layer that is better left out of it."""

from typing import Any

import torch
from torch import nn

from ham10000.modeling import Ham10000Error


def resolve_precision(name: str) -> str:
    """Chooses the mixed precision: `auto` is bf16 where the hardware computes it, fp16 on older GPUs, else none.

    Args:
        name: `auto`, `no`, `bf16` or `fp16`.

    Returns:
        What `Accelerator(mixed_precision=…)` takes.

    Raises:
        Ham10000Error: For fp16 without a GPU.
    """
    if name == "fp16" and not torch.cuda.is_available():
        raise Ham10000Error("mixed_precision=fp16 needs a CUDA device; use bf16, no or auto on a CPU.")
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    # Emulated bf16 is slower than fp32, so only processors with the instructions count.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bf16" if native else "no"


def keep_strided_depthwise_fp32(model: nn.Module) -> int:
    """Takes strided depthwise convolutions out of bf16 autocast on a CPU.

    oneDNN has no fast bf16 kernel for the gradient of their input and falls back to a reference loop: in
    EfficientNetV2-B0 two layers take a quarter of the training step, and without them in bf16 it is 1.3 times as fast
    (`examples/benchmarks/strided_depthwise.py`, measured in `examples/results/strided_depthwise.json`). The class is
    swapped, not the method, so that a deep copy of the model computes with its own weights.

    Args:
        model: The model, changed in place; its state dict stays the same.

    Returns:
        The number of layers changed.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.stride) > 1:
            module.__class__ = _fp32_class(type(module))
            count += 1
    return count


def _fp32_class(convolution: type[nn.Conv2d]) -> type[nn.Conv2d]:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return convolution.forward(self, x.float())

    return type(f"{convolution.__name__}Fp32", (convolution,), {"forward": forward})


__all__ = ["keep_strided_depthwise_fp32", "resolve_precision"]
