"""The parts of a card: reading a run, portable paths, escaping, the command to reproduce, augmentation."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from card_runs import read_json, tables, training_summary, write_checkpoint, write_json, write_run

from ham10000.hub_upload.model_card import render_model_card, reproduce_command
from ham10000.hub_upload.run_files import read_run
from ham10000.modeling import Ham10000Error
from ham10000.training.config import parse_arguments
from ham10000.training.run_folder import portable_training
from ham10000.training.utils.markdown_text import code, escape, fence, table


def test_markdown_of_untrusted_text() -> None:
    """More of it passes through `tests/test_hostile_values.py`."""
    for text in ("a\\|b", "~~x~~", "&#124;", "![i](u)"):
        for make in (escape, code):
            assert list(tables(table(["t"], [[make(text)]]))) == [[["t"], [text]]], (text, make)
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


DAMAGED = (('{"metrics": ', "cannot be read as JSON"), ("3", "must contain a JSON"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "does not exist"),
        ("processor_config.json", None, "does not exist"),
        *[
            (f"{name}.json", *damaged)
            for name in ("eval_results", "train_config", "history", "conversion")
            for damaged in DAMAGED
        ],
        ("eval_results.json", '{"metrics": {"n_images": 1}}', r"lacks 'metrics\.confusion_matrix'"),
        ("config.json", '{"model_type": "ham10000", "modality": "sound"}', "modality"),
        ("config.json", '{"model_type": "bert"}', "model_type is 'bert'"),
    ],
)
def test_bad_folders_are_named(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "image")
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(Ham10000Error, match=rf"{name}'.*{message}"):
        read_run(tmp_path)


def test_the_card_names_the_augmentation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "image", evaluated=False)
    training = read_json(run / "train_config.json")

    def augmentation(**config: Any) -> str:
        write_json(run / "train_config.json", training | {"config": training["config"] | config})
        card = render_model_card(read_run(run), repo_id="user/x", revision="v1.0").replace("\N{NO-BREAK SPACE}", " ")
        return next(line for line in card.splitlines() if line.startswith("- Augmentation: "))

    plain = augmentation()
    assert "mixup" not in plain
    text = augmentation(mixup=0.2, cutmix=1.0, train_scales=[0.5, 1.0])
    assert "mixup with alpha 0.2, CutMix with alpha 1 and images of 50 % of the side in the first epoch" in text
    nothing = {"augment_flip": False, "augment_rotation": 0.0, "augment_min_area": 1.0, "augment_color": 0.0}
    assert augmentation(**nothing) == "- Augmentation: none."
    # A run of an earlier version, without these settings.
    for name in ("mixup", "cutmix", "train_scales"):
        del training["config"][name]
    assert augmentation() == plain
