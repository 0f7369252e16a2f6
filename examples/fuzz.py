"""Looks for input that breaks the readers: `python examples/fuzz.py --minutes 10`.

Half of the time goes to the properties of `tests/test_properties.py`, with inputs that hypothesis makes up, others in
every round. The other half cuts, flips, inserts, repeats and overwrites bytes of valid pictures, tables, saved splits
and files of weights: each must still be read, or be refused by a `Ham10000Error` that is short enough to be read. What
is neither is a finding; its bytes are kept with `--keep DIR`, and the exit code is 1.
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
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from ham10000.hub_upload.source_checkpoint import read_weights
from ham10000.modeling import LABELS, Ham10000Error, load_image
from ham10000.training.data import load_data
from ham10000.training.data_checks import check_rows
from ham10000.training.data_tables import REQUIRED_COLUMNS, read_csv, read_jsonl
from ham10000.training.prediction_inputs import read_metadata
from ham10000.training.split import load_split, make_split

PROPERTIES = Path(__file__).parents[1] / "tests" / "test_properties.py"
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


class Target:
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


def pictures() -> Target:
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
            seeds.append({"picture.jpg": stream.getvalue()})
    return Target("picture", seeds, load_image)


def tables() -> list[Target]:
    """Tables as training data, with every row checked, and as the metadata of a prediction."""
    header = "lesion_id,image_id,dx,dx_type,age,sex,localization,dataset"
    rows = [f'HAM_{i // 2},ISIC_{i},{LABELS[i % 7]},histo,{i * 5}.0,"male",back,vidir' for i in range(14)]
    comma = "\n".join([header, *rows]) + "\n"
    forms = (comma, comma.replace(",", ";"), comma.replace(",", "\t").replace("\n", "\r\n"), "\ufeff" + comma)
    record = '{"file_name": "a.jpg", "dx": "nv", "age": 40, "sex": null, "localization": "back"}\n'

    def checked(path: Path) -> None:
        frame, notes = (
            read_jsonl(path, ("file_name", *REQUIRED_COLUMNS[1:])) if path.suffix == ".jsonl" else read_csv(path)
        )
        rows_read = len(frame)
        text = path.read_text(encoding="utf-8-sig")
        # A record is a line; what is blank holds delimiters at most.
        written = sum(bool(line.strip(' \t\n,;"')) for line in text.split("\n")) - (path.suffix == ".csv")
        assert rows_read == written, f"{rows_read} rows of {written} lines"
        kept, _, _ = check_rows(
            frame, source=str(path), missing_images=np.zeros(rows_read, bool), unreadable_images=None, notes=notes
        )
        assert len(kept) == rows_read, "a row was dropped"

    return [
        Target("table", [{"t.csv": text.encode()} for text in forms] + [{"t.jsonl": (record * 5).encode()}], checked),
        Target(
            "table to predict",
            [{"t.csv": text.encode()} for text in forms],
            lambda path: read_metadata(path, ("age", "sex", "localization")),
        ),
    ]


def splits() -> Target:
    """A saved split, whose table or record is changed."""
    with tempfile.TemporaryDirectory() as folder:
        make_split(load_data("synthetic:200")[0], folds=3).save(folder)
        table, record = (Path(folder, name).read_bytes() for name in ("split.csv", "split.json"))
    seeds = [{"split.csv": table, "split.json": record}, {"split.json": record, "split.csv": table}]
    return Target("split", seeds, lambda path: load_split(path.parent))


def weights() -> Target:
    """Files of weights for the converter: both formats of torch.save, and safetensors."""
    state = {"features.0.weight": torch.arange(24.0).reshape(2, 3, 4), "classifier.1.bias": torch.zeros(7)}
    whole = {"model_state_dict": state, "epoch": 3, "class_names": list(LABELS), "loss": [0.5, 0.25]}
    seeds = [{"w.safetensors": save(state)}]
    for content in (state, whole):
        for new in (True, False):
            stream = BytesIO()
            torch.save(content, stream, _use_new_zipfile_serialization=new)
            seeds.append({"w.pt": stream.getvalue()})
    return Target("weights", seeds, read_weights)


def try_once(target: Target, folder: Path, rng: random.Random) -> tuple[str, bytes, str]:
    """Changes one file and reads it.

    Args:
        target: What is tried.
        folder: Where the files are written.
        rng: Source of every choice.

    Returns:
        `"read"`, `"refused"` or `"finding"`; the changed bytes; the traceback of a finding.
    """
    seed = rng.choice(target.seeds)
    for name, data in seed.items():
        (folder / name).write_bytes(data)
    path = folder / next(iter(seed))
    changed = mutate(path.read_bytes(), rng)
    path.write_bytes(changed)
    start = time.perf_counter()
    outcome, what = "read", ""
    try:
        target.read(path)
    except Ham10000Error as error:
        outcome = "refused"
        if not 10 < len(str(error)) < 5000:
            outcome, what = "finding", f"a message of {len(str(error))} letters: {str(error)[:300]}"
    except Exception:  # whatever else a reader raises is what is looked for
        outcome, what = "finding", traceback.format_exc()
    if (seconds := time.perf_counter() - start) > SLOW_SECONDS:
        outcome, what = "finding", f"took {seconds:.0f} s\n{what}"
    return outcome, changed, what


def run_properties(until: float, seed: int) -> tuple[int, str]:
    """Runs the properties with ever other inputs.

    Args:
        until: Time, as `time.monotonic` gives it, after which no round begins.
        seed: Seed of the first round.

    Returns:
        The rounds, and the output of the one that failed; empty if none did.
    """
    rounds = 0
    while time.monotonic() < until:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(PROPERTIES)]
        # A round is let end; one that is cut off after all is not counted.
        try:
            done = subprocess.run(
                [*command, f"--hypothesis-seed={seed + rounds}"],
                env={**os.environ, "HAM10000_PROPERTIES": "long"},
                capture_output=True,
                text=True,
                timeout=max(300.0, until - time.monotonic()),
            )
        except subprocess.TimeoutExpired:
            break
        rounds += 1
        if done.returncode:
            return rounds, done.stdout
    return rounds, ""


def main() -> int:
    """Runs both halves and reports what was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="seed of every choice (default: the time)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the bytes of findings")
    arguments = parser.parse_args()
    seed = int(time.time()) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)

    begin, seconds = time.monotonic(), arguments.minutes * 60
    targets, rng = [pictures(), *tables(), splits(), weights()], random.Random(seed)
    counts: dict[str, Counter[str]] = {target.name: Counter() for target in targets}
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < begin + seconds / 2:
            target = rng.choice(targets)
            outcome, data, what = try_once(target, Path(folder), rng)
            counts[target.name][outcome] += 1
            # One report for each place in the code.
            key = what.strip().split("\n")[-1][:60]
            if outcome == "finding" and key not in seen:
                seen.add(key)
                print(f"FINDING in {target.name}:\n{what}", flush=True)
                if arguments.keep:
                    arguments.keep.mkdir(parents=True, exist_ok=True)
                    (arguments.keep / f"{target.name.replace(' ', '-')}-{len(seen)}").write_bytes(data)
    for name, count in counts.items():
        print(f"{name:<18} {count.total():>8,} changed files: " + ", ".join(f"{n:,} {k}" for k, n in count.items()))
    rounds, failure = run_properties(begin + seconds, seed)
    print(f"properties         {rounds:>8,} rounds of three times the test suite's examples")
    if failure:
        print(f"FINDING in the properties:\n{failure[-6000:]}")
    found = len(seen) + bool(failure)
    print(f"{found} finding(s) in {time.monotonic() - begin:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
