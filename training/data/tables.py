"""Tables as text, for training, evaluation and prediction: their cells, columns, spellings and labels.

Command lines import this file before they are parsed: only functions may import pandas or torch.
"""

import argparse
import csv
import functools
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# Names of ISIC (Archive, 2018 to 2020, MILK10k), HAM10000, PAD-UFES-20, BCN20000, Derm7pt and `datasets`. Of several
# that a table has, the first is read. They are compared in lower case, with `_` for spaces and hyphens.
_SYNONYMS = {
    "image_id": "image_id isic_id image_name img_id image img file_name filename file path filepath file_path "
    "image_path derm",
    "lesion_id": "lesion_id",
    "dx": "dx diagnosis diagnostic diagnosis_3 label class benign_malignant target diagnosis_1",
    "dx_type": "dx_type diagnosis_confirm_type",
    "age": "age age_approx",
    "sex": "sex gender",
    "localization": "localization site anatom_site_general anatom_site_general_challenge region location anatom_site",
    "dataset": "dataset",
}
SYNONYMS = {name: tuple(words.split()) for name, words in _SYNONYMS.items()}


def _by_spelling(spellings: Mapping[str, str]) -> dict[str, str]:
    """Turns names with their spellings, separated by `; `, into spellings with their names."""
    return {word: name for name, words in spellings.items() for word in words.split("; ")}


# Sites of ISIC, MILK10k, PAD-UFES-20 and Derm7pt are coarser or finer than HAM10000's: each is read as the HAM10000
# site that is most frequent within it, or that contains it.
SITES = _by_spelling(
    {
        "trunk": "anterior torso; lateral torso; torso",
        "back": "posterior torso; buttocks",
        "face": "head/neck; head neck; head neck face; nose; lip",
        "acral": "palms/soles",
        "genital": "oral/genital; genital areas",
        "upper extremity": "arm; forearm; upper limbs",
        "lower extremity": "thigh; lower limbs",
    }
)

# The classes of ISIC 2018, 2019 and MILK10k, whose ground truth has a column for each.
_CLASSES = "MEL NV BCC AKIEC AK BKL DF VASC SCC SCCKA UNK BEN_OTH MAL_OTH INF"
ISIC_CLASSES = frozenset(_CLASSES.split())
# Of ISIC, PAD-UFES-20 and `marmal88/skin_cancer`, in the form of `spelled`. HAM10000's classes are groups: Tschandl et
# al. 2018 (Scientific Data 5:180161) count solar lentigines, seborrheic and lichen-planus like keratoses as bkl,
# actinic keratoses and Bowen's disease as akiec, angiomas, angiokeratomas and pyogenic granulomas as vasc.
LABEL_SPELLINGS = _by_spelling(
    {
        "akiec": "akiec; ak; ack; actinic keratosis; actinic keratoses; solar keratosis; bowen's disease; "
        "bowens disease; squamous cell carcinoma in situ; intraepithelial carcinoma",
        "bcc": "bcc; basal cell carcinoma",
        "bkl": "bkl; sek; benign keratosis; benign keratosis like lesion; benign keratosis like lesions; "
        "solar lentigo; pigmented benign keratosis; seborrheic keratosis; lichen planus like keratosis",
        "df": "df; dermatofibroma",
        "mel": "mel; melanoma; melanoma nos; melanoma in situ; melanoma invasive",
        "nv": "nv; nev; nevus; nevi; naevus; naevi; melanocytic nevus; melanocytic nevi; melanocytic naevus; "
        "melanocytic naevi",
        "vasc": "vasc; vascular lesion; vascular lesions; angioma; hemangioma; haemangioma; angiokeratoma; "
        "pyogenic granuloma",
    }
)


def input_error(message: str) -> Exception:
    """A Ham10000Error, whose module takes seconds to import."""
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
    """A field's value in HAM10000's spelling, such as "male" for "M"; one that is not known stays as it is."""
    return _spellings(name).get(spelled(text), text)


def spelling_notes(name: str, values: Iterable[str], column: str) -> list[str]:
    """A sentence for each value that `read_value` reads as another."""
    counts = sorted(Counter(map(spelled, values)).items())
    read = [(word, _spellings(name).get(word, word), count) for word, count in counts]
    return [f"{column} {word!r} is read as {known!r} in {n:,} rows" for word, known, n in read if known != word]


def read_rows(path: Path, *, header_only: bool = False) -> tuple[list[str], list[list[str]], list[int]]:
    """Reads a file with commas, tabs or semicolons and a header; unlike pandas, csv knows the line of every record.

    Returns the header, the rows, as they were before `files.escape_cell`, and the line of each. A row with another
    number of fields, a cell over several lines, and a column name that occurs twice are errors.
    """
    from ham10000.training.utils.files import restore_cell

    end, rows, lines = 0, [], []
    try:
        # utf-8-sig drops the byte order mark that spreadsheets write.
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header_line = stream.readline()
            delimiter = max(",\t;", key=header_line.count)
            # Strict: otherwise a quote that is never closed takes in all rows that follow.
            header = [name.strip() for name in next(csv.reader([header_line], delimiter=delimiter, strict=True), [])]
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise input_error(f"{path}: the column(s) {repeated} occur twice; keep one of each.")
            end = 1
            reader = csv.reader([] if header_only else stream, delimiter=delimiter, strict=True)
            for row in reader:
                line, end = end + 1, reader.line_num + 1
                if not any(row):
                    continue
                if end != line:
                    raise input_error(
                        f"{path}, line {line}: a quoted cell runs on to line {end}; a quote is missing, or write the "
                        "cell on one line."
                    )
                if len(row) != len(header):
                    raise input_error(
                        f"{path}, line {line}: {len(row)} fields, but the header has {len(header)}; quote the cells."
                    )
                rows.append([restore_cell(cell) for cell in row])
                lines.append(line)
    except csv.Error as error:
        raise input_error(f"{path}, from line {end + 1}: not a table: {error}. Look for a stray quote.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise input_error(
            f"{path} is not a UTF-8 text table: {error}. Save it as csv (UTF-8), with a header."
        ) from error
    return header, rows, lines


def read_table(path: Path) -> "pd.DataFrame":
    """Reads a delimited file, or one JSON object per line for `.jsonl`, as strings, indexed by line."""
    import pandas as pd

    if path.suffix.lower() != ".jsonl":
        header, cells, lines = read_rows(path)
        return pd.DataFrame(cells, index=lines, columns=header, dtype=object)
    records: dict[int, dict[str, object]] = {}
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise input_error(f"{path} is not a UTF-8 text file: {error}.") from error
    fields = {name for names in SYNONYMS.values() for name in names}
    for line, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except (RecursionError, ValueError) as error:  # ValueError also for a number of 5,000 digits
            raise input_error(f"{path}, line {line}: not JSON: {error}.") from error
        if not isinstance(record, dict):
            raise input_error(f"{path}, line {line}: expected a JSON object, got {text.strip()[:40]!r}.")
        if nested := [name for name in record if name in fields and isinstance(record[name], (list, dict))]:
            value = record[nested[0]]
            raise input_error(f"{path}, line {line}: expected one value for {nested[0]}, got {value!r}.")
        records[line] = record
    return as_strings(pd.DataFrame(list(records.values()), index=list(records), dtype=object))


def as_strings(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Every value as stripped text, "" where it is missing."""
    cells = frame.rename(columns=str).astype(object)
    return cells.where(cells.notna(), "").map(lambda value: str(value).strip()).astype(object)


def candidates(name: str, header: Iterable[str], given: Collection[str], origin: str | Path) -> list[str]:
    """The columns that may be a field and are not given for one, the best first; two of one name are an error."""
    found: dict[str, str] = {}
    for column in header:
        key = spelled(column).replace(" ", "_")
        if key in SYNONYMS[name] and found.setdefault(key, column) != column:
            raise input_error(f"{origin}: the columns {found[key]!r} and {column!r} are {key!r} twice; keep one.")
    return [found[key] for key in SYNONYMS[name] if key in found and found[key] not in given]


def match_columns(
    header: Sequence[str], given: Mapping[str, str], origin: str | Path, fields: Iterable[str] = SYNONYMS
) -> dict[str, str]:
    """Finds the column of each field, the given one before any synonym: ours to theirs, of those that are there.

    A given column that does not exist, and two columns of one name, are errors.
    """
    matched = {}
    for name in fields:
        if name in given:
            if given[name] not in header:
                option = f"--columns {name}={given[name]}"
                raise input_error(f"{origin}: there is no column {given[name]!r} ({option}); it has {list(header)}.")
            matched[name] = given[name]
        elif found := candidates(name, header, given.values(), origin):
            matched[name] = found[0]
    return matched


@dataclass(frozen=True)
class DataOptions:
    """Options for a source whose columns and labels are not HAM10000's."""

    columns: Mapping[str, str] = field(default_factory=dict)  # ours to the source's, such as {"dx": "Diagnose"}
    labels: Sequence[str] = ()  # the label set in order; empty to take it from the data
    label_map: Mapping[str, str] = field(default_factory=dict)  # a label to what it is read as, {"naevus": "nv"}
    group_by: str | None = None  # the column whose rows of one value stay on one side; by default the lesion

    @classmethod
    def from_texts(
        cls,
        columns: Sequence[str] = (),
        labels: Sequence[str] = (),
        label_map: Sequence[str] = (),
        group_by: str | None = None,
    ) -> "DataOptions":
        """Builds the options from `name=value` texts, whose fields must exist."""
        pairs = _pairs("columns", "ours=theirs", columns)
        if unknown := sorted(set(pairs) - set(SYNONYMS)):
            raise input_error(f"--columns: there is no field {unknown[0]!r}; expected some of {list(SYNONYMS)}.")
        words = [spelled(label) for label in labels]
        if labels and (len(set(words)) != len(words) or len(words) < 2 or "" in words):
            raise input_error(f"--labels needs at least two different names, got {list(labels)}.")
        return cls(pairs, tuple(labels), _pairs("label_map", "old=new", label_map), group_by)


def _pairs(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise input_error(f"--{option} {text!r}: expected {form}.")
        if pairs.setdefault(old.strip(), new.strip()) != new.strip():
            raise input_error(f"--{option} gives {old.strip()!r} twice, {pairs[old.strip()]!r} and {new.strip()!r}.")
    return pairs


COLUMNS_HELP = f"names of columns where they are not recognised, ours=theirs; ours is one of {', '.join(SYNONYMS)}"
LABELS_HELP = "the labels in order (default: HAM10000's seven where the data's can be read as them, else the data's)"
LABEL_MAP_HELP = "labels to read as others, old=new"
GROUP_BY_HELP = "column whose rows of one value stay on one side of the split, such as patient_id (default: lesions)"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--columns`, `--labels`, `--label_map` and `--group_by`, for `DataOptions.from_texts`."""
    parser.add_argument("--columns", nargs="+", default=[], metavar="OURS=THEIRS", help=COLUMNS_HELP)
    parser.add_argument("--labels", nargs="+", default=[], metavar="LABEL", help=LABELS_HELP)
    parser.add_argument("--label_map", nargs="+", default=[], metavar="OLD=NEW", help=LABEL_MAP_HELP)
    parser.add_argument("--group_by", metavar="COLUMN", help=GROUP_BY_HELP)
