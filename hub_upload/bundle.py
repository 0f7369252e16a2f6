"""Assembles what is published: a checkpoint's folder, proved to load anywhere, or a Space of the demo.

A bundle has the model card, what `save_pretrained` writes (config, processor, weights, code), the files that say how
it was trained and evaluated without this machine's paths, and `handler.py` and `requirements.txt`. A Space has the
modules of this package that the page imports, so that it starts by itself.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from modulefinder import ModuleFinder
from pathlib import Path

import torch
from huggingface_hub import SpaceCardData
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import ham10000.modeling
from ham10000.hub_upload.export_onnx import export_onnx, fixed_inputs
from ham10000.hub_upload.model_card import NOTHING_STATED, RESEARCH_BANNER, Stated, publishes_split, render_model_card
from ham10000.hub_upload.publish import check_names, seal_card
from ham10000.hub_upload.run_files import RunFiles, Sibling, read_run
from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile, save_model, stored_dtype
from ham10000.training.utils.files import JsonObject, atomic_write_json, atomic_write_text, restore_mode
from ham10000.training.utils.markdown_text import bullets, code, join

# The folder of this package.
_ROOT = Path(ham10000.modeling.__path__[0]).parent
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
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor

folder, inputs_file, outputs_file = sys.argv[1:]
inputs = load_file(inputs_file)
logits = {}
for auto_class in (AutoModel, AutoModelForImageClassification):
    model = auto_class.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    with torch.inference_mode():
        logits[auto_class.__name__] = model(**inputs).logits
assert AutoProcessor.from_pretrained(folder, trust_remote_code=True).model_input_names == sorted(inputs, reverse=True)
AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
save_file(logits, outputs_file)
"""
# The Hub's token, or its place: an offline process needs neither, and code from the folder should not have them.
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH")
_DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# How the Hub runs a Space, and how it shows it.
_SPACE_SETTINGS: JsonObject = {"sdk": "gradio", "python_version": "3.11", "app_file": "app.py", "pinned": False}
_SPACE_SETTINGS |= {"short_description": "HAM10000 models side by side. Research only.", "colorFrom": "yellow"}
_SPACE_SETTINGS |= {"colorTo": "blue", "tags": ["dermoscopy", "research-only", "HAM10000"]}
_SPACE_APP = '''"""Starts the demo of this Space; research only, never for diagnosis."""

from ham10000.hub_upload.app import main

MODELS = [
{models}]

if __name__ == "__main__":
    raise SystemExit(main(["--checkpoints", *MODELS]))
'''


def requirements(packages: Sequence[str] = _PACKAGES) -> str:
    """Returns a `requirements.txt` of packages by their index names, with the floors this package was tested with."""
    lines = reversed(importlib.metadata.requires("ham10000") or [])
    # What is always needed is declared before what extras add, and counts where both name a package.
    declared = {match[1].lower(): match[0].strip() for line in lines if (match := re.match(r"([\w.-]+)[^;\[]*", line))}
    if missing := sorted(set(packages) - set(declared)):
        raise Ham10000Error(f"The installed ham10000 declares no requirement on {missing}; install it again.")
    return "".join(f"{declared[name]}\n" for name in packages)


def read_sibling(argument: str, run: RunFiles, repo_id: str) -> Sibling:
    """Reads another variant, `RUN` or `RUN=REPO_ID`, and compares it with the card's run, if the images are the same.

    Where it is published follows by default from the card's `repo_id` and the naming scheme `user/name-<modality>`.
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
    """Writes everything that is published of a finished run, or of a conversion, into a new folder.

    The card's examples load `repo_id` at `revision`. Weights above `max_shard_size`, such as `"2GB"`, are split.
    """
    run = read_run(checkpoint)
    if run.training is not None and not run.training["finished"]:
        raise Ham10000Error(f"The run {str(checkpoint)!r} is not finished; continue it with --resume.")
    load_checkpoint(checkpoint)  # for its checks and messages; it gives float32, and what is stored is published
    model = Ham10000ForImageClassification.from_pretrained(checkpoint, dtype="auto", local_files_only=True)
    sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    save_model(folder, model, dtype=stored_dtype(checkpoint), **sharding)
    Ham10000Processor.from_pretrained(checkpoint, local_files_only=True).save_pretrained(folder)
    private = () if publishes_split(run, stated) else (RunFile.SPLIT, RunFile.SPLIT_RECORD)
    for name in _COPIED:
        if (checkpoint / name).is_file() and name not in private:
            shutil.copyfile(checkpoint / name, folder / name)
    for name in run.figures:
        source, target = (place / "figures" / name for place in (checkpoint, folder))
        target.parent.mkdir(exist_ok=True)
        try:  # a palette of 256 colours: less than half the bytes, and nothing that the eye would miss
            with Image.open(source) as image:
                image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
        except OSError:  # not an image that Pillow reads; it is published as it is
            shutil.copyfile(source, target)
    if run.training is not None:
        atomic_write_json(folder / RunFile.TRAINING, run.training)
    shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py")
    atomic_write_text(folder / "requirements.txt", requirements())
    if onnx:
        export_onnx(folder)
    card = render_model_card(run, repo_id=repo_id, revision=revision, siblings=siblings, has_onnx=onnx, stated=stated)
    atomic_write_text(folder / "README.md", seal_card(card))
    for path in folder.glob("*.safetensors"):
        restore_mode(path)


def describe_tree(folder: Path) -> str:
    """Returns the files of a folder with their sizes, the last line with the total, as shown before an upload."""
    sizes = {path: path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
    lines = [f"  {size:>13,}  {path.relative_to(folder).as_posix()}" for path, size in sizes.items()]
    return "\n".join([*lines, f"  {sum(sizes.values()):>13,}  bytes in {len(sizes)} files"])


def verify_checkpoint(checkpoint: str | Path) -> int:
    """Loads a checkpoint in a process that cannot import this package and returns how many logits have equal bits.

    That process runs the folder's own code. The Hub's token is not in its environment; otherwise it may do all that
    this one may. If it cannot load the folder, or a logit differs in any bit, that is a `Ham10000Error`.
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
        environment = {name: value for name, value in os.environ.items() if name not in _TOKENS} | {
            # An own module cache: the copy of the code under test comes from the folder, not from an earlier load.
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # sums are split by threads, and bits depend on that
        }
        command = [sys.executable, "-c", _STRANGER, str(checkpoint), str(inputs_file), str(outputs_file)]
        process = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment)
        if process.returncode != 0:
            said = process.stderr.strip()[-2000:]
            raise Ham10000Error(f"{str(checkpoint)!r} does not load without this package:\n{said}")
        actual = load_file(outputs_file)
    for name, logits in actual.items():
        if not torch.equal(logits, expected):
            difference = (logits - expected).abs().max().item()
            raise Ham10000Error(f"Logits of {name} with remote code differ by up to {difference:g}.")
    return expected.numel() * len(actual)


def needed_modules() -> tuple[dict[str, Path], set[str]]:
    """What the demo imports, directly or not, at the top of a module or within its functions.

    First the modules of this package by full name, then the top names of other packages, standard library left out.
    """
    finder = ModuleFinder(path=[])  # where it finds no package but ours
    vars(finder.add_module("ham10000"))["__path__"] = [str(_ROOT)]
    finder.import_hook("ham10000.hub_upload.app")
    files = {name: vars(module)["__file__"] for name, module in finder.modules.items()}
    others = {name.split(".")[0] for name in finder.badmodules} - set(sys.stdlib_module_names) - {"ham10000"}
    return {name: Path(file) for name, file in files.items() if file is not None}, others


def assemble_space(
    folder: Path, models: Sequence[str], *, title: str = "HAM10000 side by side", licence: str = "apache-2.0"
) -> None:
    """Writes a Space of models, `user/name@revision` each, into a new folder; the licence is that of its code."""
    chosen = []
    for model in models:
        repo_id, at, revision = model.partition("@")
        if not at:
            expected = "expected user/name@v1.0, so that it cannot change"
            raise Ham10000Error(f"--model {model!r} has no revision; {expected}.")
        check_names(repo_id, tag=None, revision=revision)
        chosen.append((repo_id, revision))
    files, imported = needed_modules()
    for file in files.values():
        for source in (file, file.with_suffix(".json")):  # constants that a module reads from beside itself
            if source.is_file():
                target = folder / "ham10000" / source.relative_to(_ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
    # A package proper: in a Space the copy beside app.py counts, even where another is installed.
    atomic_write_text(folder / "ham10000" / "__init__.py", "")
    atomic_write_text(folder / "app.py", _SPACE_APP.format(models="".join(f'    "{model}",\n' for model in models)))
    required = sorted(_DISTRIBUTIONS.get(name, name).lower() for name in imported)
    atomic_write_text(folder / "requirements.txt", requirements(required))
    settings = _SPACE_SETTINGS | {"sdk_version": importlib.metadata.version("gradio")}
    head = SpaceCardData(title=title, license=licence, models=[repo_id for repo_id, _ in chosen], **settings)
    body = join(
        f"# {title}",
        RESEARCH_BANNER,
        "One dermatoscopic image, and what several models say to it: probabilities, the region the network looks "
        "at, and what age, sex and site changed. The samples are drawn by the package; images you upload are "
        "deleted after an hour.",
        bullets(f"{code(repo_id)} at {code(revision)}" for repo_id, revision in chosen),
    )
    atomic_write_text(folder / "README.md", seal_card(f"---\n{head.to_yaml()}\n---\n\n{body}\n"))
