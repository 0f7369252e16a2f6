"""The YAML front matter of a model card: what the Hub indexes."""

from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from ham10000.hub_upload.card_cost import training_footprint
from ham10000.hub_upload.card_markdown import plain
from ham10000.hub_upload.run_files import RunFiles
from ham10000.training.evaluation_report import METRIC_TITLES

DATASET = "HAM10000"
SYNTHETIC_DATASET = "synthetic stand-in for HAM10000"
# Name in eval_results.json to the Hub's metric id and its arguments.
_METRICS: dict[str, tuple[str, dict[str, str] | None]] = {
    "macro_f1": ("f1", {"average": "macro"}),
    "balanced_accuracy": ("balanced_accuracy", None),
    "accuracy": ("accuracy", None),
    "weighted_f1": ("f1", {"average": "weighted"}),
    "auroc_macro": ("roc_auc", {"average": "macro", "multi_class": "ovr"}),
    "ece": ("ece", None),
    "brier": ("brier_score", None),
    "nll": ("nll", None),
    "melanoma_sensitivity_at_95_specificity": ("sensitivity", None),
}
_TASKS = {
    "image": ("image-classification", "Image classification"),
    "fusion": ("image-classification", "Image classification with metadata"),
    "metadata": ("tabular-classification", "Tabular classification"),
}


def base_model_of(run: RunFiles, base_model: str | None = None) -> str | None:
    """The Hub id of the weights the backbone started from.

    Args:
        run: The run.
        base_model: Id given by the user, which a file of weights cannot tell.

    Returns:
        The id, or None where there is none: metadata-only, random or unknown weights.
    """
    if run.modality == "metadata":
        return None
    if base_model is None and run.training is not None and run.training["config"]["pretrained"] == "timm":
        pretrained_cfg = timm.get_pretrained_cfg(run.config["backbone"])
        return pretrained_cfg.hf_hub_id if pretrained_cfg is not None else None
    return base_model


def weights_license(run: RunFiles) -> str:
    """`cc-by-nc-4.0`, as HAM10000's, or `apache-2.0` for weights no photograph of HAM10000 went into."""
    return "apache-2.0" if run.synthetic_training else "cc-by-nc-4.0"


def _eval_results(run: RunFiles) -> list[EvalResult]:
    if run.evaluation is None:
        return []
    task_type, task_name = _TASKS[run.modality]
    split = run.evaluation["split"]
    protocol = plain(split.get("protocol", "no split"))
    data = SYNTHETIC_DATASET if run.synthetic_evaluation else DATASET
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
            dataset_type="synthetic" if run.synthetic_evaluation else DATASET,
            dataset_name=f"{data} ({protocol})",
            dataset_config=protocol,
            dataset_split=plain(split["name"]),
            metric_type=metric_type,
            metric_name=METRIC_TITLES[name],
            metric_value=run.evaluation["metrics"][name],
            metric_args=arguments,
        )
        for name, (metric_type, arguments) in _METRICS.items()
        if run.evaluation["metrics"].get(name) is not None
    ]


def card_data(run: RunFiles, *, repo_id: str, base_model: str | None = None, has_onnx: bool = False) -> ModelCardData:
    """The front matter of a run's card.

    Args:
        run: The run.
        repo_id: Repository it is published as.
        base_model: As in `base_model_of`.
        has_onnx: Whether the repository holds an ONNX file.

    Returns:
        Card data with a valid `model-index` where the run was evaluated.
    """
    eval_results = _eval_results(run)
    tags = [
        "dermoscopy",
        "dermatology",
        "medical",
        "research-only",
        *(["synthetic-data"] if run.synthetic_training else [DATASET]),
        *(["timm"] if run.modality != "metadata" else []),
        *(["metadata-fusion"] if run.modality == "fusion" else []),
        *(["onnx"] if has_onnx else []),
    ]
    extra: dict[str, Any] = {}
    footprint = training_footprint(run.training)
    if run.training is not None and footprint is not None:
        from_scratch = run.modality == "metadata" or run.training["config"]["pretrained"] == "none"
        extra["co2_eq_emissions"] = {
            # Two significant digits: the formula's assumptions allow no more.
            "emissions": float(f"{footprint.grams_co2e:.2g}"),
            "source": "estimate by the Green Algorithms formula, 10.1002/advs.202100707",
            "training_type": "pre-training" if from_scratch else "fine-tuning",
            "hardware_used": plain(footprint.hardware),
        }
    return ModelCardData(
        language="en",
        license=weights_license(run),
        library_name="transformers",
        pipeline_tag=_TASKS[run.modality][0],
        base_model=base_model_of(run, base_model),
        datasets=None if run.synthetic_training else [DATASET],
        metrics=sorted({result.metric_type for result in eval_results}) or None,
        tags=tags,
        model_name=repo_id.split("/")[-1] if eval_results else None,
        eval_results=eval_results or None,
        **extra,
    )


__all__ = ["DATASET", "SYNTHETIC_DATASET", "base_model_of", "card_data", "weights_license"]
