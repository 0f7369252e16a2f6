"""`ham10000-data`: checks a source without training and shows how it would be split."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ham10000.training.config import DATA_FIXES, PROTOCOLS
from ham10000.training.data.tables import DataOptions, add_data_arguments
from ham10000.training.utils.cli import add_debug_argument, run_cli

# Within functions, all that imports torch: it takes seconds, which --help and a mistyped option need not wait for.
if TYPE_CHECKING:
    import datasets

    from ham10000.training.data.split import Split


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-data`."""
    parser = argparse.ArgumentParser(prog="ham10000-data", description=__doc__)
    parser.add_argument("--data", required=True, help="synthetic[:N], a table, a folder, or a Hub dataset id")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    parser.add_argument("--seed", type=int, default=42, help="seed of the split (default 42)")
    parser.add_argument("--folds", type=int, help="default: 10 for lesion-grouped, none for image-stratified")
    parser.add_argument("--fold", type=int, default=0, help="the test fold, from 0; the next one is for validation")
    parser.add_argument("--check_images", action="store_true", help="decode every image once")
    parser.add_argument("--drop_unreadable", action="store_true", help="drop rows without a readable image")
    parser.add_argument("--drop_duplicates", action="store_true", help="keep the first row of every image id")
    parser.add_argument("--drop_unknown_labels", action="store_true", help="drop rows of other labels")
    parser.add_argument("--invalid_to_missing", action="store_true", help="read impossible values as missing")
    parser.add_argument("--save_split", metavar="DIR", help="write split.csv and split.json, for --split_file")
    parser.add_argument("--export", metavar="DIR", help="write the data as a folder in the official layout")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_data_arguments(parser)
    add_debug_argument(parser)
    return parser


def _split_text(split: "Split") -> str:
    """The sizes of a split, its class counts, class weights to four decimals, and its leak, as plain text."""
    from ham10000.training.data.split import SPLITS, leakage_text

    def row(name: str, cells: Iterable[object]) -> str:
        return f"{name:<20}{''.join(f'{cell:>9}' for cell in cells)}".rstrip()

    folds = "no folds" if split.folds is None else f"fold {split.fold} of {split.folds}"
    leakage = split.leakage()
    lines = [
        f"protocol             {split.protocol}, seed {split.seed}, {folds}",
        f"sizes                {'/'.join(f'{size:,}' for size in split.sizes.values())}  ({'/'.join(SPLITS)})",
        f"hash                 {split.sha256}",
        "",
        row("", split.labels),
    ]
    lines += [row(part, counts.values()) for part, counts in split.class_counts.items()]
    for kind in ("balanced", "sqrt"):
        lines.append(row(f"weights, {kind}", [f"{weight:.4f}" for weight in split.class_weights(kind)]))
    for part in SPLITS[1:]:
        if leakage[part]["all"] is not None:
            lines.append(row(f"leak, {part}", [f"{leakage[part].get(label) or 0:.1%} " for label in split.labels]))
    lines += ["", *(leakage_text(leakage[part]["all"], part) for part in SPLITS[1:])]
    if split.dropped:
        lines.append(f"note: {split.protocol} drops {len(split.dropped)} rows without an age")
    return "\n".join(lines)


def write_official_layout(directory: str | Path, dataset: "datasets.Dataset") -> Path:
    """Writes a dataset as HAM10000 is distributed, images as they are stored, into a new or empty folder."""
    import datasets

    from ham10000.modeling import Ham10000Error
    from ham10000.training.data.sources import metadata_frame
    from ham10000.training.utils.files import IMAGE_SUFFIXES, write_table

    folder = Path(directory)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Ham10000Error(f"{folder} exists and is not an empty folder; export into a new one.")
    parts = [folder / f"HAM10000_images_part_{number}" for number in (1, 2)]
    for part in parts:
        part.mkdir(parents=True)
    for index, row in enumerate(dataset.cast_column("image", datasets.Image(decode=False))):
        image = row["image"]
        # The name stored next to bytes is anybody's; the folder's reader finds images by these suffixes only.
        suffix = Path(image["path"] or "").suffix
        suffix = suffix if suffix.lower() in IMAGE_SUFFIXES else ".jpg"
        target = parts[2 * index >= len(dataset)] / f"{row['image_id']}{suffix}"
        target.write_bytes(Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"])
    # The table comes last: a folder with one is complete.
    columns = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    write_table(metadata_frame(dataset)[columns], folder / "HAM10000_metadata.csv")
    return folder


@run_cli
def main(argv: Sequence[str]) -> None:
    """Checks a source, prints the report and the split, and writes what was asked for."""
    options = build_parser().parse_args(argv)
    from ham10000.training.data.sources import load_data
    from ham10000.training.data.split import make_split

    checks = {name: getattr(options, name) for name in ("check_images", *DATA_FIXES)}
    names = DataOptions.from_texts(options.columns, options.labels, options.label_map, options.group_by)
    dataset, report = load_data(options.data, names, **checks)
    if not options.json:
        print(f"{report}\n", flush=True)
    if options.export:
        print(f"wrote {write_official_layout(options.export, dataset)}", file=sys.stderr)
    split = make_split(dataset, options.protocol, seed=options.seed, folds=options.folds, fold=options.fold)
    if options.save_split:
        print(f"wrote {split.save(options.save_split)}", file=sys.stderr)
    if options.json:
        weights = {kind: split.class_weights(kind).round(6).tolist() for kind in ("balanced", "sqrt")}
        print(json.dumps({"report": asdict(report), "split": {**split.summary(), "class_weights": weights}}, indent=2))
    else:
        print(_split_text(split))


if __name__ == "__main__":
    sys.exit(main())
