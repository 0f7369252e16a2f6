"""How an image embedding and a metadata embedding become one: a closed set of published blocks."""

import torch
from torch import nn


class ConcatFusion(nn.Module):
    """Late fusion: both embeddings side by side.

    With the linear classifier that follows, the logits are a sum of an image part and a metadata part.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.output_size = image_size + metadata_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size + metadata_size)."""
        return torch.cat([image, metadata.to(image.dtype)], dim=1)


class GatedFusion(nn.Module):
    """Gated multimodal unit: `z * tanh(W_v v) + (1 - z) * tanh(W_u u)` with `z = sigmoid(W_z [v, u])`.

    Source: Arevalo et al., "Gated multimodal units for information fusion", 2017, arXiv:1702.01992, section 3.1.
    """

    def __init__(self, image_size: int, metadata_size: int, hidden_size: int = 256):
        super().__init__()
        self.image = nn.Linear(image_size, hidden_size, bias=False)
        self.metadata = nn.Linear(metadata_size, hidden_size, bias=False)
        self.gate = nn.Linear(image_size + metadata_size, hidden_size, bias=False)
        self.output_size = hidden_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, hidden_size)."""
        metadata = metadata.to(image.dtype)
        gate = torch.sigmoid(self.gate(torch.cat([image, metadata], dim=1)))
        return gate * torch.tanh(self.image(image)) + (1 - gate) * torch.tanh(self.metadata(metadata))


class MetaBlockFusion(nn.Module):
    """MetaBlock: `sigmoid(tanh(V * f(U)) + g(U))`, where f and g are a linear layer with batch norm.

    V is the pooled image embedding, one value a feature map, U the metadata embedding.

    Source: Pacheco & Krohling, "An attention-based mechanism to combine images and metadata in deep learning models
    applied to skin cancer classification", IEEE JBHI 2021, 10.1109/JBHI.2021.3062002.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.scale = nn.Sequential(nn.Linear(metadata_size, image_size), nn.BatchNorm1d(image_size))
        self.shift = nn.Sequential(nn.Linear(metadata_size, image_size), nn.BatchNorm1d(image_size))
        self.output_size = image_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size)."""
        metadata = metadata.to(image.dtype)
        return torch.sigmoid(torch.tanh(image * self.scale(metadata)) + self.shift(metadata))


class FilmFusion(nn.Module):
    """Feature-wise linear modulation: `(1 + gamma(u)) * v + beta(u)`.

    It starts as the identity on the image embedding, so training begins at the image-only model.

    Source: Perez et al., "FiLM: visual reasoning with a general conditioning layer", AAAI 2018, arXiv:1709.07871; the
    `1 +` is theirs.
    """

    def __init__(self, image_size: int, metadata_size: int):
        super().__init__()
        self.modulation = nn.Linear(metadata_size, 2 * image_size)
        # Read by the model's `_init_weights`. The mark is on the layer itself: in custom code transformers initialises
        # only modules that own parameters, so a method of this block would never be called.
        self.modulation._zero_init = True  # type: ignore[assignment]
        self.output_size = image_size

    def forward(self, image: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, image_size), (B, metadata_size) to (B, image_size)."""
        gamma, beta = self.modulation(metadata.to(image.dtype)).chunk(2, dim=1)
        return (1 + gamma) * image + beta


_FUSIONS = {"concat": ConcatFusion, "gated": GatedFusion, "metablock": MetaBlockFusion, "film": FilmFusion}


def build_fusion(kind: str, image_size: int, metadata_size: int) -> nn.Module:
    """Builds the fusion block named `kind`; its `output_size` is the width it returns."""
    return _FUSIONS[kind](image_size, metadata_size)


__all__ = ["ConcatFusion", "FilmFusion", "GatedFusion", "MetaBlockFusion", "build_fusion"]
