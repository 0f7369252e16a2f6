"""The Inference Endpoints handler, asked as the Inference Toolkit asks it, and over HTTP as the guide serves it."""

import base64
import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import ROOT, code_blocks
from PIL import Image
from skin import skin_image
from strangers import run_alone
from transformers import pipeline

import ham10000.hub_upload.handler as template
from ham10000.modeling import LABELS, PIPELINE_TASK

ROW = {"age": 60, "sex": "male", "localization": "back"}


@pytest.fixture(scope="module")
def repositories(tiny_checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder of two variants, with the handler beside it as in a published repository."""
    parent = tmp_path_factory.mktemp("repositories")
    for modality in ("fusion", "metadata"):
        folder = shutil.copytree(tiny_checkpoints[modality], parent / modality)
        shutil.copyfile(str(template.__file__), folder / "handler.py")
    return {modality: parent / modality for modality in ("fusion", "metadata")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A PNG, and a JPEG that its EXIF orientation turns by a quarter."""
    folder, exif = tmp_path_factory.mktemp("pictures"), Image.Exif()
    exif[0x0112] = 6
    skin_image(0).save(folder / "upright.png")
    skin_image(1).save(folder / "turned.jpg", exif=exif)
    return [folder / "upright.png", folder / "turned.jpg"]


@pytest.fixture(scope="module")
def handlers(repositories: dict[str, Path]) -> dict[str, Any]:
    files = {name: runpy.run_path(str(folder / "handler.py")) for name, folder in repositories.items()}
    return {name: files[name]["EndpointHandler"](str(folder)) for name, folder in repositories.items()}


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


# What huggingface-inference-toolkit does with the bodies of requests. This package cannot be imported, and a
# connection to anywhere ends the process.
TOOLKIT = """
import importlib.util, json, os, sys
from pathlib import Path

def no_network(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print("A connection was opened:", event, arguments, file=sys.stderr, flush=True)
        os._exit(3)

sys.addaudithook(no_network)
spec = importlib.util.spec_from_file_location("handler", Path(sys.argv[1], "handler.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler, answers = module.EndpointHandler(sys.argv[1]), []
for body in json.load(sys.stdin):
    try:
        answers.append(handler(body))
    except ValueError as error:
        answers.append({"error": str(error)})
print(json.dumps(answers))
"""


def test_the_container_of_the_guide(
    repositories: dict[str, Path], handlers: dict[str, Any], pictures: list[Path], monkeypatch
) -> None:
    """`serve.py` word for word, except for the folder."""
    testclient = pytest.importorskip("starlette.testclient", reason="starlette comes with ham10000[app]")
    guide = (ROOT / "examples" / "guides" / "publishing.md").read_text(encoding="utf-8")
    (serve_py,) = (block for block in code_blocks(guide, "python") if "Starlette(" in block)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "handler", raising=False)
    names: dict[str, Any] = {}
    exec(compile(serve_py.replace("/repository", str(repositories["fusion"])), "serve.py", "exec"), names)
    monkeypatch.delitem(sys.modules, "handler")
    client = testclient.TestClient(names["app"])
    request = {"inputs": {"image": encoded(pictures[0]), **ROW}}
    answer = client.post("/", json=request)
    assert (answer.status_code, answer.json()) == (200, handlers["fusion"](request))
    answer = client.post("/", json={"inputs": {"image": "§"}})
    assert answer.status_code == 400
    assert "not valid base64" in answer.json()["error"]
    assert client.post("/", content=b"{").status_code == 400
    assert client.get("/health").text == "Ok"


def test_a_process_without_this_package(repositories: dict[str, Path], pictures: list[Path], tmp_path: Path) -> None:
    classify: Any = pipeline(PIPELINE_TASK, model=str(repositories["fusion"]))
    rows = [{"image": encoded(pictures[0]), "age": None}, {"image": encoded(pictures[1]), **ROW}]
    local = [{"image": str(pictures[0])}, {"image": str(pictures[1]), **ROW}]
    # Mistakes are answered, and the next request is served.
    cases: list[tuple[dict[str, Any], Any]] = [
        ({"inputs": rows[1]}, classify(local[1])),
        ({"inputs": [rows[0], ROW]}, "Input 1: 'image' is missing"),
        ({"inputs": rows[0], "parameters": {"top_k": 9}}, "`top_k` must be a whole number in 1..7, or None"),
        ({"inputs": rows, "parameters": {"top_k": 3}}, classify(local, batch_size=2, top_k=3)),
        ({"inputs": rows[0]}, classify(local[0])),
    ]
    bodies = json.dumps([body for body, _ in cases])
    # Online, so that a request would be tried.
    printed = run_alone(TOOLKIT, repositories["fusion"], cwd=tmp_path, stdin=bodies, HF_HUB_OFFLINE="0")
    for (_, expected), answer in zip(cases, json.loads(printed.splitlines()[-1]), strict=True):
        if isinstance(expected, str):
            assert answer["error"].startswith(expected)
        else:
            assert answer == expected


def test_every_form_of_a_picture(handlers: dict[str, Any], pictures: list[Path]) -> None:
    path, handler = pictures[0], handlers["fusion"]
    expected = handler.pipeline({"image": str(path)})
    assert {row["label"] for row in expected} == set(LABELS)
    assert expected == sorted(expected, key=lambda row: -row["score"])
    text = encoded(path)
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    forms: list[Any] = [text, lines, f"data:image/png;base64,{text}", path.read_bytes(), bytearray(path.read_bytes())]
    turned = Image.open(pictures[1]).convert("RGB")  # as the toolkit opens a body that is an image
    assert handler({"inputs": turned}) == handler.pipeline({"image": str(pictures[1])})
    for form in (*forms, Image.open(path)):
        assert handler({"inputs": form}) == expected
        assert handler({"inputs": {"image": form}, "parameters": None}) == expected
    answers = handler({"inputs": [*forms, {"image": text}], "parameters": {"top_k": 1}})
    assert [[row["label"] for row in answer] for answer in answers] == [[expected[0]["label"]]] * 6
    assert handler({"inputs": []}) == []


def test_metadata_and_parameters_arrive(handlers: dict[str, Any], pictures: list[Path]) -> None:
    image, path = encoded(pictures[0]), str(pictures[0])
    for modality, picture, form in (("fusion", {"image": path}, {"image": image}), ("metadata", {}, {"image": None})):
        handler = handlers[modality]
        expected = handler.pipeline({**picture, **ROW})
        assert expected != handler.pipeline({**picture})
        assert handler({"inputs": {**form, **ROW}}) == expected
        elbow = {**form, **ROW, "localization": "elbow"}
        with pytest.raises(ValueError, match="The input: unknown localization 'elbow'"):
            handler({"inputs": elbow})
        missing = handler({"inputs": elbow, "parameters": {"unknown_values": "missing", "top_k": 2}})
        assert missing == handler.pipeline({**picture, **ROW, "localization": None})[:2]
    with pytest.raises(ValueError, match="The input: this checkpoint is metadata-only and reads no image"):
        handlers["metadata"]({"inputs": Image.open(path)})


PATH = "PATH"  # stands for the path of an image that exists


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, 'needs {"inputs": ...}'),
        ([], 'needs {"inputs": ...}'),
        ({"inputs": {}, "age": 60}, "Unknown key(s) ['age'] beside \"inputs\""),
        ({"inputs": {}, "parameters": [1]}, '"parameters" must be an object'),
        ({"inputs": {}, "parameters": {"num_workers": 64}}, '"parameters" must be an object with some of'),
        ({"inputs": None}, "The input: the image must be base64 text, got NoneType"),
        ({"inputs": {"image": [[0, 1]]}}, "The input: the image must be base64 text, got list"),
        ({"inputs": ["AAAA", "no base64!"]}, "Input 1: the image is not valid base64"),
        ({"inputs": "QUJD"}, "The input: Cannot read image of 3 bytes"),
        ({"inputs": ""}, "The input: the image is empty"),
        ({"inputs": "data:image/png,%89PNG"}, "The input: a data: URL must be base64, got 'data:image/png'"),
        ({"inputs": {"image": "HTTPS://x.test/a.jpg"}}, "The input: URLs are not fetched"),
        ({"inputs": {"image": PATH}}, "The input: the image is not valid base64"),
    ],
)
def test_bad_requests(data: Any, message: str, handlers: dict[str, Any], pictures: list[Path]) -> None:
    request = json.loads(json.dumps(data).replace(PATH, str(pictures[0])))
    with pytest.raises(ValueError, match=re.escape(message)):
        handlers["fusion"](request)
