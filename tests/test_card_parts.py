"""The parts of a card: reading a run, portable paths, escaping, the command to reproduce, the carbon estimate."""

import shlex
from pathlib import Path

import pytest
from card_runs import read_json, tables, training_summary, write_json, write_run

from ham10000.hub_upload.card_cost import training_footprint
from ham10000.hub_upload.card_markdown import code, escape, fence, table
from ham10000.hub_upload.card_training import _augmentation, reproduce_command
from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import Ham10000Error
from ham10000.training.config import TrainConfig, parse_arguments
from ham10000.training.run_folder import portable_training


def test_escaping_shows_the_text_as_it_is() -> None:
    for text in (
        "a|b",
        "<b>&amp;",
        "*x* _y_ `z`",
        "[l](u)",
        "tf_efficientnetv2_b0",
        "a\\|b",
        "~~x~~",
        "&#124;",
        "![i](u)",
    ):
        for make in (escape, code):
            rows = list(tables(table(["t"], [[make(text)]])))
            assert rows == [[["t"], [text]]], (text, make)
    assert escape("a\nb\u2028c\x00d") == "a b c d"
    assert fence("bash", "x ``` y").splitlines()[0] == "````bash"
    assert table(["a", "b"], [["", "x"]]).splitlines()[2] == "| – | x |"


def test_local_paths_are_cut() -> None:
    training = training_summary(
        cache_dir="C:\\Users\\anna\\cache", split_file="/home/anna/split.csv", pretrained="weights/b0.safetensors"
    )
    portable = portable_training(training)
    config = portable["config"]
    assert [config[name] for name in ("data", "output_dir", "cache_dir", "split_file", "pretrained")] == [
        "HAM10000",
        "run",
        "cache",
        "split.csv",
        "b0.safetensors",
    ]
    assert portable["data_notes"] == ["HAM10000/table.csv: no column lesion_id; every image counts as a lesion"]
    assert training["config"]["data"] == "/home/anna/data/HAM10000"  # the argument is left alone
    assert portable_training(training_summary())["config"]["split_file"] is None
    note = "images/s of /opt/x y/z.csv, C:\\data\\t.csv"
    assert portable_training(training | {"data_notes": [note]})["data_notes"] == ["images/s of x y/z.csv, t.csv"]


def test_reproduce_command_gives_the_same_settings() -> None:
    training = portable_training(
        training_summary(
            metadata_fields=["sex", "age"],
            augment_flip=False,
            image_size=[192, 256],
            backbone_kwargs='{"drop_rate": 0.1}',
        )
    )
    first = reproduce_command(training).replace("\\\n", " ").splitlines()[0]
    program, *arguments = shlex.split(first)
    assert program == "ham10000-train"
    again = parse_arguments(arguments).to_dict()
    places = ("data", "output_dir")
    assert {k: v for k, v in again.items() if k not in places} == {
        k: v for k, v in training["config"].items() if k not in places
    }


def test_footprint_follows_the_published_formula() -> None:
    training = training_summary()
    footprint = training_footprint(training)
    assert footprint is not None
    # Lannelongue et al. 2021, equation 1, for one hour: (2 x 12 W + 23.54 GB x 0.3725 W/GB) x 1.67.
    assert footprint.kilowatt_hours == pytest.approx((24 + 24106 / 1024 * 0.3725) * 1.67 / 1000)
    assert footprint.grams_co2e == pytest.approx(footprint.kilowatt_hours * 475)
    training |= {"device": "cuda:0", "processes": 2}
    training["environment"]["gpu"] = {"model": "Tesla T4", "count": 4, "cuda": "12.8"}
    with_gpu = training_footprint(training)
    assert with_gpu is not None
    assert with_gpu.kilowatt_hours - footprint.kilowatt_hours == pytest.approx(2 * 70 * 1.67 / 1000)
    training["environment"]["gpu"]["model"] = "Something new"
    assert training_footprint(training) is None
    assert training_footprint(None) is None


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(Ham10000Error, match=r"config\.json' does not exist"):
        read_run(tmp_path)
    run = write_run(tmp_path / "run", "image")
    for name in ("eval_results.json", "train_config.json", "history.json", "conversion.json"):
        before = (run / name).read_text() if (run / name).exists() else None
        (run / name).write_text('{"metrics": ')
        with pytest.raises(Ham10000Error, match=rf"{name}' cannot be read as JSON"):
            read_run(run)
        (run / name).write_text("3")
        with pytest.raises(Ham10000Error, match=rf"{name}' must hold a JSON"):
            read_run(run)
        (run / name).unlink()
        if before is not None:
            (run / name).write_text(before)
    results = read_json(run / "eval_results.json")
    del results["metrics"]["confusion_matrix"]
    write_json(run / "eval_results.json", results)
    with pytest.raises(Ham10000Error, match=r"eval_results\.json' lacks 'metrics\.confusion_matrix'"):
        read_run(run)
    (run / "eval_results.json").unlink()
    config = read_json(run / "config.json")
    write_json(run / "config.json", config | {"modality": "sound"})
    with pytest.raises(Ham10000Error, match=r"config\.json'.*modality"):
        read_run(run)
    write_json(run / "config.json", config | {"model_type": "bert"})
    with pytest.raises(Ham10000Error, match="model_type is 'bert'"):
        read_run(run)
    write_json(run / "config.json", config)
    (run / "processor_config.json").unlink()
    with pytest.raises(Ham10000Error, match=r"processor_config\.json' does not exist"):
        read_run(run)


def test_the_card_names_mixing_and_growing_pictures() -> None:
    config = TrainConfig().to_dict()
    assert "mixup" not in _augmentation(config)
    text = _augmentation({**config, "mixup": 0.2, "cutmix": 1.0, "train_scales": [0.5, 1.0]})
    text = text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "mixup with alpha 0.2" in text
    assert "CutMix with alpha 1" in text
    assert "pictures of 50 % of the side in the first epoch, 100 % in the last" in text
    # A run of an earlier version, without these settings.
    for name in ("mixup", "cutmix", "train_scales"):
        del config[name]
    assert _augmentation(config) == _augmentation(TrainConfig().to_dict())
