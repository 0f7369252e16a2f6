"""transformers' own common tests, run on our models, configurations and processors.

They are in its source distribution, not in the wheel: CONTRIBUTING.md says how to unpack and run them.
"""

import atexit
import copy
import importlib
import inspect
import os
import shutil
import sys
import tempfile
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers.utils
from PIL import Image
from tiny_models import make_inputs

from ham10000.modeling import (
    Ham10000Config,
    Ham10000ForImageClassification,
    Ham10000ImageProcessor,
    Ham10000Model,
    Ham10000Processor,
)

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("set TRANSFORMERS_SOURCE to transformers' unpacked source distribution", allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests need it: pip install parameterized")


def load_mixins(folder: Path, picture: Path) -> tuple[types.ModuleType, ...]:
    """transformers' modules of common tests; what the source distribution leaves out stands empty."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    sys.modules["transformers_tests"] = package
    stubs: dict[str, dict[str, Any]] = {
        "transformers_tests.exporters": {},
        "transformers_tests.exporters.test_export": {"ExportTesterMixin": object},
        "transformers_tests.generation": {},
        "transformers_tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "transformers_tests.utils": {},
        "transformers_tests.utils.test_configuration_utils": {"config_common_kwargs": COMMON_KWARGS},
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda _: str(picture)},
    }
    for name, values in stubs.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(values)
        sys.modules[module.__name__] = module
    Image.radial_gradient("L").convert("RGB").save(picture)
    ours = types.SimpleNamespace(Ham10000ImageProcessor=Ham10000ImageProcessor)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.utils, "direct_transformers_import", lambda *_: ours)
        names = ("modeling_common", "configuration_common", "image_processing_common", "processing_common")
        return tuple(importlib.import_module(f"transformers_tests.test_{name}") for name in names)


# Every field of PreTrainedConfig at a value that is not its default, where our config takes another at all.
COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label", 1: "other"},
    "label2id": {"label": 0, "other": 1},
    "problem_type": "single_label_classification",
}
FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
MODELS, CONFIGS, IMAGE_PROCESSING, PROCESSING = load_mixins(Path(SOURCE) / "tests", FOLDER / "image.png")
ModelTesterMixin, ConfigTester = MODELS.ModelTesterMixin, CONFIGS.ConfigTester


def not_run(reason: str) -> Any:
    """Stands in the place of a test; a table in CONTRIBUTING.md has more on the reasons."""
    return unittest.skip(reason)(lambda self: None)


class Common:
    """What the three classes share."""

    all_model_classes = (Ham10000Model, Ham10000ForImageClassification)
    test_resize_embeddings = False
    has_attentions = False

    def setUp(self) -> None:
        kwargs = {"backbone": "test_efficientnet", "fusion": "metablock", "modality": self.modality}
        self.model_tester = types.SimpleNamespace(
            is_training=True,
            batch_size=3,
            get_config=lambda: Ham10000Config(**kwargs),
            prepare_config_and_inputs_for_common=lambda: (Ham10000Config(**kwargs), make_inputs(self.modality, 3)),
        )
        self.config_tester = ConfigTester(
            self, config_class=Ham10000Config, has_text_modality=False, common_properties=[], **kwargs
        )

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        """The mixin gives labels to the classes that transformers knows by name."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)  # type: ignore[misc]
        if return_labels and issubclass(model_class, Ham10000ForImageClassification):
            inputs["labels"] = torch.arange(self.model_tester.batch_size) % 2
        return inputs

    test_hidden_states_output = not_run("counts layers by config.num_hidden_layers, which a backbone does not have")
    test_model_get_set_embeddings = not_run("a model of images has no token embeddings")
    test_model_weights_reload_no_missing_tied_weights = not_run("loads a checkpoint without weights, an error here")

    def test_forward_signature(self) -> None:
        for cls in self.all_model_classes:
            assert list(inspect.signature(cls.forward).parameters)[:2] == ["self", "pixel_values"]


class TestImage(Common, ModelTesterMixin, unittest.TestCase):
    modality = "image"


class TestMetadata(Common, ModelTesterMixin, unittest.TestCase):
    modality = "metadata"


class TestFusion(Common, ModelTesterMixin, unittest.TestCase):
    modality = "fusion"


class TestImageProcessor(IMAGE_PROCESSING.ImageProcessingTestMixin, unittest.TestCase):  # type: ignore[name-defined]
    class image_processor_tester_class(IMAGE_PROCESSING.ImageProcessingTester):  # type: ignore[name-defined]
        size, image_mean, image_std = {"height": 18, "width": 20}, [0.5, 0.4, 0.3], [0.3, 0.4, 0.5]
        resample = 2

        def _get_image_processing_classes(self) -> dict[str, type]:
            return {"pil": Ham10000ImageProcessor}

        def prepare_image_processor_dict(self) -> dict[str, Any]:
            names = ("size", "image_mean", "image_std", "resample")
            return {name: copy.deepcopy(getattr(self, name)) for name in names}

    test_image_processor_from_dict_with_kwargs_has_attributes = not_run("passes other processors' settings")
    test_call_numpy_4_channels = not_run("pictures are always made RGB, and a setting at a call is refused")
    test_new_models_require_torchvision_backend = not_run("one class has both backends, by its setting `resizer`")


class TestProcessor(PROCESSING.ProcessorTesterMixin, unittest.TestCase):  # type: ignore[name-defined]
    processor_class = Ham10000Processor

    @classmethod
    def _setup_image_processor(cls) -> Ham10000ImageProcessor:
        return Ham10000ImageProcessor(size=20)

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        return {"modality": "image", "sex_vocabulary": ["male", "female"]}

    def setUp(self) -> None:
        # transformers drops `auto_map` when it loads a processor, so what was saved would not equal what is loaded.
        patch = mock.patch.object(Ham10000Processor, "_auto_class", None)
        patch.start()
        self.addCleanup(patch.stop)

    test_call_arguments_default_none = not_run("`return_tensors` and `unknown_values` stand in the signature")
    test_call_arguments_not_in_processor_kwargs = not_run("likewise: a misspelled argument is an error")
    test_save_load_pretrained_additional_features = not_run("passes do_normalize=False, which is refused")
    test_flat_kwarg_applied_when_modality_dict_lacks_it = not_run("passes settings for text, which are refused")
