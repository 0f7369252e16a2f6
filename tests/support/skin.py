"""Processors that tell images like HAM10000's from others."""

from pathlib import Path

from ham10000.modeling import Ham10000Processor

_SHIPPED = Path(__file__).parents[2] / "examples" / "checkpoints" / "ham10000-fusion"


def knows_skin(processor: Ham10000Processor) -> Ham10000Processor:
    """The processor with the image statistics of the shipped model, which was trained on HAM10000."""
    shipped = Ham10000Processor.from_pretrained(_SHIPPED)
    processor.image_processor.image_statistics = shipped.image_processor.image_statistics
    return processor
