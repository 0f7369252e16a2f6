"""The model card of a published checkpoint: the data that `model_card.md.jinja` renders, all from the run's files."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import timm
from huggingface_hub import EvalResult, ModelCardData
from PIL import Image

from ham10000.hub_upload.run_files import RunFiles, Sibling
from ham10000.modeling import LABELS, MALIGNANT
from ham10000.training.config import TrainConfig
from ham10000.training.evaluation.report import METRIC_TITLES, SUMMARY_METRICS
from ham10000.training.run_folder import portable_training
from ham10000.training.utils.markdown_text import code, decimal, escape, fence, interval, percent, plain, words
from ham10000.training.utils.published import published_baseline

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
    "melanoma_sensitivity_at_95_specificity": ("sensitivity", None),
}
_TASKS = {
    "image": ("image-classification", "Image classification"),
    "fusion": ("image-classification", "Image classification with metadata"),
    "metadata": ("tabular-classification", "Tabular classification"),
}
_SHORT_TITLES = {"auroc_macro": "AUROC", "ece": "ECE"}
_EXAMPLE_ROW = {"age": 60, "sex": "male", "localization": "back"}
# Settings that say where and how a run was watched, not what it computed.
_NOT_REPRODUCED = ("data", "output_dir", "cache_dir", "split_file", "trackers", "resume", "overwrite")


def _count(value: Any) -> str:
    """A whole number with thousands separators; what is not a number is escaped."""
    return f"{value:,}" if isinstance(value, int) else escape(value)


def _duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is readable."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _setting(value: Any) -> str:
    """A setting of a run as the table of all settings shows it, not escaped."""
    if value is None or value == [] or value == "":
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _reading(difference: dict[str, Any], metric: str, this: str) -> str:
    """States whether a paired difference of a metric, `this` minus another model, is one."""
    if difference["estimate"] is None or difference["low"] is None:
        return "undefined here"
    if difference["low"] <= 0 <= difference["high"]:
        return "no significant difference"
    better = (difference["low"] > 0) != (metric == "ece")  # a lower calibration error is better
    return f"{this} is {'better' if better else 'worse'}"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATE.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "code": code,
        "count": _count,
        "decimal": decimal,
        "duration": _duration,
        "interval": interval,
        "json": json.dumps,
        "md": escape,
        "number": lambda value: f"{value:g}",
        "percent": percent,
        "reading": _reading,
        "setting": _setting,
        "words": words,
    }
    return environment


def _base_model(run: RunFiles, given: str | None) -> str | None:
    """The Hub id of the weights the backbone started from; None for metadata-only, random or unknown weights."""
    if run.modality == "metadata":
        return None
    if given is None and run.training is not None and run.training["config"]["pretrained"] == "timm":
        pretrained_cfg = timm.get_pretrained_cfg(run.config["backbone"])
        return pretrained_cfg.hf_hub_id if pretrained_cfg is not None else None
    return given


def _weights_license(run: RunFiles) -> str:
    """HAM10000's own for weights that were trained on it, or that of the code."""
    return "apache-2.0" if run.synthetic_training else "cc-by-nc-4.0"


def _eval_results(run: RunFiles) -> list[EvalResult]:
    if run.evaluation is None:
        return []
    task_type, task_name = _TASKS[run.modality]
    split, metrics = run.evaluation["split"], run.evaluation["metrics"]
    protocol = plain(split.get("protocol", "no split"))
    dataset = "synthetic stand-in for HAM10000" if run.synthetic_evaluation else DATASET
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type="synthetic" if run.synthetic_evaluation else DATASET,
            dataset_name=f"{dataset} ({protocol})",
            dataset_config=protocol,
            dataset_split=plain(split["name"]),
            metric_type=_HUB_METRICS.get(name, (name, None))[0],
            metric_name=title,
            metric_value=metrics[name],
            metric_args=_HUB_METRICS.get(name, (name, None))[1],
        )
        for name, title in METRIC_TITLES.items()
        if metrics.get(name) is not None
    ]


def _card_data(run: RunFiles, repo_id: str, base_model: str | None, has_onnx: bool) -> ModelCardData:
    """The front matter, which the Hub indexes."""
    eval_results = _eval_results(run)
    tags = {
        "synthetic-data": run.synthetic_training,
        DATASET: not run.synthetic_training,
        "timm": run.modality != "metadata",
        "metadata-fusion": run.modality == "fusion",
        "onnx": has_onnx,
    }
    return ModelCardData(
        language="en",
        license=_weights_license(run),
        library_name="transformers",
        pipeline_tag=_TASKS[run.modality][0],
        base_model=_base_model(run, base_model),
        datasets=None if run.synthetic_training else [DATASET],
        metrics=sorted({result.metric_type for result in eval_results}) or None,
        tags=["dermoscopy", "dermatology", "medical", "research-only", *(tag for tag, holds in tags.items() if holds)],
        model_name=repo_id.split("/")[-1] if eval_results else None,
        eval_results=eval_results or None,
    )


@dataclass(frozen=True)
class _Results:
    """What a card says of an evaluation and its file does not state; the counts are images."""

    melanomas: int
    melanomas_found: int
    melanoma_errors: list[str]  # what the others are called, such as `nv (24)`, the most frequent first
    malignant: int
    missed: int  # malignant ones that are assigned to a benign class
    benign: int
    false_alarms: int  # benign ones that are assigned to a malignant class
    best: str  # class with the highest recall
    worst: str
    overlooked: list[str]  # malignant classes with a recall below 0.8, with their recall

    @classmethod
    def from_metrics(cls, metrics: dict[str, Any]) -> "_Results":
        matrix = np.array(metrics["confusion_matrix"])  # (true class, predicted class)
        malignant = np.isin(LABELS, MALIGNANT)
        melanoma = LABELS.index("mel")
        errors = sorted(zip(matrix[melanoma].tolist(), LABELS, strict=True), reverse=True)
        recall = {label: metrics["per_class"][label]["recall"] for label in LABELS}
        scored = [label for label in LABELS if metrics["per_class"][label]["support"]]
        return cls(
            melanomas=int(matrix[melanoma].sum()),
            melanomas_found=int(matrix[melanoma, melanoma]),
            melanoma_errors=[f"{label} ({_count(number)})" for number, label in errors if number and label != "mel"],
            malignant=int(matrix[malignant].sum()),
            missed=int(matrix[malignant][:, ~malignant].sum()),
            benign=int(matrix[~malignant].sum()),
            false_alarms=int(matrix[~malignant][:, malignant].sum()),
            best=max(scored, key=recall.__getitem__),
            worst=min(scored, key=recall.__getitem__),
            overlooked=[
                f"{label} ({percent(recall[label], 0)})"
                for label in MALIGNANT
                if label in scored and recall[label] < 0.8
            ],
        )


class _ComparisonRow(NamedTuple):
    name: str
    repo_id: str | None
    protocol: str
    leak: float | None
    intervals: dict[str, Any]


@dataclass(frozen=True)
class _Comparison:
    """An evaluated model compared with its siblings and the published baseline."""

    others: list[str]  # what it is compared with, for the heading
    rows: list[_ComparisonRow]  # the model, the evaluated siblings, the published baseline
    with_published: bool
    same_images: bool  # whether the siblings were scored on the same images by the same protocol
    paired: list[tuple[str, dict[str, Any]]]  # modality of a sibling, and `Sibling.comparison` with it


def _variant_name(run: RunFiles) -> str:
    """`fusion, tf_efficientnetv2_s, 224 px` or `metadata`."""
    if run.modality == "metadata":
        return "metadata"
    height, width = (run.processor["image_processor"]["size"][side] for side in ("height", "width"))
    return f"{run.modality}, {run.config['backbone']}, {height if height == width else f'{height} x {width}'} px"


def _compare(run: RunFiles, siblings: Sequence[Sibling]) -> _Comparison | None:
    evaluated = [sibling for sibling in siblings if sibling.run.evaluation is not None]
    with_published = not run.synthetic  # a result on synthetic images has nothing to do with a published one
    if run.evaluation is None or not (evaluated or with_published):
        return None
    rows, scored_on = [], set()
    for other, repo_id in [(run, None), *((sibling.run, sibling.repo_id) for sibling in evaluated)]:
        assert other.evaluation is not None
        split = other.evaluation["split"]
        scored_on.add((split.get("protocol"), split.get("sha256"), split["name"]))
        leak = split.get("leakage", {}).get(split["name"], {}).get("all")
        intervals = other.evaluation["intervals"]
        rows.append(_ComparisonRow(_variant_name(other), repo_id, split.get("protocol", "none"), leak, intervals))
    if with_published:
        published = published_baseline()
        leak, intervals = published["leak"], published["intervals"]
        rows.append(_ComparisonRow(published["name"], None, published["protocol"], leak, intervals))
    return _Comparison(
        others=["its siblings"] * bool(evaluated) + ["the published baseline"] * with_published,
        rows=rows,
        with_published=with_published,
        same_images=len(scored_on) == 1,
        paired=[(sibling.run.modality, sibling.comparison) for sibling in evaluated if sibling.comparison is not None],
    )


def reproduce_command(training: dict[str, Any]) -> str:
    """Returns the commands that train and evaluate such a model again.

    Args:
        training: Result of `portable_training`.

    Returns:
        Two shell commands with every setting that is not the default.
    """
    if "made_by" in training:
        return plain(training["made_by"])
    config = training["config"]
    data = plain(config["data"]) if str(config["data"]).startswith("synthetic") else "HAM10000/"
    output_dir = f"runs/{plain(config['modality'])}"
    arguments = ["--data", data, "--output_dir", output_dir]
    for name, default in TrainConfig().to_dict().items():
        value = config.get(name, default)
        if name in _NOT_REPRODUCED or value == default or value is None:
            continue
        arguments += [f"--{name}", *map(plain, value if isinstance(value, list) else [value])]
    if config.get("split_file"):
        arguments += ["--split_file", "split.csv"]
    lines, line = [], "ham10000-train"
    for word in map(shlex.quote, arguments):
        # A line break before an option keeps the option and its values together.
        if word.startswith("--") and len(line) > 80:
            lines.append(line)
            line = "   "
        line += f" {word}"
    evaluation = f"ham10000-evaluate --checkpoint {shlex.quote(output_dir)} --data {shlex.quote(data)} --split test"
    return " \\\n".join([*lines, line]) + f"\n{evaluation}"


def _training_context(run: RunFiles) -> dict[str, object]:
    """What the template reads of the training, without the paths of the machine; empty where there was none."""
    if run.training is None:
        return {"training": None}
    training = portable_training(run.training)
    split = training["split"]
    parts: tuple[str, ...] = ("train", "validation") if run.trained_on_validation else ("train",)
    if training["config"].get("train_on_all"):
        parts = ("train", "validation", "test")
    return {
        "training": training,
        "settings": training["config"],
        "training_counts": {label: sum(split["class_counts"][part][label] for part in parts) for label in LABELS},
        "split_sizes": [f"{_count(size)} {escape(part)}" for part, size in split["sizes"].items()],
        "reproduce": fence("bash", reproduce_command(training)),
    }


def render_model_card(
    run: RunFiles,
    *,
    repo_id: str,
    revision: str,
    siblings: Sequence[Sibling] = (),
    base_model: str | None = None,
    has_onnx: bool = False,
) -> str:
    """Renders the README.md of a model repository, for a dermatologist first and an engineer second.

    Sections without data vanish: a checkpoint that was converted, or not evaluated, gets a card that says so.

    Args:
        run: Result of `read_run`.
        repo_id: Repository the card is for, such as `user/ham10000-fusion`.
        revision: Tag or commit that every example pins.
        siblings: Other variants to compare with.
        base_model: Hub id of the weights the backbone started from, if they came from a local file.
        has_onnx: Whether the repository has `onnx/model.onnx`.

    Returns:
        Markdown with YAML front matter, ending in a newline.

    Example:
        >>> card = render_model_card(read_run("runs/fusion"), repo_id="user/ham10000-fusion", revision="v1.0")
    """
    config = run.config
    image = run.processor.get("image_processor")
    card = (
        _environment()
        .get_template(_TEMPLATE.name)
        .render(
            front_matter=_card_data(run, repo_id, base_model, has_onnx).to_yaml().strip(),
            research_banner=RESEARCH_BANNER,
            run=run,
            repo_id=repo_id,
            revision=revision,
            has_onnx=has_onnx,
            modality=run.modality,
            config=config,
            labels=LABELS,
            malignant=MALIGNANT,
            metric_titles=METRIC_TITLES,
            summary_titles={name: _SHORT_TITLES.get(name, METRIC_TITLES[name]) for name in SUMMARY_METRICS},
            license=_weights_license(run),
            example_row={name: _EXAMPLE_ROW[name] for name in config["metadata_fields"]},
            backbone_kwargs=", ".join(f"{name}={value}" for name, value in config["backbone_kwargs"].items()),
            resample=Image.Resampling(image["resample"]).name.lower() if image else None,
            evaluation=run.evaluation,
            results=_Results.from_metrics(run.evaluation["metrics"]) if run.evaluation else None,
            comparison=_compare(run, siblings),
            **_training_context(run),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", card).strip() + "\n"


__all__ = ["RESEARCH_BANNER", "render_model_card", "reproduce_command"]
