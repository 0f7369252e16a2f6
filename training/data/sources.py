"""One `datasets.Dataset` of checked rows from any source of HAM10000, and the report of what was found in it."""

import io
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import datasets
import numpy as np
import pandas as pd
from PIL import Image

from ham10000.modeling.configuration_ham10000 import LABELS, LOCALIZATIONS, METADATA_FIELDS, SEXES, Ham10000Error
from ham10000.modeling.image_processing_ham10000 import IMAGE_FORMATS
from ham10000.modeling.processing_ham10000 import MAX_AGE, MISSING_VALUES
from ham10000.training.data.readers import COLUMNS, IMAGE_FEATURES, RawSource, is_missing, read_source
from ham10000.training.data.tables import LABEL_SPELLINGS, DataOptions, read_value, spelled, spelling_notes
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.markdown_text import plain

# The columns of a dataset with HAM10000's labels.
FEATURES = datasets.Features(
    {**IMAGE_FEATURES, **dict.fromkeys(COLUMNS, datasets.Value("string"))}
    | {"dx": datasets.ClassLabel(names=list(LABELS)), "age": datasets.Value("float32")}
)


@dataclass
class DataReport:
    """What a source has, counted over the rows that were kept, and what was found wrong with any of its rows."""

    source: str  # as the user wrote it
    rows: int = 0  # number of images
    lesions: int | None = None  # None where the source does not say which images show one lesion
    labels: list[str] = field(default_factory=list)  # in the order of the class ids
    class_counts: dict[str, int] = field(default_factory=dict)  # images per class, in the order of `labels`
    images_per_lesion: dict[int, int] = field(default_factory=dict)  # number of lesions by their number of images
    missing: dict[str, int] = field(default_factory=dict)  # number of rows without a value, per metadata field
    duplicate_image_ids: list[str] = field(default_factory=list)  # each once
    missing_images: list[str] = field(default_factory=list)  # image ids
    unreadable_images: list[str] | None = None  # image ids; None where that was not checked
    unknown_labels: dict[str, int] = field(default_factory=dict)  # values that are no class, with their counts
    unknown_sexes: dict[str, int] = field(default_factory=dict)  # values outside the vocabulary, with their counts
    unknown_localizations: dict[str, int] = field(default_factory=dict)
    invalid_ages: dict[str, int] = field(default_factory=dict)  # values that are no number in 0..120 years
    inconsistent_lesions: list[str] = field(default_factory=list)  # lesion ids whose images have different diagnoses
    warnings: list[str] = field(default_factory=list)  # what is probably not as the user means it, a sentence each
    notes: list[str] = field(default_factory=list)  # a sentence for each decision and each thing that was dropped

    def __str__(self) -> str:
        lesions = ", lesions unknown (no lesion ids)" if self.lesions is None else f" of {self.lesions:,} lesions"
        per_lesion = ", ".join(f"{count:,} with {images}" for images, count in self.images_per_lesion.items())
        facts = {
            "source": self.source,
            "images": f"{self.rows:,}{lesions}",
            "images per lesion": per_lesion or "unknown",
            "images per class": ", ".join(f"{name} {count:,}" for name, count in self.class_counts.items()),
            "missing values": ", ".join(f"{name} {count}" for name, count in self.missing.items()),
            "duplicate image ids": _counted(self.duplicate_image_ids),
            "missing images": _counted(self.missing_images),
            "unreadable images": "not checked" if self.unreadable_images is None else _counted(self.unreadable_images),
            "unknown labels": _counted(self.unknown_labels),
            "unknown sexes": _counted(self.unknown_sexes),
            "unknown sites": _counted(self.unknown_localizations),
            "invalid ages": _counted(self.invalid_ages),
            "lesions with two dx": _counted(self.inconsistent_lesions),
        }
        lines = [f"{name:<20} {fact}" for name, fact in facts.items()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def load_data(
    source: str,
    options: DataOptions | None = None,
    *,
    drop_unreadable: bool = False,
    drop_duplicates: bool = False,
    drop_unknown_labels: bool = False,
    invalid_to_missing: bool = False,
    check_images: bool = False,
    seed: int = 0,
) -> tuple[datasets.Dataset, DataReport]:
    """Reads and checks a source; nothing is dropped unless an option asks for it, and then a note says so.

    Args:
        source: `synthetic` (800 images) or `synthetic:N`; a table (csv) above or next to its images; a folder with
            such a table (HAM10000, ISIC, imagefolder) or with a folder per label; a folder of Parquet files; a Hub
            dataset id, of which all splits are joined because their division cannot be trusted.
        options: Names of columns, the label set, and what to group by, where they are not HAM10000's.
        drop_unreadable: Drop rows whose image is missing or cannot be decoded; implies `check_images`.
        drop_duplicates: Keep the first row of every image id.
        drop_unknown_labels: Drop rows whose label is none of the set: that of the options, else HAM10000's.
        invalid_to_missing: Read an unknown sex or site and an impossible age as missing.
        check_images: Decode every image once and report those that fail.
        seed: Seed of the synthetic generator; other sources do not use it.

    Returns:
        The dataset and its report. Columns: `image` (`Image`, stored as path or bytes and not yet decoded),
        `image_id`, `lesion_id` (the image's id where the lesion is unknown), `dx` (`ClassLabel`, whose names are the
        report's `labels`), `dx_type`, `age` (float32 years, null where missing; 0 is a real age), `sex` and
        `localization` (lower case, "unknown" where missing), `dataset`.

    Raises:
        Ham10000Error: For an unknown source, missing columns, or rows with problems: file, row, field, value, what
            was expected and the option that would drop them.

    Example:
        >>> data, report = load_data("synthetic:200")
        >>> print(report)
    """
    options = options or DataOptions()
    raw = read_source(source, options, seed=seed)
    unreadable = _unreadable(raw) if check_images or drop_unreadable else None
    asked = {"drop_unreadable": drop_unreadable, "drop_duplicates": drop_duplicates}
    asked |= {"drop_unknown_labels": drop_unknown_labels, "invalid_to_missing": invalid_to_missing}
    fixes = [name for name, is_asked in asked.items() if is_asked]
    rows, keep, report = check_rows(raw, options, unreadable_images=unreadable, fixes=fixes)
    images = raw.images.select(np.flatnonzero(keep))
    kinds = {name: FEATURES[name] for name in COLUMNS} | {"dx": datasets.ClassLabel(names=report.labels)}
    columns = rows[[*COLUMNS]].replace({np.nan: None}).to_dict("list")
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    return datasets.concatenate_datasets([images, table], axis=1), report


def label_names(dataset: datasets.Dataset) -> list[str]:
    """The label set of a dataset from `load_data`, in the order of the class ids."""
    kind = dataset.features["dx"]
    assert isinstance(kind, datasets.ClassLabel)
    return list(kind.names)


def align_labels(dataset: datasets.Dataset, labels: Sequence[str]) -> datasets.Dataset:
    """Numbers the labels of a dataset, by their names, as another set such as a model's; one it lacks is an error."""
    names = label_names(dataset)
    if list(labels) == names:
        return dataset
    ids = np.asarray(dataset["dx"][:], dtype=np.int64)
    present = [names[index] for index in np.unique(ids)]
    if outside := [name for name in present if name not in labels]:
        raise Ham10000Error(
            f"The data have the labels {present}, the model {list(labels)}: {outside} cannot be scored. Say which of "
            f"the model's each is, as in --label_map {outside[0]}={labels[0]}, or leave those rows out of the data."
        )
    features = datasets.Features({"dx": datasets.ClassLabel(names=list(labels))})
    column = datasets.Dataset.from_dict({"dx": [names[index] for index in ids]}, features=features)
    return datasets.concatenate_datasets([dataset.remove_columns("dx"), column], axis=1)


def metadata_frame(dataset: datasets.Dataset) -> pd.DataFrame:
    """The columns of a dataset from `load_data` other than `image` as a table.

    Returns:
        One row per image: image_id, lesion_id, dx (its name), dx_type, age (NaN where missing), sex, localization,
        dataset.
    """
    frame = dataset.with_format(None).select_columns(list(COLUMNS)).to_pandas()
    assert isinstance(frame, pd.DataFrame)
    frame["dx"] = np.array(label_names(dataset), dtype=object)[frame["dx"].to_numpy()]
    return frame


def _unreadable(raw: RawSource) -> np.ndarray:
    """Finds the images that cannot be decoded, with a progress bar: (rows,) bool."""
    stored = raw.images.cast_column("image", datasets.Image(decode=False))

    def fails(index: int) -> bool:
        image = stored[index]["image"]
        try:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            with Image.open(source, formats=IMAGE_FORMATS) as picture:
                # Not `verify`, which passes a JPEG file that was cut off; an eighth of the size is read in full too.
                picture.draft("L", (picture.width // 8, picture.height // 8))
                picture.load()
        # Pillow raises OSError, SyntaxError, ValueError or struct.error, by format and kind of damage.
        except Exception:
            return not raw.missing[index]
        return False

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(fails, range(len(stored)))
        return np.array([*progress_bar(iterable=results, total=len(stored), desc="Checking images", unit="image")])


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _counted(values: list[str] | dict[str, int]) -> str:
    """`"7 (a, b, ...)"`, or `"none"`."""
    total = sum(values.values()) if isinstance(values, dict) else len(values)
    shown = ", ".join([*map(repr, [*values][:5]), *["..."] * (len(values) > 5)])
    return f"{total:,} ({shown})" if values else "none"


@dataclass
class _Checks:
    """Collects every problem before it speaks, so that a user corrects a file once and not row by row."""

    frame: pd.DataFrame
    keep: np.ndarray  # (rows,) bool
    columns: dict[str, str]  # our field to the source's own name of it
    fixes: Collection[str]
    notes: list[str]
    problems: list[str] = field(default_factory=list)

    def refuse(
        self, bad: np.ndarray, column: str, what: str, expected: str, remedy: str = "", option: str = ""
    ) -> list[str]:
        """Drops rows, or takes values as missing, if `option` is given, else notes a problem; returns the values."""
        rows, to_missing = self.frame[bad], option == "invalid_to_missing"
        values = list(rows[column])
        if not values:
            return []
        if to_missing and option in self.fixes:
            self.notes.append(f"read as missing because of {option}: {column} {_counted(_counts(values))}")
        elif option in self.fixes:
            self.notes.append(f"dropped because of {option}: {what}, image ids {_counted(list(rows['image_id']))}")
            self.keep &= ~bad
        else:
            instead = "read them as missing" if to_missing else "drop them"
            advice = f"Correct them, or {instead}: --data_fixes {option} (ham10000-data: --{option})."
            where = [
                f"    {row['file']}, row {row['row']} ({plain(row['image_id']) or 'no image_id'}): "
                f"{self.columns.get(column, column)} = {row[column]!r}"
                for row in rows.head(5).to_dict("records")
            ]
            if len(rows) > 5:
                where.append(f"    ... and {len(rows) - 5:,} more")
            line = f"- {what} in {len(rows):,} row(s); {expected}. {remedy or advice}"
            self.problems.append("\n".join([line, *where]))
        return values


def lesions_known(rows: pd.DataFrame) -> bool:
    """Whether a table says which images show one lesion; an image without a lesion id has its own id as that."""
    return bool((rows["lesion_id"] != rows["image_id"]).any())


def check_rows(
    raw: RawSource, options: DataOptions, *, unreadable_images: np.ndarray | None, fixes: Collection[str] = ()
) -> tuple[pd.DataFrame, np.ndarray, DataReport]:
    """Checks and normalises every row: those that are kept, a (rows,) bool mask of them, and the report.

    Age is then in years, NaN where missing; sex and localization are lower case, "unknown" where missing.
    `unreadable_images` is (rows,) bool, or None where that was not checked; `fixes` are the options of `load_data` to
    drop rows or read values as missing that were given. One error lists every problem for which none was given.
    """
    source, missing_images = raw.name, np.array(raw.missing, dtype=bool)
    frame = raw.frame.copy()
    report = DataReport(source, notes=list(raw.notes))
    checks = _Checks(frame, np.ones(len(frame), dtype=bool), raw.columns, fixes, report.notes)
    if frame.empty:
        raise Ham10000Error(f"{source}: the metadata has a header but no rows.")

    if raw.unused:
        report.notes.append(f"columns that are not used: {', '.join(raw.unused)}")
    alone = is_missing(frame["lesion_id"])
    frame["lesion_id"] = frame["lesion_id"].mask(alone, frame["image_id"])
    if alone.any():
        column = raw.columns.get("lesion_id", "a lesion_id")
        report.notes.append(f"{alone.sum():,} rows without {column} count as their own lesions")
    _check_ids(frame, checks)
    duplicated = frame["image_id"].duplicated().to_numpy()
    ours = raw.ours or "drop_unknown_labels" in fixes
    report.labels, frame["dx"], notes = _read_labels(raw, options, ours)
    report.notes += notes
    unknown = ~frame["dx"].isin(report.labels).to_numpy()
    others = ", ".join(map(repr, sorted(set(frame["dx"][unknown]))[:30]))
    remedy = "--label_map OLD=NEW reads one as another, --labels gives the set"
    expected = f"expected one of {report.labels}, got {others}; {remedy}"
    values = checks.refuse(unknown, "dx", "unknown label", expected, option="drop_unknown_labels")
    report.unknown_labels = _counts(values)
    # Copies of one image that disagree cannot be dropped: nobody here knows which of them is right.
    for name in ("dx", "lesion_id"):
        conflict = frame.groupby("image_id")[name].transform("nunique").to_numpy() > 1
        expected = f"all rows of an image id must have the same {name}"
        checks.refuse(conflict, name, f"one image id with different {name}", expected, remedy="Correct the rows.")
    expected = "every id must occur once"
    values = checks.refuse(duplicated, "image_id", "duplicate image id", expected, option="drop_duplicates")
    report.duplicate_image_ids = sorted(set(values))
    _check_values(frame, checks, report)

    expected = "every row needs an image that can be decoded"
    where = f" below {raw.looked}" if raw.looked else ""
    refuse_image = partial(checks.refuse, column="image_id", option="drop_unreadable")
    report.missing_images = refuse_image(missing_images, what="no image file", expected=expected + where)
    if unreadable_images is not None:
        report.unreadable_images = refuse_image(unreadable_images, what="unreadable image file", expected=expected)
    if checks.problems:
        raise Ham10000Error(f"{source}: the data has problems\n" + "\n".join(checks.problems))

    kept = frame[checks.keep].reset_index(drop=True)
    if kept.empty:
        raise Ham10000Error(f"{source}: no row is left. " + "; ".join(report.notes))
    _count(kept, report, raw)
    return kept, checks.keep, report


def _read_labels(raw: RawSource, options: DataOptions, ours: bool) -> tuple[list[str], pd.Series, list[str]]:
    """Reads the labels of a source: the set they form, the label of each row, and a sentence for each decision.

    The set, in the order of the class ids, is HAM10000's seven where `ours`, or where every label can be read as one;
    otherwise the source's own in lower case, sorted. A label that is not in it stays as it was written. A `label_map`
    of a label that does not occur is an error.
    """
    values, name = raw.frame["dx"], raw.columns.get("dx", "dx")
    words = values.map(spelled)
    # ISIC 2019 declares UNK, which no training row has.
    names = dict.fromkeys([*words, *(spelled(text) for text in raw.declared if text.lower() != "unk")])
    present = [word for word in names if word not in MISSING_VALUES]
    mapped = {spelled(old): new for old, new in options.label_map.items()}
    if absent := sorted(set(mapped) - set(present)):
        raise Ham10000Error(f"--label_map names {absent}, but the column {name} has {sorted(present)[:30]}.")
    after = {word: mapped.get(word, word) for word in present}  # still the users' words
    known = {word: LABEL_SPELLINGS.get(spelled(new)) for word, new in after.items()}
    notes: list[str] = []
    if options.labels:
        labels = list(options.labels)
        by_word = {spelled(label): label for label in labels}
        read = {word: by_word.get(spelled(new), by_word.get(known[word] or "")) for word, new in after.items()}
    elif ours or all(known.values()):
        labels, read = list(LABELS), known
    else:
        # A new name that the data has already, in whatever case, is that label.
        kept, texts = set(present) - set(mapped), sorted([*values, *raw.declared], reverse=True)
        written = {spelled(new): new for new in mapped.values()}
        written |= {spelled(text): text.strip().lower() for text in texts if spelled(text) in kept}
        read = {word: written[spelled(new)] for word, new in after.items()}
        labels = sorted({str(label) for label in read.values()})
        notes.append(f"the labels are the data's own: {', '.join(labels)}")
        if offered := [own for own in labels if own not in LABELS and own in LABEL_SPELLINGS]:
            pairs = " ".join(f"'{label}={LABEL_SPELLINGS[label]}'" for label in offered)
            notes.append(f"to read labels as HAM10000's: --label_map {pairs}")
    for word, count in sorted(Counter(words).items()):
        if (label := read.get(word)) and spelled(label) != word:
            notes.append(f"{name} {word!r} is read as {label!r} in {count:,} rows")
    return labels, words.map(read).fillna(values), notes


def _check_ids(frame: pd.DataFrame, checks: _Checks) -> None:
    empty = is_missing(frame["image_id"]).to_numpy()
    checks.refuse(empty, "image_id", "no image_id", "every row needs one", remedy="Fill it in.")
    # Image ids become file names: of the cache, of an export, of predictions.
    unsafe = frame["image_id"].str.contains(r"[/\\\x00-\x1f]|\.\.", regex=True).to_numpy()
    expected = "expected an id without '/', '\\' or '..'"
    checks.refuse(unsafe, "image_id", "image_id with a path in it", expected, remedy="Give the file's bare name.")
    for name in ("lesion_id", "dx_type", "dataset"):
        control = frame[name].str.contains(r"[\x00-\x1f\x7f]", regex=True).to_numpy()
        expected = "expected text without line breaks and control characters"
        checks.refuse(control, name, f"control character in {name}", expected, remedy="Correct it.")


def _check_values(frame: pd.DataFrame, checks: _Checks, report: DataReport) -> None:
    years = pd.to_numeric(frame["age"], errors="coerce")
    invalid = ~is_missing(frame["age"]).to_numpy() & ~years.between(0, MAX_AGE).to_numpy()
    expected = f"expected years from 0 to {MAX_AGE}, or nothing if unknown"
    report.invalid_ages = _counts(checks.refuse(invalid, "age", "invalid age", expected, option="invalid_to_missing"))
    # A real age of 0 exists (39 images), so a missing age is NaN and never 0.
    frame["age"] = years.mask(invalid)

    known = {"sex": (SEXES, report.unknown_sexes), "localization": (LOCALIZATIONS, report.unknown_localizations)}
    for name, (vocabulary, unknown) in known.items():
        values = frame[name].str.strip().str.lower().mask(is_missing(frame[name]), "unknown")
        report.notes += spelling_notes(name, values, checks.columns.get(name, name))
        values = values.map(partial(read_value, name))
        invalid = ~values.isin([*vocabulary, "unknown"]).to_numpy()
        expected = f"expected one of {list(vocabulary)}, or 'unknown'"
        unknown |= _counts(checks.refuse(invalid, name, f"invalid {name}", expected, option="invalid_to_missing"))
        frame[name] = values.mask(invalid, "unknown")


def _count(kept: pd.DataFrame, report: DataReport, raw: RawSource) -> None:
    report.rows = len(kept)
    counts = Counter(kept["dx"])
    report.class_counts = {label: counts[label] for label in report.labels}
    if lesions_known(kept):
        report.lesions = int(kept["lesion_id"].nunique())
        report.images_per_lesion = dict(sorted(Counter(Counter(kept["lesion_id"]).values()).items()))
    missing = kept.isna() | (kept == "unknown")
    report.missing = {name: int(missing[name].sum()) for name in METADATA_FIELDS}
    if absent := [name for name, count in report.missing.items() if count == len(kept)]:
        columns = f"the columns are {raw.header}. Where one of them has it, name it: --columns {absent[0]}=COLUMN"
        report.warnings.append(f"no row has a value for {', '.join(absent)}; {columns if raw.header else 'no table'}")
    varied = kept.groupby("lesion_id")["dx"].nunique()
    report.inconsistent_lesions = sorted(str(lesion) for lesion in varied.index[varied > 1])
    if report.inconsistent_lesions:
        report.notes.append("lesions whose images carry different dx are kept as they are")
