"""The published baseline's pipeline as its users would write it: torchvision, one image at a time, fp32.

Only the benchmark uses it, as what this package is measured against.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import models, transforms

_NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class Photographs(Dataset):
    """Decodes and augments image by image.

    Args:
        paths: Image files.
        labels: Class ids.
        image_size: Side in pixels.
        augmented: False only resizes, as for validation.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], image_size: int, augmented: bool = True):
        self.paths, self.labels = list(paths), list(labels)
        changes = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(20),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
        ]
        resize = transforms.Resize((image_size, image_size))
        self.transform = transforms.Compose([resize, *changes * augmented, transforms.ToTensor(), _NORMALIZE])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.open(self.paths[index]).convert("RGB")), self.labels[index]


class BaselineTraining:
    """A network of torchvision, AdamW, weighted cross-entropy, a DataLoader with a worker for each core.

    Args:
        network: Name of a model of torchvision; the baseline's is `efficientnet_v2_s`.
        photographs: The training set.
        batch_size: Images a step.
        device: Where it trains.
    """

    def __init__(self, network: str, photographs: Photographs, batch_size: int, device: torch.device):
        self.model = models.get_model(network, weights=None, num_classes=7).to(device).train()
        self.loss = nn.CrossEntropyLoss(weight=torch.ones(7, device=device))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.device = device
        self.loader = DataLoader(
            photographs,
            batch_size=batch_size,
            sampler=RandomSampler(photographs, replacement=True, num_samples=1000 * batch_size),
            num_workers=os.cpu_count() or 1,
            pin_memory=device.type == "cuda",
        )

    def steps(self) -> Iterator[None]:
        """Trains one step at a time, without end."""
        for images, labels in self.loader:
            logits = self.model(images.to(self.device, non_blocking=True))
            self.optimizer.zero_grad()
            self.loss(logits, labels.to(self.device, non_blocking=True)).backward()
            self.optimizer.step()
            yield


@torch.no_grad()
def predict_plainly(
    model: nn.Module, paths: Sequence[Path], image_size: int, batch_size: int, device: torch.device
) -> torch.Tensor:
    """The baseline card's snippet, batched: files to probabilities (N, 7)."""
    transform = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor(), _NORMALIZE])
    probabilities = []
    for start in range(0, len(paths), batch_size):
        pictures = [transform(Image.open(path).convert("RGB")) for path in paths[start : start + batch_size]]
        probabilities.append(torch.softmax(model(torch.stack(pictures).to(device)), dim=1).cpu())
    return torch.cat(probabilities)


__all__ = ["BaselineTraining", "Photographs", "predict_plainly"]
