"""Markdown and numbers of reports and cards: values from files are text, never markup."""

import html
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeGuard

import jinja2

# Everything that begins markup in Markdown, GitHub's tables and links included. An underscore inside a word does not.
_MARKUP = re.compile(r"[\\`*\[\]|~#!@{}$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=:)//")
# A value of these characters only can stand between backticks as it is.
_PLAIN_CODE = re.compile(r"[\w .,:;/+=()'\"%-]+", re.ASCII)
ABSENT = "–"
NO_BREAK = "\u00a0"  # a space where no line may end


def plain(value: object) -> str:
    """One line of text: control characters and line breaks become spaces."""
    text = "".join(" " if unicodedata.category(char).startswith("C") else char for char in str(value))
    return " ".join(text.split())


def escape(value: object) -> str:
    """Text that shows as it is in Markdown, HTML and a table cell; markup becomes character references."""
    return _MARKUP.sub(lambda match: "".join(f"&#{ord(char)};" for char in match[0]), html.escape(plain(value), False))


def code(value: object) -> str:
    """Text in a fixed-width font, escaped."""
    text = plain(value)
    return f"`{text}`" if _PLAIN_CODE.fullmatch(text) else f"<code>{escape(text)}</code>"


def fence(language: str, text: str) -> str:
    """A code block that its content cannot end."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{ticks}{language}\n{text.strip()}\n{ticks}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str | None = None) -> str:
    """A table of escaped cells, an empty one shown as a dash; nothing at all without rows.

    `align` has an `l` or `r` per column; by default the first is left, the others right.
    """
    rows = list(rows)
    marks = [{"l": ":---", "r": "---:"}[letter] for letter in align or "l" + "r" * (len(header) - 1)]
    lines = ["| " + " | ".join(cell or ABSENT for cell in cells) + " |" for cells in (header, marks, *rows)]
    return "\n".join(lines) if rows else ""


def bullets(items: Iterable[str]) -> str:
    """A list of the items that are not empty."""
    return "\n".join(f"- {item}" for item in items if item)


def join(*blocks: str) -> str:
    """Blocks one below the other, without the empty ones."""
    return "\n\n".join(block for block in blocks if block)


def words(items: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def plural(number: int, noun: str) -> str:
    """`1 lesion`, `2 lesions`, `1,002 lesions`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def defined(value: object) -> TypeGuard[float]:
    """Whether this is a number that can be shown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimal(value: object, digits: int = 3, *, signed: bool = False) -> str:
    """A number with fixed digits; a dash where there is none."""
    return f"{value:{'+' if signed else ''}.{digits}f}" if defined(value) else ABSENT


def percent(share: object, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * share:.{digits}f}{NO_BREAK}%" if defined(share) else ABSENT


def p_text(p: object) -> str:
    """A p-value for a table cell."""
    if not defined(p):
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(value: Mapping[str, object] | None, *, signed: bool = False, shares: bool = False) -> str:
    """`estimate [low, high]`; the estimate alone where there are no bounds, a dash where it is undefined.

    `signed` shows the sign of positive numbers, as differences need it; `shares` shows percentages.
    """
    numbers = [None if value is None else value.get(name) for name in ("estimate", "low", "high")]
    estimate, low, high = (percent(number) if shares else decimal(number, signed=signed) for number in numbers)
    return estimate if ABSENT in (estimate, low, high) else f"{estimate} [{low},{NO_BREAK}{high}]"


def leaves_out_zero(value: Mapping[str, object] | None) -> bool | None:
    """Whether an interval lies on one side of 0; None where it has no bounds."""
    low, high = (None, None) if value is None else (value.get("low"), value.get("high"))
    return low > 0 or high < 0 if defined(low) and defined(high) else None


def markdown_template(path: Path, **filters: Callable[..., object]) -> jinja2.Template:
    """Loads a Markdown template that must be given every value it names.

    Its filters are functions of this module, with `e` for `escape`, through which text from files goes, and `filters`.
    """
    loader = jinja2.FileSystemLoader(path.parent)
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    ours = (code, decimal, fence, interval, p_text, percent, plural, words)
    environment.filters |= {function.__name__: function for function in ours} | {"e": escape} | filters
    return environment.get_template(path.name)
