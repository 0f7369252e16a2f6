"""The registered pipeline, and the copy of it that a saved folder carries for those without this package."""

import base64
import io
import json
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from skin import skin_image
from strangers import run_alone
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline
from transformers.pipelines import get_supported_tasks
from transformers.utils import logging as transformers_logging

from ham10000.hub_upload.handler import EndpointHandler
from ham10000.modeling import (
    LABELS,
    MODALITIES,
    PIPELINE_TASK,
    Ham10000Config,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Pipeline,
    Ham10000Processor,
    create_model,
    create_processor,
)
from ham10000.training.inference.prediction import load_checkpoint, predict

ROW = {"age": 60, "sex": "male", "localization": "back"}


@pytest.fixture(scope="module")
def folders(tiny_checkpoints: dict[str, Path]) -> dict[str, str]:
    return {modality: str(folder) for modality, folder in tiny_checkpoints.items()}


@pytest.fixture(scope="module")
def pipelines(folders: dict[str, str]) -> dict[str, Any]:
    return {modality: pipeline(PIPELINE_TASK, model=folder) for modality, folder in folders.items()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("pictures") / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        skin_image(number).save(path)
    return paths


def as_dict(answer: list[dict[str, Any]]) -> dict[str, float]:
    return {row["label"]: row["score"] for row in answer}


def same(answers: Any, expected: list[list[dict[str, Any]]]) -> bool:
    """Equal up to what batching changes, as many, and in the same order of labels."""
    answers = list(answers)
    assert [list(as_dict(answer)) for answer in answers] == [list(as_dict(answer)) for answer in expected]
    return all(as_dict(a) == pytest.approx(as_dict(b), abs=1e-6) for a, b in zip(answers, expected, strict=True))


def some_inputs(modality: str, pictures: list[Path]) -> list[dict[str, Any]]:
    """Five inputs of a variant, with all, some, none and null metadata."""
    metadata: list[dict[str, Any]] = [ROW, {}, {"age": 20, "sex": None}, {"localization": "face"}, dict.fromkeys(ROW)]
    if modality == "metadata":
        return metadata
    images: list[Any] = [str(pictures[0]), pictures[1], pictures[2].read_bytes(), Image.open(pictures[0])]
    images.append(np.asarray(Image.open(pictures[1])))
    if modality == "image":
        return [{"image": images[0], **dict.fromkeys(ROW)}, *({"image": image} for image in images[1:])]
    return [{"image": image, **row} for image, row in zip(images, metadata, strict=True)]


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_scores_are_the_models_softmax(modality: str, folders: dict, pipelines: dict, pictures: list) -> None:
    assert type(pipelines[modality]) is Ham10000Pipeline
    model: Any = Ham10000ForImageClassification.from_pretrained(folders[modality])
    processor = Ham10000Processor.from_pretrained(folders[modality])
    for given in some_inputs(modality, pictures):
        image = given.get("image")
        row = {key: value for key, value in given.items() if key in ROW}
        inputs = processor(images=image, metadata=None if modality == "image" else row)
        with torch.no_grad():
            probabilities = model(**inputs).logits.double().softmax(-1)[0].tolist()
        answer = pipelines[modality](given)
        assert as_dict(answer) == dict(zip(LABELS, probabilities, strict=True))
        assert [row["score"] for row in answer] == sorted(probabilities, reverse=True)
        assert probabilities != pytest.approx([1 / 7] * 7, abs=1e-3)
        assert {type(row["score"]) for row in answer} == {float}


@pytest.mark.parametrize("modality", MODALITIES)
def test_batches_are_real_and_change_nothing(modality: str, pipelines: dict[str, Any], pictures: list[Path]) -> None:
    classify, inputs, sizes = pipelines[modality], some_inputs(modality, pictures), []
    one_by_one = [classify(given) for given in inputs]
    different = {"image": 3, "metadata": 4, "fusion": 4}[modality]  # so a mix-up would be seen
    assert len({json.dumps(answer) for answer in one_by_one}) == different
    hook = classify.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append({name: len(value) for name, value in kwargs.items()}),
        with_kwargs=True,
    )
    with hook:
        assert same(classify(inputs, batch_size=3), one_by_one)
    names = Ham10000Processor.from_pretrained(classify.model.name_or_path).model_input_names
    assert sizes == [dict.fromkeys(names, 3), dict.fromkeys(names, 2)]


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows: list[Any]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_every_kind_of_collection(batch_size: int, pipelines: dict[str, Any], pictures: list[Path]) -> None:
    classify = pipelines["fusion"]
    inputs = [{"image": str(path), "age": age, "sex": None} for path, age in zip(pictures, (5, None, 80), strict=True)]
    expected = classify(inputs)
    assert isinstance(expected, list)
    table = datasets.Dataset.from_list(inputs).cast_column("image", datasets.Image())
    iterators = (iter(inputs), map(dict, inputs), (row for row in inputs))
    for collection in (*iterators, Stream(inputs), table, table.to_iterable_dataset()):
        answers = classify(collection, batch_size=batch_size)
        assert not isinstance(answers, list), "a collection that is no list is read as it is needed"
        assert same(answers, expected), type(collection)
    assert classify([], batch_size=batch_size) == []
    assert list(classify(iter([]), batch_size=batch_size)) == []


def test_top_k_and_unknown_values(folders: dict[str, str], pictures: list[Path]) -> None:
    classify: Any = pipeline(PIPELINE_TASK, model=folders["fusion"], top_k=2, unknown_values="missing")
    image = str(pictures[0])
    full = classify({"image": image}, top_k=None)
    assert len(full) == 7
    assert classify({"image": image}) == full[:2]
    assert classify([{"image": image}], top_k=5) == [full[:5]]
    # a site outside the vocabulary counts as missing here, and is an error by default
    assert classify({"image": image, "localization": "elbow"}, top_k=7) == full
    with pytest.raises(Ham10000Error, match="The input: unknown localization 'elbow'; expected one of abdomen, "):
        classify({"image": image, "localization": "elbow"}, unknown_values="error")
    for top_k in (0, 8, -1, True, 2.0, "3"):
        with pytest.raises(Ham10000Error, match=r"`top_k` must be a whole number in 1\.\.7"):
            classify({"image": image}, top_k=top_k)
    with pytest.raises(Ham10000Error, match="`unknown_values` must be 'error' or 'missing', got 'ignore'"):
        classify({"image": image}, unknown_values="ignore")
    with pytest.raises(Ham10000Error, match=r"Unknown parameter\(s\) \['topk'\]"):
        classify({"image": image}, topk=1)


WRONG = [
    ("fusion", {"age": 60}, "'image' is missing"),
    ("image", {"image": None}, "'image' is missing"),
    ("image", {"image": "GOOD", "age": 60, "sex": "male"}, "image-only .* leave 'age', 'sex' out"),
    ("metadata", {"image": "GOOD", "age": 60}, "metadata-only and reads no image"),
    ("fusion", "lesion.jpg", r'expected a dict such as .* got str\. .*\{"image": image\}'),
    ("metadata", [ROW], "expected a dict such as .* got list"),
    ("fusion", {"image": "absent.jpg"}, "absent.jpg"),
    ("fusion", {"image": b"no picture"}, "image of 10 bytes"),
    ("fusion", {"image": ["GOOD", "GOOD"]}, "image of type list"),
    ("metadata", {"sex": "divers"}, "unknown sex 'divers'; expected one of female, male"),
]


@pytest.mark.parametrize(("modality", "wrong", "message"), WRONG)
def test_errors_name_the_position(modality: str, wrong: Any, message: str, pipelines: dict, pictures: list) -> None:
    good = some_inputs(modality, pictures)[0]
    if isinstance(wrong, dict) and wrong.get("image") == "GOOD":
        wrong = {**wrong, "image": str(pictures[0])}
    with pytest.raises(Ham10000Error, match=f"^Input 2: .*{message}"):
        pipelines[modality]([good, good, wrong, good], batch_size=2)
    with pytest.raises(Ham10000Error, match=f"^Input 1: .*{message}"):
        list(pipelines[modality](given for given in (good, wrong)))
    if not isinstance(wrong, list):
        with pytest.raises(Ham10000Error, match=f"^The input: .*{message}"):
            pipelines[modality](wrong)


def test_a_url_is_not_fetched(pipelines: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/lesion.jpg"
        with pytest.raises(Ham10000Error, match="URLs are not fetched"):
            pipelines["fusion"]({"image": url})
        server.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody is waiting
            server.accept()


def test_a_saved_pipeline_is_a_full_checkpoint(folders: dict, pipelines: dict, pictures: list, tmp_path: Path) -> None:
    """Also: a config that was loaded and saved again names the pipeline, and a model in training mode is taken out."""
    pipelines["fusion"].save_pretrained(tmp_path)
    original = Path(folders["fusion"])
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in original.iterdir()}
    for name in ("config.json", "processor_config.json", "pipeline_ham10000.py"):
        assert (tmp_path / name).read_text() == (original / name).read_text(), name
    given = {"image": str(pictures[0]), **ROW}
    model: Any = Ham10000ForImageClassification.from_pretrained(tmp_path).train()
    processor = Ham10000Processor.from_pretrained(tmp_path)
    for parts in ({"model": str(tmp_path)}, {"model": model, "processor": processor}):
        assert pipeline(PIPELINE_TASK, **parts)(given) == pipelines["fusion"](given)  # type: ignore[call-overload]


@pytest.mark.parametrize("modality", MODALITIES)
def test_without_a_task_in_silence(modality: str, folders: dict, pictures: list, said_by_transformers: list) -> None:
    """The folder's config names the task; without it transformers would ask the Hub for a repository of that name."""
    assert PIPELINE_TASK in get_supported_tasks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for auto_class in (AutoImageProcessor, AutoProcessor, AutoModel):
            auto_class.from_pretrained(folders[modality])
        for arguments in ({}, {"task": PIPELINE_TASK}, {"trust_remote_code": True}):
            classify: Any = pipeline(model=folders[modality], **arguments)
            assert type(classify) is Ham10000Pipeline
            assert type(classify.model) is Ham10000ForImageClassification
            classify(some_inputs(modality, pictures), batch_size=2)
        transformers_logging.get_logger("transformers").warning("a canary")
    assert said_by_transformers == ["a canary"]


# For a process that cannot import this package: what runs is the copy in the folder.
STRANGER = """
import json, sys
from transformers import pipeline

folders, inputs, again = json.loads(sys.argv[1])
answers = {}
for modality, folder in folders.items():
    classify = pipeline("image-metadata-classification", model=folder, trust_remote_code=True)
    answers[modality] = classify(inputs[modality], batch_size=2)
    assert type(classify).__module__.startswith("transformers_modules."), type(classify)
try:
    classify([inputs[modality][0], {**inputs[modality][0], "age": 500}])  # an error of the processor
except ValueError as error:
    answers["error"] = [type(error).__name__, str(error)]
classify.save_pretrained(again)
print(json.dumps(answers))
"""


def test_the_folders_copy_gives_the_same_bits(folders: dict, pipelines: dict, pictures: list, tmp_path: Path) -> None:
    paths = [str(path) for path in pictures]
    inputs: dict[str, list[Any]] = {
        "image": [{"image": path} for path in paths],
        "metadata": [ROW, {}, {"age": 30}],
        "fusion": [{"image": paths[0], **ROW}, {"image": paths[1]}, {"image": paths[2], "age": None, "sex": "female"}],
    }
    again = tmp_path / "again"
    arguments = json.dumps([{modality: folders[modality] for modality in inputs}, inputs, str(again)])
    answers = json.loads(run_alone(STRANGER, arguments, cwd=tmp_path))
    for modality in MODALITIES:
        assert answers[modality] == pipelines[modality](inputs[modality], batch_size=2)
    assert answers["error"] == ["Ham10000Error", "Input 1: age 500 is outside 0..120 years; None if missing."]
    # what was loaded by remote code and saved again is as complete, and runs here
    assert {path.name for path in again.iterdir()} == {path.name for path in Path(folders["fusion"]).iterdir()}
    assert pipeline(PIPELINE_TASK, model=str(again))(inputs["fusion"], batch_size=2) == answers["fusion"]  # type: ignore[call-overload]


@pytest.mark.parametrize(("modality", "names"), [("fusion", ["benign", "mel"]), ("image", list("abcdefghijk"))])
def test_both_pipelines_answer_in_the_given_labels(modality: str, names: list, pictures: list, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Ham10000Config(modality=modality, backbone="test_efficientnet", id2label=dict(enumerate(names)))
    model, processor = create_model(config).eval(), create_processor(config, image_size=64)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        probabilities = model(processor(images=pictures[0])["pixel_values"]).logits.softmax(-1)[0].tolist()
    scores = dict(zip(names, probabilities, strict=True))
    classify: Any = pipeline(PIPELINE_TASK, model=str(tmp_path))
    assert as_dict(classify({"image": pictures[0]})) == pytest.approx(scores, abs=1e-6)
    with pytest.raises(Ham10000Error, match=rf"1\.\.{len(names)}"):
        classify({"image": pictures[0]}, top_k=len(names) + 1)
    plain = pipeline("image-classification", model=str(tmp_path))
    for form in (str(pictures[0]), Image.open(pictures[0])):
        ranked = plain(form, top_k=len(names))
        assert as_dict(ranked) == pytest.approx(scores, abs=1e-6)
        assert plain(form, top_k=1) == ranked[:1] == sorted(ranked, key=lambda row: -row["score"])[:1]
    assert len(plain([str(path) for path in pictures], top_k=1)) == len(pictures)


@pytest.mark.parametrize(("fusion", "temperature"), [("film", 1.7), ("metablock", 0.4), ("gated", 0.4)])
@torch.no_grad()
def test_all_loaders_divide_by_the_temperature_once(fusion: str, temperature: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Ham10000Config(backbone="test_efficientnet", fusion=fusion, temperature=temperature)
    model = create_model(config).eval()
    for name, value in model.named_parameters():
        if name.startswith(("fusion", "classifier")):  # FiLM starts as the identity
            value.add_(0.3 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    image, processor = skin_image(3), create_processor(config, image_size=64)
    processor.save_pretrained(tmp_path)

    # The probabilities: the classifier's own outputs, divided by the temperature here.
    inputs, seen = dict(processor(images=image, metadata=ROW)), []
    model.classifier.register_forward_hook(lambda module, given, output: seen.append(output[0].double()))
    model(**inputs)
    expected = (seen[0] / temperature).softmax(-1)
    assert (expected - seen[0].softmax(-1)).abs().max() > 0.02  # it matters
    pixels, missing = inputs["pixel_values"], torch.full_like(inputs["metadata"], float("nan"))
    for changed in ({"pixel_values": -pixels}, {"metadata": missing}):  # and so do both inputs
        assert (expected - model(**(inputs | changed)).logits.softmax(-1)[0]).abs().max() > 1e-4

    stream = io.BytesIO()
    image.save(stream, "PNG")
    request = {"inputs": {"image": base64.b64encode(stream.getvalue()).decode(), **ROW}}
    classify: Any = pipeline(PIPELINE_TASK, model=str(tmp_path))
    for answer in (classify({"image": image, **ROW}), EndpointHandler(tmp_path)(request)):
        assert as_dict(answer) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6)
    answers = [predict(*load_checkpoint(tmp_path), [image], [ROW])[0]]
    for auto_class in (AutoModel, AutoModelForImageClassification):
        answers.append(auto_class.from_pretrained(tmp_path)(**inputs).logits.softmax(-1)[0].numpy())
    for probabilities in answers:
        np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-6)
