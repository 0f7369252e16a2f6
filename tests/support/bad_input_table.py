"""Prints the bad-input corpus, by category and outcome, as Markdown: `python tests/support/bad_input_table.py`."""

import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from test_bad_input import counts

from ham10000.training.utils.markdown_text import table


def main() -> None:
    """Prints the table."""
    found = counts()
    rows = [*found.items(), ("all", sum(found.values(), Counter()))]
    cells = [[name, *(f"{number:,}" for number in (c.total(), c["refused"], c["read"]))] for name, c in rows]
    header = ["category", "cases", "refused with one error", "read, with the documented result"]
    print(table(header, cells))


if __name__ == "__main__":
    main()
