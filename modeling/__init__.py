"""HAM10000 models for transformers. Importing this registers them with the Auto classes."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

from .configuration_ham10000 import (
    FORBIDDEN_FIELDS,
    FUSIONS,
    LABEL_DESCRIPTIONS,
    LABELS,
    LOCALIZATIONS,
    METADATA_FIELDS,
    MODALITIES,
    SEXES,
    Ham10000Config,
    Ham10000Error,
)
from .factory import create_model, create_processor
from .image_processing_ham10000 import Ham10000ImageProcessor, load_image
from .modeling_ham10000 import Ham10000ForImageClassification, Ham10000Output
from .processing_ham10000 import Ham10000Processor

AutoConfig.register("ham10000", Ham10000Config)
AutoModel.register(Ham10000Config, Ham10000ForImageClassification)
AutoModelForImageClassification.register(Ham10000Config, Ham10000ForImageClassification)
# One PIL implementation under both names, so that asking for the default backend finds it without a warning.
AutoImageProcessor.register(
    Ham10000Config,
    image_processor_classes={"torchvision": Ham10000ImageProcessor, "pil": Ham10000ImageProcessor},
)
AutoProcessor.register(Ham10000Config, Ham10000Processor)

# What `save_pretrained` copies beside the weights, so that they load where this package is not installed.
Ham10000Config.register_for_auto_class()
Ham10000ForImageClassification.register_for_auto_class("AutoModelForImageClassification")
Ham10000ImageProcessor.register_for_auto_class("AutoImageProcessor")
Ham10000Processor.register_for_auto_class("AutoProcessor")

__all__ = [
    "FORBIDDEN_FIELDS",
    "FUSIONS",
    "LABELS",
    "LABEL_DESCRIPTIONS",
    "LOCALIZATIONS",
    "METADATA_FIELDS",
    "MODALITIES",
    "SEXES",
    "Ham10000Config",
    "Ham10000Error",
    "Ham10000ForImageClassification",
    "Ham10000ImageProcessor",
    "Ham10000Output",
    "Ham10000Processor",
    "create_model",
    "create_processor",
    "load_image",
]
