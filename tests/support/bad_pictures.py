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
    """A smooth image, red on the left and green on the right."""
    row = np.linspace(230, 20, width)
    pixels = np.stack([row, row[::-1], np.full(width, 128)], axis=-1)
    return Image.fromarray(np.tile(pixels, (height, 1, 1)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be any size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(b"\0" * 100), b"IEND": b""}
    png = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks.items():
        png += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return png


def same_as(expected: Image.Image, tolerance: int = 0) -> Check:
    """The result is RGB with these pixels, as far as the format keeps them."""

    def check(image: Image.Image) -> None:
        assert (image.mode, image.size) == ("RGB", expected.size)
        difference = np.asarray(image).astype(int) - np.asarray(expected.convert("RGB")).astype(int)
        assert np.abs(difference).max() <= tolerance

    return check


def file(name: str, content: bytes, end: tuple[str, ...] | Check, at: str = "a.jpg") -> Case:
    """A file that ends in an error which names it, with these fragments, or in a picture that a function checks."""
    ends = ((at, *end), None) if isinstance(end, tuple) else (None, end)
    return Case("picture file", name, written(at, content), load_image, *ends)


def memory(name: str, value: Any, *fragments: str) -> Case:
    return Case("picture in memory", name, lambda folder: value, load_image, fragments)


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


_CUT = {"jpeg": JPEG, "png": PNG, "tiff": TIFF, "bmp": BMP, "webp": WEBP}
_NAN = encoded(Image.fromarray(np.full((2, 3), np.nan, np.float32)), "TIFF")
# Pillow would hand this to Ghostscript.
_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n"
FILES = [
    *[
        file(f"{kind} cut to {share:.0%}", data[: int(len(data) * share)], UNREADABLE)
        for kind, data in _CUT.items()
        for share in (0.05, 0.5, 0.8)
    ],
    file("zero bytes", b"", UNREADABLE),
    file("text named jpg", b"this is not a picture\n" * 20, UNREADABLE),
    file("postscript named jpg", _POSTSCRIPT, (*UNREADABLE, "cannot identify")),
    file("a bomb of 20,000 x 20,000", png_header(20_000, 20_000), (*UNREADABLE, "exceeds limit")),
    file("a bomb of 2 billion a side", png_header(2**31 - 1, 2**31 - 1), (*UNREADABLE, "exceeds limit")),
    file("a png of no pixels", png_header(0, 10), ("Cannot read",)),
    file("a png with wrong data", PNG[:60] + bytes(20) + PNG[80:], UNREADABLE),
    file("png named jpg", PNG, same_as(picture())),
    file("no suffix", PNG, same_as(picture()), "picture"),
    file("cmyk", encoded(RED.convert("CMYK"), "JPEG", quality=95), same_as(RED, 9)),
    file("tiff with NaN", _NAN, ("[0, 1] without NaN", "nan")),
    file("animated gif", _frames("GIF"), same_as(RED, 1)),
    file("animated webp", _frames("WEBP", lossless=True), same_as(RED)),
    file("tiff of two pages", _frames("TIFF"), same_as(RED)),
    file("exif turned", encoded(picture(), "JPEG", exif=_EXIF), same_as(picture().rotate(-90, expand=True), 12)),
    file("broken exif", encoded(picture(), "JPEG", exif=_BROKEN_EXIF), same_as(picture(), 40)),
    file("1 x 1", encoded(picture(1, 1), "PNG"), same_as(picture(1, 1))),
    file("one row of 20,000", encoded(picture(20_000, 1), "PNG"), same_as(picture(20_000, 1))),
    file("bytes after the end", JPEG + b"trailing" * 100, same_as(picture(), 12)),
    Case("picture file", "absent", lambda folder: folder / "no.jpg", load_image, ("no.jpg", "No such file")),
    Case("picture file", "a folder", lambda folder: folder, load_image, ("Cannot read image file", "directory")),
    Case("picture file", "a path with NUL", lambda folder: f"{folder}/a\0.jpg", load_image, ("Cannot read", "null")),
    Case("picture file", "a name too long", lambda folder: f"{folder}/{'a' * 300}", load_image, ("name too long",)),
    Case("picture file", "a url", lambda folder: "https://example.org/a.jpg", load_image, ("URLs are not fetched",)),
]

SHAPES = [(), (3,), (5, 6, 2), (5, 6, 7), (2, 4, 6), (1, 4, 6, 3), (0, 6, 3), (4, 0, 3), (0, 0)]
DTYPES = ("int8", "int32", "int64", "uint32", "bool", "complex64", "object")
OUTSIDE = {np.nan: "nan", np.inf: "inf", -np.inf: "-inf", 1.01: "1.01", -0.01: "-0.01", 255.0: "255"}
CLEAR, WHITE = np.zeros((4, 6, 4), np.uint8), Image.new("RGB", (6, 4), "white")
IN_MEMORY = [
    *[memory(f"array of {x}", np.array([[0, x]]), "[0, 1] without NaN", text) for x, text in OUTSIDE.items()],
    *[memory(f"shape {shape}", np.zeros(shape, np.uint8), "C of 1, 3 or 4", str(shape)) for shape in SHAPES],
    *[memory(f"dtype {dtype}", np.zeros((4, 6, 3), dtype), "uint8, uint16 or floating", dtype) for dtype in DTYPES],
    memory("empty bytes", b"", "image of 0 bytes"),
    memory("a bomb as bytes", png_header(30_000, 30_000), "exceeds limit"),
    *[memory(f"a {type(x).__name__}", x, type(x).__name__) for x in (None, 5, [[1]], io.BytesIO(PNG))],
    memory("PIL image of no pixels", Image.new("RGB", (0, 5)), "0 x 5"),
    *[memory(f"pixel {x}", Image.fromarray(np.full((2, 2), x, np.int32)), "0..65535") for x in (-1, 70_000)],
    memory("sparse tensor", torch.zeros(4, 6).to_sparse(), "image tensor", "sparse"),
    memory("tensor without data", torch.zeros(4, 6, device="meta"), "image tensor"),
    memory("float8 tensor", torch.zeros(4, 6).to(torch.float8_e4m3fn), "image tensor", "float8"),
    Case("picture in memory", "transparent array", lambda folder: CLEAR, load_image, check=same_as(WHITE)),
]


def _settings(*fragments: str, **settings: Any) -> Case:
    run: Callable[[Any], Any] = lambda folder: Ham10000ImageProcessor(**settings)  # noqa: E731
    return Case("picture settings", f"{settings}", lambda folder: folder, run, fragments)


SIZES = {"0": 0, "'224'": "224", "4096": 10**9, "width": {"height": 3}, "3.5": {"height": 3.5, "width": 1}}
MEANS = {"'a'": ["a", 1, 1], "0.5": 0.5, "nan": [float("nan"), 0, 0]}
SETTINGS = [
    *[_settings("`size`", text, size=size) for text, size in SIZES.items()],
    *[_settings("image_mean", text, image_mean=mean) for text, mean in MEANS.items()],
    _settings("positive", "[0, 1, 1]", image_std=[0, 1, 1]),
    *[_settings("`resample`", repr(value), resample=value) for value in ("bicubic", 99)],
    _settings("`size`", "True", size=True),
    _settings("colour", colour=1),
]

CASES = [*FILES, *IN_MEMORY, *SETTINGS]
