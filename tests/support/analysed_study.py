"""For the tests of the study: one analysed study, two seeds and both protocols, made once per process."""

import dataclasses
import functools
import json
from typing import Any, NamedTuple
from unittest import mock

from study_tables import example_frame, example_image, stratified

from ham10000.training.study import shortcuts
from ham10000.training.study.analysis import Inputs, analyse_protocol
from ham10000.training.study.command import fit_protocol
from ham10000.training.study.config import ProtocolPlan, StudyConfig
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.heads import HeadSettings
from ham10000.training.study.predictions import Predictions
from ham10000.training.study.report import STUDY_FORMAT

CONFIG = StudyConfig(
    protocols={"lesion-grouped": ProtocolPlan(3, (0, 1)), "image-stratified": ProtocolPlan(None, (0, 1))},
    n_resamples=130,
    heads=HeadSettings(epochs=6, batch_size=64),
)


class Protocol(NamedTuple):
    """What one protocol is analysed from, and its part of study.json."""

    variants: dict[str, CrossFitted]
    inputs: Inputs
    results: Any

    @property
    def image(self) -> Predictions:
        """The image variant's logits, with labels, folds and lesions."""
        return self.variants["image"].predictions


@functools.cache
def analysed() -> dict[str, Protocol]:
    """Protocol to its analysis; read-only for tests."""
    frame, found = example_frame(300), {}
    image = example_image(frame, seeds=2)
    for name, predictions in (("lesion-grouped", image), ("image-stratified", stratified(frame, image))):
        variants, inputs = fit_protocol(predictions, frame, CONFIG, with_heads=predictions is image)
        with mock.patch.object(shortcuts, "_boosting", lambda image, *_: image.labels):  # slow, and not asked about
            found[name] = Protocol(variants, inputs, analyse_protocol(variants, inputs))
    return found


def study_json() -> Any:
    """A fresh copy of the study as its study.json is read."""
    study = {
        "format": STUDY_FORMAT,
        "study": {**dataclasses.asdict(CONFIG), "recipe": "recipe.yaml"},
        "recipe": None,
        "environment": {"versions": {"python": "3.11.7"}},
        "protocols": {name: protocol.results for name, protocol in analysed().items()},
    }
    return json.loads(json.dumps(study, allow_nan=False))
