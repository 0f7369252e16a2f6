"""Every whole command line of README and the guides is run, in the documents' order, on data as they describe it."""

import importlib
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import torchvision
import yaml
from accelerate.state import AcceleratorState
from command_lines import PROJECT, ROOT, command_lines

DOCUMENTS = ["README.md", "examples/checkpoints/README.md"]
DOCUMENTS += [f"examples/guides/{name}.md" for name in ("use", "training", "own_data", "study", "publishing")]
# Only the networks are smaller and the schedules shorter than what is written.
TINY = "--backbone test_efficientnet --backbone_kwargs {} --pretrained none --image_size 32 --train_scales 1 1"
TINY += " --epochs 1 --cache_size 32 --batch_size 20 --cache_dir cache"
FINE_TUNED = "--image_size 64 --epochs 1 --cache_dir cache"
EVALUATE = "--n_resamples 20"
# Run elsewhere: `.ci/run` runs make's targets, test_app.py the app, test_recipes.py the search on a plan of its own.
ELSEWHERE = ("make ", "pip ", "python examples/benchmarks/recipes.py ")


def lines() -> list[str]:
    found = [line for name in DOCUMENTS for line, whole in command_lines((ROOT / name).read_text("utf-8")) if whole]
    return [line for line in dict.fromkeys(found) if not line.startswith(ELSEWHERE)]


def run(line: str) -> object:
    words = shlex.split(line, comments=True)
    if words[:3] == ["accelerate", "launch", "training/train.py"]:  # on several processes: test_processes.py
        words = ["ham10000-train", *words[3:]]
    if words[0] == "ham10000-train" or (words[0] == "ham10000-study" and "--predictions" not in words):
        words += shlex.split(FINE_TUNED if "--init_from" in words else TINY)
    if words[0] == "ham10000-evaluate":
        words += shlex.split(EVALUATE)
    if words[0] == "ham10000-push":
        shutil.rmtree("bundle", ignore_errors=True)
    AcceleratorState._reset_state(True)
    module, _, function = PROJECT["scripts"][words[0]].partition(":")
    return getattr(importlib.import_module(module), function)(words[1:])


@pytest.fixture
def described(tmp_path: Path, synthetic_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the documents' command lines name."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(synthetic_folder, "HAM10000")
    shutil.copy("HAM10000/HAM10000_metadata.csv", ".")
    for folder in ("checkpoints", "configs"):
        shutil.copytree(ROOT / "examples" / folder, f"examples/{folder}")
    study = yaml.safe_load((ROOT / "examples" / "configs" / "study.yaml").read_text("utf-8"))
    study |= {"protocols": {"lesion-grouped": {"folds": 3}}, "n_resamples": 20}
    study["heads"]["epochs"] = 1
    Path("examples/configs/study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    table = pd.read_csv("HAM10000_metadata.csv")
    images = sorted(Path("HAM10000").glob("*/*.jpg"))
    places = {"images": images[:3], "new": [], "mine": images, "clinic": images, "ISIC2018_Task3_Test": images}
    for folder, found in (places | {".": images}).items():
        Path(folder).mkdir(exist_ok=True)
        for image in found:
            shutil.copy(image, folder)
    for place in ("lesion.jpg", "new/lesion.jpg"):
        shutil.copy(images[0], place)
    first = table[table.image_id.isin([image.stem for image in images[:3]])]
    first[["image_id", "age", "sex", "localization"]].to_csv("table.csv", index=False)
    mine = table[table.dx.isin(["mel", "nv", "bcc"])]
    mine = mine.assign(image=mine.image_id, label=mine.dx.replace("bcc", "scc"), patient_id=mine.lesion_id)
    mine = mine[["image", "label", "lesion_id", "patient_id", "age", "sex"]]
    mine.to_csv("mine/labels.csv", index=False)
    mine.assign(label=mine.label.replace("mel", "melanoma")).to_csv("clinic/labels.csv", index=False)
    german = table.assign(dx=table.dx.replace({"nv": "naevus", "mel": "melanom"}), patient=table.lesion_id)
    german = german.rename(columns={"image_id": "Datei", "dx": "Diagnose", "age": "Alter"})
    german.to_csv("mine.csv", index=False)
    truth = pd.get_dummies(table.set_index("image_id").dx.str.upper()).astype(float)
    truth.rename_axis("image").to_csv("ISIC2018_Task3_Test/ISIC2018_Task3_Test_GroundTruth.csv")
    for modality in ("image", "metadata"):
        shutil.copytree(ROOT / "examples" / "checkpoints" / f"ham10000-{modality}", f"runs/{modality}")
    network = torchvision.models.efficientnet_v2_s(num_classes=7)
    torch.save(network.state_dict(), "efficientnetv2s_image_only_state_dict.pt")
    return tmp_path


@pytest.mark.slow
def test_every_command_line_does_what_it_says(described: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(lines()) > 25
    failed = []
    for line in lines():
        code, error = run(line), capsys.readouterr().err
        if code not in (0, None):
            failed.append(f"{line}\n    {error[-500:]}")
    assert not failed, "\n".join(failed)
    written = ["predictions.csv", "runs/fusion/model.safetensors", "runs/study/study.md", "submission.csv", "paper"]
    written += ["bundle/README.md", "checkpoints/baseline/model.safetensors", "runs/mine/eval_results.json"]
    assert [name for name in written if not (described / name).exists()] == []
