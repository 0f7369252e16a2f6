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
from ham10000.modeling.processing_ham10000 import MAX_AGE
from ham10000.training.data.readers import COLUMNS, IMAGE_FEATURES, RawSource, is_missing, read_source
from ham10000.training.data.tables import DataOptions, read_labels, read_value, spelling_notes
from ham10000.training.utils.cli import progress_bar
from ham10000.training.utils.markdown_text import plain


def features_of(labels: Sequence[str] = LABELS) -> datasets.Features:
    """The columns of every dataset, with `dx` as an index into the labels."""
    texts = dict.fromkeys(COLUMNS, datasets.Value("string"))
    others = {"dx": datasets.ClassLabel(names=list(labels)), "age": datasets.Value("float32")}
    return datasets.Features({**IMAGE_FEATURES, **texts, **others})


FEATURES = features_of()


@dataclass
class DataReport:
    """The content of a source, and what was found wrong with it.

    The counts are of the rows that were kept; the lists name what was found, kept or not.

    Attributes:
        source: The source as the user wrote it.
        rows: Number of images.
        lesions: Number of lesions; None where the source does not say which images show one lesion.
        labels: The label set, in the order of the class ids.
        class_counts: Images per class, in the order of `labels`.
        images_per_lesion: Number of lesions by their number of images; empty where lesions are unknown.
        missing: Number of rows without a value, per metadata field.
        duplicate_image_ids: Image ids that occur more than once.
        missing_images: Image ids without an image.
        unreadable_images: Image ids whose image cannot be decoded; None where that was not checked.
        unknown_labels: Values of dx that are no class, with their counts.
        unknown_sexes: Values of sex outside the vocabulary, with their counts.
        unknown_localizations: Values of localization outside the vocabulary, with their counts.
        invalid_ages: Values of age that are no number in 0..120 years, with their counts.
        inconsistent_lesions: Lesion ids whose images carry different diagnoses.
        warnings: What is probably not as the user means it, one sentence each.
        notes: One sentence for each decision and for each thing that was dropped.
    """

    source: str
    rows: int = 0
    lesions: int | None = None
    labels: list[str] = field(default_factory=list)
    class_counts: dict[str, int] = field(default_factory=dict)
    images_per_lesion: dict[int, int] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    duplicate_image_ids: list[str] = field(default_factory=list)
    missing_images: list[str] = field(default_factory=list)
    unreadable_images: list[str] | None = None
    unknown_labels: dict[str, int] = field(default_factory=dict)
    unknown_sexes: dict[str, int] = field(default_factory=dict)
    unknown_localizations: dict[str, int] = field(default_factory=dict)
    invalid_ages: dict[str, int] = field(default_factory=dict)
    inconsistent_lesions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

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
    synthetic_size: int | None = None,
    seed: int = 0,
) -> tuple[datasets.Dataset, DataReport]:
    """Reads and checks a source; nothing is dropped unless an option asks for it, and then a note says so.

    Args:
        source: `synthetic` or `synthetic:N` (N images); a table (csv) above or next to its images; a folder with such
            a table (HAM10000, ISIC, imagefolder) or with a folder per label; a folder of Parquet files; a Hub dataset
            id, of which all splits are joined because their division cannot be trusted.
        options: Names of columns, the label set, and what to group by, where they are not HAM10000's.
        drop_unreadable: Drop rows whose image is missing or cannot be decoded; implies `check_images`.
        drop_duplicates: Keep the first row of every image id.
        drop_unknown_labels: Drop rows whose label is none of the set: that of the options, else HAM10000's.
        invalid_to_missing: Read an unknown sex or site and an impossible age as missing.
        check_images: Decode every image once and report those that fail.
        synthetic_size: Number of synthetic images (default 800); `synthetic:N` says the same.
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
    raw = read_source(source, options, synthetic_size=synthetic_size, seed=seed)
    unreadable = _unreadable(raw) if check_images or drop_unreadable else None
    asked = {"drop_unreadable": drop_unreadable, "drop_duplicates": drop_duplicates}
    asked |= {"drop_unknown_labels": drop_unknown_labels, "invalid_to_missing": invalid_to_missing}
    fixes = [name for name, is_asked in asked.items() if is_asked]
    rows, keep, report = check_rows(raw, options, unreadable_images=unreadable, fixes=fixes)
    images = raw.images.select(np.flatnonzero(keep))
    features = datasets.Features({name: features_of(report.labels)[name] for name in COLUMNS})
    columns = rows[[*COLUMNS]].replace({np.nan: None}).to_dict("list")
    table = datasets.Dataset.from_dict(columns, features=features)
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
    """Finds the images that cannot be decoded, with a progress bar: (rows,) bool.

    Pillow's `verify` passes JPEG files that were cut off in the middle, so every file is decoded; at an eighth of its
    size that reads all of the data for a fraction of the time.
    """
    stored = raw.images.cast_column("image", datasets.Image(decode=False))

    def fails(index: int) -> bool:
        if raw.missing[index]:
            return False
        image = stored[index]["image"]
        try:
            source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
            with Image.open(source, formats=IMAGE_FORMATS) as picture:
                picture.draft("L", (picture.width // 8, picture.height // 8))
                picture.load()
        # Pillow raises OSError, SyntaxError, ValueError or struct.error, by format and kind of damage.
        except Exception:
            return True
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
    ) -> None:
        """Drops rows, or reads their values as missing, if `option` is asked for; else shows five as a problem."""
        rows, to_missing = self.frame[bad], option == "invalid_to_missing"
        if rows.empty:
            return
        if to_missing and option in self.fixes:
            found = _counted(_counts(rows[column]))
            self.notes.append(f"read as missing because of {option}: {column} {found}")
        elif option in self.fixes:
            examples = _counted(list(rows["image_id"]))
            self.notes.append(f"dropped because of {option}: {what}, image ids {examples}")
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


def lesions_known(rows: pd.DataFrame) -> bool:
    """Whether a table says which images show one lesion; an image without a lesion id has its own id as that."""
    return bool((rows["lesion_id"] != rows["image_id"]).any())


def check_rows(
    raw: RawSource, options: DataOptions, *, unreadable_images: np.ndarray | None, fixes: Collection[str] = ()
) -> tuple[pd.DataFrame, np.ndarray, DataReport]:
    """Checks and normalises every row.

    Args:
        raw: The rows; its notes come first in the report.
        options: The label set and its map.
        unreadable_images: (rows,) bool, whether the image cannot be decoded, or None where that was not checked.
        fixes: Which of `load_data`'s options to drop rows or read values as missing were given.

    Returns:
        The normalised rows that were kept (age in years, NaN where missing; sex and localization lower case and
        "unknown" where missing), a (rows,) bool mask of the kept rows, and the report.

    Raises:
        Ham10000Error: One error that lists every problem for which no option was given.
    """
    source, missing_images = raw.name, np.array(raw.missing, dtype=bool)
    frame = raw.frame.copy()
    report = DataReport(source, notes=list(raw.notes))
    checks = _Checks(frame, np.ones(len(frame), dtype=bool), raw.columns, fixes, report.notes)
    if frame.empty:
        raise Ham10000Error(f"{source}: the metadata has a header but no rows.")

    alone = is_missing(frame["lesion_id"])
    frame["lesion_id"] = frame["lesion_id"].mask(alone, frame["image_id"])
    if alone.any():
        column = raw.columns.get("lesion_id", "a lesion_id")
        report.notes.append(f"{alone.sum():,} rows without {column} count as their own lesions")
    _check_ids(frame, checks)
    duplicated = frame["image_id"].duplicated().to_numpy()
    report.duplicate_image_ids = sorted(set(frame["image_id"][duplicated]))
    column, ours = raw.columns.get("dx", "dx"), raw.ours or "drop_unknown_labels" in fixes
    report.labels, frame["dx"], notes = read_labels(frame["dx"], options, raw.declared, name=column, ours=ours)
    report.notes += notes
    unknown = ~frame["dx"].isin(report.labels).to_numpy()
    report.unknown_labels = _counts(frame["dx"][unknown])
    others = ", ".join(map(repr, sorted(report.unknown_labels)[:30]))
    remedy = "--label_map OLD=NEW reads one as another, --labels gives the set"
    expected = f"expected one of {report.labels}, got {others}; {remedy}"
    checks.refuse(unknown, "dx", "unknown label", expected, option="drop_unknown_labels")
    # Copies of one image that disagree cannot be dropped: nobody here knows which of them is right.
    for name in ("dx", "lesion_id"):
        conflict = frame.groupby("image_id")[name].transform("nunique").to_numpy() > 1
        expected = f"all rows of an image id must have the same {name}"
        checks.refuse(conflict, name, f"one image id with different {name}", expected, remedy="Correct the rows.")
    checks.refuse(duplicated, "image_id", "duplicate image id", "every id must occur once", option="drop_duplicates")
    _check_values(frame, checks, report)

    expected = "every row needs an image that can be decoded"
    where = f" below {raw.looked}" if raw.looked else ""
    report.missing_images = list(frame["image_id"][missing_images])
    checks.refuse(missing_images, "image_id", "no image file", expected + where, option="drop_unreadable")
    if unreadable_images is not None:
        report.unreadable_images = list(frame["image_id"][unreadable_images])
        checks.refuse(unreadable_images, "image_id", "unreadable image file", expected, option="drop_unreadable")
    if checks.problems:
        raise Ham10000Error(f"{source}: the data has problems\n" + "\n".join(checks.problems))

    kept = frame[checks.keep].reset_index(drop=True)
    if kept.empty:
        raise Ham10000Error(f"{source}: no row is left. " + "; ".join(report.notes))
    _count(kept, report, raw)
    return kept, checks.keep, report


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
    report.invalid_ages = _counts(frame["age"][invalid])
    expected = f"expected years from 0 to {MAX_AGE}, or nothing if unknown"
    checks.refuse(invalid, "age", "invalid age", expected, option="invalid_to_missing")
    # A real age of 0 exists (39 images), so a missing age is NaN and never 0.
    frame["age"] = years.mask(invalid)

    known = {"sex": (SEXES, report.unknown_sexes), "localization": (LOCALIZATIONS, report.unknown_localizations)}
    for name, (vocabulary, unknown) in known.items():
        values = frame[name].str.strip().str.lower().mask(is_missing(frame[name]), "unknown")
        report.notes += spelling_notes(name, values, checks.columns.get(name, name))
        values = values.map(partial(read_value, name))
        invalid = ~values.isin([*vocabulary, "unknown"]).to_numpy()
        unknown |= _counts(frame[name][invalid])
        expected = f"expected one of {list(vocabulary)}, or 'unknown'"
        checks.refuse(invalid, name, f"invalid {name}", expected, option="invalid_to_missing")
        frame[name] = values.mask(invalid, "unknown")


def _count(kept: pd.DataFrame, report: DataReport, raw: RawSource) -> None:
    report.rows = len(kept)
    counts = Counter(kept["dx"])
    report.class_counts = {label: counts[label] for label in report.labels}
    if lesions_known(kept):
        report.lesions = int(kept["lesion_id"].nunique())
        report.images_per_lesion = dict(sorted(Counter(Counter(kept["lesion_id"]).values()).items()))
    report.missing = {
        name: int((kept[name].isna() | (kept[name].astype(str) == "unknown")).sum()) for name in METADATA_FIELDS
    }
    if absent := [name for name, count in report.missing.items() if count == len(kept)]:
        columns = f"the columns are {raw.header}. Where one of them has it, name it: --columns {absent[0]}=COLUMN"
        report.warnings.append(f"no row has a value for {', '.join(absent)}; {columns if raw.header else 'no table'}")
    varied = kept.groupby("lesion_id")["dx"].nunique()
    report.inconsistent_lesions = sorted(str(lesion) for lesion in varied.index[varied > 1])
    if report.inconsistent_lesions:
        report.notes.append("lesions whose images carry different dx are kept as they are")
