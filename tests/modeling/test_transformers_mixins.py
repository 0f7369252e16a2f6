"""transformers' own common tests, run on our models.

They are not in the wheel. Unpack transformers' source distribution and name its folder:

    pip download --no-binary transformers --no-deps transformers==VERSION   # the installed one
    tar xzf transformers-VERSION.tar.gz
    TRANSFORMERS_SOURCE=$PWD/transformers-VERSION python -m pytest tests/modeling/test_transformers_mixins.py
"""

import copy
import importlib
import inspect
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers.utils

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


def load_mixins(folder: Path) -> tuple[types.ModuleType, ...]:
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
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: url},
    }
    for name, values in stubs.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(values)
        sys.modules[module.__name__] = module
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
MODELS, CONFIGS, IMAGE_PROCESSING, PROCESSING = load_mixins(Path(SOURCE) / "tests")
ModelTesterMixin, ConfigTester = MODELS.ModelTesterMixin, CONFIGS.ConfigTester


NETWORK = {"backbone": "test_efficientnet", "fusion": "metablock"}


class Tester:
    """Gives the mixin a small config and inputs."""

    is_training = True

    batch_size = 3

    def __init__(self, modality: str):
        self.modality = modality

    def get_config(self) -> Ham10000Config:
        return Ham10000Config(modality=self.modality, **NETWORK)

    def prepare_config_and_inputs_for_common(self) -> tuple[Ham10000Config, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, 64, 64, generator=generator),
            "metadata": torch.tensor([[60.0, 1, 2], [35, 0, 13], [80, 1, 0]]),
        }
        unused = {"image": ["metadata"], "metadata": ["pixel_values"]}.get(self.modality, [])
        return self.get_config(), {name: value for name, value in inputs.items() if name not in unused}


class Common:
    """What the variants share; the reasons for skips are a table in CONTRIBUTING.md."""

    test_resize_embeddings = False
    has_attentions = False
    all_model_classes = (Ham10000Model, Ham10000ForImageClassification)
    modality: str

    def setUp(self) -> None:
        self.model_tester = Tester(self.modality)
        options = {"config_class": Ham10000Config, "has_text_modality": False, "common_properties": []}
        self.config_tester = ConfigTester(self, **options, modality=self.modality, **NETWORK)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()

    def _prepare_for_class(self, inputs_dict: Any, model_class: Any, return_labels: bool = False) -> Any:
        """The mixin gives labels to the classes that transformers knows by name."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)  # type: ignore[misc]
        if return_labels and issubclass(model_class, Ham10000ForImageClassification):
            inputs["labels"] = torch.arange(self.model_tester.batch_size) % 2
        return inputs

    @unittest.skip("counts layers by config.num_hidden_layers; test_ecosystem.py compares hidden states with timm's")
    def test_hidden_states_output(self) -> None: ...

    @unittest.skip("a model of images has no token embeddings")
    def test_model_get_set_embeddings(self) -> None: ...

    def test_forward_signature(self) -> None:
        for cls in self.all_model_classes:
            assert list(inspect.signature(cls.forward).parameters)[:2] == ["self", "pixel_values"]

    @unittest.skip("loads a checkpoint without weights, which is an error here and a warning in transformers")
    def test_model_weights_reload_no_missing_tied_weights(self) -> None: ...


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

    @unittest.skip("a setting of other processors is refused: pixels are what the model was trained on")
    def test_image_processor_from_dict_with_kwargs_has_attributes(self) -> None: ...

    @unittest.skip("pictures are always made RGB, and a setting at a call is refused")
    def test_call_numpy_4_channels(self) -> None: ...

    @unittest.skip("one class has both backends, by its setting `resizer`")
    def test_new_models_require_torchvision_backend(self) -> None: ...


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

    @unittest.skip("`return_tensors` and `unknown_values` stand in the signature: a misspelled argument is an error")
    def test_call_arguments_default_none(self) -> None: ...

    @unittest.skip("likewise")
    def test_call_arguments_not_in_processor_kwargs(self) -> None: ...

    @unittest.skip("passes do_normalize=False, which is refused: pixels are what the model was trained on")
    def test_save_load_pretrained_additional_features(self) -> None: ...

    @unittest.skip("passes settings for text, which are refused: there is none")
    def test_flat_kwarg_applied_when_modality_dict_lacks_it(self) -> None: ...
