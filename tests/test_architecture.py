"""Imports point one way: from the study down to the model, and never in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "ham10000"
# Lowest first. A module may import from its own floor and from those below it.
FLOORS = (
    ("modeling",),
    ("training.utils",),
    ("training.data", "training.inference", "training.run_folder", "training.config"),
    ("training.evaluation", "training.predict"),
    ("training.engine",),
    ("training.train", "training.__main__"),
    ("training.study",),
)
# It reads what a run has written, and never runs one.
NOT_FOR_HUB_UPLOAD = ("training.engine", "training.train", "training.__main__", "training.study")


def module_name(path: Path) -> str:
    """The name of a file below the package, such as `training.data.loader`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path, modules: set[str]) -> set[str]:
    """The modules of this package that a file imports, at its top, in its functions or for its annotations."""
    package = ".".join((PACKAGE, *path.relative_to(ROOT).parent.parts))
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            submodules = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix(f"{PACKAGE}.") in modules else base for name in submodules]
        else:
            continue
        found |= {name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")}
    return found


def floor(module: str) -> int:
    """The number of a module's floor; FLOORS must name it."""
    if module == "training":
        return 0  # its version and nothing else
    return next(number for number, prefixes in enumerate(FLOORS) if module.startswith(prefixes))


def is_allowed(module: str, target: str) -> bool:
    """Whether a module may import another."""
    if module.startswith("hub_upload"):
        return not target.startswith(NOT_FOR_HUB_UPLOAD)
    return not target.startswith("hub_upload") and floor(module) >= floor(target)


FILES = sorted(path for name in ("modeling", "training", "hub_upload") for path in (ROOT / name).rglob("*.py"))
MODULES = {module_name(path) for path in FILES}
IMPORTS = {module_name(path): imported(path, MODULES) for path in FILES}


def test_no_import_points_up_and_each_leads_to_a_module() -> None:
    assert is_allowed("hub_upload.bundle", "training.run_folder")
    assert not is_allowed("training.train", "training.study.command")
    assert not is_allowed("training.run_folder", "hub_upload.bundle")
    assert not is_allowed("hub_upload.bundle", "training.engine")
    # At the top, in a function, and relative.
    assert "training.data.tables" in IMPORTS["training.evaluation.__main__"]
    assert "training.evaluation.paper" in IMPORTS["training.evaluation.__main__"]
    assert "modeling.configuration_ham10000" in IMPORTS["modeling.modeling_ham10000"]
    pairs = [(module, target) for module, found in IMPORTS.items() for target in sorted(found)]
    assert [f"{module} imports {target}" for module, target in pairs if not is_allowed(module, target)] == []
    assert [f"{module} imports {target}" for module, target in pairs if target not in MODULES] == []


def test_there_is_no_circle() -> None:
    TopologicalSorter(IMPORTS).prepare()


# Lower these as the code allows; never raise them.
LINES, PARAMETERS, LINES_WITH_ANY = 80, 9, 129


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, list[str]]]:
    """The name, the tree and the signature's lines of every function, with the line above it."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path.relative_to(ROOT)}:{node.name}", node, lines[node.lineno - 2 : node.body[0].lineno - 1]


def test_no_function_is_longer_than_a_page() -> None:
    lengths = {name: (node.end_lineno or 0) - node.lineno + 1 for name, node, _ in functions()}
    assert {name for name, length in lengths.items() if length > LINES} == set()


def test_many_parameters_have_a_reason_beside_them() -> None:
    many = {}
    for name, node, signature in functions():
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
        if count > PARAMETERS and not any("  # " in line or line.lstrip().startswith("# ") for line in signature):
            many[name] = count
    assert many == {}


def test_any_is_rare() -> None:
    lines = [line for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(bool(re.search(r"\bAny\b", line)) for line in lines) <= LINES_WITH_ANY


@pytest.mark.parametrize(("title", "most"), [("From csv to loss", 8), ("From JPEG to logits", 3)])
def test_a_path_of_the_map_is_short(title: str, most: int) -> None:
    """Counted in the map of CONTRIBUTING, which names every file that a row or an image passes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    listed = re.findall(r"-> ([\w/]+\.py)", text.partition(f"{title}:\n")[2].partition("\n\nFrom ")[0])
    assert 1 < len(listed) <= most
    assert [name for name in listed if not (ROOT / name).is_file()] == []
