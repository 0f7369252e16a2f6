"""transformers' own common tests, run on our models and, as the peer, on TimmWrapper.

They are not in the wheel. Unpack transformers' source distribution and name its folder:

    pip download --no-binary transformers --no-deps transformers==VERSION   # the installed one
    tar xzf transformers-VERSION.tar.gz
    TRANSFORMERS_SOURCE=$PWD/transformers-VERSION python -m pytest tests/modeling/test_transformers_mixins.py
"""

import importlib
import inspect
import os
import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.utils
from transformers import (
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

from ham10000.modeling import Ham10000Config, Ham10000ForImageClassification, Ham10000Model

SOURCE = os.environ.get("TRANSFORMERS_SOURCE")
if not SOURCE:
    pytest.skip("set TRANSFORMERS_SOURCE to transformers' unpacked source distribution", allow_module_level=True)
pytest.importorskip("parameterized", reason="transformers' tests need it: pip install parameterized")


def load_mixins(folder: Path) -> tuple[Any, Any]:
    """`ModelTesterMixin` and `ConfigTester`; modules that the source distribution leaves out stand empty."""
    package = types.ModuleType("transformers_tests")
    package.__path__ = [str(folder)]
    sys.modules["transformers_tests"] = package
    stubs: dict[str, dict[str, Any]] = {
        "exporters": {},
        "exporters.test_export": {"ExportTesterMixin": object},
        "generation": {},
        "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        "utils": {},
        "utils.test_configuration_utils": {"config_common_kwargs": COMMON_KWARGS},
    }
    for name, values in stubs.items():
        module = types.ModuleType(f"transformers_tests.{name}")
        module.__path__ = []
        vars(module).update(values)
        sys.modules[module.__name__] = module
    original = transformers.utils.direct_transformers_import
    transformers.utils.direct_transformers_import = lambda *_: transformers
    try:
        models = importlib.import_module("transformers_tests.test_modeling_common")
        configs = importlib.import_module("transformers_tests.test_configuration_common")
    finally:
        transformers.utils.direct_transformers_import = original
    return models.ModelTesterMixin, configs.ConfigTester


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
ModelTesterMixin, ConfigTester = load_mixins(Path(SOURCE) / "tests")


class Tester:
    """Gives the mixin a small config and inputs."""

    is_training = True

    def __init__(self, config_class: Any, **kwargs: Any):
        self.config_class = config_class
        self.kwargs = kwargs
        self.batch_size = 3

    def get_config(self) -> Any:
        return self.config_class(**self.kwargs)

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        inputs = {
            "pixel_values": torch.rand(self.batch_size, 3, 64, 64, generator=generator),
            "metadata": torch.tensor([[60.0, 1, 2], [35, 0, 13], [80, 1, 0]]),
        }
        unused = {"image": ["metadata"], "metadata": ["pixel_values"]}.get(self.kwargs.get("modality", "image"), [])
        return self.get_config(), {name: value for name, value in inputs.items() if name not in unused}


class Common:
    """What the four classes share; the reasons for skips are a table in CONTRIBUTING.md."""

    test_resize_embeddings = False
    has_attentions = False
    config_class: Any
    kwargs: dict[str, Any]
    all_model_classes: tuple[Any, ...]

    def setUp(self) -> None:
        self.model_tester = Tester(self.config_class, **self.kwargs)
        self.config_tester = ConfigTester(
            self, config_class=self.config_class, has_text_modality=False, common_properties=[], **self.kwargs
        )

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


class Ours(Common):
    """Where we differ from transformers on purpose."""

    @unittest.skip("loads a checkpoint without weights, which is an error here and a warning in transformers")
    def test_model_weights_reload_no_missing_tied_weights(self) -> None: ...


OURS = (Ham10000Model, Ham10000ForImageClassification)
FUSION = {"backbone": "test_efficientnet", "fusion": "metablock"}


class TestImage(Ours, ModelTesterMixin, unittest.TestCase):
    config_class, all_model_classes, kwargs = Ham10000Config, OURS, {**FUSION, "modality": "image"}


class TestMetadata(Ours, ModelTesterMixin, unittest.TestCase):
    config_class, all_model_classes, kwargs = Ham10000Config, OURS, {**FUSION, "modality": "metadata"}


class TestFusion(Ours, ModelTesterMixin, unittest.TestCase):
    config_class, all_model_classes, kwargs = Ham10000Config, OURS, {**FUSION, "modality": "fusion"}


class TestTimmWrapper(Common, ModelTesterMixin, unittest.TestCase):
    config_class, kwargs = TimmWrapperConfig, {"architecture": "test_efficientnet"}
    all_model_classes = (TimmWrapperModel, TimmWrapperForImageClassification)
