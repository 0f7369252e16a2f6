"""Predicts pictures, metadata or both: `ham10000-predict image.jpg --checkpoint runs/fusion --age 60 --sex male`."""

import argparse
import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ham10000.modeling import (
    LABELS,
    METADATA_FIELDS,
    Ham10000Config,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Processor,
)
from ham10000.training.atomic import atomic_write_text
from ham10000.training.cli import add_debug_argument, run_cli

# Nothing here may import datasets, pandas, scikit-learn, evaluate or matplotlib: they would double the start-up time.

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MALIGNANT = ("mel", "bcc", "akiec")
DISCLAIMER = "Research software, not a medical device: never for diagnosis or for decisions about a patient."

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KEY_COLUMNS = ("image_id", "image", "file", "file_name", "path")
_SINGLE_BAR, _COMPACT_BAR, _NAME_WIDTH = 30, 10, 44
_EIGHTHS = " ▏▎▍▌▋▊▉"
# For terminals whose encoding has no block characters.
_ASCII_BLOCKS = str.maketrans({"█": "#", "…": "~"} | dict.fromkeys(_EIGHTHS[1:4]) | dict.fromkeys(_EIGHTHS[4:], "#"))


@dataclass
class Sample:
    """One thing to predict.

    Attributes:
        name: The picture as the user named it, or the row's id; None for metadata from flags alone.
        picture: The file; None for a metadata-only checkpoint.
        metadata: Raw values by field; None where nothing is known (or the checkpoint reads none).
        origin: Where the metadata comes from, for messages.
    """

    name: str | None
    picture: Path | None = None
    metadata: dict[str, str] | None = None
    origin: str = ""


@dataclass
class MetadataTable:
    """A csv of metadata.

    Attributes:
        path: The file.
        rows: One sample a row, without a picture.
        by_picture: The same samples by every name a picture may be looked up with.
        note: What was ignored or is absent; empty if nothing.
    """

    path: Path
    rows: list[Sample]
    by_picture: dict[str, Sample]
    note: str


def load_checkpoint(
    checkpoint: str | os.PathLike[str], revision: str | None = None, device: str | torch.device = "cpu"
) -> tuple[Ham10000ForImageClassification, Ham10000Processor]:
    """Loads a model and its processor with this package's own classes; no code from the checkpoint runs.

    Args:
        checkpoint: A folder, which needs no network, or a Hub id.
        revision: Branch, tag or commit of a Hub id.
        device: Where the model is put.

    Returns:
        The model, in evaluation mode, and the processor.

    Raises:
        Ham10000Error: If there is no such checkpoint, it is incomplete or damaged, or of another kind of model.

    Example:
        >>> model, processor = load_checkpoint("runs/fusion")
        >>> predict(model, processor, ["lesion.jpg"], [{"age": 60, "sex": "male"}])
    """
    folder = Path(checkpoint).expanduser()
    name, is_folder = str(checkpoint), folder.is_dir()
    if is_folder and revision is not None:
        raise Ham10000Error(f"`revision` is for Hub ids, but {name!r} is a folder; leave it out.")
    if is_folder and not (folder / "config.json").is_file():
        raise Ham10000Error(f"The folder {name!r} holds no config.json; expected the output_dir of a training run.")
    if folder.is_file():
        raise Ham10000Error(f"{name!r} is a file; give the checkpoint's folder.")
    # A path that is mistyped must not be looked for on the Hub, which takes half a minute without a network.
    if not is_folder and (not _HUB_ID.fullmatch(name) or folder.parent.is_dir()):
        raise Ham10000Error(f"There is no folder {name!r}; give a checkpoint folder, or a Hub id `user/name`.")
    source = str(folder) if is_folder else name
    options: dict[str, Any] = {"revision": revision or "main", "local_files_only": is_folder}
    try:
        model_type = Ham10000Config.get_config_dict(source, **options)[0].get("model_type")
        if model_type != Ham10000Config.model_type:
            raise Ham10000Error(
                f"{name!r} holds a model of type {model_type!r}, not {Ham10000Config.model_type!r}; "
                "give a checkpoint of this package."
            )
        model = Ham10000ForImageClassification.from_pretrained(source, dtype=torch.float32, **options)
        processor = Ham10000Processor.from_pretrained(source, **options)
    except SafetensorError as error:
        raise Ham10000Error(f"The weights of {name!r} are damaged: {error}. Copy or train them again.") from error
    except RuntimeError as error:
        # What transformers raises for a weight of another shape; its message only points to its log.
        raise Ham10000Error(
            f"The weights of {name!r} do not fit its config.json: they were saved with another modality, backbone or "
            "fusion. Copy the checkpoint again."
        ) from error
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        if is_folder:
            raise Ham10000Error(f"The checkpoint {name!r} is incomplete or damaged: {reason}") from error
        raise Ham10000Error(
            f"There is no folder {name!r}, and the Hub did not give it either: {reason} "
            "Give an existing checkpoint folder, or a Hub id `user/name` with a connection to the internet."
        ) from error
    return model.to(device).eval(), processor


@torch.inference_mode()
def predict(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    images: Sequence[Any] | None = None,
    metadata: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    *,
    unknown_values: str = "error",
    progress: bool = False,
) -> np.ndarray:
    """Predicts a list of pictures, of metadata rows, or of both; at most one batch of pictures is in memory.

    Args:
        model: Any variant, on any device.
        processor: The model's processor.
        images: Pictures in any form `load_image` reads; None for a metadata-only model.
        metadata: One mapping a picture, as for the processor; None for an image-only model, or if nothing is known.
        batch_size: Samples a step.
        unknown_values: What a sex or site outside the vocabulary is: `"error"` or `"missing"`.
        progress: Whether to show a progress bar on stderr, if there is more than one batch.

    Returns:
        (samples, 7) float64 probabilities in the order of `LABELS`, calibrated by the checkpoint's temperature.

    Raises:
        Ham10000Error: For an input the variant does not read or lacks, an unreadable picture, or an unknown value.
    """
    if batch_size < 1:
        raise Ham10000Error(f"`batch_size` must be at least 1, got {batch_size}.")
    if not images and not metadata:
        raise Ham10000Error("Nothing to predict: give at least one picture or one row of metadata.")
    if images is not None and metadata is not None and len(images) != len(metadata):
        raise Ham10000Error(f"Got {len(images)} images but {len(metadata)} rows of metadata; expected one a picture.")
    # All rows are checked before the first picture is decoded.
    encoded = None
    if metadata is not None:
        encoded = processor(metadata=list(metadata), unknown_values=unknown_values)["metadata"]
    count = len(images if images is not None else metadata or ())
    was_training = model.training
    model.eval()
    logits = []
    try:
        with tqdm(total=count, desc="Predicting", unit="image", disable=not progress or count <= batch_size) as bar:
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                inputs = {} if encoded is None else {"metadata": encoded[part].to(model.device)}
                if images is not None:
                    inputs["pixel_values"] = processor(images=list(images[part]))["pixel_values"].to(model.device)
                logits.append(model(**inputs).logits.cpu())
                bar.update(len(logits[-1]))
    finally:
        model.train(was_training)
    return torch.cat(logits).double().softmax(dim=-1).numpy()


def find_pictures(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Lists the pictures that files and folders stand for.

    Args:
        inputs: Files, taken whatever their suffix, and folders, searched with their sub-folders for
            `PICTURE_SUFFIXES` in any case; hidden files and folders are skipped.

    Returns:
        The files in the order of `inputs`, those of one folder sorted by path, each once.

    Raises:
        Ham10000Error: For something that does not exist, or a folder without a picture.
    """
    pictures: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            found = []
            for folder, folders, names in os.walk(path):
                folders[:] = [name for name in folders if not name.startswith(".")]
                # Apple's archiver leaves a hidden `._name.jpg` beside each picture, which is none.
                kept = [name for name in names if not name.startswith(".")]
                found += [Path(folder, name) for name in kept if name.lower().endswith(PICTURE_SUFFIXES)]
            if not found:
                raise Ham10000Error(f"The folder {str(path)!r} holds no picture ({', '.join(PICTURE_SUFFIXES)}).")
            pictures += sorted(found)
        elif path.exists():
            pictures.append(path)
        elif str(item).startswith(("http://", "https://")):
            raise Ham10000Error(f"URLs are not fetched, got {str(item)!r}: download the picture and give its path.")
        else:
            raise Ham10000Error(f"There is no file or folder {str(path)!r}.")
    return list(dict.fromkeys(pictures))


def read_metadata(path: str | os.PathLike[str], fields: Sequence[str]) -> MetadataTable:
    """Reads a csv of metadata; only the columns in `fields` are kept, whatever else it holds.

    Args:
        path: Separated by comma, semicolon or tab, with a header. The picture of a row is named in the first of the
            columns image_id, image, file, file_name, path that there is: by the file's name with or without suffix,
            or by its path, relative to the csv or to the working directory.
        fields: The metadata fields of the checkpoint.

    Returns:
        The table.

    Raises:
        Ham10000Error: If the file cannot be read, has none of the fields, or names a picture twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Ham10000Error(f"Cannot read the metadata {str(path)!r}: {error}. Expected a UTF-8 csv file.") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader, [])]
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise Ham10000Error(f"{path}: the column(s) {repeated} are there twice; keep one of each.")
    if not set(header) & set(fields):
        raise Ham10000Error(f"{path} has the columns {header}, but none of {list(fields)}.")
    key = next((name for name in _KEY_COLUMNS if name in header), None)
    table = MetadataTable(path, [], {}, _column_note(path, header, key, fields))
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {reader.line_num}"
        if len(cells) != len(header):
            raise Ham10000Error(f"{where}: {len(cells)} cells, but the header has {len(header)}; quote the cells.")
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
        metadata = {name: values[name] for name in fields if name in values}
        row = Sample(values[key] if key else f"line {reader.line_num}", None, metadata, where)
        table.rows.append(row)
        if key and row.name:
            other = table.by_picture.setdefault(row.name, row)
            if other is not row:
                raise Ham10000Error(f"{where}: {key} {row.name!r} is also in {other.origin}; keep one row a picture.")
            if key != "image_id":
                table.by_picture.setdefault(str((path.parent / row.name).resolve()), row)
    if not table.rows:
        raise Ham10000Error(f"{path} has a header but no rows.")
    return table


def _column_note(path: Path, header: list[str], key: str | None, fields: Sequence[str]) -> str:
    parts = []
    if ignored := [name for name in header if name and name not in fields and name != key]:
        parts.append(f"{', '.join(ignored)} ignored, never an input of this checkpoint")
    if absent := [name for name in fields if name not in header]:
        parts.append(f"no column {', '.join(absent)}, which counts as missing")
    return f"{path}: {'; '.join(parts)}" if parts else ""


def match_metadata(pictures: Sequence[Path], table: MetadataTable, *, unknown_values: str = "error") -> list[Sample]:
    """Gives every picture its row of the table.

    Args:
        pictures: The files.
        table: Result of `read_metadata`.
        unknown_values: `"missing"` lets a picture without a row have missing metadata.

    Returns:
        One sample a picture, in order.

    Raises:
        Ham10000Error: For pictures without a row, unless allowed.
    """
    if not table.by_picture:
        raise Ham10000Error(f"{table.path} does not say which picture a row is of; add one of {list(_KEY_COLUMNS)}.")
    samples, without = [], []
    for picture in pictures:
        names = (str(picture), str(picture.resolve()), picture.name, picture.stem)
        row = next((table.by_picture[name] for name in names if name in table.by_picture), None)
        if row is None:
            without.append(picture)
            row = Sample(None, None, {}, "")
        samples.append(Sample(_text(picture), picture, row.metadata, row.origin))
    if without and unknown_values == "error":
        raise Ham10000Error(
            f"{table.path} has no row for {len(without)} of {len(pictures)} pictures, such as {str(without[0])!r}. "
            "Add the rows, or pass --unknown_values missing to predict these pictures without metadata."
        )
    if without:
        _note(f"{table.path}: no row for {len(without)} of {len(pictures)} pictures, whose metadata is unknown")
    return samples


def collect_samples(options: argparse.Namespace, processor: Ham10000Processor) -> list[Sample]:
    """Turns the command line into samples whose metadata the processor accepts.

    Args:
        options: From `build_parser`.
        processor: The checkpoint's processor.

    Returns:
        At least one sample.

    Raises:
        Ham10000Error: For inputs that do not exist, contradict each other, or that the checkpoint does not read.
    """
    flags = {name: getattr(options, name) for name in METADATA_FIELDS if getattr(options, name) is not None}
    uses_image = "pixel_values" in processor.model_input_names
    uses_metadata = "metadata" in processor.model_input_names
    if flags and options.metadata:
        given = ", ".join(f"--{name}" for name in flags)
        raise Ham10000Error(f"Got {given} and --metadata {options.metadata}; give one or the other.")
    if not uses_metadata and (flags or options.metadata):
        given = ", ".join(f"--{name}" for name in flags) or "--metadata"
        raise Ham10000Error(
            f"The checkpoint {options.checkpoint!r} is image-only and reads no metadata; drop {given}."
        )
    if not uses_image and options.inputs:
        raise Ham10000Error(
            f"The checkpoint {options.checkpoint!r} is metadata-only and reads no picture; drop {options.inputs[0]!r}."
        )
    if uses_image and not options.inputs:
        raise Ham10000Error(f"The checkpoint {options.checkpoint!r} reads pictures; give at least one file or folder.")
    if not uses_image and not flags and not options.metadata:
        raise Ham10000Error(
            f"The checkpoint {options.checkpoint!r} is metadata-only; give --metadata table.csv, or some of "
            + ", ".join(f"--{name}" for name in processor.metadata_fields)
            + "."
        )
    pictures = find_pictures(options.inputs)
    if options.metadata:
        table = read_metadata(options.metadata, processor.metadata_fields)
        if table.note:
            _note(table.note)
        unknown_values = options.unknown_values
        samples = match_metadata(pictures, table, unknown_values=unknown_values) if uses_image else table.rows
    elif uses_image:
        samples = [Sample(_text(picture), picture, dict(flags) or None, "command line") for picture in pictures]
    else:
        samples = [Sample(None, None, flags, "command line")]
    for sample in samples:
        if sample.metadata:
            _check_metadata(sample, processor, options.unknown_values)
    return samples


def _check_metadata(sample: Sample, processor: Ham10000Processor, unknown_values: str) -> None:
    """Raises the processor's complaint about a row with the place the user can correct it at."""
    try:
        processor.encode_metadata([sample.metadata or {}], unknown_values=unknown_values)
    except Ham10000Error as error:
        message = (
            str(error).removeprefix("Metadata row 0: ").replace("unknown_values='missing'", "--unknown_values missing")
        )
        raise Ham10000Error(f"{sample.origin}: {message}") from error


def _text(path: Path) -> str:
    """A path as text that can be written: file names are bytes, and some are no UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


def _bar(share: float, width: int) -> str:
    eighths = round(float(share) * width * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()


def _describe_metadata(sample: Sample, processor: Ham10000Processor, unknown_values: str) -> str:
    """The values the model saw, not those that were written."""
    row = processor.encode_metadata([sample.metadata or {}], unknown_values=unknown_values)[0].tolist()
    vocabularies = {"sex": processor.sex_vocabulary, "localization": processor.localization_vocabulary}
    parts = []
    for name, value in zip(processor.metadata_fields, row, strict=True):
        known = f"{value:g}" if name == "age" else "" if value != value else vocabularies[name][int(value)]
        parts.append(f"{name} {'unknown' if value != value else known}")
    return ", ".join(parts)


def _shown(name: str | None) -> str:
    """A name for the terminal: no control characters, and not so long that the columns are lost."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in name or "")
    return text if len(text) <= _NAME_WIDTH else f"…{text[1 - _NAME_WIDTH :]}"


def format_table(
    samples: Sequence[Sample],
    probabilities: np.ndarray,
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    *,
    top_k: int | None = None,
    unknown_values: str = "error",
) -> str:
    """The predictions for a reader: seven bars for one sample, one line each for several.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).
        model: Gives the plain names of the labels.
        processor: Gives the meaning of the metadata.
        top_k: Classes shown a sample; by default all for one sample and the most probable one for several.
        unknown_values: As the samples were predicted.

    Returns:
        Lines of text, the last of which says what this is not for.
    """
    descriptions = model.config.label_descriptions
    order = np.argsort(-probabilities, axis=1, kind="stable")
    malignant = probabilities[:, [LABELS.index(label) for label in MALIGNANT]].sum(axis=1)
    if len(samples) == 1:
        width = max(len(text) for text in descriptions.values())
        best = LABELS[order[0, 0]]
        lines = [_shown(samples[0].name)] if samples[0].name else []
        if processor.metadata_fields:
            lines.append(_describe_metadata(samples[0], processor, unknown_values))
        lines += ["", f"Predicted: {best}, {descriptions[best]}", ""]
        for index in order[0, :top_k]:
            share, label = probabilities[0, index], LABELS[index]
            bar = _bar(share, _SINGLE_BAR)
            lines.append(f"  {label:<6} {descriptions[label]:<{width}} {share:>7.1%}  {bar}".rstrip())
        title = f"malignant total ({' + '.join(MALIGNANT)})"
        lines += ["", f"  {title:<{width + 7}} {malignant[0]:>7.1%}"]
    else:
        names = [_shown(name) for name in _without_folder(samples)]
        width = max(len("sample"), *(len(name) for name in names))
        lines = [f"{'sample':<{width}}  label  share  {'':<{_COMPACT_BAR}}  malignant  name"]
        for name, row, ranks, risk in zip(names, probabilities, order, malignant, strict=True):
            label, share = LABELS[ranks[0]], row[ranks[0]]
            others = ", ".join(f"{LABELS[index]} {row[index]:.1%}" for index in ranks[1 : top_k or 1])
            text = f"{descriptions[label]}; then {others}" if others else descriptions[label]
            bar = _bar(share, _COMPACT_BAR)
            lines.append(f"{name:<{width}}  {label:<5} {share:>6.1%}  {bar:<{_COMPACT_BAR}}  {risk:>9.1%}  {text}")
        lines += ["", f"malignant: total of {' + '.join(MALIGNANT)}"]
    return "\n".join([*lines, "", DISCLAIMER]) + "\n"


def _without_folder(samples: Sequence[Sample]) -> list[str]:
    """Names without the folder that all of them share."""
    names = [sample.name or "" for sample in samples]
    same_folder = len({Path(name).parent for name in names}) == 1
    return [Path(name).name for name in names] if same_folder else names


def format_json(samples: Sequence[Sample], probabilities: np.ndarray, *, top_k: int | None = None) -> str:
    """A list of `{"image", "label", "probabilities"}`, the most probable class first.

    Args:
        samples: What was predicted; `image` is null where metadata came from flags.
        probabilities: (samples, 7).
        top_k: Number of classes kept; by default all.

    Returns:
        JSON in ASCII, which every terminal can print.
    """
    records = []
    for sample, row in zip(samples, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        shares = {LABELS[index]: float(row[index]) for index in order[:top_k]}
        records.append({"image": sample.name, "label": LABELS[order[0]], "probabilities": shares})
    return json.dumps(records, indent=2, allow_nan=False) + "\n"


def format_csv(samples: Sequence[Sample], probabilities: np.ndarray) -> str:
    """Columns image, label, p_akiec … p_vasc, probabilities to the last bit.

    A name that a spreadsheet would run as a formula gets a leading apostrophe: file names come from strangers.

    Args:
        samples: What was predicted.
        probabilities: (samples, 7).

    Returns:
        The file's text.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "label", *(f"p_{label}" for label in LABELS)])
    for sample, row in zip(samples, probabilities, strict=True):
        name = sample.name or ""
        cell = f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name
        writer.writerow([cell, LABELS[int(row.argmax())], *row.tolist()])
    return text.getvalue()


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        Ham10000Error: For a device that does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise Ham10000Error(f"Device {name!r} cannot be used: {error}. Expected auto, cpu or cuda.") from error


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-predict`."""
    parser = argparse.ArgumentParser(
        prog="ham10000-predict",
        description="Predict pictures, metadata or both with a checkpoint. " + DISCLAIMER,
        epilog="A folder is searched with its sub-folders, sorted, hidden files left out. Exit code 2: nothing was "
        "written, and one line on stderr says why.",
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="IMAGE_OR_FOLDER", help="pictures, or folders of them; none for metadata-only"
    )
    parser.add_argument("--checkpoint", required=True, metavar="DIR_OR_HUB_ID")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--age", help="years, of every picture given; a field left out is unknown")
    parser.add_argument("--sex", help="female or male")
    parser.add_argument("--localization", help="body site, such as back or 'lower extremity'")
    parser.add_argument(
        "--metadata",
        metavar="CSV",
        help=f"one row a picture: {', '.join(_KEY_COLUMNS[:-1])} or {_KEY_COLUMNS[-1]}, and any of "
        f"{', '.join(METADATA_FIELDS)}; other columns (such as dx) are never used",
    )
    parser.add_argument(
        "--unknown_values",
        choices=["error", "missing"],
        default="error",
        help="missing: a sex or site outside the vocabulary, and a picture without a csv row, count as unknown",
    )
    parser.add_argument(
        "--format", choices=["table", "json", "csv"], help="default: by the suffix of --output, else table"
    )
    parser.add_argument(
        "--output", metavar="FILE", help="write there, whole or not at all, instead of to the terminal"
    )
    parser.add_argument(
        "--top_k", type=int, choices=range(1, len(LABELS) + 1), metavar="N", help="classes shown (not csv)"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add_debug_argument(parser)
    return parser


def _show(text: str) -> None:
    """Prints text whatever the encoding of the terminal."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII_BLOCKS).encode(encoding, "backslashreplace").decode(encoding)
    print(text, end="")


def _write(path: str, text: str) -> None:
    try:
        atomic_write_text(path, text)
    except OSError as error:
        raise Ham10000Error(f"Cannot write --output {path!r}: {error}.") from error
    print(f"wrote {path}", file=sys.stderr)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-predict`."""
    options = build_parser().parse_args(argv)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    output_format = options.format or {".json": "json", ".csv": "csv"}.get(Path(options.output or "").suffix, "table")
    if options.output and Path(options.output).is_dir():
        raise Ham10000Error(f"--output {options.output!r} is a folder; give a file.")
    model, processor = load_checkpoint(options.checkpoint, options.revision, choose_device(options.device))
    samples = collect_samples(options, processor)
    pictures = [sample.picture for sample in samples if sample.picture is not None]
    knows_metadata = any(sample.metadata is not None for sample in samples)
    probabilities = predict(
        model,
        processor,
        pictures or None,
        [sample.metadata or {} for sample in samples] if knows_metadata else None,
        options.batch_size,
        unknown_values=options.unknown_values,
        progress=True,
    )
    if output_format == "json":
        text = format_json(samples, probabilities, top_k=options.top_k)
    elif output_format == "csv":
        text = format_csv(samples, probabilities)
    else:
        arguments = {"top_k": options.top_k, "unknown_values": options.unknown_values}
        text = format_table(samples, probabilities, model, processor, **arguments)
    if options.output:
        _write(options.output, text)
    else:
        _show(text)
    if output_format != "table" or options.output:
        _note(DISCLAIMER)


if __name__ == "__main__":
    sys.exit(main())
