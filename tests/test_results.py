"""What the repository says it measured is rendered from what was measured."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from results import BLOCKS, NO_STUDY, block, main, markers, render_results
from sklearn.metrics import f1_score
from study_tables import small_report

from ham10000.modeling import LABELS
from ham10000.training.study.report import largest_fall, results_table, short_answer, study_markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "examples" / "results"


def committed_study() -> dict:
    return json.loads((RESULTS / "study.json").read_text(encoding="utf-8"))


def test_a_study_is_collected_and_its_table_put_into_the_readme(tmp_path: Path) -> None:
    small_report(tmp_path / "study")
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    results, readme = tmp_path / "results", tmp_path / "README.md"
    assert main(["collect", str(tmp_path / "study"), "--to", str(results)]) == 0
    assert json.loads((results / "study.json").read_text()) == study
    assert (results / "study.md").read_text() == study_markdown(study)
    assert (results / "figures" / "comparisons.png").is_file()
    tables = (folder / "predictions.parquet" for folder in (results, tmp_path / "study"))
    assert len({table.read_bytes() for table in tables}) == 1

    blocks = ["\nstale table\n".join(markers(name)) for name in BLOCKS]
    readme.write_text("\n".join(["before", *blocks, "after\n"]))
    assert main(["render", "--results", str(results), "--readme", str(readme)]) == 0
    text, answer = readme.read_text(), short_answer(study)
    assert block(text, "answer")[1] == answer[0]
    assert all(paragraph in block(text, "results")[1] for paragraph in (results_table(study), *answer[1:]))
    assert "stale table" not in text
    assert (text.splitlines()[0], text.splitlines()[-1]) == ("before", "after")


def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collect", str(tmp_path), "--to", str(tmp_path / "results")]) == 2
    assert "study.json' does not exist; run or continue the study" in capsys.readouterr().err
    assert render_results(tmp_path) == NO_STUDY
    document = tmp_path / "README.md"
    for text, missing in (("no markers\n", markers("answer")[0]), markers("targets")):
        document.write_text(text)
        assert main(["render", "--results", str(tmp_path), "--readme", str(document)]) == 2
        assert missing in capsys.readouterr().err
        assert document.read_text() == text


def test_the_report_and_the_tables_in_the_documents_are_the_rendered_ones() -> None:
    assert (RESULTS / "study.md").read_text(encoding="utf-8") == study_markdown(committed_study())
    blocks = {
        "README.md": ("answer", "models", "results", "quality", "speed"),
        "examples/results/README.md": ("targets", "speed targets"),
        "examples/guides/speed.md": ("prediction", "latency"),
    }
    assert sorted(name for names in blocks.values() for name in names) == sorted(BLOCKS)
    for document, names in blocks.items():
        text = (ROOT / document).read_text(encoding="utf-8")
        for name in names:
            assert block(text, name)[1] == BLOCKS[name](RESULTS).strip()


def test_the_headline_follows_from_the_published_predictions() -> None:
    """By scikit-learn alone, from the logits that anyone can download."""
    table, study = pd.read_parquet(RESULTS / "predictions.parquet"), committed_study()
    logits = table[[f"logit_{label}" for label in LABELS]].to_numpy()
    by_seed = table.assign(answer=np.array(LABELS)[logits.argmax(axis=1)]).groupby(["protocol", "variant", "seed"])
    scores = {key: f1_score(rows["label"], rows["answer"], average="macro") for key, rows in by_seed}
    scores = pd.Series(scores).groupby(level=[0, 1]).mean()
    for name, protocol in study["protocols"].items():
        for variant, values in protocol["variants"].items():
            counts = by_seed["image_id"].nunique()[name, variant]
            assert counts.to_dict() == dict.fromkeys(protocol["seeds"], protocol["n_images"])
            assert values["metrics"]["macro_f1"]["estimate"] == pytest.approx(scores[name, variant])
    lead, protocol = next(iter(study["protocols"].items()))
    for row in protocol["comparisons"]:
        difference = scores[lead, row["model"]] - scores[lead, row["other"]]
        assert row["metrics"]["macro_f1"]["estimate"]["estimate"] == pytest.approx(difference)


def test_the_fall_in_the_answer_is_the_largest_of_the_age_bands() -> None:
    protocol = committed_study()["protocols"]["lesion-grouped"]
    found = {}
    for variant in ("control", "fusion"):
        for row in protocol["variants"][variant]["subgroups"]["fields"]["age"]:
            if not row["too_few"]:
                found.setdefault(row["group"], []).append(row["malignant_sensitivity"]["estimate"])
    group = max(found, key=lambda name: found[name][0] - found[name][1])
    fall = largest_fall(protocol)
    assert fall is not None
    assert (fall["group"], fall["before"], fall["after"]) == (group, *found[group])
    equal = {"variants": {"control": protocol["variants"]["control"], "fusion": protocol["variants"]["control"]}}
    assert largest_fall(equal) is None
