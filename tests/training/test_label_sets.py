"""Other label sets than HAM10000's: trained, evaluated and predicted with 2, 3, 8 and 11 classes, by the commands."""

import hashlib
import json
import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from sklearn.metrics import f1_score

from ham10000.hub_upload.model_card import Stated, render_model_card
from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, create_model, create_processor
from ham10000.training.data.sources import align_labels, label_names, load_data, metadata_frame
from ham10000.training.data.tables import DataOptions
from ham10000.training.evaluation.__main__ import main as evaluate_main
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.predict import main as predict_main
from ham10000.training.run_folder import save_checkpoint
from ham10000.training.train import main as train_main

SETS = {
    2: ["benign", "malignant"],
    3: ["nv", "mel", "scc"],  # not in the order of HAM10000, nor of the alphabet
    8: ["ak", "bcc", "bkl", "df", "mel", "nv", "scc", "vasc"],
    11: [f"class {letter}" for letter in "abcdefghijk"],
}
NETWORK = "--modality fusion --backbone test_efficientnet --backbone_kwargs {} --pretrained none --image_size 32"
RECIPE = "--epochs 1 --batch_size 8 --folds 3 --trackers none"
TINY = [*NETWORK.split(), *RECIPE.split()]


def write_data(folder: Path, labels: list[str]) -> Path:
    """A csv and images, nine of each class and of one colour; lesions of one image."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = ["image_id,lesion_id,dx,age,sex,localization"]
    for number in range(9 * len(labels)):
        label = number % len(labels)
        pixels = np.full((40, 48, 3), 20 + 20 * label, np.uint8) + rng.integers(0, 9, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"own_{number:03d}.jpg")
        rows.append(f"own_{number:03d},lesion_{number},{labels[label]},{30 + number % 50},female,back")
    (folder / "own.csv").write_text("\n".join(rows))
    return folder / "own.csv"


@pytest.fixture(scope="module", params=SETS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path, Path]:
    """Labels, data and the folder of a trained and evaluated run."""
    labels, folder = SETS[request.param], tmp_path_factory.mktemp(f"labels_{request.param}")
    data = write_data(folder / "data", labels)
    places = ["--data", str(data), "--cache_dir", str(folder / "cache")]
    assert train_main([*TINY, *places, "--output_dir", str(folder / "run"), "--labels", *labels]) == 0
    assert evaluate_main([*places, "--checkpoint", str(folder / "run"), "--n_resamples", "20"]) == 0
    return labels, data, folder / "run"


def malignant_of(labels: list[str]) -> list[str]:
    return [label for label in ("mel", "bcc", "akiec") if label in labels]


def test_train_and_evaluate(run: tuple[list[str], Path, Path]) -> None:
    labels, data, folder = run
    model, _ = load_checkpoint(folder)
    assert model.config.label_names == labels
    assert model.classifier.out_features == len(labels)
    assert model.config.malignant_labels == malignant_of(labels)
    table, ids, probabilities = read_predictions(folder / "predictions.csv")
    truth = pd.read_csv(data).set_index("image_id").dx
    assert [labels[index] for index in ids] == truth[list(table["image_id"])].tolist()
    results = json.loads((folder / "eval_results.json").read_text())
    metrics, predicted = results["metrics"], probabilities.argmax(axis=1)
    expected = f1_score(ids, predicted, labels=np.unique(ids), average="macro", zero_division=0)
    assert metrics["macro_f1"] == pytest.approx(expected, abs=1e-12)
    assert list(metrics["per_class"]) == labels
    assert metrics["positive"] == ("mel" if "mel" in labels else None)
    assert any("sensitivity_at_95" in name for name in metrics) == ("mel" in labels)
    has_malignant = any("malignant_sensitivity" in row for row in results["subgroups"]["fields"]["sex"])
    assert has_malignant == (folder / "figures" / "subgroups.png").exists() == bool(malignant_of(labels))


def test_predict(run: tuple[list[str], Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    labels, data, folder = run
    command = [str(data.parent / "images" / "own_001.jpg"), "--checkpoint", str(folder), "--device", "cpu"]
    assert predict_main([*command, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert set(record["probabilities"]) == set(labels)
    assert sum(record["probabilities"].values()) == pytest.approx(1)
    total = sum(record["probabilities"][name] for name in malignant_of(labels))
    assert record.get("malignant_total") == (pytest.approx(total) if malignant_of(labels) else None)
    assert predict_main(command) == 0
    out = capsys.readouterr().out
    assert all(label in out for label in labels)
    assert ("malignant total" in out) == bool(malignant_of(labels))
    assert predict_main([*command, "--format", "isic"]) == 2
    assert "seven classes" in capsys.readouterr().err


def test_card(run: tuple[list[str], Path, Path]) -> None:
    labels, _, folder = run
    render = partial(render_model_card, read_run(folder), repo_id="user/own", revision="v1")
    card = render()
    # The package's own title in its bibtex entry is no sentence about the data.
    assert not re.search("HAM10000|seven", card.replace("models for HAM10000", ""))
    assert "# own.csv: image and metadata classifier" in card
    assert "**not stated**" in card
    front = yaml.safe_load(card.split("---")[1])
    assert "license" not in front
    assert front["datasets"] == ["own.csv"]
    assert ("melanoma" in card.split("## Results")[1]) == ("mel" in labels)
    assert ("malignant sensitivity" in card) == ("mel" in labels)
    (command,) = re.findall(r"```bash\n(ham10000-train .*?)\nham10000-evaluate", card, re.DOTALL)
    words = shlex.split(command)
    assert words[words.index("--data") + 1] == "own.csv"
    assert words[words.index("--labels") + 1 :][: len(labels)] == labels
    stated = render(stated=Stated("user/data", "cc-by-4.0"))
    assert "# user/data: image and metadata" in stated
    assert yaml.safe_load(stated.split("---")[1])["license"] == "cc-by-4.0"
    assert "not stated" not in stated
    # It names images, and the lesions or patients behind them.
    assert "`split.csv`" not in stated
    assert "each image's side in `split.csv`" in render(stated=Stated(publish_split=True))


def test_labels_meet_by_name(tmp_path: Path) -> None:
    data, _ = load_data(str(write_data(tmp_path, ["nv", "mel"])), DataOptions(labels=["nv", "mel"]))
    aligned = align_labels(data, LABELS)
    assert label_names(aligned) == list(LABELS)
    assert metadata_frame(aligned)["dx"].tolist() == metadata_frame(data)["dx"].tolist()
    with pytest.raises(Ham10000Error, match=r"labels \['nv', 'mel'\], the model \['mel', 'scc'\].*nv=mel"):
        align_labels(data, ["mel", "scc"])


@pytest.mark.parametrize("labels", [list(reversed(LABELS)), ["nv", "mel", "scc"]])
def test_fine_tuning_takes_over_the_body_and_the_classifier_by_name(tmp_path, labels: list[str], capsys) -> None:
    network = {"modality": "fusion", "backbone": "test_efficientnet"}
    start = create_model(Ham10000Config(**network, fusion="film"))
    save_checkpoint(tmp_path / "start", start, create_processor(start.config, image_size=(32, 48)))
    data = write_data(tmp_path / "data", labels)
    # With a learning rate of almost 0 the result is what the run has started from.
    recipe = f"{RECIPE} --learning_rate 1e-30 --head_learning_rate 1e-30 --weight_decay 0 --ema_decay 0"
    places = ["--data", str(data), "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache")]
    arguments = [*recipe.split(), *places, "--labels", *labels, "--init_from", str(tmp_path / "start")]
    assert train_main(arguments) == 0
    assert "Start     start: body" in capsys.readouterr().out
    model, processor = load_checkpoint(tmp_path / "run")
    assert (model.config.fusion, model.config.backbone) == ("film", "test_efficientnet")
    assert processor.image_processor.size == {"height": 32, "width": 48}
    trained, before = model.state_dict(), start.state_dict()
    for name, value in before.items():
        if not name.startswith("classifier.") and "running" not in name and "num_batches" not in name:
            np.testing.assert_allclose(trained[name], value, rtol=0, atol=1e-12, err_msg=name)
    rows = before["classifier.weight"]
    same = len(labels) == 7
    assert trained["classifier.weight"].shape == (len(labels), rows.shape[1])
    if same:
        order = [LABELS.index(label) for label in labels]
        np.testing.assert_allclose(trained["classifier.weight"], rows[order], rtol=0, atol=1e-12)
    training = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert training["base_model"] == {"name": "start", "labels": list(LABELS), "data": None, "head": same}
    digest = hashlib.sha256((tmp_path / "start" / "model.safetensors").read_bytes()).hexdigest()
    card = render_model_card(read_run(tmp_path / "run"), repo_id="user/own", revision="v1")
    assert "It was fine-tuned from `start`" in card
    assert f"from the checkpoint `start` (sha256 `{digest}`)" in card
    assert ("its classifier included" in card) == same
    other, message = ["--fusion", "gated"], "has fusion 'film', this run 'gated'"
    if same:
        start = create_model(Ham10000Config(**network, malignant_labels=["mel"]))
        save_checkpoint(tmp_path / "start", start, processor)
        other, message = [], "counts ['mel'] as malignant, this run"
    assert train_main([*arguments, "--overwrite", *other]) == 2
    assert message in capsys.readouterr().err
