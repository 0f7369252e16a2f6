"""Looks for input that breaks the readers: `python examples/fuzz.py --minutes 10` gives each target ten minutes.

The targets are the processor, the tables, the saved splits and the converter; `--target` chooses. Half of
a target's time goes to changed files: bytes of valid images, tables, splits and files of weights are cut, flipped,
inserted, repeated and overwritten, and each file must still be read, or be refused by a `Ham10000Error` that is short
enough to be read. The other half goes to the target's properties in `tests/test_properties.py`, with inputs that
hypothesis makes up, others in every round; a target with one of the two kinds gives it all of its time. What breaks a
rule is a finding; its bytes are kept with `--keep DIR`, and the exit code is 1.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from ham10000.hub_upload.convert_checkpoint import read_weights
from ham10000.modeling import LABELS, Ham10000Error, Ham10000Processor
from ham10000.training.data.readers import select_fields
from ham10000.training.data.sources import check_rows, load_data
from ham10000.training.data.split import load_split, make_split
from ham10000.training.data.tables import DataOptions, read_table
from ham10000.training.inference.inputs import read_metadata

PROPERTIES = Path(__file__).parents[1] / "tests" / "test_properties.py"
# Which of them belong to which target; a test holds that none is left out.
PROPERTIES_OF = {
    "processor": (
        "test_anything_is_a_row_in_range_or_an_error_that_names_the_row",
        "test_any_array_is_a_picture_or_an_error",
    ),
    "tables": (
        "test_every_row_comes_back_or_an_error_names_a_line",
        "test_a_cell_comes_back_and_no_written_one_is_a_formula",
        "test_any_file_is_a_table_or_an_error_that_names_it",
        "test_no_row_is_dropped_unless_asked_and_every_problem_has_a_row",
    ),
    "splits": ("test_no_lesion_is_on_two_sides_whatever_the_sizes",),
    "converter": (),
}
SLOW_SECONDS = 20.0
STRANGE = (
    b"\0",
    b"\xff" * 4,
    b"\x00\x00\x00\x00",
    b"\x7f\xff\xff\xff",
    b'"',
    b"\n",
    b",",
    b"../",
    b"\xef\xbb\xbf",
    b"9" * 40,
)


class Files:
    """A reader and the valid files it is tried on.

    Args:
        name: For the report.
        seeds: File names to their valid content; the files of one seed lie in one folder, the first is changed.
        read: Reads the first file.
    """

    def __init__(self, name: str, seeds: list[dict[str, bytes]], read: Callable[[Path], object]) -> None:
        self.name, self.seeds, self.read = name, seeds, read


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Changes a file in one to four places."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(6):
            case 0:
                del changed[at:]
            case 1:
                del changed[at : at + length]
            case 2:
                changed[at:at] = rng.choice((rng.randbytes(length), rng.choice(STRANGE)))
            case 3:
                changed[at : at + length] = rng.randbytes(length)
            case 4:
                changed[at:at] = changed[at : at + length]
            case _:
                if at < len(changed):
                    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


def images() -> Files:
    """Every format that is read, in colour, grey, with a palette, alpha and 16 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    rgb = Image.fromarray(pixels)
    forms = {
        "JPEG": [rgb, rgb.convert("L"), rgb.convert("CMYK")],
        "PNG": [rgb, rgb.convert("P"), rgb.convert("RGBA"), Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)],
        "TIFF": [rgb, Image.fromarray(pixels[:, :, 0] / np.float32(255))],
        "GIF": [rgb.convert("P")],
        "BMP": [rgb],
        "WEBP": [rgb],
        "PPM": [rgb],
        "JPEG2000": [rgb],
    }
    seeds = []
    for kind, images in forms.items():
        for image in images:
            stream = BytesIO()
            image.save(stream, kind)
            seeds.append({"image.jpg": stream.getvalue()})
    processor = Ham10000Processor()

    def processed(path: Path) -> None:
        pixels = processor(images=[path], metadata=[{"age": 60}])["pixel_values"]
        assert pixels.shape[:2] == (1, 3), pixels.shape
        assert bool(pixels.isfinite().all()), "a pixel is NaN or infinite"

    return Files("image", seeds, processed)


def tables() -> list[Files]:
    """Tables as training data, with every row checked, and as the metadata of a prediction."""
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    rows = [f'HAM_{i // 2},ISIC_{i},{LABELS[i % 7]},histo,{i * 5}.0,"male",back,vidir' for i in range(14)]
    comma = "\n".join([header, *rows]) + "\n"
    forms = (comma, comma.replace(",", ";"), comma.replace(",", "\t").replace("\n", "\r\n"), "\ufeff" + comma)
    record = '{"file_name": "a.jpg", "dx": "nv", "age": 40, "sex": null, "localization": "back"}\n'

    def checked(path: Path) -> None:
        source = select_fields(read_table(path), path, DataOptions())
        rows_read = len(source.frame)
        text = path.read_text(encoding="utf-8-sig")
        # A record is a line; what is blank holds delimiters at most.
        written = sum(bool(line.strip(' \t\n,;"')) for line in text.split("\n")) - (path.suffix == ".csv")
        assert rows_read == written, f"{rows_read} rows of {written} lines"
        source.missing = [False] * rows_read
        kept, _, _ = check_rows(source, DataOptions(), unreadable_images=None)
        assert len(kept) == rows_read, "a row was dropped"

    return [
        Files("table", [{"t.csv": text.encode()} for text in forms] + [{"t.jsonl": (record * 5).encode()}], checked),
        Files(
            "table to predict",
            [{"t.csv": text.encode()} for text in forms],
            lambda path: read_metadata(path, ("age", "sex", "localization")),
        ),
    ]


def splits() -> Files:
    """A saved split, whose table or record is changed."""
    with tempfile.TemporaryDirectory() as folder:
        make_split(load_data("synthetic:200")[0], folds=3).save(folder)
        table, record = (Path(folder, name).read_bytes() for name in ("split.csv", "split.json"))
    seeds = [{"split.csv": table, "split.json": record}, {"split.json": record, "split.csv": table}]
    return Files("split", seeds, lambda path: load_split(path.parent))


def weights() -> Files:
    """Files of weights for the converter: both formats of torch.save, and safetensors."""
    state = {"features.0.weight": torch.arange(24.0).reshape(2, 3, 4), "classifier.1.bias": torch.zeros(7)}
    whole = {"model_state_dict": state, "epoch": 3, "class_names": list(LABELS), "loss": [0.5, 0.25]}
    seeds = [{"w.safetensors": save(state)}]
    for content in (state, whole):
        for new in (True, False):
            stream = BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            seeds.append({"w.pt": stream.getvalue()})
    return Files("weights", seeds, read_weights)


def try_once(files: Files, folder: Path, rng: random.Random) -> tuple[str, bytes, str]:
    """Changes one file and reads it.

    Args:
        files: What is tried.
        folder: Where the files are written.
        rng: Source of every choice.

    Returns:
        `"read"`, `"refused"` or `"finding"`; the changed bytes; the traceback of a finding.
    """
    seed = rng.choice(files.seeds)
    for name, data in seed.items():
        (folder / name).write_bytes(data)
    path = folder / next(iter(seed))
    changed = mutate(path.read_bytes(), rng)
    path.write_bytes(changed)
    start = time.perf_counter()
    outcome, what = "read", ""
    try:
        files.read(path)
    except Ham10000Error as error:
        outcome = "refused"
        if not 10 < len(str(error)) < 5000:
            outcome, what = "finding", f"a message of {len(str(error))} letters: {str(error)[:300]}"
    except Exception:  # whatever else a reader raises is what is looked for
        outcome, what = "finding", traceback.format_exc()
    if (seconds := time.perf_counter() - start) > SLOW_SECONDS:
        outcome, what = "finding", f"took {seconds:.0f} s\n{what}"
    return outcome, changed, what


def run_files(kinds: list[Files], until: float, rng: random.Random, keep: Path | None) -> int:
    """Tries changed files and reports what was tried.

    Args:
        kinds: What is tried, in turn.
        until: Time, as `time.monotonic` gives it, after which no file is tried.
        rng: Source of every choice.
        keep: Folder for the bytes of findings.

    Returns:
        The number of findings, one for each place in the code.
    """
    counts: dict[str, Counter[str]] = {files.name: Counter() for files in kinds}
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < until:
            files = rng.choice(kinds)
            outcome, data, what = try_once(files, Path(folder), rng)
            counts[files.name][outcome] += 1
            key = what.strip().split("\n")[-1][:60]
            if outcome == "finding" and key not in seen:
                seen.add(key)
                print(f"FINDING in {files.name}:\n{what}", flush=True)
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{files.name.replace(' ', '-')}-{len(seen)}").write_bytes(data)
    for name, count in counts.items():
        found = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(count.items()))
        print(f"  {name:<18} {count.total():>8,} changed files: {found}")
    return len(seen)


def run_properties(names: Sequence[str], until: float, seed: int) -> int:
    """Runs properties with ever other inputs and reports the rounds; the first failure ends them.

    Args:
        names: Tests of `tests/test_properties.py`.
        until: Time, as `time.monotonic` gives it, after which no round begins; one that has begun is let end.
        seed: Seed of the first round.

    Returns:
        1 if a property failed, otherwise 0.
    """
    rounds = 0
    nodes = [f"{PROPERTIES}::{name}" for name in names]
    while time.monotonic() < until:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *nodes]
        done = subprocess.run(
            [*command, f"--hypothesis-seed={seed + rounds}"],
            env={**os.environ, "HAM10000_PROPERTIES": "long"},
            capture_output=True,
            text=True,
            check=False,
        )
        rounds += 1
        if done.returncode:
            print(f"FINDING in the properties, seed {seed + rounds - 1}:\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
            break
    print(f"  {'properties':<18} {rounds:>8,} rounds of {len(nodes)}, each with three times the test suite's examples")
    return int(rounds > 0 and done.returncode != 0)


KINDS_OF: dict[str, Callable[[], list[Files]]] = {
    "processor": lambda: [images()],
    "tables": tables,
    "splits": lambda: [splits()],
    "converter": lambda: [weights()],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Gives every target its time and reports what was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (default 10)")
    parser.add_argument(
        "--target", choices=list(KINDS_OF), action="append", help="may be given several times (default: all)"
    )
    parser.add_argument("--seed", type=int, help="seed of every choice (default: the time)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the bytes of findings")
    arguments = parser.parse_args(argv)
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    found = 0
    for target in dict.fromkeys(arguments.target or KINDS_OF):
        begin, seconds = time.monotonic(), arguments.minutes * 60
        kinds, names = KINDS_OF[target](), PROPERTIES_OF[target]
        findings = 0
        print(target, flush=True)
        if kinds:
            share = 0.5 if names else 1.0
            findings += run_files(kinds, begin + share * seconds, random.Random(seed), arguments.keep)
        if names:
            findings += run_properties(names, begin + seconds, seed)
        print(f"  {findings} finding(s) in {time.monotonic() - begin:.0f} s", flush=True)
        found += findings
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
