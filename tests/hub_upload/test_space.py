"""The demo as a Space: what is in the folder, that it starts alone, and that it arrives on a Hub as one commit."""

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hub_server import WRITER, HubServer
from huggingface_hub import HfApi
from strangers import run_alone

from ham10000.hub_upload import handler
from ham10000.hub_upload.bundle import assemble_space, needed_modules, requirements
from ham10000.hub_upload.commands import push
from ham10000.hub_upload.commands import space as main
from ham10000.hub_upload.publish import Release
from ham10000.modeling import Ham10000Error

pytest.importorskip("gradio", reason="the demo needs the extra app")

MODELS = ["user/ham10000-image@v1.0", "user/ham10000-fusion@v2.0"]
SPACE = "user/ham10000-demo"


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "space"
    assemble_space(folder, MODELS)
    return folder


def test_the_readme_says_what_the_hub_reads(space: Path) -> None:
    _, head, body = (space / "README.md").read_text().split("---\n", 2)
    settings = yaml.safe_load(head)
    expected = {"sdk": "gradio", "app_file": "app.py", "pinned": False, "license": "apache-2.0"}
    expected |= {"models": ["user/ham10000-image", "user/ham10000-fusion"]}
    assert settings | expected == settings
    assert (str(settings["python_version"]), settings["sdk_version"][:2]) == ("3.11", "6.")
    # The Hub's own limits, https://huggingface.co/docs/hub/spaces-config-reference
    assert len(settings["short_description"]) <= 60
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {settings["colorFrom"], settings["colorTo"]} <= colours
    assert "Not a medical device" in body
    assert "`user/ham10000-fusion` at `v2.0`" in body


@pytest.mark.parametrize("kind", ["space", "bundle"])
def test_every_import_is_in_the_folder_or_required(kind: str, space: Path, tiny_checkpoints: dict[str, Path]) -> None:
    """Read from the files themselves, and not by the function that chose them."""
    names = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "sklearn": "scikit-learn"}
    folder = space if kind == "space" else tiny_checkpoints["fusion"]
    lines = ((space / "requirements.txt").read_text() if kind == "space" else requirements()).splitlines()
    required = {line.split(">=")[0] for line in lines}
    assert all(">=" in line for line in lines)
    for path in (*folder.rglob("*.py"), Path(handler.__file__)):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for module in modules:
                top = module.split(".")[0]
                if top == "ham10000":
                    parts = space.joinpath(*module.split("."))
                    assert parts.with_suffix(".py").is_file() or parts.is_dir(), (path, module)
                elif top not in sys.stdlib_module_names:
                    assert names.get(top, top) in required, (path, module)


def test_no_tool_of_development_is_taken_along() -> None:
    files, others = needed_modules()
    # pandas comes with Gradio; the readers of tables import it when they are called.
    assert not others & {"datasets", "sklearn", "pytest", "accelerate", "onnx", "openvino"}
    assert "ham10000.training.train" not in files
    with pytest.raises(Ham10000Error, match=r"declares no requirement on \['nonesuch'\]"):
        requirements(["nonesuch"])


START = """
import json, runpy, sys
from urllib.request import urlopen
sys.path.insert(0, sys.argv[1])  # as `python app.py` does
names = runpy.run_path(f"{sys.argv[1]}/app.py")
from ham10000.hub_upload.app import build_page, load_models, serve
page = build_page(load_models(sys.argv[2:]))
text = urlopen(serve(page, wait=False)).read().decode()
page.close()
files = [m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] == "ham10000" and m.__file__]
print(json.dumps([names["MODELS"], files, text]))
"""


def test_it_starts_from_its_folder_alone(space: Path, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """In a process of its own, with local checkpoints in place of the Hub's; every module comes from the folder."""
    places = {"HF_HUB_OFFLINE": "1", "GRADIO_TEMP_DIR": str(tmp_path), "PYTHONPATH": ""}
    printed = run_alone(START, space, *tiny_checkpoints.values(), cwd=tmp_path, missing=(), **places)
    models, files, text = json.loads(printed.splitlines()[-1])
    assert models == MODELS
    assert "side by side" in text
    assert len(files) > 20
    assert all(Path(file).is_relative_to(space) for file in files)


def test_it_arrives_as_one_commit_and_again_as_none(hub: HubServer, space: Path, tmp_path: Path) -> None:
    """A module of an earlier release goes, and the user's own file stays."""
    release = Release(HfApi(endpoint=hub.url, token=WRITER), SPACE, tag=None, repo_type="space")
    earlier = tmp_path / "earlier"
    (earlier / "ham10000").mkdir(parents=True)
    (earlier / "ham10000" / "gone.py").write_text("# an earlier release's\n")
    (earlier / "picture.png").write_bytes(b"the user's")
    assert release.publish(earlier, commit_message="x").url == f"{hub.url}/spaces/{SPACE}"
    assert release.publish(space, commit_message="x").deleted == ("ham10000/gone.py",)
    state = hub.snapshot()
    assert list(state) == [f"spaces/{SPACE}"]
    files = set(hub.repos[f"spaces/{SPACE}"].files("main")) - {".gitattributes", "picture.png"}
    assert files == {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert hub.count("POST .*/commit/") == 2
    assert not release.publish(space, commit_message="x").uploaded
    assert hub.snapshot() == state


@pytest.mark.parametrize("command", [main, lambda argv: push(["--space", *argv])], ids=["space", "push --space"])
def test_dry_run_writes_the_folder(command: Callable[[list[str]], int], tmp_path: Path, capsys) -> None:
    arguments = ["--repo_id", SPACE, "--model", MODELS[0], "--dry_run", "--output_dir", str(tmp_path / "space")]
    assert command(arguments) == 0
    assert "nothing was uploaded" in capsys.readouterr().out
    assert 'MODELS = [\n    "user/ham10000-image@v1.0",\n]' in (tmp_path / "space" / "app.py").read_text()


@pytest.mark.parametrize("model", ["user/ham10000-image", "ham10000-image@v1.0", "user/x@../v1"])
def test_a_model_without_a_release_is_refused(model: str, capsys) -> None:
    assert main(["--repo_id", SPACE, "--model", model, "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Expected" in error or "expected" in error
