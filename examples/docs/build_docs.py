"""Builds the API documentation from the docstrings, and the guides beside it: `make docs`.

Needs no network. Every warning is an error, so that a docstring that cannot be rendered is noticed.
"""

import argparse
import html
import importlib
import os
import re
import shutil
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import pdoc
import pdoc.render
from markdown_it import MarkdownIt

from ham10000.training.utils.files import atomic_write_text

ROOT = Path(__file__).parents[2]
PACKAGES = ("modeling", "training", "hub_upload")
# Up to the anchor, which stays; data: and https: are not local.
_LOCAL = re.compile(r'(href|src)="([^":#]+)(?=[#"])')
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 860px; margin: 24px auto; padding: 0 20px; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 14px; }
th, td { border: 1px solid #d1d9e0; padding: 5px 11px; }
pre { background: #f6f8fa; padding: 14px; overflow: auto; font-size: 13px; }
img { max-width: 100%; }
"""


def public_modules(packages: tuple[str, ...] = PACKAGES) -> list[str]:
    """The modules that are documented.

    Args:
        packages: Folders of the repository.

    Returns:
        Names such as `ham10000.training.engine`; a package stands before its modules.
    """
    names = []
    for package in packages:
        names.append(f"ham10000.{package}")
        files = sorted((ROOT / package).rglob("[!_]*.py"))
        names += [".".join(("ham10000", *file.relative_to(ROOT).with_suffix("").parts)) for file in files]
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
    for page in (output / "ham10000").rglob("*.html"):
        unlink_undocumented(page)
    write_guides(output)


def unlink_undocumented(page: Path) -> None:
    """Leaves the text alone of links to what the page does not show, such as private bases and their members.

    Args:
        page: A page that pdoc wrote.
    """
    text = page.read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', text))
    shown = re.sub(r'<a\b[^>]*href="#([^"]+)"[^>]*>(.*?)</a>', lambda link: link[0 if link[1] in ids else 2], text)
    atomic_write_text(page, shown)


def page_of(document: Path) -> Path:
    """The page of a Markdown document, relative to the documentation.

    Args:
        document: A file of the repository; `README.md` of a folder becomes a page with the folder's name.
    """
    parts = [part for part in document.relative_to(ROOT).with_suffix("").parts if part != "examples"]
    if document.name == "README.md" and document.parent != ROOT:
        parts = [*document.parent.relative_to(ROOT / "examples").parts] or ["examples"]
    return Path(*parts).with_suffix(".html")


def render_page(markdown: str) -> str:
    """Renders a document as a page, whose headings have the ids that GitHub gives them and whose first is the title.

    Args:
        markdown: The document; front matter is left out.
    """
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = parser.parse(_FRONT_MATTER.sub("", markdown))
    headings: list[str] = []
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            headings.append("".join(child.content for child in inline.children or []))
            token.attrSet("id", re.sub(r"[^\w\- ]", "", headings[-1].lower()).replace(" ", "-"))
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{html.escape(headings[0])}</title>\n'
        f"<style>{_STYLE}</style></head>\n"
        f"<body>\n{parser.renderer.render(tokens, parser.options, {})}</body>\n</html>\n"
    )


def write_guides(output: Path) -> None:
    """Writes the guides, and every document and file that they lead to, with links that work in the documentation.

    Args:
        output: The folder of the documentation.

    Raises:
        FileNotFoundError: A link leads to no file of the repository.
    """
    waiting = sorted((ROOT / "examples" / "guides").glob("*.md"))
    written: set[Path] = set()
    while waiting:
        document = waiting.pop()
        if document in written:
            continue
        written.add(document)
        page = output / page_of(document)
        text = render_page(document.read_text(encoding="utf-8"))
        local = {target: (document.parent / target).resolve(strict=True) for _, target in _LOCAL.findall(text)}
        waiting += [path for path in local.values() if path.suffix == ".md"]
        places = {target: _relative(_place(path, output), page) for target, path in local.items()}
        text = _LOCAL.sub(lambda match: f'{match[1]}="{places[match[2]]}', text)  # noqa: B023 (used at once)
        back = f'<p><a href="{_relative(output / "index.html", page)}">ham10000 documentation</a></p>'
        atomic_write_text(page, text.replace("<body>\n", f"<body>\n{back}\n", 1))


def _place(path: Path, output: Path) -> Path:
    """Where a linked file stands in the documentation; what is no document is copied there."""
    if path.suffix == ".md":
        return output / page_of(path)
    place = output / "files" / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, place, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, place)
    return place


def _relative(target: Path, page: Path) -> str:
    """A link from a page to a file."""
    return Path(os.path.relpath(target, page.parent)).as_posix()


def main() -> None:
    """Builds into `--output`, by default `build/docs`, and says where to look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "docs", help="folder to write")
    output = parser.parse_args().output
    build(output)
    print(f"{output / 'index.html'}: {len(public_modules())} modules")


if __name__ == "__main__":
    sys.exit(main())
