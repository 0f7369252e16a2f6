"""HAM10000 models for transformers. Importing this registers them with the Auto classes and with `pipeline`."""

from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_ham10000 import (
    FORBIDDEN_FIELDS,
    FUSIONS,
    LABEL_DESCRIPTIONS,
    LABELS,
    LOCALIZATIONS,
    MALIGNANT,
    METADATA_FIELDS,
    MODALITIES,
    SEXES,
    Ham10000Config,
    Ham10000Error,
)
from .factory import create_model, create_processor
from .image_processing_ham10000 import Ham10000ImageProcessor, load_image
from .modeling_ham10000 import Ham10000ForImageClassification, Ham10000Model, Ham10000Output
from .pipeline_ham10000 import PIPELINE_TASK, Ham10000Pipeline
from .processing_ham10000 import Ham10000Processor

AutoConfig.register("ham10000", Ham10000Config)
AutoModel.register(Ham10000Config, Ham10000Model)
AutoModelForImageClassification.register(Ham10000Config, Ham10000ForImageClassification)
# One PIL implementation under both names, so that asking for the default backend finds it without a warning.
AutoImageProcessor.register(
    Ham10000Config,
    image_processor_classes={"torchvision": Ham10000ImageProcessor, "pil": Ham10000ImageProcessor},
)
AutoProcessor.register(Ham10000Config, Ham10000Processor)
PIPELINE_REGISTRY.register_pipeline(
    PIPELINE_TASK, Ham10000Pipeline, pt_model=AutoModelForImageClassification, type="multimodal"
)


class _RegisteredPipelines(dict[str, Any]):
    """The pipelines a saved config names, as `transformers.pipeline` must see them where they are registered.

    It takes the task from them when it is given none. But for a task it finds among them it insists on
    trust_remote_code and on the folder's code, registered or not; so here it finds none.
    """

    def __contains__(self, task: object) -> bool:
        return False


def _get_custom_pipelines(config: Ham10000Config) -> _RegisteredPipelines:
    return _RegisteredPipelines(vars(config).get("custom_pipelines", {}))


def _set_custom_pipelines(config: Ham10000Config, value: dict[str, Any]) -> None:
    vars(config)["custom_pipelines"] = value  # saved again as it is


# Here and not in the config's own file, whose copy in a folder serves those for whom nothing is registered.
setattr(Ham10000Config, "custom_pipelines", property(_get_custom_pipelines, _set_custom_pipelines))  # noqa: B010

# What `save_pretrained` copies beside the weights, so that they load where this package is not installed.
Ham10000Config.register_for_auto_class()
Ham10000ForImageClassification.register_for_auto_class("AutoModelForImageClassification")
Ham10000Model.register_for_auto_class("AutoModel")
Ham10000ImageProcessor.register_for_auto_class("AutoImageProcessor")
Ham10000Processor.register_for_auto_class("AutoProcessor")

__all__ = [
    "FORBIDDEN_FIELDS",
    "FUSIONS",
    "LABELS",
    "LABEL_DESCRIPTIONS",
    "LOCALIZATIONS",
    "MALIGNANT",
    "METADATA_FIELDS",
    "MODALITIES",
    "PIPELINE_TASK",
    "SEXES",
    "Ham10000Config",
    "Ham10000Error",
    "Ham10000ForImageClassification",
    "Ham10000ImageProcessor",
    "Ham10000Model",
    "Ham10000Output",
    "Ham10000Pipeline",
    "Ham10000Processor",
    "create_model",
    "create_processor",
    "load_image",
]
