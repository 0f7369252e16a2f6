"""A copy of a model that only predicts, for speed: batch norm folded, channels last, bf16 if wanted."""

import contextlib
import copy
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import to_2tuple
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification
from ham10000.training.utils.files import default_cache_dir, scratch_folder
from ham10000.training.utils.hardware import resolve_precision

BACKENDS = ("torch", "openvino")
# Folding rounds once more: the logits of the copy may differ by this much of their own size, or it is not used.
FOLDING_TOLERANCE = 1e-3


def optimize_for_inference(
    model: Ham10000ForImageClassification, precision: str = "auto", *, backend: str = "torch"
) -> Ham10000ForImageClassification:
    """Copies a model for fast prediction; the copy cannot be trained or saved.

    Batch norm is an affine map once its statistics are fixed, and goes into the weights of the convolution before it
    (Jacob et al. 2018, arXiv:1712.05877, section 3.2). In bf16 also the weights of the backbone are bf16; the metadata
    branch, the classifier and the logits stay fp32.

    Args:
        model: The model, in evaluation mode, on any device.
        precision: `fp32`; `bf16`; or `auto`, which is bf16 where the hardware computes it natively, else fp32.
        backend: `torch`, or `openvino`, which computes the backbone faster on a CPU once it is converted; that takes
            seconds the first time, so it is for many images.

    Returns:
        The copy; for the metadata variant a plain copy.

    Raises:
        Ham10000Error: For an unknown precision or backend, a model in training mode, or if OpenVINO is not installed,
            the model is not on the CPU that it computes on, or cannot be converted.
    """
    for name, value, known in (("backend", backend, BACKENDS), ("precision", precision, ("fp32", "bf16", "auto"))):
        if value not in known:
            raise Ham10000Error(f"`{name}` must be one of {list(known)}, got {value!r}.")
    if model.training:
        raise Ham10000Error("The model is in training mode; call model.eval() first.")
    if precision == "auto":
        precision = "bf16" if resolve_precision("auto", model.device.type) == "bf16" else "fp32"
    fast: Any = copy.deepcopy(model)
    if fast.backbone is None:
        return fast
    own_size = fast.backbone.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
    # A network of a fixed size, such as a ViT, may have been built for another one.
    size = to_2tuple(fast.config.backbone_kwargs.get("img_size", own_size))
    example = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(fast.device)
    if backend == "openvino":
        fast.backbone = OpenVinoBackbone(fast.backbone, precision, example)
        return fast
    with torch.no_grad():  # not inference_mode: its tensors fail in oneDNN convolutions, which ask for their version
        pairs = _convolutions_before_norms(fast.backbone, example)
        expected = model.backbone(example)
        for convolution, norm in pairs:
            fused = fuse_conv_bn_eval(convolution, norm)
            convolution.weight, convolution.bias = fused.weight, fused.bias
            # What else timm's norms do, drop out and activate, stays.
            rest = [module for name in ("drop", "act") if (module := getattr(norm, name, None)) is not None]
            setattr(norm, "forward", nn.Sequential(*rest).forward)  # noqa: B010 (a method, to mypy)
        difference = (fast.backbone(example) - expected).abs().max()
    if difference > FOLDING_TOLERANCE * expected.abs().max():
        fast = copy.deepcopy(model)
    fast = fast.to(memory_format=torch.channels_last)
    if precision == "bf16":
        fast.backbone.to(torch.bfloat16)
        fast.backbone.register_forward_pre_hook(lambda _, inputs: tuple(value.bfloat16() for value in inputs))
        fast.backbone.register_forward_hook(lambda _, inputs, output: output.float())
    return fast


def _convolutions_before_norms(backbone: nn.Module, example: torch.Tensor) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The pairs in which a batch norm reads what a convolution wrote, and nobody else does; found by running it."""
    written: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    uses: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        uses[module] += 1
        if isinstance(module, nn.Conv2d):
            written[id(output)] = (module, output)  # holding the output keeps its id its own
        elif isinstance(module, nn.BatchNorm2d) and module.track_running_stats and id(inputs[0]) in written:
            pairs.append((written[id(inputs[0])][0], module))

    handles = [module.register_forward_hook(note) for module in backbone.modules()]
    backbone(example)
    for handle in handles:
        handle.remove()
    return [pair for pair in pairs if uses[pair[0]] == uses[pair[1]] == 1]


class OpenVinoBackbone(nn.Module):
    """Stands where a timm backbone stood: normalised pixels to pooled features, computed by OpenVINO on the CPU.

    The network is traced once, with an example (batch, 3, height, width) float32, for any batch size and for images of
    any size it takes, and kept in the folder `openvino` of the cache ($HAM10000_CACHE) for the next process. It cannot
    be trained or moved to another device.
    """

    def __init__(self, backbone: nn.Module, precision: str, example: torch.Tensor):
        super().__init__()
        try:
            import openvino
        except ImportError as error:
            raise Ham10000Error("OpenVINO is missing: `pip install openvino`, or use the torch backend.") from error
        if example.device.type != "cpu":
            raise Ham10000Error(f"The OpenVINO backend computes on the CPU; the model is on {example.device}.")
        self.pretrained_cfg = backbone.pretrained_cfg
        try:
            settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision.replace("fp", "f")}
            self.compiled = openvino.Core().compile_model(_converted(openvino, backbone, example), "CPU", settings)
        except RuntimeError as error:
            raise Ham10000Error(f"OpenVINO cannot convert this backbone: {str(error).splitlines()[0]}") from error
        self.anchor = nn.Parameter(torch.empty(0), requires_grad=False)  # tells a model its device and dtype

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) float32 to (batch, features) float32."""
        return torch.from_numpy(self.compiled(pixel_values.contiguous().numpy())[0].copy())


def _converted(openvino: Any, backbone: nn.Module, example: torch.Tensor) -> Any:
    """The network as an `openvino.Model`: read from the cache, or converted and, where that can be written, kept."""
    versions = openvino.__version__, torch.__version__, timm.__version__
    key = hashlib.sha256(repr((backbone, backbone.pretrained_cfg, versions)).encode())
    for value in backbone.state_dict().values():
        key.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    folder = default_cache_dir() / "openvino" / key.hexdigest()[:32]
    if folder.is_dir():
        with contextlib.suppress(RuntimeError):
            return openvino.Core().read_model(folder / "model.xml")
        shutil.rmtree(folder, ignore_errors=True)  # damaged
    converted = openvino.convert_model(backbone, example_input=example, input=[-1, 3, -1, -1])
    # A folder that another process has made meanwhile stays; a full or read-only disk keeps nothing.
    with contextlib.suppress(OSError, RuntimeError), scratch_folder(folder.parent) as scratch:
        openvino.save_model(converted, Path(scratch, "new", "model.xml"), compress_to_fp16=False)
        Path(scratch, "new").replace(folder)
    return converted
