"""Image files below folders: found by id, file name or the end of their path, without hidden files."""

import os
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from ham10000.modeling.configuration_ham10000 import Ham10000Error

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
# Besides names that begin with a dot (`._x.jpg`, `.ipynb_checkpoints`, `.Trash-0`, `.git`): leftovers of macOS
# archives, of Windows, and the thumbnails of network disks, which are images of the same name.
_JUNK = frozenset({"__macosx", "$recycle.bin", "system volume information", "lost+found", "@eadir", "thumbs.db"})


def visible(name: str) -> bool:
    """Whether a file or folder is part of the data: not hidden, and not what an operating system leaves behind."""
    return not name.startswith(".") and name.lower() not in _JUNK


def files_below(folder: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> Iterator[str]:
    """Yields the files of a folder and its sub-folders in the order of their names.

    scandir reads names only: asking the file system about each of 10,015 files would take seconds on a network disk.

    Args:
        folder: Where to search.
        suffixes: Suffixes in lower case; files have them in any case.

    Yields:
        Paths, without what is not `visible`.
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


class ImageFiles:
    """The image files below some folders.

    Args:
        folders: Where to search, each with its sub-folders.

    Attributes:
        folders: As given.
        copies: How many found files repeat another of the same name in a second folder.
    """

    def __init__(self, *folders: Path) -> None:
        self.folders = folders
        self.copies = 0
        self._by_stem: dict[str, list[str]] = {}
        self._used: set[str] = set()
        for path in dict.fromkeys(path for folder in folders for path in files_below(folder)):
            self._by_stem.setdefault(without_suffix(comparable(path)).rsplit("/", 1)[-1], []).append(path)

    def __len__(self) -> int:
        return sum(len(paths) for paths in self._by_stem.values())

    def find(self, name: str, near: Path) -> str | None:
        """Finds the file of an image.

        Args:
            name: An id, a file name or the end of a path, with or without suffix; the suffix may be another.
            near: The folder that a path is relative to; a file there goes before others of the same name.

        Returns:
            The path, or None.

        Raises:
            Ham10000Error: Where two different files have the name.
        """
        wanted = without_suffix(comparable(name))
        stem = wanted.rsplit("/", 1)[-1]
        found = [
            path
            for path in self._by_stem.get(stem, ())
            if "/" not in wanted or f"/{without_suffix(comparable(path))}".endswith(f"/{wanted}")
        ]
        exact = f"{comparable(str(near))}/{wanted}"
        found = [path for path in found if without_suffix(comparable(path)) == exact] or found
        found = [path for path in found if comparable(path).endswith(comparable(name))] or found
        if not found:
            return None
        for other in found[1:]:
            # Kaggle's mirror ships every folder a second time in lower case.
            if Path(other).stat().st_size != Path(found[0]).stat().st_size:
                raise Ham10000Error(f"{found[0]} and {other} differ; keep the one that is image {name!r}.")
        if found[0] not in self._used:
            self.copies += len(found) - 1
            self._used.update(found)
        return found[0]

    def unused(self) -> list[str]:
        """Names without suffix of the files that nobody has asked for."""
        return sorted(stem for stem, paths in self._by_stem.items() if self._used.isdisjoint(paths))
