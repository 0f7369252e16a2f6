import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from bad_pictures import png_header
from PIL import ExifTags, Image

from ham10000.modeling import Ham10000Config, Ham10000Error, Ham10000Processor, create_processor
from ham10000.training.config import TrainConfig
from ham10000.training.data import loader as cache
from ham10000.training.data.augment import Augment
from ham10000.training.data.loader import EvalLoader, Samples, TrainLoader, cached_images, epoch_order, open_images
from ham10000.training.data.sources import load_data

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(synthetic_folder: Path) -> datasets.Dataset:
    return load_data(str(synthetic_folder))[0]


@pytest.fixture(scope="module")
def processor() -> Ham10000Processor:
    return create_processor(Ham10000Config(backbone="test_efficientnet"), image_size=(24, 32))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_loader(dataset, processor, cache_dir) -> Callable[..., TrainLoader]:
    def make(processor=processor, **options) -> TrainLoader:
        images = open_images(dataset, processor, CPU, train_size=(24, 32), cache_dir=cache_dir, progress=False)
        augment = Augment(rotation=30, min_area=0.6, color_jitter=0.2)
        settings = {"augment": augment, "batch_size": 16, "seed": 3} | options
        return TrainLoader(Samples.from_dataset(dataset, processor), images, processor, CPU, **settings)

    return make


def test_cache_holds_what_the_processor_makes(dataset, processor, cache_dir) -> None:
    images = open_images(dataset, processor, CPU, cache_dir=cache_dir, progress=False)
    assert images.images.shape == (len(dataset), 3, 24, 32)
    loader = EvalLoader(Samples.from_dataset(dataset, processor), images, processor, CPU, batch_size=50)
    batches = list(loader)
    assert len(batches) == len(loader)
    chosen = [0, 57, len(dataset) - 1]
    rows = dataset.select(chosen)
    metadata = [{name: row[name] for name in ("age", "sex", "localization")} for row in rows]
    expected = processor(images=list(rows["image"]), metadata=metadata)
    assert torch.equal(torch.cat([batch.pixel_values for batch in batches])[chosen], expected["pixel_values"])
    cached = torch.cat([batch.metadata for batch in batches])[chosen]
    torch.testing.assert_close(cached, expected["metadata"], equal_nan=True, rtol=0, atol=0)


def test_cache_is_built_once_and_keyed_by_content_and_settings(dataset, processor, tmp_path) -> None:
    build = partial(cached_images, cache_dir=tmp_path, progress=False)
    build(dataset, processor.image_processor)
    (file,) = tmp_path.glob("*.npy")
    built = file.stat()
    build(dataset, processor.image_processor)
    assert file.stat().st_mtime_ns == built.st_mtime_ns
    build(dataset, create_processor(Ham10000Config(backbone="test_efficientnet"), image_size=20).image_processor)
    build(dataset.select(range(10)), processor.image_processor)
    assert len(list(tmp_path.glob("*.npy"))) == 3


@pytest.mark.parametrize("data", [b"not a picture", png_header(20_000, 20_000)], ids=["text", "bomb"])
def test_unreadable_picture_leaves_no_cache_and_is_named(data, processor, tmp_path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(data)
    rows = {"image": [str(tmp_path / f"{name}.png") for name in ("good", "bad")], "image_id": ["good", "bad"]}
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    with pytest.raises(Ham10000Error, match=r"'bad'.*bad\.png"):
        cached_images(dataset, processor.image_processor, cache_dir=tmp_path / "cache", progress=False)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} <= {".lock"}
    with pytest.raises(Ham10000Error, match=r"'bad'.*bad\.png"):
        open_images(dataset, processor, CPU, train_size=(24, 32), cache_dir=tmp_path, progress=False)


def test_a_second_builder_waits_for_the_first(dataset, processor, tmp_path, monkeypatch) -> None:
    decode, decoded = cache.decode, []
    monkeypatch.setattr(cache, "decode", lambda *arguments: decoded.append(1) or decode(*arguments))
    build = partial(cached_images, dataset, processor.image_processor, cache_dir=tmp_path, progress=False)
    with ThreadPoolExecutor(2) as builders:
        first, second = (task.result() for task in [builders.submit(build) for _ in range(2)])
    assert len(decoded) == len(dataset)
    np.testing.assert_array_equal(first, second)


def test_frames_keep_the_aspect_and_twice_the_training_size(tmp_path) -> None:
    def picture(size: tuple[int, int], orientation: int = 1, kind: str = "png") -> dict[str, bytes]:
        exif, stream = Image.Exif(), io.BytesIO()
        exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", size).save(stream, kind, exif=exif)
        return {"bytes": stream.getvalue()}

    def frames(size: tuple[int, int], train_size: tuple[int, int], short_side=None, **exif) -> tuple[int, ...]:
        pictures = [picture(size, **exif)] * 3 + [picture((50, 50))]  # one of another aspect
        source = datasets.Dataset.from_dict({"image": pictures, "image_id": list("abcd")})
        processor = create_processor(Ham10000Config(modality="image", backbone="test_efficientnet"))
        options = {"train_size": train_size, "short_side": short_side, "progress": False}
        return open_images(source, processor, CPU, cache_dir=tmp_path, **options).images.shape

    assert frames((600, 450), (96, 96)) == (4, 3, 192, 256)
    assert frames((450, 600), (96, 96)) == (4, 3, 256, 192)
    assert frames((600, 450), (224, 224)) == (4, 3, 450, 600)  # 448 rows would only soften
    assert frames((80, 60), (96, 96)) == (4, 3, 60, 80)  # never more than there is
    assert frames((600, 450), (96, 96), 120) == (4, 3, 120, 160)
    # A phone stores a portrait photograph as it lies in the camera, and says so.
    for kind in ("jpeg", "png", "webp"):
        assert frames((600, 450), (96, 96), orientation=6, kind=kind) == (4, 3, 256, 192)
        assert frames((600, 450), (96, 96), orientation=3, kind=kind) == (4, 3, 192, 256)


def test_every_epoch_is_a_permutation_and_repeats_by_seed(dataset, make_loader) -> None:
    loader = make_loader()
    first, second = (loader.order(epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(len(dataset)))
    assert not np.array_equal(first, second)
    assert np.array_equal(second, make_loader().order(1))
    assert len(list(loader.epoch(0))) == loader.steps_per_epoch == len(dataset) // 16


def test_pictures_grow_over_the_epochs(make_loader) -> None:
    config = TrainConfig(epochs=5, image_size=[160, 192], train_scales=[0.5, 1.0])
    sizes = [config.train_size(epoch) for epoch in range(5)]
    assert sizes == [(80, 96), (96, 128), (128, 144), (144, 176), (160, 192)]  # shares .5, .625, … in steps of 16
    assert TrainConfig(image_size=[150, 200]).train_size(3) == (150, 200)
    loader = make_loader(size=lambda epoch: [(16, 16), (24, 32)][epoch])
    for epoch, shape in enumerate([(16, 3, 16, 16), (16, 3, 24, 32)]):
        _, (batch,) = next(iter(loader.epoch(epoch)))
        assert batch.pixel_values.shape == shape


@pytest.mark.parametrize(("world_size", "micro_batches"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_processes_and_micro_batches_share_out_the_same_global_batch(make_loader, world_size, micro_batches) -> None:
    (labels, (whole,)) = next(make_loader().epoch(0))
    pieces = []
    for rank in range(world_size):
        loader = make_loader(rank=rank, world_size=world_size, micro_batches=micro_batches)
        global_labels, batches = next(loader.epoch(0))
        assert torch.equal(global_labels, labels)
        pieces += batches
    parts = world_size * micro_batches
    for number, piece in enumerate(pieces):
        # Resampling a part of the batch may round differently in the last bit.
        torch.testing.assert_close(piece.pixel_values, whole.pixel_values[number::parts], atol=1e-4, rtol=0)
        assert torch.equal(piece.labels, whole.labels[number::parts])


def test_a_loader_knows_what_its_network_reads_and_what_cannot_be_shared_out(make_loader) -> None:
    processor = create_processor(Ham10000Config(modality="image", backbone="test_efficientnet"), image_size=16)
    _, (batch,) = next(make_loader(processor).epoch(0))
    assert set(batch.inputs) == {"pixel_values"}
    with pytest.raises(Ham10000Error, match="multiple of 3 processes"):
        make_loader(world_size=3)


def test_metadata_only_opens_no_images(dataset, tmp_path, monkeypatch) -> None:
    missing = [{"bytes": None, "path": str(tmp_path / "no-image.jpg")}] * len(dataset)
    dataset = dataset.remove_columns("image").add_column("image", missing, feature=datasets.Image(decode=False))
    monkeypatch.setattr(cache, "decode", lambda *_: pytest.fail("an image was opened"))
    processor = create_processor(Ham10000Config(modality="metadata"))
    for train_size in (None, (24, 32)):
        assert open_images(dataset, processor, CPU, train_size=train_size, cache_dir=tmp_path / "cache") is None
    samples = Samples.from_dataset(dataset, processor)
    evaluation = list(EvalLoader(samples, None, processor, CPU))
    metadata = torch.cat([batch.metadata for batch in evaluation])
    torch.testing.assert_close(metadata, samples.metadata, equal_nan=True, rtol=0, atol=0)
    assert not metadata.isnan().all()
    loader = TrainLoader(samples, None, processor, CPU, augment=Augment())
    training = [batch for _, of_step in loader.epoch(0) for batch in of_step]
    assert all(set(batch.inputs) == {"metadata"} for batch in [*evaluation, *training])
    assert not (tmp_path / "cache").exists()


COUNTS = np.array([262, 411, 879, 92, 890, 5364, 114])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))


def test_square_root_shares_are_kang_et_al_equation_1() -> None:
    # p_j = n_j^q / sum_i n_i^q with q = 1/2.
    expected = [count**0.5 / sum(other**0.5 for other in COUNTS) for count in COUNTS]
    np.testing.assert_allclose(cache.class_shares(COUNTS, "sqrt"), expected)
    order = epoch_order(LABELS, "sqrt", np.random.default_rng(1))
    assert len(order) == len(LABELS)
    np.testing.assert_allclose(np.bincount(LABELS[order]) / len(order), expected, atol=1 / len(order))
    times = np.bincount(order, minlength=len(LABELS))
    assert all(np.ptp(times[label == LABELS]) <= 1 for label in range(7))  # as evenly as the share allows
    # A class may be without rows.
    assert sorted(epoch_order(np.array([0, 0, 5, 5]), "sqrt", np.random.default_rng(0))) == [0, 1, 2, 3]
