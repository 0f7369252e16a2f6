"""What is told next to an evaluation never takes the place of its results."""

from pathlib import Path

import pytest
from predicted import predictions

from ham10000.modeling import Ham10000Error
from ham10000.training.evaluation.report import evaluate_predictions, predictions_table, write_evaluation


@pytest.mark.parametrize("name", ["metrics", "intervals", "bootstrap", "subgroups"])
def test_a_context_that_would_overwrite_a_result_is_refused(name: str, tmp_path: Path) -> None:
    labels, probabilities = predictions(60)
    ids = [f"ISIC_{row:07d}" for row in range(60)]
    table = predictions_table(
        image_ids=ids, lesion_ids=ids, lesion_groups=ids, labels=labels, probabilities=probabilities
    )
    results = evaluate_predictions(table, n_resamples=5) | {"subgroups": {}}
    with pytest.raises(Ham10000Error, match=rf"overwrite the result\(s\) \['{name}'\]"):
        write_evaluation(tmp_path / "run", results, table, {"seed": 1, name: {}})
    assert not (tmp_path / "run").exists()
