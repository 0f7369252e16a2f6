"""Files that are complete or absent, JSON, csv tables that a spreadsheet may open, and image files below folders.

Text from others must not run in a spreadsheet as a formula. A cell that would be taken for one is written with an
apostrophe before it, and every csv that this package reads is read without it, so that ids come back as they were:

    =1+1    is written  '=1+1     and read  =1+1
    '=1+1   is written  ''=1+1    and read  '=1+1
    a;=1+1  is written  a;'=1+1   as spreadsheets of some locales separate by semicolons
    -5      is a number and stays

What counts as one: OWASP, "CSV Injection" (https://owasp.org/www-community/attacks/CSV_Injection).
"""

import contextlib
import errno
import filecmp
import json
import os
import posixpath
import re
import shutil
import tempfile
import time
import unicodedata
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ham10000.modeling.configuration_ham10000 import Ham10000Error

if TYPE_CHECKING:
    import pandas as pd

# An object of a JSON file, whose keys its file's writer documents.
JsonObject = dict[str, Any]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What a killed process leaves: files of `atomic_path` and of safetensors, and the folder of `scratch_folder`. In full:
# in a folder such as `.`, a `.tmp` or a `.notes.tmp` is the user's own.
_TEMPORARY_FILE = re.compile(r"\..+\.[0-9a-f]{12}\.tmp(\.[^.]+)?|\.tmp[0-9A-Za-z]{6}")
_SCRATCH_FOLDER = re.compile(r"\.ham10000-[0-9a-z_]{8}\.tmp")

# Spreadsheets of East Asian locales take the full-width signs, too.
_SIGNS = "=+\\-@＝＋－＠"
# Where a semicolon or a tab separates cells, one inside a text begins another cell, quoted or not.
_BEGINS = rf"""(?=["' ]*[{_SIGNS}\t\r\n])"""
_BEGINS_INSIDE = rf"""(?=["' ]*[{_SIGNS}])"""
_ESCAPE = re.compile(rf"^{_BEGINS}|(?<=[;\t\r\n]){_BEGINS_INSIDE}")
_RESTORE = re.compile(rf"^'{_BEGINS}|(?<=[;\t\r\n])'{_BEGINS_INSIDE}")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


@contextmanager
def writing(path: str | os.PathLike[str], also: type[Exception] = OSError) -> Iterator[None]:
    """Raises a Ham10000Error that says why and what to do for any OSError within, and any of `also`."""
    try:
        yield
    except (OSError, also) as error:
        # safetensors hands on the system's message and number as text.
        is_full = getattr(error, "errno", None) in _FULL or any(f"os error {n}" in str(error) for n in _FULL)
        advice = "Make room there, or name another place" if is_full else "Name a place that can be written"
        reason = getattr(error, "strerror", None) or error
        raise Ham10000Error(f"Cannot write {str(path)!r}: {reason}. {advice}.") from error


def remove_leftovers(directory: str | os.PathLike[str], *, older_than: float = 0.0) -> list[Path]:
    """Removes the temporary files of killed processes from a folder and its `figures`, and returns their paths.

    Those written less than `older_than` seconds ago stay; 0 is for where nobody else can be writing.
    """
    removed = []
    for path in [path for pattern in (".*", "figures/.*") for path in Path(directory).glob(pattern)]:
        # Another process may remove it first, or finish it; in a read-only folder it stays.
        with contextlib.suppress(OSError):
            is_folder = path.is_dir()
            is_ours = (_SCRATCH_FOLDER if is_folder else _TEMPORARY_FILE).fullmatch(path.name)
            if is_ours and time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path) if is_folder else path.unlink()
                removed.append(path)
    return removed


def restore_mode(path: Path) -> None:
    """Gives a file the permissions of a new file: safetensors writes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to `path`; on success it replaces `path`, on an exception it is removed.

    The temporary name keeps the suffix of `path`, because savers such as matplotlib's choose the format by it. Missing
    parent folders are created. A folder that cannot be written, or is full, is a Ham10000Error, and `path` as it was.
    """
    destination = Path(path)
    temporary = destination.with_name(f".{destination.stem}.{uuid.uuid4().hex[:12]}.tmp{destination.suffix}")
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            restore_mode(temporary)
            # A rename is atomic only within one file system, which the same folder guarantees.
            temporary.replace(destination)
        finally:
            # Where the folder itself is gone or a file, the error that is on its way says so.
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextmanager
def scratch_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a hidden folder inside `directory`, in which several files are completed before any takes its place."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(".tmp", ".ham10000-", directory, ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` as UTF-8 with Unix line ends by `atomic_path`, and returns the path."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(path)


def default_cache_dir() -> Path:
    """`$HAM10000_CACHE`, or `ham10000` in the user's cache folder; an error for a user without a home directory."""
    if named := os.environ.get("HAM10000_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ham10000"
    except RuntimeError as error:
        raise Ham10000Error(
            "There is no place for the cache: this user has no home directory. Name a folder as --cache_dir, or in "
            "$HAM10000_CACHE."
        ) from error


def to_json(value: object) -> str:
    """Strict, indented JSON with a final newline; a ValueError for NaN and infinities, which others refuse to read."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def atomic_write_json(path: str | os.PathLike[str], value: object) -> Path:
    """Writes `value` as `to_json` renders it by `atomic_path`, and returns the path."""
    return atomic_write_text(path, to_json(value))


def read_json(path: str | os.PathLike[str], kind: type = dict, *, optional: bool = False) -> Any:
    """Reads a JSON file whose outermost value is a `kind`, else a Ham10000Error; None if absent and optional."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if optional:
            return None
        raise Ham10000Error(f"{str(path)!r} does not exist.") from error
    except (OSError, RecursionError, ValueError) as error:
        raise Ham10000Error(f"{str(path)!r} cannot be read as JSON: {error}. Write it again.") from error
    if not isinstance(value, kind):
        raise Ham10000Error(f"{str(path)!r} must contain a JSON {kind.__name__}, got {type(value).__name__}.")
    return value


def escape_cell(text: str) -> str:
    """The text of a cell as it is written; one that looks as if it were escaped gets an apostrophe more."""
    return text if _NUMBER.fullmatch(text) else _ESCAPE.sub("'", text)


def restore_cell(text: str) -> str:
    """The text of a cell as it was before `escape_cell`."""
    return _RESTORE.sub("", text)


def write_table(frame: "pd.DataFrame", path: str | os.PathLike[str]) -> Path:
    """Writes a csv by `atomic_path`: text escaped, floats with the fewest digits that read back as the same number."""
    texts = {
        name: [escape_cell(cell) if isinstance(cell, str) else cell for cell in frame[name]]
        for name in frame.columns[[kind.kind not in "biuf" for kind in frame.dtypes]]
    }
    with atomic_path(path) as temporary:
        frame.assign(**texts).to_csv(temporary, index=False, lineterminator="\n")
    return Path(path)


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Besides names that begin with a dot (`._x.jpg`, `.ipynb_checkpoints`, `.Trash-0`, `.git`): leftovers of macOS
# archives, of Windows, and the thumbnails of network disks, which are images of the same name.
_JUNK = frozenset({"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "thumbs.db"})


def visible(name: str) -> bool:
    """Whether a file or folder is part of the data: not hidden, and not what an operating system leaves behind."""
    return not name.startswith(".") and name.lower() not in _JUNK


def files_below(folder: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Yields the visible files of a folder and its sub-folders in the order of their names, by suffix in any case.

    scandir reads names only: asking the file system about each of 10,015 files would take seconds on a network disk.
    """
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not visible(entry.name):
                continue
            if entry.is_dir():
                yield from files_below(entry.path, suffixes)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:  # noqa: PTH122 (Path is 5 times slower)
                yield entry.path


def without_suffix(name: str) -> str:
    """A file's name or path without the suffix of an image; what has none stays as it is."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def comparable(path: str) -> str:
    """A name or path as it is compared: macOS writes `é` as two characters (NFD), tables as one (NFC)."""
    return unicodedata.normalize("NFC", path.replace("\\", "/"))


def _are_copies(first: str, second: str) -> bool:
    """Whether two image files of one name have the same content."""
    if Path(first).stat().st_size != Path(second).stat().st_size:
        return False
    # Images of one resolution have one size where they are not compressed. Compressed ones of one size are copies:
    # comparing Kaggle's mirror, every folder a second time in lower case, would read 6 GB at every start.
    return not first.lower().endswith((".bmp", ".tif", ".tiff")) or filecmp.cmp(first, second, shallow=False)


class ImageFiles:
    """The image files below some folders."""

    def __init__(self, *folders: Path) -> None:
        self.copies = 0  # found files that repeat another of the same name in a second folder
        self._by_stem: dict[str, list[str]] = {}
        self._used: set[str] = set()
        for path in dict.fromkeys(path for folder in folders for path in files_below(folder)):
            self._by_stem.setdefault(without_suffix(comparable(path)).rsplit("/", 1)[-1], []).append(path)

    def __len__(self) -> int:
        return sum(len(paths) for paths in self._by_stem.values())

    def find(self, name: str, near: Path) -> str | None:
        """Finds the file of an id, a file name or the end of a path: its path, or None; the suffix may be another.

        A file that is `near`, relative to this folder, goes before others of the same name. Two different files that
        fit are a Ham10000Error.
        """
        file = posixpath.normpath(comparable(name))
        wanted = without_suffix(file)
        found = self._by_stem.get(wanted.rsplit("/", 1)[-1], [])
        if "/" in wanted:
            found = [path for path in found if f"/{without_suffix(comparable(path))}".endswith(f"/{wanted}")]
        # Below the folder `.`, the files are `./train/a.jpg` and a table's folder is `train`.
        exact = posixpath.normpath(f"{comparable(str(near))}/{wanted}")
        found = [path for path in found if without_suffix(posixpath.normpath(comparable(path))) == exact] or found
        found = [path for path in found if comparable(path).endswith(file)] or found
        if not found:
            return None
        for other in found[1:]:
            if not _are_copies(found[0], other):
                raise Ham10000Error(f"{found[0]} and {other} differ; keep the one that is image {name!r}.")
        if found[0] not in self._used:
            self.copies += len(found) - 1
            self._used.update(found)
        return found[0]

    def unused(self) -> list[str]:
        """Names without suffix of the files that nobody has asked for."""
        return sorted(stem for stem, paths in self._by_stem.items() if self._used.isdisjoint(paths))
