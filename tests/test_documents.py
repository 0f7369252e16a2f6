"""What README, CONTRIBUTING and the guides say is so: links, names, snippets and command lines."""

import ast
import importlib
import os
import re
import runpy
import shutil
import subprocess
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from command_lines import ROOT, code_blocks, command_lines, parse_command
from PIL import Image

from ham10000.training.evaluation.decision import decide

FOLDERS = ("", "benchmarks/", "results/", "checkpoints/")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCUMENTS += [ROOT / "examples" / f"{folder}README.md" for folder in FOLDERS]
DOCUMENTS += sorted((ROOT / "examples" / "guides").glob("*.md"))
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())


def read(*names: str) -> str:
    return ROOT.joinpath(*names).read_text(encoding="utf-8")


@each_document
def test_relative_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    local = [target.partition("#")[0] for target in targets if not target.startswith(("https://", "#"))]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_the_functions_contributing_names_exist() -> None:
    named = re.findall(r"`([\w/]+\.py):(\w+)`", read("CONTRIBUTING.md"))
    assert len(named) > 10
    for file, name in named:
        tree = ast.parse(read(file))
        assert name in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}, file


def mistakes(lines: Iterable[tuple[str, bool]]) -> dict[str, str]:
    """What is wrong with command lines, each of which is complete or not."""
    found = {}
    for line, complete in lines:
        try:
            parse_command(line, complete)
        except (ImportError, ValueError) as error:
            found[line] = str(error)
    return found


@each_document
def test_command_lines_are_understood(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # config files are named from here
    lines = dict(command_lines(document.read_text(encoding="utf-8")))
    assert mistakes(lines.items()) == {}
    assert lines


def test_command_lines_at_the_heads_of_benchmarks_and_plans_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for file in [*ROOT.glob("examples/benchmarks/*.py"), *ROOT.glob("examples/configs/*.yaml")]:
        text = re.sub(r"^# *", "", file.read_text(encoding="utf-8").replace("\\\n#", ""), flags=re.MULTILINE)
        assert mistakes((line, True) for line in re.findall(r"^python .*", text, re.MULTILINE)) == {}


@pytest.mark.parametrize(
    ("line", "complete", "message"),
    [
        ("ham10000-predikt lesion.jpg", True, "no such command"),
        ("ham10000-push --repo_id user/name", True, "required: --checkpoint"),
        ("ham10000-predict --presicion auto", False, "unrecognized arguments: --presicion"),
        ("ham10000-predict --precision fp17", False, "invalid choice: 'fp17'"),
        ("accelerate launch training/train.py --modalty image --output_dir x", True, "--modalty"),
        ("accelerate launch --num_machine_gun 2 …", False, "--num_machine_gun"),
        ("accelerate launch training/trian.py", True, "there is no training/trian.py"),
        ("make tea", True, "no target 'tea'"),
        ("pip install .[explian]", False, "no extra 'explian'"),
        (".venv/bin/python -m pytest tests/test_documents.py::test_nothing", True, "has no test_nothing"),
    ],
)
def test_a_misspelt_command_line_is_noticed(line: str, complete: bool, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_command(line, complete)


def test_snippets_of_the_readme_run(
    tmp_path: Path, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word: the folders the snippets name, the Hub's id too, are links to a random checkpoint."""
    monkeypatch.chdir(tmp_path)
    for name in ("examples/checkpoints/ham10000-fusion", "user/ham10000-fusion"):
        Path(name).parent.mkdir(parents=True)
        Path(name).symlink_to(tiny_checkpoints["fusion"])
    Image.effect_noise((80, 60), 60).convert("RGB").save("lesion.jpg")
    direct, remote, classified = code_blocks(read("README.md"), "python")

    names: dict[str, Any] = {}
    exec(compile(direct, "README.md", "exec"), names)
    probabilities, model = names["probabilities"], names["model"]
    assert probabilities.shape == (1, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1))

    exec(compile(remote, "README.md", "exec"), names)
    again = names["model"]  # with the package's code, which is registered by now; ham10000-verify tries the other
    assert again is not model
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)

    *_, last = ast.parse(classified).body
    exec(compile(classified, "README.md", "exec"), names)
    answers = eval(ast.unparse(last), names)
    expected, order = probabilities[0].sort(descending=True)
    assert [answer["label"] for answer in answers] == [model.config.id2label[k] for k in order[:3].tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(expected[:3].tolist(), abs=1e-6)


def test_snippets_of_the_guide_to_using_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, one after the other, with the checkpoint they name."""
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    for name in ("lesion.jpg", "other.jpg"):
        Image.effect_noise((80, 60), 60).convert("RGB").save(name)
    names: dict[str, Any] = {}
    for snippet in code_blocks(read("examples", "guides", "use.md"), "python"):
        exec(compile(snippet, "use.md", "exec"), names)
    model, inputs = names["model"], names["inputs"]
    assert names["probabilities"].shape == (2, 7)
    assert names["features"].shape == (2, 1280)
    with torch.inference_mode():
        expected = decide(model(**inputs).logits.softmax(-1).numpy(), model.config.class_prior, "balanced")
    assert names["labels"] == [model.config.id2label[k] for k in expected.tolist()]


def apply_diff(number: int, folder: Path) -> None:
    """Applies a diff of CONTRIBUTING to copies of the files it changes."""
    diff = code_blocks(read("CONTRIBUTING.md"), "diff")[number]
    for name in re.findall(r"^\+\+\+ b/(\S+)$", diff, re.MULTILINE):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)}  # wherever the folder lies, no repository
    subprocess.run(["git", "apply", "-"], input=diff, text=True, check=True, cwd=folder, env=alone)


def test_the_metric_of_contributing_applies_and_works(tmp_path: Path) -> None:
    """On a copy; the expected number is worked out by hand, the patched test asks scikit-learn."""
    apply_diff(0, tmp_path)
    compute_metrics = runpy.run_path(str(tmp_path / "training" / "evaluation" / "metrics.py"))["compute_metrics"]
    # The true class is the first, the second and the third most probable.
    probabilities = [[0.5, 0.3, 0.2, 0, 0, 0, 0]] * 3
    assert compute_metrics([0, 1, 2], probabilities)["top2_accuracy"] == pytest.approx(2 / 3)
    assert "sk.top_k_accuracy_score" in (tmp_path / "tests" / "evaluation" / "test_metrics.py").read_text("utf-8")


def test_the_fusion_block_of_contributing_applies_and_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply_diff(1, tmp_path)
    assert len(list(tmp_path.rglob("*.*"))) == 3  # in at most three places
    # In a package of its own: its imports are relative.
    shutil.copytree(ROOT / "modeling", tmp_path / "patched", ignore=shutil.ignore_patterns("__init__.py"))
    shutil.copytree(tmp_path / "modeling", tmp_path / "patched", dirs_exist_ok=True)
    monkeypatch.syspath_prepend(tmp_path)
    names = vars(importlib.import_module("patched.modeling_ham10000"))
    config = (tmp_path / "modeling" / "configuration_ham10000.py").read_text("utf-8")
    literal = re.search(r"^Fusion = Literal(\[.*\])$", config, re.MULTILINE)
    assert literal
    assert ast.literal_eval(literal[1]) == list(names["_FUSIONS"])
    block, image, metadata = names["build_fusion"]("product", 5, 3), torch.randn(2, 5), torch.randn(2, 3)
    left = torch.tanh(image @ block.image.weight.T + block.image.bias)
    right = torch.tanh(metadata @ block.metadata.weight.T + block.metadata.bias)
    torch.testing.assert_close(block(image, metadata), left * right)
    assert "product" in (tmp_path / "hub_upload" / "model_card.md.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The documentation of one package, and the names of its modules."""
    build_docs = runpy.run_path(str(ROOT / "examples" / "docs" / "build_docs.py"))
    folder = tmp_path_factory.mktemp("documentation") / "docs"
    build_docs["build"](folder, ("modeling",))
    return folder, build_docs["public_modules"](("modeling",))


class Page(HTMLParser):
    """The ids, the targets of links and pictures, and the title of a page, as an HTML parser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.links, self.title = set(), [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attributes if name == "id"}
        self.links += [value or "" for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.title += data.strip() if self.get_starttag_text() == "<title>" else ""


def test_the_documentation_has_every_public_name(docs: tuple[Path, list[str]]) -> None:
    folder, modules = docs
    assert len(modules) == len(list((ROOT / "modeling").glob("[!_]*.py"))) + 1
    for name in modules:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", [])  # the package's; its modules say by underscores what is private
        assert set(names) - Page(folder / f"{name.replace('.', '/')}.html").ids == set(), name
        assert module.__doc__, name
        for value in (getattr(module, entry) for entry in names):
            assert value.__doc__ or not callable(value), value


def test_no_link_of_the_documentation_is_broken(docs: tuple[Path, list[str]]) -> None:
    folder, _ = docs
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    assert len(pages) > 10
    for page in pages:
        for link in (link for link in pages[page].links if not link.startswith(("https://", "data:"))):
            path, _, anchor = unquote(link).partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page}: {link}"
            assert not anchor or target not in pages or anchor in pages[target].ids, f"{page}: {link}"


def test_guides_are_pages_with_titles_of_their_own(docs: tuple[Path, list[str]]) -> None:
    folder, _ = docs
    for guide in (ROOT / "examples" / "guides").glob("*.md"):
        heading = guide.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        page = Page(folder / "guides" / f"{guide.stem}.html")
        assert page.title == heading
        assert {"../README.html", "../index.html"} <= set(page.links)
    assert "../README.html#speed" in Page(folder / "guides" / "speed.html").links
