"""Markdown for the cards: values from files are text, never markup."""

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# A value of these characters only can stand between backticks as it is.
_PLAIN_CODE = re.compile(r"[\w .,:;/+=()'\"%-]+", re.ASCII)
# Everything that begins markup in Markdown, GitHub's tables and links included. An underscore inside a word does not.
_MARKUP = re.compile(r"[\\`*\[\]|~#!@{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//")
_ABSENT = "–"
NO_BREAK = "\u00a0"  # a space where no line may end


def plain(value: Any) -> str:
    """One line of text: control characters and line breaks become spaces."""
    text = "".join(" " if unicodedata.category(char).startswith("C") else char for char in str(value))
    return " ".join(text.split())


def escape(value: Any) -> str:
    """Text that shows as it is in Markdown, HTML and a table cell; markup becomes character references."""
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(char)};" for char in match[0]), html.escape(plain(value), False))


def code(value: Any) -> str:
    """Text in a fixed-width font, escaped."""
    text = plain(value)
    if _PLAIN_CODE.fullmatch(text):
        return f"`{text}`"
    return f"<code>{escape(text)}</code>"


def fence(language: str, text: str) -> str:
    """A code block that its content cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str | None = None) -> str:
    """A table of ready cells; an empty one shows a dash.

    Args:
        header: Titles of the columns.
        rows: Cells, already escaped.
        align: `l` or `r` per column; by default the first is left, the others right.

    Returns:
        Markdown.
    """
    align = align or "l" + "r" * (len(header) - 1)
    marks = [{"l": ":---", "r": "---:"}[letter] for letter in align]
    return "\n".join("| " + " | ".join(cell or _ABSENT for cell in cells) + " |" for cells in (header, marks, *rows))


def details(summary: str, body: str) -> str:
    """A part that is shown on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"


def bullets(items: Iterable[str]) -> str:
    """A list of the items that are not empty."""
    return "\n".join(f"- {item}" for item in items if item)


def section(title: str, *blocks: str, level: int = 2) -> str:
    """A heading and its blocks; nothing at all if all of them are empty."""
    body = join(*blocks)
    return f"{'#' * level} {title}\n\n{body}" if body else ""


def join(*blocks: str) -> str:
    """Blocks one below the other, without the empty ones."""
    return "\n\n".join(block for block in blocks if block)


def figure(names: Sequence[str], name: str, text: str) -> str:
    """An image of `figures/`, or nothing where there is none."""
    return f"![{text}](figures/{name})" if name in names else ""


def decimal(value: Any, digits: int = 3) -> str:
    """A number with fixed digits; a dash for None and NaN."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _ABSENT
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else escape(value)


def count(value: Any) -> str:
    """A whole number with thousands separators."""
    return f"{value:,}" if isinstance(value, int) else escape(value)


def percent(share: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%" if isinstance(share, (int, float)) else _ABSENT


def interval(value: dict[str, Any] | None, *, signed: bool = False) -> str:
    """`estimate [low, high]` with three decimals; the estimate alone where there are no bounds.

    Args:
        value: `estimate`, `low` and `high`; any may be None.
        signed: Whether to show the sign of positive numbers, as differences need it.
    """
    if value is None or value.get("estimate") is None:
        return _ABSENT
    form = "+.3f" if signed else ".3f"
    text = f"{value['estimate']:{form}}"
    if value.get("low") is None or value.get("high") is None:
        return text
    return f"{text} [{value['low']:{form}},{NO_BREAK}{value['high']:{form}}]"


def words(items: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


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
