"""The processor: every form of one picture gives the same pixels, and metadata is encoded or refused."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from ham10000.modeling import (
    LOCALIZATIONS,
    Ham10000Config,
    Ham10000Error,
    Ham10000ImageProcessor,
    Ham10000Processor,
    create_processor,
    load_image,
)

ROW = {"age": 60, "sex": "male", "localization": "back"}
SMALL = Image.new("RGB", (8, 6))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth 60 x 45 colour picture, landscape and without any symmetry."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((60, 45), Image.Resampling.BICUBIC)


def png(image: Image.Image, **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **kwargs)
    return buffer.getvalue()


def test_every_form_of_one_picture_gives_the_same_pixels(picture: Image.Image, tmp_path: Path) -> None:
    array = np.asarray(picture)
    path = tmp_path / "picture.png"
    path.write_bytes(png(picture))
    forms = {
        "pil": picture,
        "path": path,
        "string": str(path),
        "bytes": png(picture),
        "bytearray": bytearray(png(picture)),
        "uint8 HWC": array,
        "uint8 CHW": array.transpose(2, 0, 1),
        "uint8 not contiguous": array[::-1][::-1],
        "uint16": array.astype(np.uint16) * 257,
        "float32": array.astype(np.float32) / 255,
        "float64 CHW": array.transpose(2, 0, 1) / 255,
        "float16": (array / 255).astype(np.float16),
        "tensor CHW": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "tensor HWC": torch.from_numpy(array.copy()),
        "float tensor with gradient": (torch.from_numpy(array.copy()).permute(2, 0, 1) / 255).requires_grad_(),
        "opaque RGBA": picture.convert("RGBA"),
    }
    processor = Ham10000ImageProcessor(size=32)
    expected = processor(picture)["pixel_values"]
    assert expected.shape == (1, 3, 32, 32)
    for name, form in forms.items():
        np.testing.assert_array_equal(np.asarray(load_image(form)), array, err_msg=name)
        assert torch.equal(processor(form)["pixel_values"], expected), name
    batch = processor(list(forms.values()))["pixel_values"]
    assert torch.equal(batch, expected.expand(len(forms), -1, -1, -1))
    assert torch.equal(processor(np.stack([array, array]))["pixel_values"], expected.expand(2, -1, -1, -1))


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "P", "RGBX"])
def test_opaque_modes_are_what_pillow_converts(mode: str, picture: Image.Image) -> None:
    image = picture.convert(mode)
    loaded = load_image(image)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(image.convert("RGB")))


def test_grey_becomes_three_equal_channels(picture: Image.Image, tmp_path: Path) -> None:
    """Pictures and arrays, of 8 bits, of 16, which are scaled and not clipped, and of floating point in [0, 1]."""
    grey = np.asarray(picture.convert("L"))
    deep, floating = grey.astype(np.uint16) * 257, grey.astype(np.float32) / 255
    images = [Image.fromarray(array) for array in (deep, deep.astype(np.int32), floating)]
    assert [image.mode for image in images] == ["I;16", "I", "F"]
    images[0].save(tmp_path / "deep.png")
    arrays = [form for array in (grey, deep, floating) for form in (array, array[:, :, None], array[None])]
    for form in (*images, tmp_path / "deep.png", *arrays):
        np.testing.assert_array_equal(np.asarray(load_image(form)), np.repeat(grey[:, :, None], 3, axis=2))
    with pytest.raises(Ham10000Error, match=r"\[0, 1\]"):
        load_image(Image.fromarray(grey.astype(np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_shown_on_white(mode: str) -> None:
    """By the source-over formula: a * colour + (1 - a) * white."""
    alphas = (0, 51, 255)
    image = Image.fromarray(np.array([[[100, 100, 100, alpha] for alpha in alphas]], np.uint8))
    expected = [[[round(100 * alpha / 255 + 255 * (1 - alpha / 255))] * 3 for alpha in alphas]]
    assert np.asarray(load_image(image.convert(mode))).tolist() == expected


def test_palette_and_rgb_with_a_transparent_colour() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for form in (png(palette, transparency=0), png(palette.convert("RGB"), transparency=(10, 20, 30))):
        assert np.asarray(load_image(form)).tolist() == [[[255, 255, 255], [40, 50, 60]]]
    assert np.asarray(load_image(png(palette))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


# EXIF 2.32, table 6: which way the stored picture must be turned to be upright.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, picture: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    picture.save(path, exif=exif)
    expected = UPRIGHT[orientation](np.asarray(picture))
    np.testing.assert_array_equal(np.asarray(load_image(path)), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(load_image(opened)), expected)


# --- parity of the pixel values


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_parity_with_torchvision(resample: int, picture: Image.Image) -> None:
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.9]
    mode = transforms.InterpolationMode[Image.Resampling(resample).name]
    steps = [transforms.Resize((40, 72), mode), transforms.ToTensor(), transforms.Normalize(mean, std)]
    processor = Ham10000ImageProcessor({"height": 40, "width": 72}, resample, mean, std)
    assert torch.equal(processor(picture)["pixel_values"][0], transforms.Compose(steps)(picture))


@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("size", [(40, 72), (450, 600), (700, 900), (224, 224)])
def test_torch_resizes_within_a_level_of_pillow(resample: int, size: tuple[int, int], picture: Image.Image) -> None:
    """One of 255 levels, two for bicubic noise, and for most values none."""
    noise = np.random.default_rng(0).integers(0, 256, (300, 401, 3), dtype=np.uint8)
    settings = {"size": {"height": size[0], "width": size[1]}, "resample": resample}
    pillow = Ham10000ImageProcessor(**settings)
    fast = Ham10000ImageProcessor(**settings, resizer="torch")
    for image in (picture, Image.fromarray(noise)):
        expected, resized = pillow.resize(image).astype(int), fast.resize(image)
        assert (resized.shape, resized.dtype, resized.flags.c_contiguous) == ((*size, 3), np.uint8, True)
        difference = np.abs(resized - expected)
        assert difference.max() <= resample - 1
        assert difference.mean() < 0.2


@pytest.mark.parametrize("backbone", ["tf_efficientnetv2_s.in21k_ft_in1k", "tf_efficientnetv2_b0", "test_vit"])
def test_parity_with_timms_own_evaluation_transform(backbone: str, picture: Image.Image) -> None:
    """timm crops where we squash: equal numbers on a square picture without its centre crop."""
    cfg = timm.get_pretrained_cfg(backbone)
    settings = {"interpolation": cfg.interpolation, "mean": cfg.mean, "std": cfg.std, "crop_pct": 1.0}
    reference = create_transform(cfg.input_size, **settings)
    processor = create_processor(Ham10000Config(modality="image", backbone=backbone))
    square = picture.resize((450, 450))
    assert torch.equal(processor(images=square)["pixel_values"][0], reference(square))


def test_resize_then_normalise_is_the_whole(picture: Image.Image) -> None:
    """The training cache stores `resize` and the loader ends with `normalize_pixels`."""
    processor = Ham10000ImageProcessor(size=32)
    resized = processor.resize(picture)
    assert (resized.dtype, resized.shape) == (np.uint8, (32, 32, 3))
    raw, expected = torch.from_numpy(resized.copy()).permute(2, 0, 1), processor(picture)["pixel_values"][0]
    floating = raw.float()
    for pixels in (raw, floating):
        assert torch.equal(processor.normalize_pixels(pixels), expected)
    assert torch.equal(floating, raw.float())  # not changed in place


@pytest.mark.parametrize("wrong", [{"do_resize": False}, {"return_tensors": "tf"}, {"return_tensors": "jax"}], ids=str)
def test_unknown_arguments_of_the_image_processor(wrong: dict) -> None:
    with pytest.raises(Ham10000Error, match=next(iter(wrong))):
        Ham10000ImageProcessor()(SMALL, **wrong)


# --- metadata


def test_metadata_is_years_and_vocabulary_positions() -> None:
    ages = [60, "60", " 60 ", np.int64(60), np.float32(60), np.uint8(60)]
    rows = [ROW, {"localization": "Abdomen ", "sex": "FEMALE", "age": 0}, *({"age": age} for age in ages)]
    encoded = Ham10000Processor()(metadata=rows)["metadata"]
    expected = [[60, 1, LOCALIZATIONS.index("back")], [0, 0, LOCALIZATIONS.index("abdomen")]]
    expected += [[60, math.nan, math.nan] for _ in ages]
    np.testing.assert_array_equal(encoded.numpy(), np.array(expected, np.float32))
    assert encoded.dtype == torch.float32


@pytest.mark.parametrize("missing", [None, np.nan, np.float32("nan"), "", "  ", "Unknown", "NaN", "None"], ids=repr)
@pytest.mark.parametrize("field", ["age", "sex", "localization"])
def test_every_spelling_of_missing_is_what_absent_is(field: str, missing: object) -> None:
    processor = Ham10000Processor()
    absent = {key: value for key, value in ROW.items() if key != field}
    encoded = processor.encode_metadata({**ROW, field: missing})
    assert encoded.isnan().tolist() == [[name == field for name in ("age", "sex", "localization")]]
    np.testing.assert_array_equal(encoded.numpy(), processor.encode_metadata(absent).numpy())


COLUMNS_THAT_TELL = ("dx", "dx_type", "dataset", "lesion_id", "image_id")
# Settings of the processor, what it is given, and the message.
REFUSED: list[tuple[dict, dict, str]] = [
    ({}, {"metadata": ROW, "unknown_values": "ignore"}, "'ignore'"),
    ({}, {"metadata": {"age": 300}, "unknown_values": "missing"}, "age"),
    *(({}, {"metadata": [ROW, {**ROW, key: "mel"}]}, f"row 1: '{key}' is never an") for key in COLUMNS_THAT_TELL),
    *(({}, {"metadata": {key: None}}, f"unknown key '{key}'.*localization") for key in ("Age", "gender", "site")),
    ({}, {"metadata": []}, "empty"),
    *(({}, {"metadata": [row]}, "expected a mapping") for row in (60, "age", None)),
    ({}, {"metadata": [ROW, {"sex": "m"}]}, "row 1: unknown sex 'm'.*female, male.*unknown_values='missing'"),
    ({}, {"metadata": {"sex": 1}}, "unknown sex 1; expected one of female, male"),
    ({}, {"metadata": {"localization": "elbow"}}, f"localization 'elbow'; expected .*{', '.join(LOCALIZATIONS)}"),
    ({}, {"images": [SMALL, SMALL], "metadata": ROW}, "2 images but 1 row"),
    ({}, {"images": SMALL, "meta_data": ROW}, "meta_data"),
    *(({}, {"metadata": ROW, "return_tensors": name}, "return_tensors") for name in ("tf", "jax")),
    ({}, {}, "Nothing to process"),
    ({"modality": "metadata"}, {"images": SMALL, "metadata": ROW}, "metadata-only"),
    ({"modality": "image"}, {"images": SMALL, "metadata": ROW}, "image-only"),
]


@pytest.mark.parametrize(("settings", "given", "message"), REFUSED)
def test_what_is_refused(settings: dict, given: dict, message: str) -> None:
    with pytest.raises(Ham10000Error, match=message):
        Ham10000Processor(**settings)(**given)


def test_field_order_and_vocabularies_are_the_configs() -> None:
    fields, sites = ["localization", "age"], ["ear", "back"]
    config = Ham10000Config(modality="metadata", metadata_fields=fields, localization_vocabulary=sites)
    processor = create_processor(config)
    assert processor(metadata={"age": 5, "localization": "back"})["metadata"].tolist() == [[1, 5]]
    with pytest.raises(Ham10000Error, match="unknown key 'sex'"):
        processor(metadata=ROW)


# --- variants, arrays, files


def test_round_trip_through_one_file(picture: Image.Image, tmp_path: Path) -> None:
    processor = Ham10000Processor(
        Ham10000ImageProcessor({"height": 24, "width": 40}, 2, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "torch"),
        metadata_fields=["localization", "sex"],
        sex_vocabulary=["male", "female"],
        localization_vocabulary=["ear", "back"],
    )
    processor.save_pretrained(tmp_path)
    loaded = Ham10000Processor.from_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["processor_config.json"]
    assert {**loaded.to_dict(), "auto_map": None} == {**processor.to_dict(), "auto_map": None}
    assert loaded.image_processor.resizer == "torch"
    row = {"sex": "male", "localization": "back"}
    before, after = processor(images=picture, metadata=row), loaded(images=picture, metadata=row)
    assert after["metadata"].tolist() == [[1, 0]]
    arrays = loaded(images=[picture], metadata=[row], return_tensors="np")
    assert all(isinstance(array, np.ndarray) for array in arrays.values())
    np.testing.assert_array_equal(arrays["metadata"], after["metadata"])
    np.testing.assert_array_equal(arrays["pixel_values"], after["pixel_values"])
    alone = Ham10000ImageProcessor.from_pretrained(tmp_path)(picture)
    for values in (after["pixel_values"], alone["pixel_values"]):
        assert torch.equal(values, before["pixel_values"])


def test_keys_that_a_library_has_saved_do_not_break_loading(picture: Image.Image, tmp_path: Path) -> None:
    """The next release of transformers may write others than this one."""
    processor = Ham10000Processor(Ham10000ImageProcessor(size=20))
    processor.image_processor._of_a_later_release = {"a": 1}
    processor.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    saved = json.loads(path.read_text())
    saved["image_processor"] |= {"do_pad": None, "feature_extractor_type": "Old"}
    saved["_of_a_later_release"] = "x"
    path.write_text(json.dumps(saved))
    loaded = Ham10000Processor.from_pretrained(tmp_path)
    assert loaded.image_processor._of_a_later_release == {"a": 1}
    assert torch.equal(loaded(images=picture)["pixel_values"], processor(images=picture)["pixel_values"])
