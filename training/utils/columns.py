"""One reader of tables for training, evaluation and prediction: their cells, columns and spellings.

Command lines import this file before they are parsed: only functions may import pandas or torch.
"""

import argparse
import csv
import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Names of ISIC (Archive, 2018 to 2020, MILK10k), HAM10000, PAD-UFES-20, BCN20000, Derm7pt and `datasets`. Of several
# that a table has, the first is read. They are compared in lower case, with `_` for spaces and hyphens.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "image_id": (
        *("image_id", "isic_id", "image_name", "img_id", "image", "img", "file_name", "filename", "file", "path"),
        *("filepath", "file_path", "image_path", "derm"),
    ),
    "lesion_id": ("lesion_id",),
    "dx": (
        *("dx", "diagnosis", "diagnostic", "diagnosis_3", "label", "class"),
        *("benign_malignant", "target", "diagnosis_1"),
    ),
    "dx_type": ("dx_type", "diagnosis_confirm_type"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "localization": (
        *("localization", "site", "anatom_site_general", "anatom_site_general_challenge", "region", "location"),
        "anatom_site",
    ),
    "dataset": ("dataset",),
}

# Sites of other datasets are coarser or finer than HAM10000's: each is read as the HAM10000 site that is most frequent
# within it, or that contains it.
SITES = {
    "anterior torso": "trunk",
    "posterior torso": "back",
    "lateral torso": "trunk",
    "torso": "trunk",
    "head/neck": "face",
    "palms/soles": "acral",
    "oral/genital": "genital",
    # MILK10k
    "head neck face": "face",
    # PAD-UFES-20
    "arm": "upper extremity",
    "forearm": "upper extremity",
    "thigh": "lower extremity",
    "nose": "face",
    "lip": "face",
    # Derm7pt
    "head neck": "face",
    "upper limbs": "upper extremity",
    "lower limbs": "lower extremity",
    "genital areas": "genital",
    "buttocks": "back",
}


def _error(message: str) -> Exception:
    from ham10000.modeling.configuration_ham10000 import Ham10000Error

    return Ham10000Error(message)


@functools.cache
def _spellings(name: str) -> dict[str, str]:
    """Spellings of a field's values to HAM10000's."""
    from ham10000.modeling.configuration_ham10000 import LOCALIZATIONS, SEXES

    sexes = {"m": "male", "f": "female", "man": "male", "woman": "female"} | {sex: sex for sex in SEXES}
    return {"sex": sexes, "localization": SITES | {site: site for site in LOCALIZATIONS}}.get(name, {})


def spelled(text: str) -> str:
    """A word as it is compared: lower case, with single spaces for underscores, hyphens and commas."""
    return re.sub(r"[\s_,-]+", " ", text).strip().lower()


def read_value(name: str, text: str) -> str:
    """Reads another spelling of a value; one that is not known stays as it is.

    Args:
        name: A metadata field.
        text: Its value.

    Returns:
        The value of HAM10000's vocabulary, such as "male" for "M" and "face" for "head/neck".
    """
    return _spellings(name).get(spelled(text), text)


def spelling_notes(name: str, values: Iterable[str], column: str) -> list[str]:
    """A sentence for each value that `read_value` reads as another."""
    counts = Counter(spelled(value) for value in values)
    read = {word: _spellings(name).get(word, word) for word in sorted(counts)}
    return [
        f"{column} {word!r} is read as {known!r} in {counts[word]:,} rows"
        for word, known in read.items()
        if known != word
    ]


def read_rows(path: Path, *, header_only: bool = False) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a delimited file with the csv module, which, unlike pandas, knows the line of every record.

    Args:
        path: A file with commas, tabs or semicolons and a header.
        header_only: Read no rows.

    Returns:
        The header, the rows as strings, those that `files.escape_cell` wrote as they were before it, and the line of
        each.

    Raises:
        Ham10000Error: For a row with another number of fields, a cell over several lines, a column name that occurs
            twice, or a file that is not UTF-8 text.
    """
    from ham10000.training.utils.files import restore_cell

    end = 0
    try:
        # utf-8-sig drops the byte order mark that spreadsheets write.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header_line = stream.readline()
            delimiter = max(",\t;", key=header_line.count)
            # Strict: otherwise a quote that is never closed takes in all rows that follow.
            header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter, strict=True), [])]
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise _error(f"{path}: the column(s) {repeated} occur twice; keep one of each.")
            if header_only:
                return header, [], []
            end = 1
            reader = csv.reader(stream, delimiter=delimiter, strict=True)
            rows, lines = [], []
            for row in reader:
                line, end = end + 1, reader.line_num + 1
                if not any(row):
                    continue
                if end != line:
                    raise _error(
                        f"{path}, line {line}: a quoted cell runs on to line {end}; a quote is missing, or write the "
                        "cell on one line."
                    )
                if len(row) != len(header):
                    raise _error(
                        f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}; quote the cells."
                    )
                rows.append([restore_cell(cell) for cell in row])
                lines.append(line)
    except csv.Error as error:
        raise _error(f"{path}, from line {end + 1}: not a table: {error}. Look for a stray quote.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise _error(f"{path} is not a UTF-8 text table: {error}. Save it as csv (UTF-8), with a header.") from error
    return header, rows, lines


def candidates(name: str, header: Iterable[str]) -> list[str]:
    """The columns of a table that may be a field, the best first.

    Raises:
        Ham10000Error: Where two columns differ in case or punctuation only.
    """
    found: dict[str, str] = {}
    for column in header:
        key = spelled(column).replace(" ", "_")
        if key in SYNONYMS[name] and found.setdefault(key, column) != column:
            raise _error(f"the columns {found[key]!r} and {column!r} are {key!r} twice; keep one of them.")
    return [found[key] for key in SYNONYMS[name] if key in found]


def match_columns(
    header: Sequence[str], given: Mapping[str, str], fields: Iterable[str] = tuple(SYNONYMS)
) -> dict[str, str]:
    """Finds the column of each field.

    Args:
        header: The columns of a table.
        given: Ours to theirs, before any synonym.
        fields: The fields to look for.

    Returns:
        Ours to theirs, of those that are there.

    Raises:
        Ham10000Error: For a given column that does not exist, or two columns of one name.
    """
    matched = {}
    for name in fields:
        if name in given:
            if given[name] not in header:
                raise _error(
                    f"there is no column {given[name]!r} (--columns {name}={given[name]}); it has {list(header)}."
                )
            matched[name] = given[name]
        elif found := [column for column in candidates(name, header) if column not in given.values()]:
            matched[name] = found[0]
    return matched


@dataclass(frozen=True)
class DataOptions:
    """Options for a source whose columns and labels are not HAM10000's.

    Attributes:
        columns: Our field to the source's column, such as `{"dx": "Diagnose"}`.
        labels: The label set in order; empty to take it from the data.
        label_map: Labels of the source to those they are read as, such as `{"naevus": "nv"}`.
        group_by: The column whose rows of one value stay on one side of a split, such as `patient_id`; by default
            the lesion.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    label_map: Mapping[str, str] = field(default_factory=dict)
    group_by: str | None = None

    @classmethod
    def from_texts(
        cls,
        columns: Sequence[str] = (),
        labels: Sequence[str] = (),
        label_map: Sequence[str] = (),
        group_by: str | None = None,
    ) -> "DataOptions":
        """Builds the options from `name=value` texts.

        Raises:
            Ham10000Error: For a text of another form, a field that does not exist, or labels that repeat.
        """
        pairs = _pairs("columns", "ours=theirs", columns)
        if unknown := sorted(set(pairs) - set(SYNONYMS)):
            raise _error(f"--columns: there is no field {unknown[0]!r}; expected some of {list(SYNONYMS)}.")
        words = [spelled(label) for label in labels]
        if labels and (len(set(words)) != len(words) or len(words) < 2 or "" in words):
            raise _error(f"--labels needs at least two different names, got {list(labels)}.")
        return cls(pairs, tuple(labels), _pairs("label_map", "old=new", label_map), group_by)


def _pairs(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise _error(f"--{option} {text!r}: expected {form}.")
        if pairs.setdefault(old.strip(), new.strip()) != new.strip():
            raise _error(f"--{option} gives {old.strip()!r} twice, {pairs[old.strip()]!r} and {new.strip()!r}.")
    return pairs


COLUMNS_HELP = f"names of columns where they are not recognised, ours=theirs; ours is one of {', '.join(SYNONYMS)}"
LABELS_HELP = "the labels in order (default: HAM10000's seven where the data's can be read as them, else the data's)"
LABEL_MAP_HELP = "labels to read as others, old=new"
GROUP_BY_HELP = "column whose rows of one value stay on one side of the split, such as patient_id (default: lesions)"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--columns`, `--labels`, `--label_map` and `--group_by`; see `data_options`."""
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help=COLUMNS_HELP)
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help=LABELS_HELP)
    parser.add_argument("--label_map", nargs="+", default=[], metavar="OLD=NEW", help=LABEL_MAP_HELP)
    parser.add_argument("--group_by", metavar="COLUMN", help=GROUP_BY_HELP)


def data_options(arguments: argparse.Namespace) -> DataOptions:
    """The options of a parser with `add_data_arguments`."""
    return DataOptions.from_texts(arguments.columns, arguments.labels, arguments.label_map, arguments.group_by)
