"""What a case of the bad-input corpus is, and how it is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from ham10000.modeling import Ham10000Error


@dataclass(frozen=True)
class Case:
    """One input and what it must come to."""

    category: str  # as the count is reported
    name: str  # of the test
    build: Callable[[Path], Any]  # makes the input in a folder; its files are the only ones there
    run: Callable[[Any], Any]  # reads the input
    error: tuple[str, ...] | None = None  # fragments of the one error's message; None if it is read
    check: Callable[[Any], None] | None = None  # asserts the documented result, if it is read

    @property
    def id(self) -> str:
        return f"{self.category}-{self.name}"


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    """Makes a file in a folder, and returns its path."""

    def build(folder: Path) -> Path:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder / name

    return build


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below a folder with its size and time of change."""
    found = {str(path.relative_to(folder)): path.lstat() for path in folder.rglob("*")}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}


def judge(case: Case, folder: Path) -> None:
    """Runs a case: the documented result or one error that says what it must, and nothing written either way."""
    subject = case.build(folder)
    before = listing(folder)
    if case.check:
        case.check(case.run(subject))
    else:
        with pytest.raises((Ham10000Error, StrictDataclassError)) as caught:
            case.run(subject)
        message = str(caught.value)
        assert [fragment for fragment in case.error or () if fragment not in message] == [], message
        assert len(message) < 4000
        assert "Traceback" not in message
    assert listing(folder) == before
