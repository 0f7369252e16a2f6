"""Files that are either complete or absent: written beside their destination, then renamed over it."""

import contextlib
import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ham10000.modeling.configuration_ham10000 import Ham10000Error

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Beside a file that is written, until it takes its place: ours, and those of safetensors.
_LEFTOVERS = (".*.tmp*", ".tmp*")


def cannot_write(path: str | os.PathLike[str], error: Exception) -> Ham10000Error:
    """The error for a place that cannot be written, which says why and what to do.

    Args:
        path: What was to be written.
        error: The cause, an OSError or what a library made of one.

    Returns:
        The error, to be raised from the cause.
    """
    code = getattr(error, "errno", None)
    # safetensors hands on the system's message and number as text.
    is_full = code in _FULL or any(f"os error {number}" in str(error) for number in _FULL)
    advice = "Make room there, or name another place" if is_full else "Name a place that can be written"
    return Ham10000Error(f"Cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}. {advice}.")


@contextmanager
def writing(path: str | os.PathLike[str], also: type[Exception] = OSError) -> Iterator[None]:
    """Turns a failure to write into the one error a user can act on.

    Args:
        path: What is written.
        also: What a library raises instead of an OSError.

    Raises:
        Ham10000Error: For any OSError within, and any of `also`.
    """
    try:
        yield
    except (OSError, also) as error:
        raise cannot_write(path, error) from error


def remove_leftovers(directory: str | os.PathLike[str], *, older_than: float = 0.0) -> list[Path]:
    """Removes what killed processes had half written in a folder and its `figures`.

    Args:
        directory: The folder.
        older_than: Seconds since the last write; 0 where nobody else can be writing, as under `only_writer`.

    Returns:
        What was removed.
    """
    removed = []
    places = (Path(directory), Path(directory, "figures"))
    for path in [path for place in places for pattern in _LEFTOVERS for path in place.glob(pattern)]:
        # Another process may remove it first, or finish it; a folder that cannot be written keeps it.
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= older_than:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                removed.append(path)
    return removed


def restore_mode(path: Path) -> None:
    """Gives a file the permissions new files have: safetensors writes files that only their owner can read."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on an exception it is removed.

    The temporary name keeps the suffix of `path`, because savers such as matplotlib's choose the format by it.

    Args:
        path: The destination. Missing parent folders are created.

    Yields:
        The path to write to, which does not exist yet.

    Raises:
        Ham10000Error: Where the folder cannot be created or written, or is full; `path` is as it was.

    Example:
        >>> with atomic_path("runs/table.csv") as temporary:
        ...     frame.to_csv(temporary)
    """
    destination = Path(path)
    # Not tempfile.mkstemp: its files are readable by their owner only, and the rename would keep that.
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
    """Yields a hidden folder inside `directory` to complete several files in before any takes its place.

    Args:
        directory: The destination of the files; made where it does not exist.

    Yields:
        The folder, removed at the end.

    Raises:
        OSError: Where it cannot be made.
    """
    scratch = Path(directory) / f".{uuid.uuid4().hex[:12]}.tmp"
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` as UTF-8 with Unix line ends, so that a reader never sees half of it.

    Args:
        path: The destination; missing parent folders are created.
        text: The whole content.

    Returns:
        The destination.

    Raises:
        Ham10000Error: As `atomic_path`.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(path)


def to_json(value: Any) -> str:
    """Strict, indented JSON with a final newline.

    Raises:
        ValueError: For NaN or an infinity, which are not JSON and which other languages refuse to read.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes `value` as strict, indented JSON.

    Args:
        path: The destination; missing parent folders are created.
        value: Anything `json` can write.

    Returns:
        The destination.

    Raises:
        Ham10000Error: As `atomic_path`.
        ValueError: As `to_json`.
    """
    return atomic_write_text(path, to_json(value))


__all__ = [
    "atomic_path",
    "atomic_write_json",
    "atomic_write_text",
    "cannot_write",
    "remove_leftovers",
    "restore_mode",
    "scratch_folder",
    "to_json",
    "writing",
]
