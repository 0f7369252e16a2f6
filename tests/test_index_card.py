"""The index of the variants: links, the runs' numbers, paired differences, and its command."""

import re
from pathlib import Path

import pytest
from card_runs import cell, find_table, read_json, spaces, tables, write_checkpoint, write_run
from huggingface_hub import ModelCard

from ham10000.hub_upload.index_card import compare_runs, main, render_index_card
from ham10000.hub_upload.run_files import Sibling, read_run
from ham10000.modeling import Ham10000Error
from ham10000.training.comparison import compare_predictions


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    return {name: write_run(base / name, name, seed=seed) for seed, name in enumerate(("fusion", "metadata", "image"))}


def test_the_command_writes_a_whole_index(runs: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "index" / "README.md"
    folders = [str(runs["fusion"]), str(runs["metadata"]), f"{runs['image']}=other/picture"]
    assert main([*folders, "--repo_id", "user/ham10000", "--output", str(output)]) == 0
    card = ModelCard(output.read_text(encoding="utf-8"))
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.datasets == ["HAM10000"]
    links = re.findall(r"\]\(https://huggingface\.co/([^)]+)\)", card.text)
    assert set(links) == {"other/picture", "user/ham10000-metadata", "user/ham10000-fusion"}
    rows = find_table(card.text, "model", "protocol", "leak")
    for name, folder in runs.items():
        intervals = read_json(folder / "eval_results.json")["intervals"]
        row = next(row for title, row in rows.items() if title.split(",")[0] == name)
        assert row[2] == cell(intervals["macro_f1"])
        assert row[-1] == cell(intervals["melanoma_sensitivity_at_95_specificity"])
    titles = [rows[0][1] for rows in tables(card.text) if rows[0][-1] == "reading"]
    assert titles == ["fusion minus image", "fusion minus metadata", "image minus metadata"]
    difference = compare_predictions(runs["fusion"] / "predictions.csv", runs["image"] / "predictions.csv")[
        "differences"
    ]
    low, high = difference["macro_f1"]["low"], difference["macro_f1"]["high"]
    expected = f"{difference['macro_f1']['estimate']:+.3f} [{low:+.3f}, {high:+.3f}]"
    assert spaces(find_table(card.text, "fusion minus image")["macro-F1"])[0] == expected
    assert all(text.strip() for rows in tables(card.text) for row in rows for text in row)
    assert not re.search(r"None|nan\b|TODO", card.text)


def test_variants_without_an_evaluation(runs: dict[str, Path], tmp_path: Path) -> None:
    bare = Sibling(read_run(write_checkpoint(tmp_path / "bare", "image")))
    card = render_index_card([bare], repo_id="user/ham10000")
    assert "Not evaluated, so nothing is known of how good they are: image." in card
    assert not list(tables(card))
    assert "Differences" not in card
    assert "huggingface.co" not in card
    evaluated = Sibling(read_run(runs["metadata"]), "user/m")
    assert len(list(tables(render_index_card([bare, evaluated], repo_id="user/ham10000")))) == 1


def test_synthetic_runs_are_marked(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", "image", prefix="SYN"))
    card = render_index_card([Sibling(run)], repo_id="user/ham10000")
    assert "SYNTHETIC data: these numbers mean nothing about skin" in card
    assert ModelCard(card).data.license == "apache-2.0"
    assert "published baseline" not in card


def test_runs_of_other_images_are_not_compared(runs: dict[str, Path], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", "image", seed=5)
    text = (other / "eval_results.json").read_text()
    (other / "eval_results.json").write_text(text.replace("ab" * 32, "ef" * 32))
    siblings = [Sibling(read_run(runs["fusion"])), Sibling(read_run(other))]
    assert compare_runs([sibling.run for sibling in siblings]) == []
    assert "not all scored on the same images" in render_index_card(siblings, repo_id="user/ham10000")


def test_bad_input_is_named(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sibling = Sibling(read_run(runs["image"]))
    with pytest.raises(Ham10000Error, match="each variant at most once"):
        render_index_card([sibling, sibling], repo_id="user/ham10000")
    with pytest.raises(Ham10000Error, match="at least one"):
        render_index_card([], repo_id="user/ham10000")
    output = tmp_path / "README.md"
    assert main([str(runs["image"]), "--repo_id", "no such/id!", "--output", str(output)]) == 2
    assert "no Hub id" in capsys.readouterr().err
    assert main([str(tmp_path), "--repo_id", "user/ham10000", "--output", str(output)]) == 2
    assert "config.json" in capsys.readouterr().err
    assert not output.exists()
