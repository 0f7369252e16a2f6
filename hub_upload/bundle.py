"""Assembles what is published, one flat folder that says where it comes from, and proves that it loads anywhere.

bundle/
    README.md                                the model card, rendered from the files below
    config.json, processor_config.json       what the model is, and how its inputs are made
    model.safetensors                        the weights; shards and an index if asked for
    *_ham10000.py                            the code, for trust_remote_code=True
    handler.py, requirements.txt             for Inference Endpoints, and for anybody else
    split.csv, split.json                    who was trained on, with a hash
    train_config.json, history.json          how it was trained, without this machine's paths
    eval_results.json, figures/              how good it is
    conversion.json                          where it was carried over from, instead of the training files
    onnx/model.onnx                          if asked for
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ham10000.hub_upload.export_onnx import export_onnx, fixed_inputs
from ham10000.hub_upload.model_card import NOTHING_STATED, Stated, render_model_card
from ham10000.hub_upload.publish import seal_card
from ham10000.hub_upload.run_files import RunFiles, Sibling, read_run
from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile, portable_training, save_model, stored_dtype
from ham10000.training.utils.files import atomic_write_json, atomic_write_text, restore_mode

# What the code files of a bundle import, by the names the package index knows.
_PACKAGES = ("huggingface-hub", "numpy", "pillow", "safetensors", "timm", "torch", "torchvision", "transformers")
_COPIED = (RunFile.SPLIT, RunFile.SPLIT_RECORD, RunFile.EVALUATION, RunFile.HISTORY, RunFile.CONVERSION)
# Runs in a fresh interpreter where every import of this package fails, installed or not, so the code that runs is the
# copy in the checkpoint folder.
_STRANGER = """
import sys

sys.modules["ham10000"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

folder, inputs_file, outputs_file = sys.argv[1:]
inputs = load_file(inputs_file)
logits = {}
for auto_class in (AutoModel, AutoModelForImageClassification):
    model = auto_class.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.inference_mode():
        logits[auto_class.__name__] = model(**inputs).logits
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "ham10000"
assert AutoProcessor.from_pretrained(folder, trust_remote_code=True).model_input_names == sorted(inputs, reverse=True)
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
save_file(logits, outputs_file)
"""


def requirements(packages: Iterable[str] = _PACKAGES) -> str:
    """The content of a `requirements.txt`, with the floors this package was tested with.

    Args:
        packages: What is needed, by the names the package index knows; by default by a bundle's code.

    Returns:
        One line each, in that order.

    Raises:
        Ham10000Error: If the installed package does not declare one of them.
    """
    declared: dict[str, str] = {}
    for line in importlib.metadata.requires("ham10000") or []:
        if match := re.match(r"([A-Za-z0-9._-]+)\s*([^;\[]*?)\s*(?:;|$)", line):
            # What is always needed is declared before what extras add.
            declared.setdefault(match[1].lower(), match[1] + match[2])
    names = list(packages)
    if missing := sorted(set(names) - set(declared)):
        raise Ham10000Error(f"The installed ham10000 declares no requirement on {missing}; install it again.")
    return "".join(f"{declared[name]}\n" for name in names)


def read_sibling(argument: str, run: RunFiles, repo_id: str) -> Sibling:
    """Reads another variant and compares it with a run, where both predicted the same images of the same split.

    Args:
        argument: `RUN` or `RUN=REPO_ID`: the other run's folder, and where it is published. By default its id follows
            from `repo_id` by the naming scheme `user/name-<modality>`, or is unknown.
        run: The run the card is about.
        repo_id: Its Hub id.

    Raises:
        Ham10000Error: If the folder is not a run.
    """
    folder, _, name = argument.partition("=")
    other, ending = read_run(folder), f"-{run.modality}"
    if not name and repo_id.endswith(ending):
        name = f"{repo_id.removesuffix(ending)}-{other.modality}"
    predictions = [one.folder / RunFile.PREDICTIONS for one in (run, other)]
    comparison = None
    if run.evaluation and other.evaluation and all(path.is_file() for path in predictions):
        split, other_split = run.evaluation["split"], other.evaluation["split"]
        if (split["name"], split.get("sha256")) == (other_split["name"], other_split.get("sha256")):
            comparison = compare_predictions(*predictions)
    return Sibling(other, name or None, comparison)


def assemble_bundle(
    checkpoint: Path,
    folder: Path,
    *,
    repo_id: str,
    revision: str,
    siblings: Sequence[Sibling] = (),
    max_shard_size: str | None = None,
    onnx: bool = False,
    stated: Stated = NOTHING_STATED,
) -> None:
    """Writes everything that is published into an empty folder.

    Args:
        checkpoint: Folder of a finished run, or of `ham10000-convert`.
        folder: Destination, empty or absent.
        repo_id: Hub id it will have; the card's examples name it.
        revision: What the card's examples pin.
        siblings: Other variants, for the card's comparison.
        max_shard_size: Such as `"2GB"`: weights above it are split.
        onnx: Also export `onnx/model.onnx`.
        stated: What the run's files cannot know, for the card.

    Raises:
        Ham10000Error: If the run is not finished, its files are damaged, or saving changed a weight.
    """
    run = read_run(checkpoint)
    if run.training is not None and not run.training["finished"]:
        raise Ham10000Error(f"The run {str(checkpoint)!r} is not finished; continue it with --resume.")
    if folder.exists() and any(folder.iterdir()):
        raise Ham10000Error(f"{str(folder)!r} is not empty; give a folder that does not exist.")
    folder.mkdir(parents=True, exist_ok=True)

    load_checkpoint(checkpoint)  # for its checks and messages; it gives float32, and what is stored is published
    model = Ham10000ForImageClassification.from_pretrained(checkpoint, dtype="auto", local_files_only=True)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    save_model(folder, model, dtype=stored_dtype(checkpoint), **sharding)
    Ham10000Processor.from_pretrained(checkpoint, local_files_only=True).save_pretrained(folder)
    saved = Ham10000ForImageClassification.from_pretrained(folder, dtype="auto", local_files_only=True).state_dict()
    for name, value in model.state_dict().items():
        if saved[name].dtype != value.dtype or not torch.equal(saved[name], value):
            raise Ham10000Error(f"Saving {str(checkpoint)!r} changed the weight {name!r}; nothing was published.")

    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    if run.training is not None:
        atomic_write_json(folder / RunFile.TRAINING, portable_training(run.training))
    for name in run.figures:
        (folder / "figures").mkdir(exist_ok=True)
        _copy_figure(checkpoint / "figures" / name, folder / "figures" / name)
    shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py")
    atomic_write_text(folder / "requirements.txt", requirements())
    if onnx:
        export_onnx(folder)
    card = render_model_card(run, repo_id=repo_id, revision=revision, siblings=siblings, has_onnx=onnx, stated=stated)
    atomic_write_text(folder / "README.md", seal_card(card))
    for path in folder.rglob("*"):
        if path.is_file():
            restore_mode(path)


def _copy_figure(source: Path, to: Path) -> None:
    """A plot in a palette of 256 colours: less than half the bytes, and nothing that the eye would miss."""
    try:
        with Image.open(source) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
    except OSError:  # not an image that Pillow reads; it is published as it is
        shutil.copyfile(source, to)


def describe_tree(folder: Path) -> str:
    """The files of a folder with their sizes, as shown before an upload.

    Args:
        folder: The folder.

    Returns:
        Lines of text, the last with the total.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in paths]
    lines = [f"  {size:>13,}  {path.relative_to(folder).as_posix()}" for path, size in zip(paths, sizes, strict=True)]
    return "\n".join([*lines, f"  {sum(sizes):>13,}  bytes in {len(paths)} files"])


def verify_checkpoint(checkpoint: str | Path) -> dict[str, int]:
    """Loads a checkpoint in a process that cannot import this package and compares logits bit for bit.

    Args:
        checkpoint: Folder written by `save_pretrained` of model and processor.

    Returns:
        `{"images": n, "logits": n}`, the numbers compared.

    Raises:
        Ham10000Error: If the clean process fails to load the folder, or its logits differ in any bit.
    """
    checkpoint = Path(checkpoint).resolve()
    if not (checkpoint / "config.json").is_file():
        raise Ham10000Error(f"{str(checkpoint)!r} holds no config.json; expected a checkpoint folder.")
    try:
        processor = Ham10000Processor.from_pretrained(checkpoint)
        model = AutoModel.from_pretrained(checkpoint, dtype=torch.float32)
    except OSError as error:  # transformers' error for a file that is not there
        raise Ham10000Error(f"{str(checkpoint)!r} is no complete checkpoint folder: {error}") from error
    inputs = fixed_inputs(processor)
    with torch.inference_mode():
        expected = model(**inputs).logits
    with tempfile.TemporaryDirectory() as scratch:
        inputs_file, outputs_file = Path(scratch, "inputs.safetensors"), Path(scratch, "outputs.safetensors")
        save_file(inputs, inputs_file)
        # An own module cache: the copy of the code under test must come from the folder, not from an earlier load.
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums are split by threads, and bits depend on that
        }
        process = subprocess.run(
            [sys.executable, "-c", _STRANGER, str(checkpoint), str(inputs_file), str(outputs_file)],
            capture_output=True,
            text=True,
            cwd=scratch,
            env=environment,
        )
        if process.returncode != 0:
            raise Ham10000Error(
                f"{str(checkpoint)!r} does not load without this package:\n{process.stderr.strip()[-2000:]}"
            )
        actual = load_file(outputs_file)
    for name, logits in actual.items():
        if not torch.equal(logits, expected):
            difference = (logits - expected).abs().max().item()
            raise Ham10000Error(f"Logits of {name} with remote code differ by up to {difference:g}.")
    return {"images": len(expected), "logits": expected.numel() * len(actual)}


__all__ = ["assemble_bundle", "describe_tree", "read_sibling", "requirements", "verify_checkpoint"]
