"""Small models with seeded weights, and inputs for them."""

import math

import torch
from torch import nn

from ham10000.modeling import Ham10000Config, Ham10000ForImageClassification

NAN = math.nan


def make_model(modality: str = "fusion", fusion: str = "concat", **kwargs) -> Ham10000ForImageClassification:
    torch.manual_seed(0)
    config = Ham10000Config(modality=modality, fusion=fusion, **{"backbone": "test_efficientnet", **kwargs})
    return Ham10000ForImageClassification(config).eval()


def make_inputs(modality: str, batch: int = 4, size: int = 64) -> dict[str, torch.Tensor]:
    rows = [[60.0, 1, 2], [35, 0, 13], [NAN, NAN, NAN], [80, 1, 0]]
    inputs = {
        "pixel_values": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(2)),
        "metadata": torch.tensor([rows[index % 4] for index in range(batch)]),
    }
    unused = {"image": ["metadata"], "metadata": ["pixel_values"], "fusion": []}[modality]
    return {name: value for name, value in inputs.items() if name not in unused}


def shake(module: nn.Module) -> None:
    """Gives every parameter and batch-norm statistic a value that no initialisation has."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
