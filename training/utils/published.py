"""Numbers of others that ours are put beside, with their protocols; kept as data, never typed into a text."""

from pathlib import Path
from typing import Any

from ham10000.training.utils.files import read_json


def published_baseline() -> dict[str, Any]:
    """The published image-only baseline this package grew out of.

    Returns:
        `name`, `source` (where the numbers come from), `protocol`, `leak` (share of its test images whose lesion is in
        train) and `intervals` (metric to estimate, low, high: 95 %, images resampled).
    """
    return read_json(Path(__file__).with_name("published_baseline.json"))
