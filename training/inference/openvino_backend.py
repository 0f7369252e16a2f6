"""OpenVINO as the engine of a backbone on a CPU, for predicting many pictures; `pip install ham10000[openvino]`."""

from typing import Any

import torch
from torch import nn

from ham10000.modeling import Ham10000Error

_PRECISIONS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackbone(nn.Module):
    """Stands where a timm backbone stood: normalised pixels to pooled features, computed by OpenVINO.

    The network is traced once, for any batch size and for pictures of any size it takes. It cannot be trained or moved
    to another device.

    Args:
        backbone: A timm backbone on the CPU, in evaluation mode.
        precision: `fp32` or `bf16`.
        example: (batch, 3, height, width) float32 pixel values to trace with.

    Raises:
        Ham10000Error: If OpenVINO is not installed, the backbone is not on the CPU, or it cannot be converted.
    """

    def __init__(self, backbone: Any, precision: str, example: torch.Tensor):
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise Ham10000Error(
                "OpenVINO is not installed; `pip install openvino`, or choose the torch backend."
            ) from error
        if example.device.type != "cpu":
            raise Ham10000Error(f"The OpenVINO backend computes on the CPU; the model is on {example.device}.")
        self.pretrained_cfg = backbone.pretrained_cfg
        try:
            converted = openvino.convert_model(backbone, example_input=example, input=[-1, 3, -1, -1])
            settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _PRECISIONS[precision]}
            self.compiled = openvino.Core().compile_model(converted, "CPU", settings)
        except RuntimeError as error:
            raise Ham10000Error(f"OpenVINO cannot convert this backbone: {str(error).splitlines()[0]}") from error
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # tells a model its device and dtype

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) float32 to (batch, features) float32."""
        return torch.from_numpy(self.compiled(pixel_values.contiguous().numpy())[0].copy())


__all__ = ["OpenVinoBackbone"]
