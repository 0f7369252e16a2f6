"""The study as a user runs it: from the command line, killed and continued, its numbers found again by other ways."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score, log_loss
from transformers import AutoModel, AutoProcessor

import ham10000.modeling  # noqa: F401  (registers the Auto classes)
from ham10000.modeling import LABELS
from ham10000.training.data.sources import load_data, metadata_frame
from ham10000.training.data.split import load_split
from ham10000.training.evaluation.comparison import compare_predictions
from ham10000.training.evaluation.report import read_predictions
from ham10000.training.study.command import main
from ham10000.training.study.report import study_markdown

PROTOCOLS = ("lesion-grouped", "image-stratified")
VARIANTS = ("metadata", "image", "fusion-concat")
TINY = [
    "--data",
    "synthetic:200",
    "--backbone",
    "test_efficientnet",
    "--backbone_kwargs",
    "{}",
    "--pretrained",
    "none",
]
TINY += ["--image_size", "32", "--epochs", "2", "--n_resamples", "200", "--seeds", "1"]
BOTH = [f"--protocol={name}" for name in PROTOCOLS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    cache = ["--cache_dir", str(path / "cache")]
    assert main([*TINY, *BOTH, *cache, "--views", "2", "--output_dir", str(path / "study")]) == 0
    return path / "study"


@pytest.fixture(scope="module")
def study(folder: Path) -> dict:
    return json.loads((folder / "study.json").read_text())


def test_it_writes_every_run_and_the_report(folder: Path, study: dict) -> None:
    assert list(study["protocols"]) == list(PROTOCOLS)
    for protocol in PROTOCOLS:
        assert list(study["protocols"][protocol]["variants"]) == list(VARIANTS)
    assert (folder / "study.md").read_text() == study_markdown(study)
    pictures = {path.name for path in (folder / "figures").iterdir()}
    assert {"results.png", "comparisons.png", "shortcuts.png", "sweeps.png", "leakage.png"} <= pictures
    assert str(folder.parent) not in json.dumps(study)  # no paths of this machine


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_its_numbers_are_those_of_the_runs_own_evaluation(folder, study, protocol, variant) -> None:
    evaluation = json.loads((folder / protocol / f"{variant}-seed0" / "eval_results.json").read_text())
    found = study["protocols"][protocol]["variants"][variant]
    for name in ("macro_f1", "accuracy", "auroc_macro", "ece"):
        row, interval = found["metrics"][name], evaluation["intervals"][name]
        assert row["mean"] == pytest.approx(interval["estimate"], abs=1e-12)
        assert (row["low"], row["high"]) == pytest.approx((interval["low"], interval["high"]), abs=0.02)
        assert row["sd"] is None
    assert (
        found["subgroups"]["fields"]["sex"][0]["n_images"] == evaluation["subgroups"]["fields"]["sex"][0]["n_images"]
    )
    table, labels, probabilities = read_predictions(folder / protocol / f"{variant}-seed0" / "predictions.csv")
    predicted = probabilities.argmax(axis=1)
    expected = f1_score(labels, predicted, average="macro", labels=range(7), zero_division=0)
    assert found["metrics"]["macro_f1"]["mean"] == pytest.approx(expected)
    assert np.diag(found["confusion_matrix"]).sum() == (labels == predicted).sum()
    assert sum(map(sum, found["confusion_matrix"])) == pytest.approx(len(table))


def test_the_difference_is_that_of_the_paired_bootstrap(folder: Path, study: dict) -> None:
    runs = folder / "lesion-grouped"
    expected = compare_predictions(
        runs / "fusion-concat-seed0" / "predictions.csv", runs / "image-seed0" / "predictions.csv", n_resamples=200
    )
    (found,) = [c for c in study["protocols"]["lesion-grouped"]["comparisons"] if c["kind"] == "metadata"]
    for name in ("macro_f1", "balanced_accuracy", "accuracy"):
        for key in ("estimate", "low", "high"):
            assert found["metrics"][name][key] == pytest.approx(expected["differences"][name][key], abs=1e-12)
    kinds = [c["kind"] for c in study["protocols"]["lesion-grouped"]["comparisons"]]
    assert kinds == ["metadata", "tta", "tta"]


def test_the_temperature_is_fitted_on_validation_and_in_the_checkpoint(folder: Path, study: dict) -> None:
    run = folder / "lesion-grouped" / "fusion-concat-seed0"
    found = study["protocols"]["lesion-grouped"]["variants"]["fusion-concat"]
    (temperature,) = found["temperatures"]
    model, processor = AutoModel.from_pretrained(run).eval(), AutoProcessor.from_pretrained(run)
    assert model.config.temperature == temperature != 1
    table, labels, probabilities = read_predictions(run / "predictions.csv")
    rows = load_data("synthetic:200")[0]
    index = {image_id: k for k, image_id in enumerate(rows["image_id"])}
    chosen = rows.select([index[image_id] for image_id in table["image_id"][:8]])
    metadata = [{name: row[name] for name in ("age", "sex", "localization")} for row in chosen]
    with torch.inference_mode():
        logits = model(**processor(images=list(chosen["image"]), metadata=metadata)).logits
    np.testing.assert_allclose(logits.double().softmax(-1), probabilities[:8], atol=1e-5)

    assert found["metrics"]["nll"]["mean"] == pytest.approx(log_loss(labels, probabilities, labels=range(7)))
    raw = torch.tensor(probabilities).log().mul(temperature).softmax(-1).numpy()
    assert found["metrics"]["nll_uncalibrated"]["mean"] == pytest.approx(log_loss(labels, raw, labels=range(7)))
    _, labels, raw = read_predictions(run / "evaluation_validation" / "predictions.csv")
    losses = {t: log_loss(labels, torch.tensor(raw).log().div(t).softmax(-1).numpy(), labels=range(7))
              for t in (temperature * 0.97, temperature, temperature * 1.03)}  # fmt: skip
    assert min(losses, key=lambda t: losses[t]) == temperature


def test_leakage_is_told_by_the_split(folder: Path, study: dict) -> None:
    protocols = study["protocols"]
    assert all(v["leakage"] is None for v in protocols["lesion-grouped"]["variants"].values())
    split = load_split(folder / "image-stratified" / "image-seed0")
    share = split.leakage()["test"]["all"]
    leakage = protocols["image-stratified"]["variants"]["image"]["leakage"]
    assert share > 0.1
    assert leakage["seen"]["n_images"] / split.sizes["test"] == pytest.approx(share)
    table, labels, probabilities = read_predictions(folder / "image-stratified" / "image-seed0" / "predictions.csv")
    train = set(split.table.loc[split.table["split"] == "train", "lesion_id"])
    seen = table["lesion_id"].isin(train).to_numpy()
    right = probabilities.argmax(axis=1) == labels
    assert leakage["seen"]["metrics"]["accuracy"]["mean"] == pytest.approx(right[seen].mean())
    assert leakage["unseen"]["metrics"]["accuracy"]["mean"] == pytest.approx(right[~seen].mean())


def test_photographs_are_counted_over_the_whole_dataset(folder: Path, study: dict) -> None:
    frame = metadata_frame(load_data("synthetic:200")[0])
    counts = frame.groupby("lesion_id")["image_id"].transform("size")
    test = pd.read_csv(folder / "image-stratified" / "image-seed0" / "predictions.csv")["image_id"]
    single = counts[frame["image_id"].isin(test)] == 1
    fields = study["protocols"]["image-stratified"]["variants"]["image"]["subgroups"]["fields"]
    groups = {row["group"]: row["n_images"] for row in fields["photographs"]}
    assert groups["1"] == single.sum()
    assert sum(groups.values()) == len(test)


def test_what_is_done_is_not_done_again(folder: Path, study: dict, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    evaluations = {path: path.stat().st_mtime_ns for path in folder.rglob("eval_results.json")}
    cache = ["--cache_dir", str(folder.parent / "cache")]
    assert main([*TINY, *BOTH, *cache, "--views", "2", "--output_dir", str(folder)]) == 0
    assert capsys.readouterr().out.count("done before") == 6
    assert len(weights) == 18  # a checkpoint and two states for each run
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    assert {path: path.stat().st_mtime_ns for path in evaluations} == evaluations
    assert json.loads((folder / "study.json").read_text())["protocols"] == study["protocols"]


def test_folds_score_every_image_once_and_seeds_have_a_spread(tmp_path: Path) -> None:
    options = [*TINY[:-2], "--variants", "metadata", "--folds", "3", "--seeds", "2", "--views", "1"]
    assert main([*options, "--output_dir", str(tmp_path)]) == 0
    study = json.loads((tmp_path / "study.json").read_text())
    protocol = study["protocols"]["lesion-grouped"]
    assert protocol["evaluated"]["n_images"] == 200
    assert sum(protocol["evaluated"]["class_counts"].values()) == 200
    row = protocol["variants"]["metadata"]["metrics"]["macro_f1"]
    assert row["sd"] == pytest.approx(np.std(row["per_seed"], ddof=1))
    values = []
    for seed in range(2):
        parts = [read_predictions(tmp_path / "lesion-grouped" / f"metadata-fold{k}-seed{seed}" / "predictions.csv")
                 for k in range(3)]  # fmt: skip
        ids = pd.concat([table["image_id"] for table, _, _ in parts])
        assert ids.is_unique
        labels, predicted = (np.concatenate(x) for x in zip(*[(y, p.argmax(1)) for _, y, p in parts], strict=True))
        values.append(f1_score(labels, predicted, average="macro", labels=range(len(LABELS)), zero_division=0))
    assert row["per_seed"] == pytest.approx(values)
    assert row["mean"] == pytest.approx(np.mean(values))


def test_other_settings_and_other_options_are_refused(folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(folder / "lesion-grouped", tmp_path / "lesion-grouped")
    assert main([*TINY, "--epochs", "3", "--output_dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "metadata-seed0' holds a run with epochs 2, but the study asks for 3" in error
    assert not (tmp_path / "study.json").exists()
    for option in ("--seed=3", "--modality", "--resume"):
        assert main([*TINY, option, "image"]) == 2
        assert f"{option.split('=')[0]} is set by the study" in capsys.readouterr().err
    assert main([*TINY[:-2], "--seeds", "0"]) == 2
    assert "--seeds 0" in capsys.readouterr().err
    state = tmp_path / "lesion-grouped" / "fusion-concat-seed0" / "shortcuts.npz"
    state.write_bytes(state.read_bytes()[:1000])
    assert main([*TINY, "--views", "2", "--output_dir", str(tmp_path)]) == 2
    assert "shortcuts.npz' is damaged" in capsys.readouterr().err


def test_fusion_may_start_from_the_image_run_of_its_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "fusion.yaml"
    settings.write_text("pretrained: image\nfreeze_backbone: true\nepochs: 1\n")
    options = [*TINY, "--views", "1", "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "study")]
    options += ["--variants", "image", "fusion-concat", "--variant_config", f"fusion={settings}"]
    assert main(options) == 0
    runs = tmp_path / "study" / "lesion-grouped"
    image, fusion = (load_file(runs / f"{name}-seed0" / "model.safetensors") for name in ("image", "fusion-concat"))
    backbone = [name for name in fusion if name.startswith("backbone.")]
    assert len(backbone) > 10
    assert all(torch.equal(fusion[name], image[name]) for name in backbone)
    trained = json.loads((runs / "fusion-concat-seed0" / "train_config.json").read_text())["config"]
    assert (trained["epochs"], trained["freeze_backbone"]) == (1, True)
    assert json.loads((runs / "image-seed0" / "train_config.json").read_text())["config"]["epochs"] == 2
    report = (tmp_path / "study" / "study.md").read_text()
    assert "--variant_config fusion=fusion.yaml" in report
    assert "**Settings of fusion**, over those shared: pretrained image, freeze_backbone True, epochs 1." in report
    assert str(tmp_path) not in report
    # Again, with nothing left to do.
    before = (runs / "fusion-concat-seed0" / "model.safetensors").stat().st_mtime_ns
    assert main(options) == 0
    assert "fusion-concat-seed0: done before" in capsys.readouterr().out
    assert (runs / "fusion-concat-seed0" / "model.safetensors").stat().st_mtime_ns == before


def test_protocols_have_their_own_seeds_and_processes_share_a_study(tmp_path: Path, capsys) -> None:
    """Two runs done one by one, then the study, which takes them as done; then the models to publish."""
    options = [*TINY[:-2], *BOTH, "--seeds", "2", "1", "--variants", "metadata", "--views", "1"]
    options += ["--output_dir", str(tmp_path / "study"), "--cache_dir", str(tmp_path / "cache")]
    assert main([*options, "--only", "lesion-grouped/metadata-seed1", "image-stratified/metadata-seed0"]) == 0
    out = capsys.readouterr().out
    assert "run 2 of 2" in out
    assert not (tmp_path / "study" / "study.json").exists()
    # Its temperature is that of the study's runs, of which one is not there yet.
    assert main([*options, "--release", "--only", "release/metadata"]) == 2
    assert "finish the study before its release" in capsys.readouterr().err

    assert main([*options, "--release"]) == 0
    assert capsys.readouterr().out.count("done before") == 2
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    counts = {name: protocol["variants"]["metadata"]["metrics"]["macro_f1"]["per_seed"]
              for name, protocol in study["protocols"].items()}  # fmt: skip
    assert {name: len(values) for name, values in counts.items()} == {"lesion-grouped": 2, "image-stratified": 1}
    report = (tmp_path / "study" / "study.md").read_text()
    assert "2 (lesion-grouped) and 1 (image-stratified) training seeds" in report
    assert "--protocol lesion-grouped --protocol image-stratified --seeds 2 1" in report

    release = tmp_path / "study" / "release" / "metadata"
    trained = json.loads((release / "train_config.json").read_text())
    assert trained["config"]["train_on_validation"]
    assert all(
        value.dtype in (torch.float16, torch.int64) for value in load_file(release / "model.safetensors").values()
    )
    temperatures = study["protocols"]["lesion-grouped"]["variants"]["metadata"]["temperatures"]
    assert AutoModel.from_pretrained(release).config.temperature == pytest.approx(np.sqrt(np.prod(temperatures)))
    evaluation = json.loads((release / "eval_results.json").read_text())
    assert evaluation["split"]["sha256"] == study["protocols"]["lesion-grouped"]["split"]["sha256"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "2", "1"], "gives 2 numbers for 1 protocol"),
        (["--only", "lesion-grouped/image-seed9"], "no such run in this study; it has lesion-grouped/metadata-seed0"),
        (["--release", "--folds", "3"], "--folds makes every image a test image"),
    ],
)
def test_wrong_choices_of_runs(tmp_path: Path, capsys, options: list[str], message: str) -> None:
    assert main([*TINY[:-2], "--seeds", "1", *options, "--output_dir", str(tmp_path / "study")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study" / "study.json").exists()


@pytest.mark.parametrize(
    ("text", "option", "message"),
    [
        ("modality: image", "fusion={}", "modality cannot differ between the variants of a study"),
        ("epochs: 3", "picture={}", "takes MODALITY=FILE with one of"),
        ("epochs: 3", "{}", "takes MODALITY=FILE with one of"),
        ("seed: 3", "fusion={}", "seed cannot differ between the variants of a study"),
        ("pretrained: image", "metadata={}", "only fusion can start from"),
        ("pretrained: image", "fusion={}", "which --variants must name"),
        ("epoch: 3", "fusion={}", "unknown key"),
    ],
)
def test_wrong_variant_settings(tmp_path: Path, capsys, text: str, option: str, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    options = ["--variants", "metadata", "fusion-concat", "--variant_config", option.format(path)]
    assert main([*TINY, *options, "--output_dir", str(tmp_path / "study")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
