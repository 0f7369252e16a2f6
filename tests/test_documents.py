"""What README, CONTRIBUTING and the guides say is so: links, names, snippets and command lines."""

import ast
import re
from pathlib import Path

import pytest
import torch
from command_lines import ROOT, code_blocks, command_lines, parse_command
from PIL import Image

DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md")),
    ROOT / "examples" / "benchmarks" / "README.md",
    *sorted((ROOT / "examples" / "guides").glob("*.md")),
]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_relative_links_lead_to_files(document: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    local = [target.partition("#")[0] for target in targets if not target.startswith(("https://", "#"))]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_the_functions_contributing_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py):(\w+)`", text)
    assert len(named) > 10
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}, file


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_command_lines_are_understood(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # config files are named from here
    mistakes = {}
    lines = dict(command_lines(document.read_text(encoding="utf-8")))
    for line, complete in lines.items():
        try:
            parse_command(line, complete)
        except ValueError as error:
            mistakes[line] = str(error)
    assert mistakes == {}
    assert lines


@pytest.mark.parametrize(
    ("line", "complete", "message"),
    [
        ("ham10000-predikt lesion.jpg", True, "no such command"),
        ("ham10000-predict lesion.jpg", True, "required: --checkpoint"),
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
    for name in ("runs/demo/fusion", "user/ham10000-fusion"):
        Path(name).parent.mkdir(parents=True)
        Path(name).symlink_to(tiny_checkpoints["fusion"])
    Image.effect_noise((80, 60), 60).convert("RGB").save("lesion.jpg")
    direct, remote, classified = code_blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")

    names: dict[str, object] = {}
    exec(compile(direct, "README.md", "exec"), names)
    probabilities, model = names["probabilities"], names["model"]
    assert isinstance(probabilities, torch.Tensor)
    assert isinstance(model, torch.nn.Module)
    assert probabilities.shape == (1, 7)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1))

    exec(compile(remote, "README.md", "exec"), names)
    again = names["model"]  # with the package's code, which is registered by now; ham10000-verify tries the other
    assert isinstance(again, torch.nn.Module)
    assert again is not model
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)

    *statements, last = ast.parse(classified).body
    assert isinstance(last, ast.Expr)
    exec(compile(ast.Module(statements, []), "README.md", "exec"), names)
    answers = eval(compile(ast.Expression(last.value), "README.md", "eval"), names)
    expected, order = probabilities[0].sort(descending=True)
    assert [answer["label"] for answer in answers] == [model.config.id2label[k] for k in order[:3].tolist()]
    assert [answer["score"] for answer in answers] == pytest.approx(expected[:3].tolist(), abs=1e-6)
