"""Makes a Hugging Face Space of the demo: a folder that starts by itself, published as one commit.

space/
    README.md            the Space's settings, the models it shows, and what it must not be used for
    app.py               starts the page with those models, each at a pinned revision
    requirements.txt     what the code below imports, with the floors this package was tested with
    ham10000/            the modules of this package that the page needs; nothing is fetched but the models

ham10000-space --repo_id user/ham10000-demo --model user/ham10000-image@v1.0 --model user/ham10000-fusion@v1.0
"""

import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from modulefinder import ModuleFinder
from pathlib import Path

from huggingface_hub import SpaceCardData

import ham10000.modeling
from ham10000.hub_upload.bundle import requirements
from ham10000.hub_upload.model_card import RESEARCH_BANNER
from ham10000.hub_upload.publish import check_names, seal_card
from ham10000.modeling import Ham10000Error
from ham10000.training.utils.files import atomic_write_text
from ham10000.training.utils.markdown_text import bullets, code, join

_PAGE = "ham10000.hub_upload.app"
# Names of packages on the index, where they differ from what is imported.
_DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn", "yaml": "pyyaml"}
_APP = '''"""Starts the demo of this Space; research only, never for diagnosis."""

from ham10000.hub_upload.app import main

MODELS = {models}

if __name__ == "__main__":
    raise SystemExit(main(["--checkpoints", *MODELS]))
'''
_PYTHON = "3.11"


def needed_modules() -> tuple[dict[str, Path], set[str]]:
    """What the page imports, directly or not, at the top of a module or within its functions.

    Returns:
        The modules of this package by full name, and the top names of other packages, standard library left out.
    """
    (folder,) = ham10000.modeling.__path__
    finder = ModuleFinder(path=[])  # where it finds no package but ours
    vars(finder.add_module("ham10000"))["__path__"] = [str(Path(folder).parent)]
    finder.import_hook(_PAGE)
    files = {name: vars(module)["__file__"] for name, module in finder.modules.items()}
    others = {name.split(".")[0] for name in finder.badmodules} - set(sys.stdlib_module_names) - {"ham10000"}
    return {name: Path(file) for name, file in files.items() if file is not None}, others


def _render_readme(title: str, models: Sequence[tuple[str, str]], licence: str) -> str:
    """The Space's README.md, whose head the Hub reads as its settings."""
    head = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=_PYTHON,
        app_file="app.py",
        license=licence,
        models=[repo_id for repo_id, _ in models],
        tags=["dermoscopy", "research-only", "HAM10000"],
        short_description="HAM10000 models side by side. Research only.",
        colorFrom="yellow",
        colorTo="blue",
        pinned=False,
    )
    body = join(
        f"# {title}",
        RESEARCH_BANNER,
        "One dermatoscopic image, and what several models say to it: probabilities, the region the network looks "
        "at, and what age, sex and site changed. The samples are drawn by the package; images you upload are "
        "deleted after an hour.",
        bullets(f"{code(repo_id)} at {code(revision)}" for repo_id, revision in models),
    )
    return f"---\n{head.to_yaml()}\n---\n\n{body}\n"


def assemble_space(
    folder: Path, models: Sequence[str], *, title: str = "HAM10000 side by side", licence: str = "apache-2.0"
) -> None:
    """Writes a Space into an empty folder.

    Args:
        folder: Destination, empty or absent.
        models: `user/name@revision` each.
        title: As the Hub shows it.
        licence: Of the Space's code; each model keeps its own.

    Raises:
        Ham10000Error: For no model, one without a revision, or a folder that is not empty.
    """
    if not models:
        raise Ham10000Error("A Space needs at least one model: --model user/ham10000-fusion@v1.0.")
    chosen = []
    for model in models:
        repo_id, at, revision = model.partition("@")
        if not at:  # a Space shows a release that cannot change under it
            expected = "expected user/name@v1.0, so that it cannot change"
            raise Ham10000Error(f"--model {model!r} has no revision; {expected}.")
        check_names(repo_id, tag=None, revision=revision)
        chosen.append((repo_id, revision))
    if folder.exists() and any(folder.iterdir()):
        raise Ham10000Error(f"{str(folder)!r} is not empty; give a folder that does not exist.")
    files, imported = needed_modules()
    required = requirements(sorted(_DISTRIBUTIONS.get(name, name).lower() for name in imported))
    for name, file in files.items():
        target = folder.joinpath(*name.split("."))
        target = target / "__init__.py" if file.name == "__init__.py" else target.with_suffix(".py")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
        # Constants that a module reads from beside itself bear its name.
        constants = file.with_suffix(".json")
        if constants.is_file():
            shutil.copyfile(constants, target.with_suffix(".json"))
    # A package proper: in a Space the copy beside app.py counts, even where another is installed.
    atomic_write_text(folder / "ham10000" / "__init__.py", "")
    listed = "".join(f'    "{model}",\n' for model in models)
    atomic_write_text(folder / "app.py", _APP.format(models=f"[\n{listed}]"))
    atomic_write_text(folder / "requirements.txt", required)
    atomic_write_text(folder / "README.md", seal_card(_render_readme(title, chosen, licence)))


__all__ = ["assemble_space", "needed_modules"]
