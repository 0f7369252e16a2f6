"""Files that are either complete or absent: written beside their destination, then renamed over it."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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
        OSError: Where the folder cannot be created or written.

    Example:
        >>> with atomic_path("runs/table.csv") as temporary:
        ...     frame.to_csv(temporary)
    """
    destination = Path(path)
    destination.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkstemp: its files are readable by their owner only, and the rename would keep that.
    temporary = destination.with_name(f".{destination.stem}.{uuid.uuid4().hex[:12]}.tmp{destination.suffix}")
    try:
        yield temporary
        restore_mode(temporary)
        # A rename is atomic only within one file system, which the same folder guarantees.
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Writes `text` as UTF-8 with Unix line ends, so that a reader never sees half of it.

    Args:
        path: The destination; missing parent folders are created.
        text: The whole content.

    Returns:
        The destination.
    """
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    return Path(path)


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Writes `value` as strict, indented JSON.

    Args:
        path: The destination; missing parent folders are created.
        value: Anything `json` can write.

    Returns:
        The destination.

    Raises:
        ValueError: For NaN or an infinity, which are not JSON and which other languages refuse to read.
    """
    return atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


__all__ = ["atomic_path", "atomic_write_json", "atomic_write_text", "restore_mode"]
