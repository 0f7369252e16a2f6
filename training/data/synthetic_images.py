"""Dermoscopy-like pictures: a lesion is drawn once and photographed several times."""

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Resolution of a lesion's own texture; a photograph samples it at its own angle and zoom.
_TEXTURE = 128
# Half the width of the texture in units of half the picture's height.
_REACH = 1.7

# Mean RGB of the body of the lesion, of its second colour, and of the colour of its details.
_COLOURS = {
    "akiec": ((196, 116, 104), (176, 92, 86), (232, 214, 190)),
    "bcc": ((206, 142, 138), (178, 112, 116), (86, 84, 112)),
    "bkl": ((158, 118, 86), (128, 96, 78), (226, 202, 172)),
    "df": ((168, 112, 88), (190, 140, 120), (228, 198, 184)),
    "mel": ((98, 62, 48), (52, 40, 46), (124, 118, 138)),
    "nv": ((132, 82, 58), (104, 62, 46), (84, 50, 40)),
    "vasc": ((150, 34, 62), (104, 24, 62), (84, 18, 48)),
}
# Amplitude of the outline's irregularity, softness of its edge, mean radius, unevenness of colour.
_SHAPES = {
    "akiec": (0.16, 0.16, 0.62, 0.8),
    "bcc": (0.14, 0.10, 0.56, 0.7),
    "bkl": (0.14, 0.04, 0.60, 0.6),
    "df": (0.06, 0.16, 0.46, 0.4),
    "mel": (0.24, 0.06, 0.66, 1.0),
    "nv": (0.07, 0.09, 0.52, 0.5),
    "vasc": (0.10, 0.04, 0.44, 0.6),
}
_VESSEL, _BLOOD, _KERATIN, _BLACK = np.array(
    ((168, 40, 48), (196, 40, 70), (70, 48, 40), (38, 28, 30)), dtype=np.float32
)
_GENERIC = ((146, 92, 70), (118, 74, 58), (150, 110, 96))
_SKINS = ((226, 182, 164), (214, 158, 146), (196, 148, 124), (204, 176, 168), (236, 208, 196), (208, 136, 140))


@dataclass
class Lesion:
    """One lesion as all of its photographs show it.

    Attributes:
        surface: 128x128 RGBA, the lesion seen from straight above; alpha is how much of the skin it covers.
        skin: RGB of the skin around it.
        hairiness: Mean number of hairs in a photograph.
    """

    surface: Image.Image
    skin: np.ndarray
    hairiness: float

    @classmethod
    def draw(cls, dx: str, rng: np.random.Generator) -> "Lesion":
        """Draws a lesion of class `dx`.

        How typical a lesion looks varies, so that the classes overlap: colours and details are blended with those of
        a nondescript brown spot.
        """
        typical = rng.uniform(0.35, 1.0)
        irregularity, softness, radius, unevenness = _SHAPES[dx]
        body, second, detail = (
            (typical * np.array(own) + (1 - typical) * np.array(generic) + _jitter(rng)).astype(np.float32)
            for own, generic in zip(_COLOURS[dx], _GENERIC, strict=True)
        )
        axis = np.linspace(-_REACH, _REACH, _TEXTURE, dtype=np.float32)
        u, v = np.meshgrid(axis, axis)
        angle, distance = np.arctan2(v, u), np.hypot(u, v * rng.uniform(1.0, 1.5))
        turn = np.linspace(-np.pi, np.pi, 181)
        ring = np.full_like(turn, radius * rng.lognormal(0, 0.22))
        for waves in range(2, 8):
            amplitude = irregularity * rng.normal(0, 1.6 / waves) * ring.mean()
            ring += amplitude * np.cos(waves * turn + rng.uniform(0, 2 * np.pi))
        outline = np.interp(angle, turn, ring).astype(np.float32)
        outline += irregularity * 0.5 * _noise(rng, 14)
        depth = (outline - distance) / max(radius, 0.1)
        opacity = _sigmoid(depth / softness) * rng.uniform(0.75, 0.97)

        share = _sigmoid(unevenness * 3.5 * _noise(rng, 6))[..., None]
        colour = body + share * (second - body)
        _ADD_DETAIL[dx](_Canvas(colour, opacity, depth, u, v, detail, typical, rng))
        colour += 7 * _noise(rng, 70)[..., None]
        skin = np.array(_SKINS[rng.integers(len(_SKINS))]) + _jitter(rng)
        hairiness = 14.0 if rng.random() < 0.12 else 3.0 if rng.random() < 0.35 else 0.0
        rgba = np.concatenate([np.clip(colour, 0, 255), 255 * np.clip(opacity, 0, 1)[..., None]], axis=2)
        return cls(Image.fromarray(rgba.astype(np.uint8), "RGBA"), skin.astype(np.float32), hairiness)


def render(lesion: Lesion, rng: np.random.Generator, image_size: tuple[int, int] = (200, 150)) -> Image.Image:
    """Photographs a lesion: angle, zoom, place, light, skin texture, hairs and the dermatoscope's rim vary.

    Args:
        lesion: What to photograph.
        rng: Source of this photograph's differences.
        image_size: Width and height in pixels.

    Returns:
        An RGB picture.
    """
    width, height = image_size
    mottling = 5 * _noise(rng, 9, image_size) + 4 * _noise(rng, 60, image_size)
    skin = lesion.skin + mottling[..., None]
    image = Image.fromarray(np.clip(skin, 0, 255).astype(np.uint8))
    seen = lesion.surface.transform(
        image_size, Image.Transform.AFFINE, _view(rng, image_size), Image.Resampling.BILINEAR
    )
    image.paste(seen, mask=seen)

    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) / (height / 2)
    y = (np.arange(height, dtype=np.float32)[:, None] - height / 2) / (height / 2)
    light = rng.uniform(0.86, 1.1) * (1 + x * rng.normal(0, 0.05) + y * rng.normal(0, 0.05))
    if rng.random() < 0.7:
        # A rim that darkens the corners; strong ones are the circular field of a contact dermatoscope.
        rim = rng.uniform(1.15, 1.6)
        light = light * np.clip(1 - rng.uniform(0.3, 1.6) * np.maximum(np.hypot(x, y) - rim, 0), 0.05, 1)
    tint = (1 + rng.normal(0, 0.025, 3)).astype(np.float32)
    picture = np.asarray(image) * (light[..., None] * tint)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    _draw_hairs(image, rng.poisson(lesion.hairiness), rng)
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.7)))


def _view(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[float, ...]:
    """The affine map from pixels of a photograph to pixels of a lesion's surface, as Pillow wants it."""
    width, height = image_size
    turn, zoom = rng.uniform(0, 2 * math.pi), rng.uniform(0.85, 1.25)
    center_x, center_y = width / 2 + rng.normal(0, 0.06) * height, height / 2 + rng.normal(0, 0.06) * height
    scale = _TEXTURE / (_REACH * zoom * height)
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    middle = _TEXTURE / 2
    x0 = middle - cos * center_x + sin * center_y
    y0 = middle - sin * center_x - cos * center_y
    return cos, -sin, x0, sin, cos, y0


def encode_jpeg(image: Image.Image) -> bytes:
    """Encodes a picture as JPEG of quality 85."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85)
    return stream.getvalue()


def _jitter(rng: np.random.Generator) -> np.ndarray:
    """A change of colour, (3,): mostly of brightness, because no skin is green."""
    return rng.normal(0, 10) + rng.normal(0, 4, 3)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _noise(rng: np.random.Generator, cells: int, size: tuple[int, int] = (_TEXTURE, _TEXTURE)) -> np.ndarray:
    """Smooth noise of unit scale with about `cells` bumps across, (height, width) float32."""
    rows = max(2, round(cells * size[1] / size[0]))
    coarse = Image.fromarray(rng.standard_normal((rows, cells), dtype=np.float32))
    return np.asarray(coarse.resize(size, Image.Resampling.BILINEAR))


def _lines(paths: list[list[tuple[float, float]]], width: int, size: tuple[int, int]) -> np.ndarray:
    """Polylines as a mask, (height, width) in 0..1."""
    mask = Image.new("L", size)
    draw = ImageDraw.Draw(mask)
    for path in paths:
        draw.line(path, fill=255, width=width, joint="curve")
    return np.asarray(mask, dtype=np.float32) / 255


def _curve(rng: np.random.Generator, start: np.ndarray, length: float, bend: float) -> list[tuple[float, float]]:
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, bend) + rng.normal(0, 0.12, 9))
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * length / 9
    points = start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return [(float(x), float(y)) for x, y in points]


def _draw_hairs(image: Image.Image, count: int, rng: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    size = np.array(image.size)
    tone = rng.uniform(25, 90)
    colour = (int(tone * 1.1), int(tone * 0.85), int(tone * 0.75))
    for _ in range(count):
        path = _curve(rng, rng.uniform(0, 1, 2) * size, rng.uniform(0.3, 0.9) * size[1], 0.08)
        draw.line(path, fill=colour, width=1 if rng.random() < 0.8 else 2)


@dataclass
class _Canvas:
    """A lesion being drawn.

    Attributes:
        colour: (128, 128, 3) RGB, changed in place.
        opacity: (128, 128) in 0..1, changed in place.
        depth: (128, 128), positive inside the outline, 0 at it.
        u: (128, 128) horizontal coordinate, in units of half a picture's height.
        v: (128, 128) vertical coordinate, likewise.
        detail: RGB of the details.
        typical: 0..1, how strong they are.
        rng: Source of what varies.
    """

    colour: np.ndarray
    opacity: np.ndarray
    depth: np.ndarray
    u: np.ndarray
    v: np.ndarray
    detail: np.ndarray
    typical: float
    rng: np.random.Generator

    def paint(self, cover: np.ndarray, colour: np.ndarray) -> None:
        """Blends the surface towards `colour` where `cover`, (128, 128) in 0..1, is high."""
        self.colour += (self.typical * cover)[..., None] * (colour - self.colour)

    def spots(self, count: int, radius: float, within: np.ndarray) -> np.ndarray:
        """Soft round spots at random places of the mask `within`, (128, 128) in 0..1."""
        places = np.flatnonzero(within)
        cover = np.zeros_like(self.u)
        reach = int(1.4 * radius / _REACH * _TEXTURE) + 1
        for place in self.rng.choice(places, count) if len(places) else ():
            row, column = divmod(int(place), _TEXTURE)
            # Only the neighbourhood: full-size arithmetic for every spot made generation three times slower.
            window = np.s_[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1]
            size = radius * self.rng.uniform(0.6, 1.4)
            distance = np.hypot(self.u[window] - self.u[row, column], self.v[window] - self.v[row, column])
            cover[window] = np.maximum(cover[window], _sigmoid((size - distance) / (0.15 * size)))
        return cover


# What dermatologists look for in each class, in broad strokes.


def _scales(canvas: _Canvas) -> None:
    canvas.paint(_sigmoid(6 * (_noise(canvas.rng, 26) - 0.8)), canvas.detail)
    canvas.opacity *= np.clip(0.8 + 0.25 * _noise(canvas.rng, 12), 0.3, 1)


def _nests_and_vessels(canvas: _Canvas) -> None:
    canvas.paint(canvas.spots(int(canvas.rng.integers(2, 8)), 0.1, canvas.depth > 0.2), canvas.detail)
    starts = np.argwhere(canvas.depth > 0.05)[:, ::-1]
    if len(starts):
        vessels = [_curve(canvas.rng, start, 40, 0.15) for start in canvas.rng.choice(starts, 7)]
        canvas.paint(0.8 * _lines(vessels, 1, (_TEXTURE, _TEXTURE)), _VESSEL)


def _milia_and_comedones(canvas: _Canvas) -> None:
    inside = canvas.depth > 0.1
    canvas.paint(canvas.spots(int(canvas.rng.integers(6, 22)), 0.035, inside), canvas.detail)
    canvas.paint(canvas.spots(int(canvas.rng.integers(4, 16)), 0.04, inside), _KERATIN)


def _central_scar(canvas: _Canvas) -> None:
    scar = _sigmoid((canvas.depth - 0.45 + 0.1 * _noise(canvas.rng, 10)) * 9)
    canvas.paint(0.7 * scar, canvas.detail)
    canvas.opacity *= 1 - 0.2 * scar


def _veil_and_dots(canvas: _Canvas) -> None:
    veil = canvas.spots(int(canvas.rng.integers(1, 4)), 0.22, canvas.depth > 0.1)
    canvas.paint(0.75 * veil, canvas.detail)
    border = (canvas.depth > -0.12) & (canvas.depth < 0.3)
    dots = canvas.spots(int(canvas.rng.integers(8, 26)), 0.035, border)
    canvas.paint(dots, _BLACK)
    canvas.opacity[:] = np.maximum(canvas.opacity, 0.9 * canvas.typical * dots)
    # Regression: a part of the lesion has faded, which also makes it asymmetric.
    canvas.opacity[:] *= 1 - 0.6 * canvas.spots(int(canvas.rng.integers(0, 3)), 0.2, canvas.depth > 0)


def _network(canvas: _Canvas) -> None:
    frequency = canvas.rng.uniform(26, 38)
    wobble = 1.2 * _noise(canvas.rng, 8)
    lines = np.maximum(np.cos(frequency * canvas.u + wobble), np.cos(frequency * canvas.v - wobble))
    fading = np.clip(canvas.depth * 2.5, 0, 1)
    canvas.paint(0.7 * fading * _sigmoid((lines - 0.55) * 8), canvas.detail)


def _lacunae(canvas: _Canvas) -> None:
    canvas.paint(canvas.spots(int(canvas.rng.integers(6, 18)), 0.09, canvas.depth > 0.05), canvas.detail)
    canvas.paint(canvas.spots(int(canvas.rng.integers(2, 8)), 0.06, canvas.depth > 0.05), _BLOOD)


_ADD_DETAIL = {
    "akiec": _scales,
    "bcc": _nests_and_vessels,
    "bkl": _milia_and_comedones,
    "df": _central_scar,
    "mel": _veil_and_dots,
    "nv": _network,
    "vasc": _lacunae,
}


__all__ = ["Lesion", "encode_jpeg", "render"]
