"""What the sources never do: load a pickle, or run code of a repository whose revision is not pinned."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("modeling", "training", "hub_upload", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PICKLING = {"pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
LOADERS = {"load", "loads", "Unpickler", "read_pickle", "unsafe_load", "full_load"}
# The only file that calls torch.load, for weights only.
CONVERTER = ROOT / "hub_upload" / "convert_checkpoint.py"


def dangers(path: Path) -> list[str]:
    """Calls that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if PICKLING & {name.split(".")[0] for name in names}:
                found.append(f"line {node.lineno}: imports {names}")
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        owner, _, name = called.rpartition(".")
        is_allowed = path == CONVERTER and keywords.get("weights_only") == "True"
        runs_code = (owner in PICKLING and name in LOADERS) or called in ("eval", "exec", "yaml.load")
        unpickles = name == "read_pickle" or keywords.get("allow_pickle", "False") != "False"
        if runs_code or unpickles or (called == "torch.load" and not is_allowed):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_no_pickle_is_loaded_but_by_the_converter() -> None:
    assert len(SOURCES) > 80
    assert {str(path): dangers(path) for path in SOURCES if dangers(path)} == {}
    assert 'torch.load(path, map_location="cpu", weights_only=True)' in CONVERTER.read_text(encoding="utf-8")


def test_the_search_finds_each(tmp_path: Path) -> None:
    lines = "import pickle\nfrom joblib import load\ntorch.load(path, weights_only=True)\neval(text)\n"
    (tmp_path / "a.py").write_text(lines + "numpy.load(path, allow_pickle=True)\npandas.read_pickle(path)")
    assert sorted(danger[:6] for danger in dangers(tmp_path / "a.py")) == [f"line {number}" for number in range(1, 7)]


CALL = re.compile(r"(?:from_pretrained|pipeline|load_checkpoint|snapshot_download)\((?:[^()]|\([^()]*\))*\)")
HUB_ID = re.compile(r"""["']user/[\w.-]+["']|\{repo_id\}|\{sibling\.repo_id\}""")
# Folders made and read in the same process: the verification, and the endpoint's handler inside its repository.
OF_FOLDERS = {"bundle.py", "handler.py"}


def unpinned(text: str) -> list[str]:
    """Calls of an example that take a repository, or run its code, at whatever revision it has that day."""
    calls = [call[0] for call in CALL.finditer(text) if "revision=" not in call[0]]
    return [call for call in calls if HUB_ID.search(call) or "trust_remote_code=True" in call]


def test_every_example_pins_a_revision() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in [*SOURCES, *ROOT.glob("*.md")]}
    assert sum("trust_remote_code=True" in text for text in texts.values()) >= 4
    assert {name: unpinned(text) for name, text in texts.items() if name not in OF_FOLDERS and unpinned(text)} == {}
    assert unpinned('AutoModel.from_pretrained("user/ham10000-fusion")')
    assert unpinned("AutoModel.from_pretrained(repo, trust_remote_code=True)")


def test_the_fuzzer_runs_every_property(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import fuzz

    monkeypatch.delitem(sys.modules, "fuzz")
    text = (ROOT / "tests" / "test_properties.py").read_text(encoding="utf-8")
    tests = re.findall(r"^def (test_\w+)", text, re.MULTILINE)
    assert sorted(name for names in fuzz.PROPERTIES_OF.values() for name in names) == sorted(tests)
    assert set(fuzz.PROPERTIES_OF) == set(fuzz.KINDS_OF)
