"""What the demo answers, without a browser: its numbers are those of prediction, and what data says is text."""

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from card_runs import change_json, read_json
from PIL import Image
from sklearn.datasets import load_sample_image

from ham10000.modeling import LABELS, MALIGNANT, Ham10000Error, load_image
from ham10000.training.inference.explanation import UNKNOWN, encode_image
from ham10000.training.inference.prediction import SHIPPED_CHECKPOINTS, load_checkpoint, predict

pytest.importorskip("gradio", reason="the demo needs the extra app")

from ham10000.hub_upload import app

SAMPLES = app.sample_images()


@pytest.fixture(scope="module")
def models(tiny_checkpoints: dict[str, Path]) -> list[app.DemoModel]:
    return app.load_models([str(folder) for folder in tiny_checkpoints.values()])


def ask(models: list[app.DemoModel], image: Image.Image | None, *metadata: str, label: str = "") -> dict[str, object]:
    """The values of the page by name; of the models' four a list each."""
    chosen = app.Chosen(image, "lesion.png")
    values = app.results(models, chosen, *metadata, label or app.MOST_PROBABLE, "site")
    parts = {name: values[2 + offset :: 4] for offset, name in enumerate(("shares", "summary", "heat", "effects"))}
    return {"image": values[0], "warning": values[1], **parts}


def test_the_numbers_are_those_of_predict(models: list[app.DemoModel], tiny_checkpoints: dict[str, Path]) -> None:
    page = ask(models, SAMPLES["mel"], "60", "male", UNKNOWN)
    assert page["warning"] == ""
    for number, (modality, folder) in enumerate(tiny_checkpoints.items()):
        model, processor = load_checkpoint(folder)
        images = [SAMPLES["mel"]] if model.config.uses_image else None
        rows = [{"age": 60, "sex": "male"}] if model.config.uses_metadata else None
        expected = dict(zip(LABELS, predict(model, processor, images, rows)[0], strict=True))
        shares = page["shares"][number].constructor_args
        assert shares["show_heading"]
        shown = {text.rpartition("(")[2].rstrip(")"): share for text, share in shares["value"].items()}
        assert shown == pytest.approx(expected, abs=1e-6)
        total = f"{100 * sum(expected[label] for label in MALIGNANT):.1f}\u00a0%"
        assert f"**{total}**" in page["summary"][number]
        assert (page["heat"][number].constructor_args["value"] is None) == (modality == "metadata")
        titles = ["age unknown", "sex unknown", "all of them unknown", "site back"]
        assert [title in page["effects"][number] for title in titles] == [modality != "image"] * 4
        assert "site unknown" not in page["effects"][number]


def test_missing_is_legal_and_the_explained_class_can_be_chosen(models: list[app.DemoModel]) -> None:
    page = ask(models, SAMPLES["nv"], UNKNOWN, UNKNOWN, UNKNOWN, label="melanoma (mel)")
    assert page["heat"][0].constructor_args["label"] == "Evidence for melanoma (mel)"
    nothing = ask(models, None, UNKNOWN, UNKNOWN, UNKNOWN)
    assert ["needs an image" in text for text in nothing["summary"]] == [one.model.config.uses_image for one in models]


def test_other_metadata_do_not_wait_for_the_backbone(models: list[app.DemoModel], monkeypatch) -> None:
    calls: list[mock.Mock] = []
    for shown in (one for one in models if one.model.config.uses_image):
        calls.append(mock.Mock(wraps=shown.model.backbone.forward_features))
        monkeypatch.setattr(shown.model.backbone, "forward_features", calls[-1])
    chosen, rest = app.Chosen(SAMPLES["mel"], "lesion.png"), (app.MOST_PROBABLE, "age")
    app.results(models, chosen, "30", "female", "back", *rest)
    assert all(image.image is chosen.image for image in chosen.encoded.values())  # one copy of the pixels
    again = app.results(models, chosen, "80", "male", "face", *rest)
    assert [call.call_count for call in calls] == [1, 1]
    fresh = app.results(models, app.Chosen(SAMPLES["mel"], "lesion.png"), "80", "male", "face", *rest)
    for updates in zip(again[2:], fresh[2:], strict=True):
        cached, new = (one if isinstance(one, str) else one.constructor_args["value"] for one in updates)
        assert np.array_equal(cached, new) if isinstance(cached, Image.Image) else cached == new


def test_answers_come_one_at_a_time_and_in_order(models: list[app.DemoModel]) -> None:
    events = app.build_page(models).fns.values()
    answering = [event for event in events if len(event.outputs) > 4 * len(models)]
    assert len(answering) > 5
    assert {event.concurrency_id for event in answering} == {"results"}


def test_no_class_is_the_answer_on_an_image_unlike_the_training_data(models: list[app.DemoModel]) -> None:
    page = ask(models, Image.fromarray(load_sample_image("china.jpg")), "60", "male", "back")
    assert page["warning"].startswith('<p role="status">This image is unlike those the model was trained on')
    assert not any(label.constructor_args["show_heading"] for label in page["shares"])


def test_rule_set_and_misses_come_from_the_checkpoint(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoints["fusion"], tmp_path / "fusion")
    # The rarest class by far wins once its prior is divided out, and the set has what the thresholds accept.
    prior, thresholds = [0.0001, *[0.9999 / 6] * 6], {"0.9": [1.0, 1.0, *[0.0] * 5]}
    change_json(folder / "config.json", class_prior=prior, conformal_thresholds=thresholds)
    shutil.copy(SHIPPED_CHECKPOINTS / "ham10000-fusion" / "eval_results.json", folder)
    (shown,) = app.load_models([str(folder)])
    answered = app.answer(shown, encode_image(shown.model, shown.processor, SAMPLES["nv"]), {})
    text = app.summary(shown, answered)
    assert "equally frequent: actinic keratosis / intraepithelial carcinoma (akiec)" in text
    assert "90% prediction set: akiec and bcc" in text
    per_class = read_json(folder / "eval_results.json")["metrics"]["per_class"]
    missed, support = 1 - per_class["mel"]["recall"], per_class["mel"]["support"]
    assert f"cross-validation images: mel {missed * support:.0f} of {support} ({100 * missed:.0f}\u00a0%)" in text
    warned = app.summary(shown, answered, warned=True)
    assert "prediction set" not in warned
    assert "balanced rule" not in warned
    assert "**Missed**" in warned


def test_text_from_a_checkpoint_is_never_markup(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>[a](javascript:b)"
    folder = shutil.copytree(tiny_checkpoints["fusion"], tmp_path / "a<b>*c*")
    descriptions = dict.fromkeys(LABELS, evil)
    change_json(folder / "config.json", label_descriptions=descriptions, class_prior=[1 / 7] * 7)
    (shown,) = app.load_models([str(folder)])
    page = ask([shown], SAMPLES["nv"], "60", "male", "back")
    for text in (page["warning"], *page["summary"], *page["effects"]):
        assert "<" not in text
        assert "](" not in text
    texts = [block.value for block in app.build_page([shown]).blocks.values() if type(block).__name__ == "Markdown"]
    assert any("a&lt;b&gt;" in str(text) for text in texts)
    assert not any("a<b>" in str(text) for text in texts)
    warning = app.results([shown], app.Chosen(error=evil), *[UNKNOWN] * 3, "", "age")[1]
    assert warning.startswith('<p role="alert">&lt;img')


def test_wrong_files_get_clear_words(tmp_path: Path, models: list[app.DemoModel]) -> None:
    good, cut, notes = tmp_path / "good.png", tmp_path / "cut.png", tmp_path / "notes.txt"
    SAMPLES["mel"].save(good)
    cut.write_bytes(good.read_bytes()[:5000])
    notes.write_text("no image")
    assert np.array_equal(np.asarray(app.read_upload(str(good)).image), np.asarray(load_image(good)))
    for file, words in ((cut, "it is damaged or cut off"), (notes, "it is not an image")):
        chosen = app.read_upload(str(file))
        assert f"“{file.name}” cannot be shown: {words}" in chosen.error
        assert str(tmp_path) not in chosen.error
        assert app.results(models, chosen, *[UNKNOWN] * 3, "", "age")[1].startswith('<p role="alert">')
    assert app.read_upload(None) == app.Chosen()
    assert "did not arrive" in app.read_upload(str(tmp_path / "gone.png")).error


def test_what_is_compared_must_be_pinned_and_fit(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Ham10000Error, match=r"pin a revision you have read: 'user/model@v1\.0'"):
        app.load_models(["user/model"])
    folder = shutil.copytree(tiny_checkpoints["image"], tmp_path / "other")
    ids = {f"class {number}": number for number in range(7)}
    names = {"label2id": ids, "id2label": {number: label for label, number in ids.items()}, "label_descriptions": None}
    change_json(folder / "config.json", malignant_labels=["class 1"], **names)
    with pytest.raises(Ham10000Error, match="models of one label set"):
        app.load_models([str(tiny_checkpoints["image"]), str(folder)])
