"""Any timm backbone in any variant: what it needs, that it is timm's to the last bit, and a short run of each.

    python examples/another_backbone.py --backbones convnext_tiny.in12k_ft_in1k vit_small_patch16_224.augreg_in1k \
        --pretrained timm --data HAM10000/ --image_size 224 --epochs 10

`timm.list_models(pretrained=True)` lists a thousand of them. By default: three very small ones, random weights,
synthetic images, two epochs. Two epochs of random weights say that a backbone trains here, not which one is better.
"""

import argparse
import difflib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from ham10000.modeling import Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.train import main as train_main
from ham10000.training.utils.cli import run_cli


def backbone_kwargs(backbone: str, image_size: int) -> dict[str, int]:
    """Arguments of `timm.create_model`: most transformers are built for one size of images, and must be told it."""
    config = timm.get_pretrained_cfg(backbone)
    return {"img_size": image_size} if config is not None and config.fixed_input_size else {}


def describe(backbone: str, image_size: int, modality: str) -> str:
    """Builds a model around the backbone, checks it against bare timm, and says what it is.

    Args:
        backbone: Name of a timm model.
        image_size: Side of the images, in pixels.
        modality: `image` or `fusion`.

    Returns:
        One line.
    """
    kwargs = backbone_kwargs(backbone, image_size)
    config = Ham10000Config(modality=modality, backbone=backbone, backbone_kwargs=kwargs)
    model = create_model(config).eval()
    image_processor = create_processor(config, image_size=image_size).image_processor

    pixel_values = torch.rand(2, 3, image_size, image_size)
    bare = timm.create_model(backbone, num_classes=0, **kwargs).eval()
    bare.load_state_dict(model.backbone.state_dict())
    with torch.inference_mode():
        equal = torch.equal(model.encode_image(pixel_values), bare(pixel_values))
        logits = model(pixel_values=pixel_values).logits
    size = sum(parameter.numel() for parameter in model.parameters())
    mean = ", ".join(f"{value:.3f}" for value in image_processor.image_mean)
    return (
        f"{backbone:<20} {size / 1e6:6.2f} M parameters, embedding of {bare.num_features}, mean ({mean}), "
        f"logits {tuple(logits.shape)}, embedding equal to timm's: {'yes' if equal else 'NO'}"
    )


@run_cli
def main(argv: Sequence[str]) -> None:
    """Describes and trains each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["test_resnet", "test_vit", "test_convnext"])
    parser.add_argument("--modality", choices=["image", "fusion"], default="image")
    parser.add_argument("--data", default="synthetic:300")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--pretrained", default="none", help="'timm', 'none' or a .safetensors file")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/examples/backbones"))
    options = parser.parse_args(argv)

    known = timm.list_models()
    for backbone in options.backbones:
        if backbone.split(".")[0] not in known:
            near = difflib.get_close_matches(backbone, known, n=3)
            raise Ham10000Error(f"timm has no model {backbone!r}; did you mean one of {near or 'timm.list_models()'}?")
        print(describe(backbone, options.image_size, options.modality))
    for backbone in options.backbones:
        print(f"\n--- {backbone}", flush=True)
        kwargs = json.dumps(backbone_kwargs(backbone, options.image_size))
        arguments = ["--modality", options.modality, "--backbone", backbone, "--backbone_kwargs", kwargs]
        arguments += ["--pretrained", options.pretrained, "--image_size", str(options.image_size)]
        arguments += ["--data", options.data, "--cache_dir", str(options.output_dir / "cache")]
        arguments += ["--epochs", str(options.epochs), "--output_dir", str(options.output_dir / backbone)]
        if code := train_main([*arguments, "--overwrite", "--trackers", "none"]):
            sys.exit(code)


if __name__ == "__main__":
    sys.exit(main())
