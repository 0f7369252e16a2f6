"""The checkpoints in examples/checkpoints: complete, small, loadable anywhere, and what their cards say they are.

`python tests/test_shipped_checkpoints.py` writes their answers to synthetic images down anew, once they change.
"""

import hashlib
import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from ham10000.hub_upload.bundle import verify_checkpoint
from ham10000.modeling import MODALITIES
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import load_split
from ham10000.training.inference.prediction import SHIPPED_CHECKPOINTS, load_checkpoint, predict, shipped_checkpoint
from ham10000.training.predict import main as predict_main
from ham10000.training.study.report import short_answer
from ham10000.training.utils.markdown_text import escape

PINS = Path(__file__).with_name("shipped_outputs.json")
ROOT = Path(__file__).parents[1]
LARGEST = 13_000_000  # bytes of a whole folder, as the issue has it


def answers() -> dict[str, Any]:
    """What each checkpoint says of four synthetic images and their metadata, and a hash of its weights."""
    rows = load_data("synthetic:200")[0].select([0, 50, 100, 150])
    metadata = [{name: row[name] for name in ("age", "sex", "localization")} for row in rows]
    found = {}
    for modality in MODALITIES:
        folder = shipped_checkpoint(modality)
        model, processor = load_checkpoint(folder)
        images = list(rows["image"]) if modality != "metadata" else None
        probabilities = predict(model, processor, images, metadata if modality != "image" else None)
        weights = (folder / "model.safetensors").read_bytes()
        found[modality] = {"sha256": hashlib.sha256(weights).hexdigest(), "probabilities": probabilities.tolist()}
    return found


def test_outputs_on_synthetic_images_are_pinned() -> None:
    pins = json.loads(PINS.read_text(encoding="utf-8"))
    for modality, found in answers().items():
        assert found["sha256"] == pins[modality]["sha256"]
        # Sums are ordered otherwise on other processors.
        np.testing.assert_allclose(found["probabilities"], pins[modality]["probabilities"], atol=2e-4)
        assert np.ptp(found["probabilities"], axis=0).max() > 0.01  # they do not answer the same to all


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_folder_is_a_complete_small_repository_with_the_figures_of_the_study(modality: str) -> None:
    folder = shipped_checkpoint(modality)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "config.json", "processor_config.json", "model.safetensors", "handler.py", "figures"}
    assert names >= {"requirements.txt", "split.csv", "split.json", "train_config.json", "eval_results.json"}
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= LARGEST
    dtypes = {value.dtype for value in load_file(folder / "model.safetensors").values()}
    assert dtypes - {torch.int64} == {torch.float16}
    for path in folder.glob("*_ham10000.py"):
        assert path.read_bytes() == (ROOT / "modeling" / path.name).read_bytes(), path
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob("*.py"))
    assert round(lines, -3) == 2000

    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert "never" in card.text
    assert "Read them first (about two thousand lines: " in card.text
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results}
    found = json.loads((folder / "eval_results.json").read_text(encoding="utf-8"))
    assert found["estimated_by"] == "cross-validation"
    assert stated["macro-F1"] == found["metrics"]["macro_f1"]
    study = json.loads((ROOT / "examples" / "results" / "study.json").read_text(encoding="utf-8"))
    rules = study["protocols"]["lesion-grouped"]["variants"][modality]["rules"]
    for metric, score in rules["probable"].items():
        # The release is trained with the first seed.
        assert found["metrics"][metric] == pytest.approx(score["per_seed"][0]), metric
    for paragraph in short_answer(study):
        assert escape(paragraph.replace("**", "")) in card.text

    trained = json.loads((folder / "train_config.json").read_text(encoding="utf-8"))
    assert trained["config"]["train_on_all"]
    assert sum(trained["split"]["sizes"].values()) == 10_015
    assert trained["finished"]
    assert load_split(folder).sha256 == trained["split"]["sha256"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_it_loads_offline_by_path_without_the_package_with_equal_logits(modality: str) -> None:
    assert verify_checkpoint(shipped_checkpoint(modality)) == 42


def test_predict_uses_the_fusion_model_where_none_is_named_or_says_what_to_do(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it is found from anywhere
    load_data("synthetic:200")[0][0]["image"].save("lesion.png")
    arguments = ["lesion.png", "--age", "60", "--sex", "male", "--localization", "back", "--json"]
    assert predict_main(arguments) == 0
    printed = capsys.readouterr()
    assert "ham10000-fusion, the model that comes with this package" in printed.err
    assert predict_main([*arguments, "--checkpoint", str(shipped_checkpoint())]) == 0
    assert capsys.readouterr().out == printed.out
    monkeypatch.setattr("ham10000.training.inference.prediction.SHIPPED_CHECKPOINTS", tmp_path / "none")
    assert predict_main(["lesion.jpg"]) == 2
    assert "Give --checkpoint a folder, or a Hub id" in capsys.readouterr().err


@pytest.mark.shared
def test_the_readmes_prediction_is_what_is_printed(shared_dir: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    (path,) = shared_dir.glob("ham10000/*/ISIC_0027419.jpg")
    shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^    \$ ham10000-predict (.*)\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    assert block
    assert predict_main(block[1].split()) == 0
    assert textwrap.dedent(block[2]).strip() == capsys.readouterr().out.strip()


if __name__ == "__main__":
    PINS.write_text(json.dumps(answers(), indent=1) + "\n", encoding="utf-8")
    print(f"Saved     {PINS} for {SHIPPED_CHECKPOINTS}")
