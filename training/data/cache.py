"""The image cache: every image decoded and resized once, as one uint8 array on disk."""

import copy
import errno
import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from PIL import Image
from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Error, Ham10000ImageProcessor
from ham10000.training.data.augment import working_size
from ham10000.training.data.tables import StoredImage
from ham10000.training.utils.cli import progress_bar

# Pixels of a training frame to each pixel that training reads, in each direction: more than `Augment` samples, for
# crops.
CACHE_FACTOR = 2

# Part of the key: raise it when the same images and settings would give other bytes.
_FORMAT = 2


def default_cache_dir() -> Path:
    """`$HAM10000_CACHE`, or `ham10000` in the user's cache folder.

    Raises:
        Ham10000Error: For a user without a home directory, such as that of many containers.
    """
    if named := os.environ.get("HAM10000_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ham10000"
    except RuntimeError as error:
        raise Ham10000Error(
            "There is no place for the image cache: this user has no home directory. Name a folder as --cache_dir, or "
            "in $HAM10000_CACHE."
        ) from error


def encoded_images(dataset: datasets.Dataset) -> datasets.Dataset:
    """The image column alone, as `{"path", "bytes"}` and not decoded."""
    return dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))


def decode(entry: StoredImage, image_id: str, image_processor: Ham10000ImageProcessor) -> np.ndarray:
    """Decodes and resizes one entry of `encoded_images` to (3, height, width) uint8.

    Raises:
        Ham10000Error: If the image cannot be read; the message names the image.
    """
    try:
        # Planes, which become floats twice as fast as pixels do.
        return image_processor.resize_planes(entry["bytes"] if entry["bytes"] is not None else entry["path"])
    except Ham10000Error as error:
        raise Ham10000Error(f"Image {image_id!r}: {error} See `ham10000-data --check_images`.") from error


def frame_processor(
    dataset: datasets.Dataset,
    image_processor: Ham10000ImageProcessor,
    train_size: tuple[int, int],
    short_side: int | None,
) -> Ham10000ImageProcessor:
    """The image processor that makes the frames of the training cache, which keep the aspect of the images.

    One frame size serves all images, so that batches are tensors: the most frequent size of a sample of 256. Images of
    another aspect are squashed to it, as the network's own size squashes them.

    Args:
        dataset: Any dataset with `image` and `image_id`.
        image_processor: The checkpoint's; decides the resampling filter.
        train_size: (height, width) of the largest training images.
        short_side: Shorter side of the frame in pixels; None is `CACHE_FACTOR` times what training reads, or the
            images' own where that is little more. Never more than the images have.

    Returns:
        A copy of the image processor with the frame's size.
    """
    images = encoded_images(dataset)
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), 256)).astype(int))
    sizes: Counter[tuple[int, int]] = Counter()
    for row, entry in zip(rows.tolist(), images[rows.tolist()]["image"], strict=True):
        source = entry["bytes"] if entry["bytes"] is not None else entry["path"]
        try:
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                sizes[image.size] += 1
        except (OSError, ValueError, SyntaxError):
            decode(entry, dataset["image_id"][row], image_processor)  # raises, naming the image
            raise
    (width, height), _ = max(sizes.items(), key=lambda item: (item[1], item[0]))
    if short_side:
        scale = min(1.0, short_side / min(height, width))
        sides = (round(height * scale), round(width * scale))
    else:
        working = working_size((height, width), train_size)
        sides = (CACHE_FACTOR * working[0], CACHE_FACTOR * working[1])
        # A resize by a tenth saves little and softens all the same.
        sides = (height, width) if sides[0] > 0.9 * height else sides
    frame = copy.deepcopy(image_processor)
    frame.size = {"height": max(1, sides[0]), "width": max(1, sides[1])}
    return frame


def cached_images(
    dataset: datasets.Dataset,
    image_processor: Ham10000ImageProcessor,
    *,
    cache_dir: str | Path | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Opens the cache of a dataset's images, building it first where there is none.

    The file's name is a hash of the images (size and time of a file, or the bytes themselves) and of the settings
    they are resized with, so a changed image or setting never meets an old cache. It appears only when it is
    complete, and one that is damaged all the same is built again, with a warning; a build that was killed goes on
    where it stopped; of several processes one builds and the others wait. A complete one may lie in a folder that is
    read-only, and may be deleted under a process that has opened it.

    Args:
        dataset: Any dataset with `image` and `image_id`.
        image_processor: Decides the size and the resampling filter.
        cache_dir: Folder of the caches; None is `default_cache_dir()`.
        progress: Whether to show a progress bar while building.

    Returns:
        (images, 3, height, width) uint8, memory-mapped read-only, in the dataset's order.

    Raises:
        Ham10000Error: If an image cannot be read or the cache cannot be written; no file is left behind.
    """
    images, image_ids = encoded_images(dataset), dataset["image_id"][:]
    height, width = image_processor.size["height"], image_processor.size["width"]
    settings = {
        "format": _FORMAT,
        "height": height,
        "width": width,
        "resample": image_processor.resample,
        "resizer": image_processor.resizer,
    }
    path = Path(cache_dir or default_cache_dir()) / f"{_key(images, settings)}.npy"
    header = _header((len(images), 3, height, width))
    size = len(header) + len(images) * height * width * 3
    try:
        if not _is_whole(path, header, size):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _one_builder(path):
                if not _is_whole(path, header, size):
                    if path.is_file():
                        tqdm.write(
                            f"warning: the image cache {str(path)!r} is damaged; building it again.", sys.stderr
                        )
                    _build(path, header, images, image_ids, image_processor, progress)
    except OSError as error:
        gigabytes = size / 1e9
        raise Ham10000Error(
            f"Cannot write the image cache {str(path)!r}: {error.strerror or error}. It takes {gigabytes:.2f} GB; "
            "name a folder with that much room as --cache_dir."
        ) from error
    return np.load(path, mmap_mode="r")


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _is_whole(path: Path, header: bytes, size: int) -> bool:
    """Whether a cache exists, of the right length and shape: a copy may have been cut short, a disk have failed."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(len(header)) == header
    except (FileNotFoundError, NotADirectoryError):
        return False


def _one_builder(path: Path) -> AcquireReturnProxy:
    """Takes a lock that ends with its process, however that ends."""
    lock = FileLock(path.with_suffix(".lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        tqdm.write(f"Another process is building {path.name}; waiting for it.", file=sys.stderr)
        return lock.acquire()


def _build(
    path: Path,
    header: bytes,
    images: datasets.Dataset,
    image_ids: list[str],
    image_processor: Ham10000ImageProcessor,
    progress: bool,
) -> None:
    """Appends image after image to a partial file, whose length says how many are done."""
    partial = path.with_suffix(".partial")
    start, size = len(header), image_processor.size["height"] * image_processor.size["width"] * 3
    try:
        with partial.open("ab") as file:
            if file.tell() < start:
                file.truncate(0)
                file.write(header)
            done = min((file.tell() - start) // size, len(images))
            file.truncate(start + done * size)
            for image in _decoded(images, image_ids, image_processor, done, progress):
                file.write(image.data)
            file.flush()
            os.fsync(file.fileno())
            # Where the folder was deleted meanwhile, and the lock with it, another builder's half file has this name.
            if os.fstat(file.fileno()).st_ino != partial.stat().st_ino:
                raise FileNotFoundError(errno.ENOENT, "the folder was deleted while the cache was built")
        partial.replace(path)
    except FileNotFoundError:
        raise
    except Exception:
        # The rest serves nobody: an image that is repaired, or another folder, makes another cache.
        partial.unlink(missing_ok=True)
        raise


def read_rows(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Copies rows out of a cache.

    A memory-mapped cache is read through its file: pages that are touched in the mapping count as this process's
    memory, and after an epoch the whole cache would.

    Args:
        images: Result of `cached_images`, or any array (images, 3, height, width) uint8.
        rows: Positions (N,).

    Returns:
        (N, 3, height, width) uint8.
    """
    if not isinstance(images, np.memmap) or images.filename is None or not hasattr(os, "preadv"):
        return images[rows]
    output = np.empty((len(rows), *images.shape[1:]), dtype=images.dtype)
    size = output[:1].nbytes
    try:
        descriptor = os.open(images.filename, os.O_RDONLY)
    except FileNotFoundError:
        # Deleted under a running job: the mapping still has the images.
        return images[rows]
    try:
        for row, buffer in zip(rows.tolist(), output.reshape(len(rows), -1), strict=True):
            if os.preadv(descriptor, [buffer.data], images.offset + row * size) != size:
                raise Ham10000Error(f"The cache {str(images.filename)!r} ends early; delete it to build it again.")
    finally:
        os.close(descriptor)
    return output


def _decoded(
    images: datasets.Dataset, image_ids: list[str], image_processor: Ham10000ImageProcessor, first: int, progress: bool
) -> Iterator[np.ndarray]:
    """Yields the resized images in order, from the given row on."""
    # Threads, not processes: Pillow and torch release the interpreter lock while they decode and resize. One thread
    # of torch in each: with one for every core in each of as many threads, two cores cache a quarter fewer images.
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        bar = progress_bar(total=len(images), initial=first, desc="Caching images", unit="image", disable=not progress)
        for start in range(first, len(images), 256):
            entries = images[start : start + 256]["image"]
            names = image_ids[start : start + 256]
            for image in pool.map(decode, entries, names, [image_processor] * len(entries)):
                yield image
                bar.update()
        bar.close()
    torch.set_num_threads(threads)


def _key(images: datasets.Dataset, settings: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for entry in (entry for start in range(0, len(images), 256) for entry in images[start : start + 256]["image"]):
        if entry["bytes"] is not None:
            digest.update(hashlib.blake2b(entry["bytes"]).digest())
        else:
            stat = os.stat(entry["path"])  # noqa: PTH116 (a Path for each of 10,000 files takes as long as the rest)
            name = os.path.basename(entry["path"])  # noqa: PTH119
            digest.update(f"{name}:{stat.st_size}:{stat.st_mtime_ns};".encode())
    return digest.hexdigest()[:32]
