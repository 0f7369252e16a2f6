"""How to use a published checkpoint: code that runs as it stands, once the repository is there."""

from ham10000.hub_upload.card_markdown import details, fence, join, section, words
from ham10000.hub_upload.run_files import RunFiles

EXAMPLE_IMAGE = "lesion.jpg"
_EXAMPLE_ROW = {"age": 60, "sex": "male", "localization": "back"}


def _example_fields(run: RunFiles) -> dict[str, object]:
    return {name: _EXAMPLE_ROW[name] for name in run.config["metadata_fields"]}


def _literal(values: dict[str, object]) -> str:
    """A dict as the code formatter would write it."""
    return (
        "{" + ", ".join(f'"{key}": ' + (f'"{v}"' if isinstance(v, str) else str(v)) for key, v in values.items()) + "}"
    )


def _auto_example(run: RunFiles, repo_id: str, revision: str) -> str:
    arguments = []
    if run.modality != "metadata":
        arguments.append(f'images="{EXAMPLE_IMAGE}"')
    if run.modality != "image":
        arguments.append(f"metadata={_literal(_example_fields(run))}")
    return f"""
import torch
from transformers import AutoModel, AutoProcessor

repo, revision = "{repo_id}", "{revision}"
model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)

inputs = processor({", ".join(arguments)})
with torch.inference_mode():
    probabilities = model(**inputs).logits.softmax(-1)[0]
for index in probabilities.argsort(descending=True).tolist():
    print(f"{{probabilities[index]:.3f}}  {{model.config.id2label[index]}}")
"""


def _picture_pipeline_example(repo_id: str, revision: str) -> str:
    return f"""
from transformers import pipeline

classify = pipeline("image-classification", model="{repo_id}", revision="{revision}", trust_remote_code=True)
print(classify("{EXAMPLE_IMAGE}", top_k=7))
"""


def _metadata_pipeline_example(run: RunFiles, repo_id: str, revision: str) -> str:
    picture = {} if run.modality == "metadata" else {"image": EXAMPLE_IMAGE}
    return f"""
from transformers import pipeline

classify = pipeline(
    "image-metadata-classification", model="{repo_id}", revision="{revision}", trust_remote_code=True
)
print(classify({_literal({**picture, **_example_fields(run)})}))
"""


def usage_section(run: RunFiles, repo_id: str, revision: str, *, has_onnx: bool) -> str:
    """Examples for this variant, pinned to a revision.

    Args:
        run: The run.
        repo_id: Repository.
        revision: Tag or commit.
        has_onnx: Whether `onnx/model.onnx` is there.

    Returns:
        Markdown; its first code block is the shortest complete use with `AutoModel`.
    """
    fields = words([f"`{name}`" for name in run.config["metadata_fields"]]) if run.modality != "image" else ""
    missing = {
        "image": "",
        "fusion": f"Any of {fields} may be left out or `None`, all of them too: missing is a state the model was "
        "trained with. A value outside the vocabulary is an error that lists it.",
        "metadata": f"Any of {fields} may be left out or `None`. A value outside the vocabulary is an error that "
        "lists it.",
    }[run.modality]
    pipelines = []
    if run.modality != "image":
        pipelines += [
            "With metadata (lists and `batch_size=` work; the labels come sorted by score):",
            fence("python", _metadata_pipeline_example(run, repo_id, revision)),
        ]
    if run.modality != "metadata":
        bare = f"On a bare picture{', all metadata missing' if run.modality == 'fusion' else ''}:"
        pipelines += [bare, fence("python", _picture_pipeline_example(repo_id, revision))]
    onnx_inputs = {"image": "`pixel_values`", "fusion": "`pixel_values` and `metadata`", "metadata": "`metadata`"}
    onnx = (
        f"`onnx/model.onnx` is the same network for onnxruntime, without torch: input {onnx_inputs[run.modality]} "
        "(float32, any batch size; NaN where a metadata value is missing), output `logits`. Prepare the inputs as "
        "`processor_config.json` says."
        if has_onnx
        else ""
    )
    trust = (
        "`trust_remote_code=True` runs the Python files of this repository on your machine. Read them first (a few "
        "hundred lines: `configuration_ham10000.py`, `modeling_ham10000.py` and their neighbours) and pin the "
        "revision you read, as above. The weights are safetensors, which hold no code."
    )
    return section(
        "How to use it",
        fence("python", _auto_example(run, repo_id, revision)),
        missing,
        details("As a pipeline", join(*pipelines)),
        onnx,
        trust,
        "What the code needs is in `requirements.txt`: torch, timm, transformers and what they rest on.",
    )


__all__ = ["EXAMPLE_IMAGE", "usage_section"]
