"""Assembles what is published: one flat folder that loads anywhere and says where it comes from.

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
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from PIL import Image

from ham10000.hub_upload.export_onnx import export_onnx
from ham10000.hub_upload.model_card import NOTHING_STATED, Stated, render_model_card
from ham10000.hub_upload.publish import seal_card
from ham10000.hub_upload.run_files import RunFiles, Sibling, read_run
from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import portable_training, save_model, stored_dtype
from ham10000.training.utils.files import atomic_write_json, atomic_write_text, restore_mode

# What the code files of a bundle import, by the names the package index knows.
RUNTIME_PACKAGES = (
    "huggingface-hub",
    "numpy",
    "pillow",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)
_COPIED = ("split.csv", "split.json", "eval_results.json", "history.json", "conversion.json")


def requirements(packages: Iterable[str] = RUNTIME_PACKAGES) -> str:
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


def find_sibling(run: RunFiles, folder: Path, repo_id: str | None) -> Sibling:
    """Reads another variant and compares it with this run, where both predicted the same images.

    Args:
        run: The run the card is about.
        folder: The other run's folder.
        repo_id: Where the other one is published.

    Returns:
        The sibling; without a comparison where one of the two has no predictions, or they are of different splits.
    """
    other = read_run(folder)
    comparison = None
    ours, theirs = run.folder / "predictions.csv", folder / "predictions.csv"
    if run.evaluation and other.evaluation and ours.is_file() and theirs.is_file():
        splits = [
            (evaluation["split"].get("sha256"), evaluation["split"]["name"])
            for evaluation in (run.evaluation, other.evaluation)
        ]
        if splits[0] == splits[1]:
            comparison = compare_predictions(ours, theirs)
    return Sibling(run=other, repo_id=repo_id, comparison=comparison)


def assemble_bundle(
    checkpoint: Path,
    folder: Path,
    *,
    repo_id: str,
    revision: str,
    siblings: Sequence[Sibling] = (),
    base_model: str | None = None,
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
        base_model: Hub id of the pretrained backbone, where the run's files do not tell.
        max_shard_size: Such as `"2GB"`: weights above it are split.
        onnx: Also export `onnx/model.onnx`.
        stated: What the run's files cannot know of the data, for the card.

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
        atomic_write_json(folder / "train_config.json", portable_training(run.training))
    for name in run.figures:
        (folder / "figures").mkdir(exist_ok=True)
        _copy_figure(checkpoint / "figures" / name, folder / "figures" / name)
    shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py")
    atomic_write_text(folder / "requirements.txt", requirements())
    if onnx:
        export_onnx(folder)
    card = render_model_card(
        run, repo_id=repo_id, revision=revision, siblings=siblings, base_model=base_model, has_onnx=onnx, stated=stated
    )
    atomic_write_text(folder / "README.md", seal_card(card))
    for path in folder.rglob("*"):
        if path.is_file():
            restore_mode(path)


def _copy_figure(source: Path, to: Path) -> None:
    """A plot in a palette of 256 colours: less than half the bytes, and nothing that the eye would miss."""
    try:
        with Image.open(source) as picture:
            picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(to, optimize=True)
    except OSError:  # not a picture that Pillow reads; it is published as it is
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


__all__ = ["RUNTIME_PACKAGES", "assemble_bundle", "describe_tree", "find_sibling", "requirements"]
