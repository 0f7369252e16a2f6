"""What the demo computes: one picture and its metadata, answered and explained by several models side by side."""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import snapshot_download
from PIL import Image

from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import (
    LOCALIZATIONS,
    METADATA_FIELDS,
    SEXES,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Processor,
)
from ham10000.training.inference.explanation import (
    MetadataEffect,
    MetadataEffects,
    grad_cam,
    metadata_effects,
    resize_heatmaps,
)
from ham10000.training.inference.explanation_figure import overlay_heatmap
from ham10000.training.inference.prediction import calibration_of, load_checkpoint

_REFERENCE = re.compile(r"(?P<repo_id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
# Files that say what a model was trained on; the weights come through `load_checkpoint`.
_RUN_FILES = ("config.json", "processor_config.json", "train_config.json", "split.csv", "conversion.json")


@dataclass(frozen=True, eq=False)
class DemoModel:
    """One column of the comparison.

    Attributes:
        name: As shown.
        members: Model and processor; several of one variant, such as one a seed, answer with their mean.
        synthetic: Whether it was trained on this package's synthetic pictures; None if its files do not tell.
    """

    name: str
    members: tuple[tuple[Ham10000ForImageClassification, Ham10000Processor], ...]
    synthetic: bool | None

    @property
    def modality(self) -> str:
        """`image`, `metadata` or `fusion`."""
        return str(self.members[0][0].config.modality)

    @property
    def reads_image(self) -> bool:
        """Whether it needs a picture."""
        return self.modality != "metadata"

    @property
    def reads_metadata(self) -> bool:
        """Whether it reads any of age, sex and site."""
        return self.modality != "image"

    @property
    def calibrations(self) -> list[str]:
        """What is known about the probabilities of the members, each sentence once."""
        return list(dict.fromkeys(str(calibration_of(model)) for model, _ in self.members))

    @property
    def labels(self) -> list[str]:
        """The label set."""
        return list(self.members[0][0].config.label_names)

    @property
    def descriptions(self) -> dict[str, str]:
        """Plain-language name of each label."""
        return dict(self.members[0][0].config.label_descriptions or {})


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model says.

    Attributes:
        model: Who says it.
        effects: The probabilities as given, and what they become when the metadata changes; the mean over the
            members. None where the model lacks its picture.
        low: (classes,) the lowest probability over the members; None for a single model, which has no interval.
        high: (classes,) likewise the highest.
        overlay: The picture under the Grad-CAM map of the explained class, the mean over the members.
        label: The explained class.
        note: Why something is absent, in a sentence; empty if nothing is.
    """

    model: DemoModel
    effects: MetadataEffects | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    overlay: Image.Image | None = None
    label: str = ""
    note: str = ""


def load_models(references: Sequence[str]) -> list[DemoModel]:
    """Loads what is compared.

    Args:
        references: A checkpoint folder or `user/name@revision` each; several joined by `+` (no spaces) are one column,
            such as runs of one variant with different seeds.

    Returns:
        The models in that order.

    Raises:
        Ham10000Error: For a checkpoint that cannot be loaded, a Hub id without a revision, `+` between variants, or
            models of different label sets.
    """
    models: list[DemoModel] = []
    for reference in references:
        members, synthetic, sources = [], [], []
        # A folder may have a plus in its name.
        for part in [reference] if Path(reference).is_dir() else reference.split("+"):
            match = _REFERENCE.fullmatch(part)
            if match and not Path(part).exists():
                members.append(load_checkpoint(match["repo_id"], match["revision"]))
            elif "/" in part and "@" not in part and not Path(part).exists() and part.count("/") == 1:
                raise Ham10000Error(
                    f"There is no folder {part!r}. For a model on the Hub, pin a revision you have read: "
                    f"'{part}@v1.0'."
                )
            else:
                members.append(load_checkpoint(part))
            synthetic.append(_trained_on_synthetic(part, match))
            sources.append(match["repo_id"].split("/")[1] if match else Path(part).resolve().name)
        modalities = sorted({str(model.config.modality) for model, _ in members})
        if len(modalities) > 1:
            raise Ham10000Error(
                f"{reference!r} joins different variants {modalities}; `+` is for runs of one variant. "
                "Give them as separate arguments."
            )
        for model, _ in members:
            first = models[0] if models else DemoModel("", tuple(members), None)
            if model.config.label_names != first.labels:
                raise Ham10000Error(
                    f"{reference!r} has the labels {model.config.label_names}, the first model {first.labels}; only "
                    "models of one label set are shown side by side."
                )
        name = sources[0] if len(sources) == 1 else f"{modalities[0]}, {len(sources)} runs"
        known = [value for value in synthetic if value is not None]
        models.append(DemoModel(name, tuple(members), any(known) if known else None))
    return models


def _trained_on_synthetic(part: str, match: re.Match[str] | None) -> bool | None:
    """Whether the checkpoint's own files say so; None where they cannot be read."""
    # A checkpoint without them is complete for prediction, so their absence is no error.
    with contextlib.suppress(Ham10000Error, OSError, ValueError):
        folder = Path(part)
        if match and not folder.exists():
            folder = Path(
                snapshot_download(match["repo_id"], revision=match["revision"], allow_patterns=list(_RUN_FILES))
            )
        run = read_run(folder)
        return None if run.training is None and run.conversion is None else run.synthetic_training
    return None


def vocabularies(models: Sequence[DemoModel]) -> tuple[list[str], list[str]]:
    """The sexes and sites that any of the models knows; the package's own where none reads metadata."""
    sexes: dict[str, None] = {}
    sites: dict[str, None] = {}
    for model in models:
        if model.reads_metadata:
            for _, processor in model.members:
                sexes |= dict.fromkeys(processor.sex_vocabulary)
                sites |= dict.fromkeys(processor.localization_vocabulary)
    return list(sexes or SEXES), list(sites or LOCALIZATIONS)


def answer(
    model: DemoModel, picture: Image.Image | None, metadata: Mapping[str, object], label: str | None = None
) -> Answer:
    """Predicts with one model and explains it.

    Args:
        model: The model.
        picture: An RGB picture, or None.
        metadata: Any of age, sex, localization; None is missing. A value the model does not know counts as missing.
        label: The class whose evidence is looked for; None for the most probable one.

    Returns:
        The answer; one with a note in place of probabilities where the model needs a picture and there is none.

    Raises:
        Ham10000Error: For an impossible age.
    """
    if model.reads_image and picture is None:
        return Answer(model, note="This model needs a picture.")
    results = []
    for member, processor in model.members:
        row = {name: metadata.get(name) for name in METADATA_FIELDS if name in processor.metadata_fields}
        results.append(
            metadata_effects(
                member,
                processor,
                picture if model.reads_image else None,
                row if model.reads_metadata else None,
                unknown_values="missing",
            )
        )
    effects = _mean_effects(results)
    several = np.stack([result.baseline for result in results])
    low, high = (several.min(axis=0), several.max(axis=0)) if len(results) > 1 else (None, None)
    label = label or effects.labels[int(effects.baseline.argmax())]
    if not model.reads_image:
        return Answer(model, effects, low, high, label=label, note="This model sees no picture.")
    assert picture is not None
    try:
        return Answer(model, effects, low, high, _overlay(model, picture, metadata, label), label)
    except Ham10000Error as error:  # such as a backbone without a spatial feature map
        return Answer(model, effects, low, high, label=label, note=f"No heat map: {error}")


def _overlay(model: DemoModel, picture: Image.Image, metadata: Mapping[str, object], label: str) -> Image.Image:
    maps = []
    for member, processor in model.members:
        rows = None
        if model.reads_metadata:
            row = {name: metadata.get(name) for name in processor.metadata_fields}
            rows = processor.encode_metadata([row], unknown_values="missing")
        pixel_values: Any = processor.image_processor(picture)["pixel_values"]
        maps.append(
            resize_heatmaps(grad_cam(member, pixel_values, [model.labels.index(label)], rows), picture.size)[0]
        )
    return overlay_heatmap(picture, np.mean(maps, axis=0))


def _mean_effects(results: Sequence[MetadataEffects]) -> MetadataEffects:
    """The mean over runs of one variant; rows are those all of them have."""
    first = results[0]
    if len(results) == 1:
        return first
    tables = [{(row.field, row.value): row.probabilities for row in result.rows} for result in results]
    rows = tuple(
        MetadataEffect(row.field, row.value, np.mean([table[row.field, row.value] for table in tables], axis=0))
        for row in first.rows
        if all((row.field, row.value) in table for table in tables)
    )
    baseline = np.mean([result.baseline for result in results], axis=0)
    return dataclasses.replace(first, baseline=baseline, rows=rows)


__all__ = ["Answer", "DemoModel", "answer", "load_models", "vocabularies"]
