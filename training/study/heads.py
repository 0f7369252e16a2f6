"""Small heads on the image model's out-of-fold logits: what metadata adds, in seconds and without an image.

Stacking (Wolpert 1992, 10.1016/S0893-6080(05)80023-1; Breiman 1996, 10.1007/BF00117832): the head learns from logits
of images that the image model was not trained on, so never from memorised ones. A fitted head and the image model's
checkpoint make one ordinary fusion checkpoint, see `assemble`.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from ham10000.modeling import Ham10000Config, Ham10000Error, Ham10000ForImageClassification
from ham10000.modeling.modeling_ham10000 import MetadataEncoder
from ham10000.training.data.split import class_weights
from ham10000.training.engine import ClassificationLoss

HEAD_VARIANTS = ("metadata", "fusion", "control")


@dataclass(frozen=True)
class HeadSettings:
    """How every head is fitted; fixed before any result."""

    epochs: int = 20
    batch_size: int = 256
    learning_rate: float = 2e-3  # of AdamW, falling to 0 by a half cosine
    weight_decay: float = 0.02  # of the metadata's weights; the image's begin at the identity and are not decayed
    label_smoothing: float = 0.05
    class_weights: str = "sqrt"  # one of `WEIGHT_KINDS`, as in `ham10000-train`


class Head(nn.Module):
    """`image(z) + metadata(encoder(m))`: the image model's logits, rescaled and mixed, plus those of the metadata.

    It starts as the image model: the image part is the identity and the metadata part is zero. The metadata variant
    has no image part.
    """

    def __init__(self, config: Ham10000Config, n_classes: int, *, uses_image: bool):
        super().__init__()
        self.encoder = MetadataEncoder(config)
        self.metadata = nn.Linear(self.encoder.output_size, n_classes)
        self.image = nn.Linear(n_classes, n_classes) if uses_image else None
        self.drop = (config.metadata_field_dropout, config.metadata_dropout)
        if self.image is not None:
            nn.init.eye_(self.image.weight)
            nn.init.zeros_(self.image.bias)
            nn.init.zeros_(self.metadata.weight)
        nn.init.zeros_(self.metadata.bias)

    def forward(self, image_logits: torch.Tensor, metadata: torch.Tensor) -> torch.Tensor:
        """(B, K) image logits, which the metadata variant ignores, and (B, fields) raw metadata to (B, K) logits."""
        if self.training:
            # As the model does: single fields, and whole rows, are hidden at random.
            field, row = (torch.rand(len(metadata), width) for width in (metadata.shape[1], 1))
            metadata = metadata.masked_fill((field < self.drop[0]) | (row < self.drop[1]), float("nan"))
        logits = self.metadata(self.encoder(metadata))
        return logits if self.image is None else logits + self.image(image_logits)

    @torch.inference_mode()
    def predict(self, image_logits: np.ndarray, metadata: torch.Tensor) -> np.ndarray:
        """(N, K) image logits and (N, fields) metadata to (N, K) float32 logits."""
        return self.eval()(torch.tensor(image_logits, dtype=torch.float32), metadata).numpy()


def fit_variant(
    variant: str,
    image_logits: np.ndarray,
    metadata: torch.Tensor,
    labels: np.ndarray,
    config: Ham10000Config,
    *,
    settings: HeadSettings,
    seed: int,
) -> Head:
    """Fits a head by a fixed schedule: the last step is kept, and nothing chosen on other images.

    The `metadata` variant leaves the image logits out, and `control` is the network, schedule and seed of `fusion`
    with every field missing. `image_logits` (N, K) are of a model that was not trained on these images, `metadata`
    raw (N, fields), NaN where missing, and `labels` (N,) class ids. Raises a `Ham10000Error` for a class without
    images, or unknown class weights.
    """
    n_classes = image_logits.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    if not counts.all() or len(counts) != n_classes:
        raise Ham10000Error(f"A head needs images of every class to learn from; images per class: {counts.tolist()}.")
    weights = torch.from_numpy(class_weights(counts, settings.class_weights)).float()
    loss_of = ClassificationLoss(weights, label_smoothing=settings.label_smoothing)
    targets, image = torch.tensor(labels, dtype=torch.int64), torch.tensor(image_logits, dtype=torch.float32)
    if variant == "control":
        metadata = torch.full_like(metadata, float("nan"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(config, n_classes, uses_image=variant != "metadata").train()
        groups = param_groups_weight_decay(head, settings.weight_decay, no_weight_decay_list=["image.weight"])
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        steps = settings.epochs * math.ceil(len(targets) / settings.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(settings.epochs):
            for rows in torch.randperm(len(targets)).split(settings.batch_size):
                loss = loss_of(head(image[rows], metadata[rows]), targets[rows]) / loss_of.weight_sum(targets[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return head.eval()


def assemble(
    image_model: Ham10000ForImageClassification | None, head: Head, config: Ham10000Config
) -> Ham10000ForImageClassification:
    """Puts a head and its image model (None for the metadata variant) into one ordinary checkpoint at temperature 1.

    The image model's logits are `(W x + c) / T`, the head's `A z + b + V e`. With `fusion="concat"` the classifier
    reads `[x, e]`, so its weight is `[A W / T, V]` and its bias `A c / T + b + v`. `config` is that of the head's fit.
    """
    values = config.to_dict()
    if image_model is not None:
        values |= {name: getattr(image_model.config, name) for name in ("backbone", "backbone_kwargs")}
    values |= {"modality": "metadata" if image_model is None else "fusion", "fusion": "concat", "temperature": 1.0}
    model = Ham10000ForImageClassification(Ham10000Config.from_dict(values)).eval()
    model.metadata_encoder.load_state_dict(head.encoder.state_dict())
    with torch.no_grad():
        weight, bias = head.metadata.weight.data, head.metadata.bias.data
        if image_model is not None and head.image is not None:
            model.backbone.load_state_dict(image_model.backbone.state_dict())
            mix, inner = head.image.weight / image_model.config.temperature, image_model.classifier
            weight = torch.cat([mix @ inner.weight, weight], dim=1)
            bias = mix @ inner.bias + head.image.bias + bias
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    return model


def absorb_calibration(model: Ham10000ForImageClassification, temperature: float, biases: np.ndarray) -> None:
    """Makes an uncalibrated model's logits `z / T + b`, in place: T into its config, `T * b` into its classifier."""
    model.config.temperature = float(temperature)
    with torch.no_grad():
        model.classifier.bias.add_(torch.from_numpy(temperature * biases).to(model.classifier.bias))
