"""The model card of a published checkpoint: the data that `model_card.md.jinja` renders, all from the run's files."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import timm
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image

from ham10000.hub_upload.run_files import RunFiles, Sibling
from ham10000.training.config import TrainConfig
from ham10000.training.evaluation import report
from ham10000.training.evaluation.metrics import SENSITIVITY
from ham10000.training.utils.files import JsonObject
from ham10000.training.utils.markdown_text import escape, fence, leaves_out_zero, markdown_template, percent, plain

RESEARCH_BANNER = (
    "> **For research only. Not a medical device.** Never use it for diagnosis, triage or any decision about a "
    "person, and never for looking at your own skin. A suspicious lesion should be seen by a dermatologist."
)
DATASET = "HAM10000"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
# Metrics that the Hub knows by another id than eval_results.json, with their arguments.
_HUB_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "macro_f1": ("f1", {"average": "macro"}),
    "weighted_f1": ("f1", {"average": "weighted"}),
    "auroc_macro": ("roc_auc", {"average": "macro", "multi_class": "ovr"}),
    "brier": ("brier_score", None),
}
_TASKS = {
    "image": ("image-classification", "Image classification"),
    "fusion": ("image-classification", "Image classification with metadata"),
    "metadata": ("tabular-classification", "Tabular classification"),
}
_SHORT_TITLES = {"auroc_macro": "AUROC", "ece": "ECE"}
# Settings that say where and how a run was watched, not what it computed.
_NOT_REPRODUCED = ("data", "output_dir", "cache_dir", "split_file", "trackers", "resume", "overwrite")


def _count(value: object) -> str:
    """A whole number with thousands separators; what is not a number is escaped."""
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _setting(value: object) -> str:
    """A setting of a run as the table of all settings shows it, not escaped."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "not set" if text in ("", "None") else text


def _reading(difference: JsonObject, metric: str, this: str, *, chance: bool = False) -> str:
    """States whether a paired difference of a metric, `this` minus another model, is one."""
    if chance:  # the other model does no better than guessing: a gain over it is no verdict
        return "no verdict: the other model is at chance"
    clear = leaves_out_zero(difference)
    if clear is None:
        return "undefined here"
    better = (difference["low"] > 0) != (metric == "ece")  # a lower calibration error is better
    return f"{this} is {'better' if better else 'worse'}" if clear else "no significant difference"


def _base_model(run: RunFiles, given: str | None) -> str | None:
    """The Hub id of the weights the backbone started from; None for metadata-only, random or unknown weights."""
    if run.base:
        return given or str(run.base["name"])
    if run.modality == "metadata":
        return None
    if given is None and run.training and run.training["config"]["pretrained"] == "timm":
        return getattr(timm.get_pretrained_cfg(run.config["backbone"]), "hf_hub_id", None)
    return given


class Stated(NamedTuple):
    """What no file of the run knows."""

    dataset_name: str | None = None  # of the training data
    license: str | None = None  # of the weights
    base_model: str | None = None  # Hub id of the backbone
    publish_split: bool = False  # split.csv of own data, too, which names images, and lesions or patients


NOTHING_STATED = Stated()


def publishes_split(run: RunFiles, stated: Stated) -> bool:
    """Whether split.csv is published: of HAM10000 and synthetic images always, of others where it is asked for."""
    return run.ham10000_training or run.synthetic_training or stated.publish_split


def _weights_license(run: RunFiles, stated: Stated) -> str | None:
    """What is stated; else what follows from the images behind the weights; None where some are not known."""
    if stated.license or not run.sources <= {DATASET, "synthetic"}:
        return stated.license
    return "cc-by-nc-4.0" if DATASET in run.sources else "apache-2.0"


def _dataset_name(run: RunFiles, stated: Stated) -> str:
    """The name of the training data: as stated, HAM10000, or the last component of where they lay."""
    if stated.dataset_name or run.ham10000_training:
        return stated.dataset_name or DATASET
    return plain(run.training["config"]["data"]) if run.training else "other data"


def _eval_results(run: RunFiles, stated: Stated) -> list[EvalResult]:
    if run.evaluation is None:
        return []
    split, metrics, (task_type, task_name) = run.evaluation["split"], run.evaluation["metrics"], _TASKS[run.modality]
    protocol = plain(split.get("protocol", "no split"))
    dataset = DATASET if run.ham10000_evaluation else plain(run.evaluation["data"])
    if not run.ham10000_evaluation and run.training and split.get("sha256") == run.training["split"]["sha256"]:
        dataset = _dataset_name(run, stated)
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type="synthetic" if run.synthetic_evaluation else dataset,
            dataset_name=f"{'synthetic stand-in for HAM10000' if run.synthetic_evaluation else dataset} ({protocol})",
            dataset_config=protocol,
            dataset_split=plain(split["name"]),
            metric_type="sensitivity" if name.endswith(SENSITIVITY) else _HUB_METRICS.get(name, (name, None))[0],
            metric_name=report.metric_title(name),
            metric_value=metrics[name],
            metric_args=_HUB_METRICS.get(name, (name, None))[1],
        )
        for name in report.interval_metrics(run.evaluation)
        if metrics.get(name) is not None
    ]


def _card_data(run: RunFiles, repo_id: str, has_onnx: bool, stated: Stated) -> ModelCardData:
    """The front matter, which the Hub indexes."""
    eval_results = _eval_results(run, stated)
    tags = {
        "synthetic-data": run.synthetic_training,
        DATASET: run.ham10000_training and not run.synthetic_training,
        "timm": run.modality != "metadata",
        "metadata-fusion": run.modality == "fusion",
        "onnx": has_onnx,
    }
    return ModelCardData(
        language="en",
        license=_weights_license(run, stated),
        library_name="transformers",
        pipeline_tag=_TASKS[run.modality][0],
        base_model=_base_model(run, stated.base_model),
        datasets=None if run.synthetic_training else [_dataset_name(run, stated)],
        metrics=sorted({result.metric_type for result in eval_results}) or None,
        tags=["dermoscopy", "dermatology", "medical", "research-only", *(tag for tag, holds in tags.items() if holds)],
        model_name=repo_id.split("/")[-1] if eval_results else None,
        eval_results=eval_results or None,
    )


def _count_results(metrics: JsonObject, malignant_labels: Sequence[str]) -> JsonObject:
    """What a card says of an evaluation and its file does not state; the counts are images."""
    matrix, labels = np.array(metrics["confusion_matrix"]), list(metrics["per_class"])  # (true, predicted class)
    malignant = np.isin(labels, malignant_labels)
    # Without malignant classes there are no benign ones either.
    benign = ~malignant if malignant.any() else malignant
    of_melanomas = dict(zip(labels, matrix[np.array(labels) == "mel"].sum(axis=0).tolist(), strict=True))
    errors = sorted(((number, label) for label, number in of_melanomas.items() if label != "mel"), reverse=True)
    recall = {label: row["recall"] for label, row in metrics["per_class"].items() if row["support"]}
    return {
        "melanomas": sum(of_melanomas.values()),
        "melanomas_found": of_melanomas.get("mel", 0),
        "melanoma_errors": [f"{label} ({_count(number)})" for number, label in errors if number],
        "malignant": int(matrix[malignant].sum()),
        "missed": int(matrix[malignant][:, benign].sum()),
        "benign": int(matrix[benign].sum()),
        "false_alarms": int(matrix[benign][:, malignant].sum()),
        "best": max(recall, key=recall.__getitem__),
        "worst": min(recall, key=recall.__getitem__),
        "overlooked": [f"{one} ({percent(recall[one], 0)})" for one in malignant_labels if recall.get(one, 1) < 0.8],
    }


def _variant_name(run: RunFiles) -> str:
    """`fusion, tf_efficientnetv2_s, 224 px` or `metadata`."""
    if run.modality == "metadata":
        return "metadata"
    height, width = (run.processor["image_processor"]["size"][side] for side in ("height", "width"))
    return f"{run.modality}, {run.config['backbone']}, {height if height == width else f'{height} x {width}'} px"


def _compare(run: RunFiles, siblings: Sequence[Sibling]) -> JsonObject | None:
    """An evaluated model compared with its siblings and the published baseline; None where there are none."""
    siblings = [one for one in siblings if one.run.evaluation and one.run.config["id2label"] == run.config["id2label"]]
    # A result on other images has nothing to do with a published one.
    synthetic = run.synthetic_training or run.synthetic_evaluation
    with_published = run.ham10000_training and run.ham10000_evaluation and not synthetic
    if run.evaluation is None or not (siblings or with_published):
        return None
    # The study's own verdict, over its seeds and corrected for its family, is in the card.
    in_study, rows, scored_on, paired = "study" in run.evaluation, [], set(), []
    for other, repo_id, comparison in [Sibling(run), *siblings]:
        assert other.evaluation is not None
        split = other.evaluation["split"]
        scored_on.add((split.get("protocol"), split.get("sha256"), split["name"]))
        leak = split.get("leakage", {}).get(split["name"], {}).get("all")
        leak = None if not leak and other.base_may_have_seen else leak
        row = {"name": _variant_name(other), "repo_id": repo_id, "intervals": other.evaluation["intervals"]}
        rows.append(row | {"protocol": split.get("protocol", "none"), "leak": leak})
        if comparison is not None and not in_study:
            paired.append((other.modality, comparison, report.at_chance(other.evaluation)))
    return {
        "others": ["its siblings"] * bool(siblings) + ["the published baseline"] * with_published,
        "rows": rows + [report.published_baseline() | {"repo_id": None}] * with_published,
        "with_published": with_published,
        "same_images": len(scored_on) == 1,  # by the same protocol
        "paired": paired,
    }


def reproduce_command(training: JsonObject, *, ham10000: bool = True) -> str:
    """The shell commands that train and evaluate a model again, with every setting that is not the default.

    `training` is what `portable_training` returns; `ham10000` says that a reader has the data under that name.
    """
    if "made_by" in training:
        return plain(training["made_by"])
    config = training["config"]
    data = plain(config["data"])
    if ham10000 and not data.startswith("synthetic"):
        data = "HAM10000/"
    if base := training.get("base_model"):
        config = config | {"init_from": base["name"]}
    output_dir = f"runs/{plain(config['modality'])}"
    arguments = ["--data", data, "--output_dir", output_dir]
    for name, default in TrainConfig().to_dict().items():
        value = config.get(name, default)
        if name in _NOT_REPRODUCED or value == default or value is None:
            continue
        arguments += [f"--{name}", *map(plain, value if isinstance(value, list) else [value])]
    if config.get("split_file"):
        arguments += ["--split_file", "split.csv"]
    lines = ["ham10000-train"]
    for word in map(shlex.quote, arguments):
        # A line break before an option keeps the option and its values together.
        if word.startswith("--") and len(lines[-1]) > 80:
            lines.append("   ")
        lines[-1] += f" {word}"
    evaluation = f"ham10000-evaluate --checkpoint {shlex.quote(output_dir)} --data {shlex.quote(data)} --split test"
    return " \\\n".join(lines) + f"\n{evaluation}"


def _training_context(run: RunFiles) -> dict[str, object]:
    """What the template reads of the training; nothing where there was none."""
    if run.training is None:
        return {}
    split, settings = run.training["split"], run.training["config"]
    parts = ("train", "validation", "test")[: 3 if settings.get("train_on_all") else 1 + run.trained_on_validation]
    counts = [split["class_counts"][part] for part in parts]
    return {
        "training_counts": {label: sum(count[label] for count in counts) for label in run.training["class_weights"]},
        "split_sizes": [f"{_count(size)} {escape(part)}" for part, size in split["sizes"].items()],
        "reproduce": fence("bash", reproduce_command(run.training, ham10000=run.ham10000_training)),
    }


def render_model_card(
    run: RunFiles,
    *,
    repo_id: str,
    revision: str,
    siblings: Sequence[Sibling] = (),
    has_onnx: bool = False,
    stated: Stated = NOTHING_STATED,
) -> str:
    """Renders the README.md of a model repository; sections without data vanish, and examples pin `revision`."""
    config = run.config
    labels = [label for _, label in sorted(config["id2label"].items(), key=lambda item: int(item[0]))]
    shown = report.interval_metrics(run.evaluation) if run.evaluation else []
    image = run.processor.get("image_processor")
    # Words that the checkpoint's own vocabularies have.
    usual = {"age": 60, "sex": "male", "localization": "back"}
    known = {name: config.get(f"{name}_vocabulary", [usual[name]]) for name in config["metadata_fields"]}
    filters = {"count": _count, "duration": _duration, "json": json.dumps, "md": escape, "number": "{:g}".format}
    template = markdown_template(_TEMPLATE, **filters, reading=_reading, setting=_setting)
    card = template.render(
        front_matter=_card_data(run, repo_id, has_onnx, stated).to_yaml().strip(),
        research_banner=RESEARCH_BANNER,
        run=run,
        repo_id=repo_id,
        revision=revision,
        has_onnx=has_onnx,
        labels=labels,
        malignant=config["malignant_labels"],
        sensitivity=next((name for name in shown if name.endswith(SENSITIVITY)), None),
        metric_title=report.metric_title,
        summary_titles={n: _SHORT_TITLES.get(n, report.metric_title(n)) for n in report.SUMMARY_METRICS if n in shown},
        license=_weights_license(run, stated),
        dataset=_dataset_name(run, stated),
        has_split=publishes_split(run, stated),
        example_row={name: usual[name] if usual[name] in words else words[0] for name, words in known.items()},
        backbone_kwargs=", ".join(f"{name}={value}" for name, value in config["backbone_kwargs"].items()),
        resample=Image.Resampling(image["resample"]).name.lower() if image else None,
        results=run.evaluation and _count_results(run.evaluation["metrics"], config["malignant_labels"]),
        comparison=_compare(run, siblings),
        **_training_context(run),
    )
    return re.sub(r"\n{3,}", "\n\n", card).strip() + "\n"
