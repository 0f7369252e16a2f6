"""Cases of the bad-input corpus: images, as files and in memory."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bad_input import Case, written
from PIL import Image

from ham10000.modeling import load_image
from ham10000.modeling.image_processing_ham10000 import Ham10000ImageProcessor

Check = Callable[[Any], None]


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth image that is bright on the left and dark on the right."""
    row = np.linspace(230, 20, width, dtype=np.float64)
    pixels = np.stack([np.tile(row, (height, 1)), np.tile(row[::-1], (height, 1)), np.full((height, width), 128)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"\0" * 100), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in chunks.items())


def pixels_at(size: tuple[int, int], at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 0) -> Check:
    """The result is RGB of a size, with a colour at a place."""

    def check(image: Image.Image) -> None:
        assert (image.mode, image.size) == ("RGB", size)
        found: Any = image.getpixel(at)
        assert max(abs(a - b) for a, b in zip(found, colour, strict=True)) <= tolerance, found

    return check


def all_of(*colour: int, tolerance: int = 0) -> Check:
    """The result is RGB of 4 x 2 pixels, all of a colour."""
    return same_as(Image.new("RGB", (4, 2), colour), tolerance)


def same_as(expected: Image.Image, tolerance: int = 0) -> Check:
    """The result is RGB with these pixels, as far as the format keeps them."""

    def check(image: Image.Image) -> None:
        assert (image.mode, image.size) == ("RGB", expected.size)
        difference = np.asarray(image).astype(int) - np.asarray(expected.convert("RGB")).astype(int)
        assert np.abs(difference).max() <= tolerance

    return check


def file(
    name: str, content: bytes, *, error: tuple[str, ...] | None = None, check: Check | None = None, at: str = "a.jpg"
) -> Case:
    # The file is named in every refusal.
    return Case("picture file", name, written(at, content), load_image, None if error is None else (at, *error), check)


def memory(name: str, value: Any, *, error: tuple[str, ...] | None = None, check: Check | None = None) -> Case:
    return Case("picture in memory", name, lambda folder: value, load_image, error, check)


JPEG, PNG = encoded(picture(), "JPEG", quality=95), encoded(picture(), "PNG")
GIF, TIFF = encoded(picture(), "GIF"), encoded(picture(), "TIFF")
WEBP, BMP = encoded(picture(), "WEBP", lossless=True), encoded(picture(), "BMP")
UNREADABLE = ("Cannot read image file", "Expected a complete JPEG, PNG")
RED = Image.new("RGB", (4, 2), (255, 0, 0))
_EXIF = Image.Exif()
_EXIF[0x0112] = 6  # to be turned by 90 degrees clockwise
_BROKEN_EXIF = b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 20


def _frames(kind: str, **options: Any) -> bytes:
    return encoded(RED, kind, save_all=True, append_images=[Image.new("RGB", (4, 2), (0, 0, 255))], **options)


FILES = [
    *[
        file(f"{kind} cut to {share:.0%}", data[: int(len(data) * share)], error=UNREADABLE)
        for kind, data in {"jpeg": JPEG, "png": PNG, "tiff": TIFF, "bmp": BMP, "webp": WEBP}.items()
        for share in (0.05, 0.5, 0.8)
    ],
    file("gif cut to 5%", GIF[: len(GIF) // 20], error=UNREADABLE),
    file("zero bytes", b"", error=UNREADABLE),
    file("one byte", b"\xff", error=UNREADABLE),
    file("text named jpg", b"this is not a picture\n" * 20, error=UNREADABLE),
    file("html named jpg", b"<!DOCTYPE html><html>404</html>", error=UNREADABLE),
    file("zip named png", b"PK\x03\x04" + b"\0" * 60, error=UNREADABLE, at="a.png"),
    file("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", error=UNREADABLE),
    file("svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', error=UNREADABLE, at="a.svg"),
    # Pillow would hand this to Ghostscript.
    file(
        "postscript named jpg",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n",
        error=(*UNREADABLE, "cannot identify"),
    ),
    file("a bomb of 20,000 x 20,000", png_header(20_000, 20_000), error=(*UNREADABLE, "exceeds limit")),
    file("a bomb of 2 billion a side", png_header(2**31 - 1, 2**31 - 1), error=(*UNREADABLE, "exceeds limit")),
    file("a png of no pixels", png_header(0, 10), error=("Cannot read",)),
    file("a png with wrong data", PNG[:60] + bytes(20) + PNG[80:], error=UNREADABLE),
    file("png named jpg", PNG, check=same_as(picture())),
    file("jpeg named png", JPEG, check=same_as(picture(), 12), at="a.png"),
    file("no suffix", PNG, check=same_as(picture()), at="picture"),
    file("cmyk", encoded(RED.convert("CMYK"), "JPEG", quality=95), check=all_of(255, 0, 0, tolerance=9)),
    file("cmyk tiff", encoded(RED.convert("CMYK"), "TIFF"), check=all_of(255, 0, 0)),
    file(
        "tiff with NaN",
        encoded(Image.fromarray(np.full((2, 3), np.nan, np.float32)), "TIFF"),
        error=("[0, 1] without NaN", "nan"),
    ),
    file("animated gif", _frames("GIF"), check=all_of(255, 0, 0, tolerance=1)),
    file("animated webp", _frames("WEBP", lossless=True), check=all_of(255, 0, 0)),
    file("tiff of two pages", _frames("TIFF"), check=all_of(255, 0, 0)),
    file(
        "exif turned", encoded(picture(), "JPEG", exif=_EXIF), check=pixels_at((30, 40), (15, 1), (230, 20, 128), 12)
    ),
    file("broken exif", encoded(picture(), "JPEG", exif=_BROKEN_EXIF), check=same_as(picture(), 40)),
    file("1 x 1", encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"), check=pixels_at((1, 1), (0, 0), (9, 8, 7))),
    file("one row of 20,000", encoded(picture(20_000, 1), "PNG"), check=same_as(picture(20_000, 1))),
    file("one column of 20,000", encoded(picture(1, 20_000), "PNG"), check=same_as(picture(1, 20_000))),
    file("bytes after the end", JPEG + b"trailing" * 100, check=same_as(picture(), 12)),
    Case("picture file", "absent", lambda folder: folder / "no.jpg", load_image, ("no.jpg", "No such file")),
    Case("picture file", "a folder", lambda folder: folder, load_image, ("Cannot read image file", "directory")),
    Case("picture file", "a path with NUL", lambda folder: f"{folder}/a\0.jpg", load_image, ("Cannot read", "null")),
    Case("picture file", "a name too long", lambda folder: f"{folder}/{'a' * 300}", load_image, ("name too long",)),
    Case("picture file", "a url", lambda folder: "https://example.org/a.jpg", load_image, ("URLs are not fetched",)),
]

ZEROS = np.zeros((4, 6, 3), np.float32)
IN_MEMORY = [
    *[
        memory(f"array of {value}", np.where(np.arange(72).reshape(4, 6, 3) == 5, value, ZEROS), error=fragments)
        for value, fragments in {
            np.nan: ("[0, 1] without NaN", "nan"),
            np.inf: ("[0, 1]", "inf"),
            -np.inf: ("[0, 1]", "-inf"),
            1.01: ("[0, 1]", "1.01"),
            -0.01: ("[0, 1]", "-0.01"),
            255.0: ("[0, 1]", "255"),
        }.items()
    ],
    *[
        memory(f"shape {shape}", np.zeros(shape, np.uint8), error=("C of 1, 3 or 4", str(shape)))
        for shape in [(), (3,), (5, 6, 2), (5, 6, 7), (2, 4, 6), (1, 4, 6, 3), (0, 6, 3), (4, 0, 3), (0, 0)]
    ],
    *[
        memory(f"dtype {dtype}", np.zeros((4, 6, 3), dtype), error=("uint8, uint16 or floating", dtype))
        for dtype in ("int8", "int32", "int64", "uint32", "bool", "complex64", "object")
    ],
    memory("empty bytes", b"", error=("image of 0 bytes",)),
    memory("text as bytes", b"not a picture", error=("image of 13 bytes",)),
    memory("a bomb as bytes", png_header(30_000, 30_000), error=("exceeds limit",)),
    memory("None", None, error=("NoneType",)),
    memory("a number", 5, error=("type int",)),
    memory("a list of numbers", [[1, 2], [3, 4]], error=("type list",)),
    memory("an open file", io.BytesIO(PNG), error=("type BytesIO",)),
    memory("PIL image of no pixels", Image.new("RGB", (0, 5)), error=("0 x 5",)),
    memory("integers beyond 16 bits", Image.fromarray(np.full((2, 2), 70_000, np.int32)), error=("0..65535",)),
    memory("negative integers", Image.fromarray(np.full((2, 2), -1, np.int32)), error=("0..65535",)),
    memory("sparse tensor", torch.zeros(4, 6).to_sparse(), error=("image tensor", "sparse")),
    memory("tensor without data", torch.zeros(4, 6, device="meta"), error=("image tensor",)),
    memory("float8 tensor", torch.zeros(4, 6).to(torch.float8_e4m3fn), error=("image tensor", "float8")),
    memory("tensor of NaN", torch.full((3, 4, 6), torch.nan), error=("without NaN",)),
    memory("transparent array", np.zeros((4, 6, 4), np.uint8), check=pixels_at((6, 4), (1, 1), (255, 255, 255))),
]


def _settings_case(name: str, settings: dict[str, Any], *fragments: str) -> Case:
    run: Callable[[Any], Any] = lambda folder: Ham10000ImageProcessor(**settings)  # noqa: E731
    return Case("picture settings", name, lambda folder: folder, run, fragments)


SETTINGS = [
    _settings_case("size as text", {"size": "224"}, "`size`", "'224'"),
    _settings_case("size zero", {"size": 0}, "`size`", "0"),
    _settings_case("size true", {"size": True}, "`size`", "True"),
    _settings_case("size beyond memory", {"size": 10**9}, "`size`", "4096", "1000000000"),
    _settings_case("size of text", {"size": {"height": "a", "width": 3}}, "`size`", "'a'"),
    _settings_case("size without width", {"size": {"height": 3}}, "`size`", "width"),
    _settings_case("a broken size", {"size": {"height": 3.5, "width": 3}}, "`size`", "3.5"),
    _settings_case("mean as text", {"image_mean": ["a", 1, 1]}, "image_mean", "'a'"),
    _settings_case("one mean", {"image_mean": 0.5}, "image_mean", "0.5"),
    _settings_case("mean NaN", {"image_mean": [float("nan"), 0, 0]}, "image_mean", "nan"),
    _settings_case("deviation infinite", {"image_std": [float("inf"), 1, 1]}, "image_std", "inf"),
    _settings_case("deviation zero", {"image_std": [0, 1, 1]}, "positive", "[0, 1, 1]"),
    _settings_case("resample as text", {"resample": "bicubic"}, "`resample`", "'bicubic'"),
    _settings_case("resample unknown", {"resample": 99}, "`resample`", "99"),
    _settings_case("unknown setting", {"colour": 1}, "colour"),
]

CASES = [*FILES, *IN_MEMORY, *SETTINGS]
