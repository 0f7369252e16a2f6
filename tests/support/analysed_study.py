"""For the tests of the study: one reported study, two seeds and both protocols, made once per process."""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from study_tables import example_frame, example_image, stratified

from ham10000.training.study import command, shortcuts
from ham10000.training.study.analysis import Inputs
from ham10000.training.study.config import ProtocolPlan, StudyConfig
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.heads import HeadSettings
from ham10000.training.study.predictions import Predictions

CONFIG = StudyConfig(
    protocols={"lesion-grouped": ProtocolPlan(3, (0, 1)), "image-stratified": ProtocolPlan(None, (0, 1))},
    n_resamples=130,
    heads=HeadSettings(epochs=6, batch_size=64),
)
FRAME = example_frame(300)
IMAGE = example_image(FRAME, seeds=2)
STRATIFIED = stratified(FRAME, IMAGE)
_TEMPORARY = tempfile.TemporaryDirectory()
FOLDER = Path(_TEMPORARY.name, "study")  # of the report, once `analysed` has run


class Protocol(NamedTuple):
    """What one protocol is analysed from, and its part of study.json."""

    variants: dict[str, CrossFitted]
    inputs: Inputs
    results: Any
    image: Predictions  # of the image variant, with labels, folds and lesions


@functools.cache
def analysed() -> dict[str, Protocol]:
    """Protocol to its analysis; read-only for tests."""
    predictions = {"lesion-grouped": IMAGE, "image-stratified": STRATIFIED}
    with (
        mock.patch.object(command, "analyse_protocol", wraps=command.analyse_protocol) as spy,
        mock.patch.object(shortcuts, "_boosting", lambda image, *_: image.labels),  # slow, and not asked about
    ):
        found = command.report(predictions, FRAME, CONFIG, None, FOLDER)["protocols"]
    calls = zip(found, spy.call_args_list, strict=True)
    return {name: Protocol(*call.args, found[name], predictions[name]) for name, call in calls}


def study_json() -> Any:
    """A fresh copy of its study.json, as if its images were those of HAM10000."""
    analysed()
    return json.loads((FOLDER / "study.json").read_text(encoding="utf-8")) | {"origin": "HAM10000"}
