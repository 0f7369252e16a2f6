"""Markdown for the cards: that of the reports, and what only a card needs, whose values come from anybody's files."""

from collections.abc import Sequence
from typing import Any

from ham10000.training import markdown_text
from ham10000.training.markdown_text import (
    NO_BREAK,
    bullets,
    code,
    details,
    escape,
    fence,
    interval,
    join,
    percent,
    plain,
    section,
    table,
    words,
)


def figure(names: Sequence[str], name: str, text: str) -> str:
    """An image of `figures/`, or nothing where there is none."""
    return f"![{text}](figures/{name})" if name in names else ""


def decimal(value: Any, digits: int = 3) -> str:
    """A number with fixed digits, a dash for None and NaN; text is shown as it is."""
    return escape(value) if isinstance(value, str) else markdown_text.decimal(value, digits)


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else escape(value)


__all__ = [
    "NO_BREAK",
    "bullets",
    "code",
    "count",
    "decimal",
    "details",
    "escape",
    "fence",
    "figure",
    "interval",
    "join",
    "percent",
    "plain",
    "section",
    "table",
    "words",
]
