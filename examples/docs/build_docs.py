"""Builds the API documentation from the docstrings, and the guides beside it: `make docs`.

Needs no network. Every warning is an error, so that a docstring that cannot be rendered is noticed.
"""

import argparse
import importlib
import shutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

from ham10000.hub_upload.preview import render_preview
from ham10000.training.atomic import atomic_write_text

ROOT = Path(__file__).parents[2]
PACKAGES = ("modeling", "training", "hub_upload")


def public_modules(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """The modules that are documented.

    Args:
        packages: Folders of the repository.

    Returns:
        Names such as `ham10000.training.losses`; a package stands before its modules.
    """
    names = []
    for package in packages:
        names.append(f"ham10000.{package}")
        files = sorted((ROOT / package).glob("[!_]*.py"))
        names += [f"ham10000.{package}.{file.stem}" for file in files]
    return names


def build(output: Path, packages: tuple[str, ...] = PACKAGES) -> None:
    """Writes the documentation into a new folder.

    Args:
        output: The folder; an earlier one is replaced.
        packages: Folders of the repository to document.
    """
    shutil.rmtree(output, ignore_errors=True)
    pdoc.render.configure(docformat="google", show_source=False, template_directory=Path(__file__).parent)
    names = public_modules(packages)
    for name in names:  # libraries that warn when imported are none of ours
        importlib.import_module(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # pdoc finds the modules of a package itself, unless its `__init__.py` has an `__all__`.
        warnings.filterwarnings("ignore", message=r"(?s).*has already been added")
        pdoc.pdoc(*names, output_directory=output)
    for guide in sorted((ROOT / "examples" / "guides").glob("*.md")):
        page = render_preview(guide.read_text(encoding="utf-8"), guide.parent)
        atomic_write_text(output / "guides" / f"{guide.stem}.html", page)


def main() -> None:
    """Builds into `--output`, by default `build/docs`, and says where to look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="folder to write")
    output = parser.parse_args().output
    build(output)
    print(f"{output / 'index.html'}: {len(public_modules())} modules")


if __name__ == "__main__":
    sys.exit(main())
