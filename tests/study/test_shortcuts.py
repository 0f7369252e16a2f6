"""What a model reads: against its own forward, closed forms of hand-built models, and planted shortcuts."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ham10000.modeling import (
    FUSIONS,
    LABELS,
    LOCALIZATIONS,
    Ham10000Config,
    Ham10000Error,
    Ham10000ForImageClassification,
    create_model,
    create_processor,
)
from ham10000.training.data.loader import CachedImages, EvalLoader, Samples
from ham10000.training.evaluation.bootstrap import cluster_bootstrap
from ham10000.training.evaluation.comparison import paired_differences
from ham10000.training.study.shortcut_results import shortcut_results
from ham10000.training.study.shortcuts import MISSING_SHARES, SWEEP_AGES, perturbed_probabilities

CPU = torch.device("cpu")
MEL, NV = LABELS.index("mel"), LABELS.index("nv")


def make_samples(frame: pd.DataFrame, config: Ham10000Config) -> Samples:
    rows: Any = frame[config.metadata_fields].to_dict("records")
    labels = torch.tensor([LABELS.index(dx) for dx in frame["dx"]])
    return Samples(frame["image_id"].tolist(), labels, create_processor(config).encode_metadata(rows))


def random_frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Rows with everything drawn at random and some of it missing."""
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "image_id": [f"I{row}" for row in range(n)],
            "dx": generator.choice(LABELS, n),
            "age": generator.choice([np.nan, 0, 30, 47, 85], n),
            "sex": generator.choice(["female", "male", "unknown"], n),
            "localization": generator.choice([*LOCALIZATIONS, "unknown"], n),
        }
    )


def make_loader(
    config: Ham10000Config, samples: Samples, images: CachedImages | None = None, batch_size: int = 7, **options: int
) -> EvalLoader:
    if images is None and config.uses_image:
        pictures = np.random.default_rng(0).integers(0, 256, (len(samples), 3, 32, 32), dtype=np.uint8)
        images = CachedImages(pictures, samples.image_ids, CPU)
    processor = create_processor(config, image_size=32)
    return EvalLoader(samples, images, processor, CPU, batch_size=batch_size, **options)


def random_model(modality: str, fusion: str = "concat", **options: Any) -> tuple[Any, EvalLoader]:
    """A model whose every part has an effect: FiLM starts at 0, and batch norm's statistics at 0 and 1."""
    torch.manual_seed(0)
    config = Ham10000Config(modality=modality, backbone="test_efficientnet", fusion=fusion, **options)  # type: ignore[arg-type]
    model = create_model(config)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not name.startswith("backbone.") and value.is_floating_point():
                value.add_(0.3 * torch.rand_like(value))
        model.classifier.weight.mul_(10)
    return model.eval(), make_loader(config, make_samples(random_frame(24), config))


@torch.inference_mode()
def forward(model: Any, loader: EvalLoader, **replaced: float) -> np.ndarray:
    """The model's own forward on the loader's batches, with columns of metadata replaced."""
    parts = []
    for batch in loader:
        inputs = dict(batch.inputs)
        inputs["metadata"] = inputs["metadata"].clone()
        for field, value in replaced.items():
            inputs["metadata"][:, model.config.metadata_fields.index(field)] = value
        parts.append(model(**inputs).logits.float().softmax(-1))
    return torch.cat(parts).numpy()


@pytest.mark.parametrize(("modality", "fusion"), [("metadata", "concat"), *(("fusion", fusion) for fusion in FUSIONS)])
def test_every_change_equals_the_models_own_forward_to_the_last_bit(modality: str, fusion: str) -> None:
    model, loader = random_model(modality, fusion, temperature=1.6)
    probabilities = perturbed_probabilities(model, loader, seed=0, repeats=2)
    nan = float("nan")
    expected = {
        "as_is": {},
        **{f"unknown:{field}": {field: nan} for field in model.config.metadata_fields},
        "unknown:all": dict.fromkeys(model.config.metadata_fields, nan),
    }
    for name, replaced in expected.items():
        np.testing.assert_array_equal(probabilities[name], forward(model, loader, **replaced))
    for position, age in enumerate(SWEEP_AGES):
        np.testing.assert_array_equal(probabilities["age_sweep"][position], forward(model, loader, age=age))
    for position in range(len(LOCALIZATIONS)):
        swept = forward(model, loader, localization=position)
        np.testing.assert_array_equal(probabilities["site_sweep"][position], swept)
    assert not np.array_equal(probabilities["as_is"], probabilities["unknown:all"])
    if modality == "fusion":  # no metadata at all is everything unknown
        with torch.inference_mode():
            logits = torch.cat([model(pixel_values=batch.pixel_values).logits for batch in loader])
        np.testing.assert_array_equal(probabilities["unknown:all"], logits.softmax(-1).numpy())


def test_absent_fields_are_left_out() -> None:
    model, loader = random_model("metadata", metadata_fields=["sex"])
    names = set(perturbed_probabilities(model, loader, seed=0))
    assert {name for name in names if "missing" not in name} == {
        *("as_is", "shuffled:sex", "unknown:sex", "shuffled:all", "unknown:all")
    }
    results = results_of(model, loader)
    assert list(results["fields"]) == ["sex", "all"]
    assert results["age_sweep"] is results["site_sweep"] is None


def test_columns_and_vocabulary_are_the_models_own() -> None:
    """Neither the order of the fields nor the number of sites is HAM10000's."""
    vocabulary = [*LOCALIZATIONS[::-1], "elbow"]
    model, loader = random_model(
        "metadata", metadata_fields=["localization", "age"], localization_vocabulary=vocabulary
    )
    probabilities = perturbed_probabilities(model, loader, seed=0)
    assert probabilities["site_sweep"].shape == (15, 24, 7)
    np.testing.assert_array_equal(probabilities["site_sweep"][14], forward(model, loader, localization=14))
    np.testing.assert_array_equal(probabilities["age_sweep"][17], forward(model, loader, age=85))
    results = results_of(model, loader)
    assert list(results["fields"]) == ["age", "localization", "all"]
    assert results["site_sweep"]["sites"] == vocabulary


def test_the_seed_alone_decides_and_batches_do_not() -> None:
    model, loader = random_model("fusion")
    first, again, other = (perturbed_probabilities(model, loader, seed=seed) for seed in (0, 0, 1))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        drawn = name.startswith(("shuffled", "missing"))
        assert np.array_equal(array, other[name]) != drawn, name
        if drawn:
            assert len({draw.tobytes() for draw in array}) == len(array), f"{name}: the draws are not different"
    coarse = make_loader(model.config, loader.samples, loader.images, batch_size=24)
    for name, array in perturbed_probabilities(model, coarse, seed=0).items():
        np.testing.assert_allclose(array, first[name], atol=1e-5)


def test_shuffling_permutes_the_values_and_all_fields_together() -> None:
    """With the metadata alone, whole rows dealt out anew are the same answers in another order."""
    model, loader = random_model("metadata")
    probabilities = perturbed_probabilities(model, loader, seed=0, repeats=3)

    def in_order(rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort(rows.round(5).T)]

    as_is = in_order(probabilities["as_is"])
    for draw in probabilities["shuffled:all"]:
        np.testing.assert_allclose(in_order(draw), as_is, atol=1e-4)
    assert not np.allclose(in_order(probabilities["shuffled:age"][0]), as_is, atol=1e-2)
    # A field that all rows share is left as it is by shuffling it.
    loader.samples.metadata[:, 1] = 1  # type: ignore[index]
    probabilities = perturbed_probabilities(model, loader, seed=0, repeats=1)
    np.testing.assert_array_equal(probabilities["shuffled:sex"][0], probabilities["as_is"])


def test_low_precision_moves_the_backbone_only() -> None:
    """Under autocast a change that changes nothing must not flip answers by rounding."""
    model, loader = random_model("fusion")
    exact = perturbed_probabilities(model, loader, seed=0, repeats=1)
    rounded = perturbed_probabilities(
        model, loader, seed=0, repeats=1, autocast=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    assert 0 < np.abs(rounded["as_is"] - exact["as_is"]).max() < 0.1
    young = loader.samples.metadata[:, 0] == 30  # type: ignore[index]
    assert young.any()
    np.testing.assert_array_equal(rounded["age_sweep"][SWEEP_AGES.index(30), young], rounded["as_is"][young])
    half = perturbed_probabilities(model.bfloat16(), loader, seed=0, repeats=1)
    assert np.abs(half["as_is"] - exact["as_is"]).max() < 0.2


def test_what_cannot_be_perturbed_is_an_error() -> None:
    model, loader = random_model("metadata")
    with pytest.raises(Ham10000Error, match="training mode"):
        perturbed_probabilities(model.train(), loader, seed=0)
    model.eval()
    with pytest.raises(Ham10000Error, match="`repeats` must be at least 1, got 0"):
        perturbed_probabilities(model, loader, seed=0, repeats=0)
    ranks = make_loader(model.config, loader.samples, rank=1, world_size=2)
    with pytest.raises(Ham10000Error, match="one process"):
        perturbed_probabilities(model, ranks, seed=0)
    empty = make_loader(model.config, Samples([], loader.samples.labels[:0], loader.samples.metadata[:0]))  # type: ignore[index]
    with pytest.raises(Ham10000Error, match="no rows"):
        perturbed_probabilities(model, empty, seed=0)
    image = create_model(Ham10000Config(modality="image", backbone="test_efficientnet")).eval()
    with pytest.raises(Ham10000Error, match="modality='image' reads no metadata"):
        perturbed_probabilities(image, loader, seed=0)


def results_of(model: Any, loader: EvalLoader, groups: Any = None, **options: Any) -> dict[str, Any]:
    labels = loader.samples.labels.numpy()
    perturbed = [perturbed_probabilities(model, loader, seed=seed) for seed in range(options.pop("seeds", 1))]
    groups = np.arange(len(labels)) if groups is None else groups
    options = {"n_resamples": 200, **options}
    return shortcut_results(labels, perturbed, groups, sites=model.config.localization_vocabulary, **options)


class Linear(nn.Module):
    """Logits that are a linear function of the encoded metadata, in place of a trained MLP."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.weight


def linear_model(weights: dict[tuple[str, str | None, str], float]) -> Ham10000ForImageClassification:
    """A model by hand: (field, value, class) to the logit it adds; for the age, per encoded unit of 20 years."""
    config = Ham10000Config(modality="metadata", metadata_hidden_sizes=[7])
    columns = ["age", "no age", "female", "male", "no sex", *LOCALIZATIONS, "no site"]
    matrix = torch.zeros(len(columns), 7)
    for (field, value, label), logit in weights.items():
        matrix[columns.index(value or field), LABELS.index(label)] = logit
    model = create_model(config).eval()
    model.metadata_encoder.mlp = Linear(matrix)
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(7))
        model.classifier.bias.zero_()
    return model


def class_of(site: str) -> str:
    return LABELS[LOCALIZATIONS.index(site) % 7]


def test_a_model_of_the_site_alone_is_answered_in_closed_form() -> None:
    generator = np.random.default_rng(0)
    site = generator.choice(LOCALIZATIONS, 700)
    frame = random_frame(700).assign(localization=site, dx=[class_of(name) for name in site])
    model = linear_model({("localization", name, class_of(name)): 8.0 for name in LOCALIZATIONS})
    loader = make_loader(model.config, make_samples(frame, model.config), batch_size=256)
    results = results_of(model, loader)
    json.dumps(results, allow_nan=False)
    assert results["macro_f1"] == {"estimate": 1.0, "low": 1.0, "high": 1.0, "n_defined": 200}

    # Without the site all logits are 0 and the first class, akiec, is answered for all.
    shares = frame["dx"].value_counts(normalize=True)[list(LABELS)].to_numpy()
    blind_f1 = 2 * shares[0] / (1 + shares[0]) / 7
    unknown = results["fields"]["localization"]["unknown"]
    assert unknown["macro_f1_drop"]["estimate"] == pytest.approx(1 - blind_f1)
    assert unknown["flip_share"]["estimate"] == pytest.approx(1 - shares[0])
    # A stranger's site is of another class with the probability that two random rows differ.
    shuffled = results["fields"]["localization"]["shuffled"]
    differ = 1 - (shares**2).sum()
    assert shuffled["flip_share"]["estimate"] == pytest.approx(differ, abs=0.03)
    assert shuffled["macro_f1_drop"]["estimate"] == pytest.approx(differ, abs=0.03)
    assert shuffled["p_holm"] == pytest.approx(3 * 2 / 201)  # all resamples on one side, three fields
    for field in ("age", "sex"):
        for kind in ("shuffled", "unknown"):
            nothing = results["fields"][field][kind]
            assert nothing["macro_f1_drop"] == {"estimate": 0, "low": 0, "high": 0, "n_defined": 200, "p": 1}
            assert nothing["flip_share"]["high"] == 0
    assert results["fields"]["all"]["unknown"]["macro_f1_drop"]["estimate"] == pytest.approx(1 - blind_f1)
    assert results["fields"]["all"]["shuffled"]["p_holm"] is None

    assert [row["share"] for row in results["missing"]] == [0.0, *MISSING_SHARES, 1.0]
    for row in results["missing"]:
        assert row["flip_share"]["estimate"] == pytest.approx(row["share"] * (1 - shares[0]), abs=0.02)
    assert results["missing"][-1]["macro_f1"]["estimate"] == pytest.approx(blind_f1)

    sweep = results["site_sweep"]
    high, low = np.exp(8) / (np.exp(8) + 6), 1 / (np.exp(8) + 6)
    expected = [high if class_of(name) == "mel" else low for name in LOCALIZATIONS]
    assert sweep["sites"] == list(LOCALIZATIONS)
    np.testing.assert_allclose(sweep["melanoma"]["mean"], expected, rtol=1e-5)
    malignant = [high + 2 * low if class_of(name) in ("mel", "bcc", "akiec") else 3 * low for name in LOCALIZATIONS]
    np.testing.assert_allclose(sweep["malignant"]["mean"], malignant, rtol=1e-5)
    assert sweep["range"]["estimate"] == pytest.approx(high - low)
    assert sweep["flip_share"]["estimate"] == 1
    assert results["age_sweep"]["flip_share"]["estimate"] == 0
    assert results["age_sweep"]["slope_per_decade"]["estimate"] == pytest.approx(0, abs=1e-7)
    assert results["named"] == ["localization"]
    assert "The model reads the site: shuffling the site costs 0.8" in results["sentence"]
    assert "flips the answer for 100% of the images" in results["sentence"]
    assert "That age or sex matters could not be shown" in results["sentence"]


def test_a_model_of_the_age_alone_is_answered_in_closed_form() -> None:
    frame = random_frame(200, seed=1)
    frame["dx"] = np.where(frame["age"] > 50, "mel", "akiec")  # at encoded age 0 the first class wins
    model = linear_model({("age", None, "mel"): 2.0})
    loader = make_loader(model.config, make_samples(frame, model.config))
    results = results_of(model, loader, seeds=2)
    encoded = (np.arange(0, 90, 5) - 50) / 20
    melanoma = np.exp(2 * encoded) / (np.exp(2 * encoded) + 6)
    sweep = results["age_sweep"]
    assert sweep["ages"] == list(range(0, 90, 5))
    np.testing.assert_allclose(sweep["melanoma"]["mean"], melanoma, rtol=1e-5)
    np.testing.assert_allclose(sweep["melanoma"]["low"], melanoma, rtol=1e-5)  # the same for every image
    np.testing.assert_allclose(sweep["malignant"]["mean"], melanoma + 2 * (1 - melanoma) / 6, rtol=1e-5)
    slope = np.polyfit(np.arange(0, 90, 5) / 10, melanoma, 1)[0]
    assert sweep["slope_per_decade"]["estimate"] == pytest.approx(slope, rel=1e-5)
    assert sweep["flip_share"]["estimate"] == 1  # everybody is a melanoma at 85 and an akiec at 0
    assert results["named"] == ["age"]
    assert "shuffling age costs" in results["sentence"]
    assert "some other age with all else as it is flips" in results["sentence"]


def test_intervals_equal_the_bootstraps_that_exist() -> None:
    """A flip share is one minus the accuracy against the answers as is; a drop is a paired difference."""
    model, loader = random_model("fusion")
    samples = make_samples(random_frame(300), model.config)
    loader = make_loader(model.config, samples, batch_size=64)
    labels, groups = samples.labels.numpy(), np.arange(300) ** 2 // 900  # of 1 to 30 images
    probabilities = perturbed_probabilities(model, loader, seed=0)
    results = results_of(model, loader, groups, seed=5, confidence=0.9, n_resamples=300)
    options: Any = {"n_resamples": 300, "confidence": 0.9, "seed": 5}
    as_is = probabilities["as_is"].argmax(axis=1)
    for field in ("age", "localization", "all"):
        found = results["fields"][field]["unknown"]
        other = probabilities[f"unknown:{field}"]
        same = cluster_bootstrap(as_is, other.argmax(axis=1), groups, ["accuracy"], **options)["accuracy"]
        flips = found["flip_share"]
        assert (flips["estimate"], flips["low"], flips["high"]) == pytest.approx(
            (1 - same.estimate, 1 - same.high, 1 - same.low)  # type: ignore[operator]
        )
        assert flips["estimate"] > 0
        drop = paired_differences(labels, probabilities["as_is"], other, groups, metrics=["macro_f1"], **options)
        shown = {key: found["macro_f1_drop"][key] for key in drop["macro_f1"]}
        assert shown == pytest.approx(drop["macro_f1"])
    score = cluster_bootstrap(labels, as_is, groups, ["macro_f1"], **options)["macro_f1"]
    assert results["macro_f1"] == pytest.approx(score.as_dict())


def test_false_positives_stay_within_the_nominal_five_per_cent() -> None:
    """Labels drawn at random, again and again: whatever a shuffle seems to cost is chance."""
    model, _ = random_model("metadata")
    loader = make_loader(model.config, make_samples(random_frame(200), model.config), batch_size=200)
    perturbed = [perturbed_probabilities(model, loader, seed=0, repeats=1)]
    generator = np.random.default_rng(0)
    named, quiet = 0, ""
    for seed in range(100):
        labels = generator.integers(0, 7, 200)
        results = shortcut_results(labels, perturbed, np.arange(200), sites=LOCALIZATIONS, n_resamples=200, seed=seed)
        named += bool(results["named"])
        quiet = quiet if results["named"] else results["sentence"]
    assert named <= 10  # of 100; more than that has a probability of 1 % at 5 %
    assert quiet.startswith("No field could be shown to matter at this size (200 images of 200 lesions)")


def test_seeds_and_repeats_are_averaged() -> None:
    model, loader = random_model("metadata")
    labels, groups = loader.samples.labels.numpy(), np.arange(24)
    options: Any = {"sites": LOCALIZATIONS, "n_resamples": 50}
    parts = [perturbed_probabilities(model, loader, seed=seed, repeats=2) for seed in (0, 1)]
    parts[1]["as_is"] = np.roll(parts[1]["as_is"], 1, axis=1)
    both = shortcut_results(labels, parts, groups, **options)
    single = [shortcut_results(labels, [part], groups, **options) for part in parts]

    def figures(results: dict[str, Any]) -> np.ndarray:
        shuffled = results["fields"]["age"]["shuffled"]
        found = [
            results["macro_f1"],
            shuffled["macro_f1_drop"],
            shuffled["flip_share"],
            results["missing"][3]["macro_f1"],
        ]
        found += [results["age_sweep"]["flip_share"], results["site_sweep"]["flip_share"]]
        return np.array([interval["estimate"] for interval in found])

    np.testing.assert_allclose(figures(both), (figures(single[0]) + figures(single[1])) / 2)
    assert both["repeats"] == 2


def test_results_of_inputs_that_do_not_fit_are_errors() -> None:
    model, loader = random_model("metadata")
    labels, groups, part = loader.samples.labels.numpy(), np.arange(24), perturbed_probabilities(model, loader, seed=0)
    options: Any = {"sites": LOCALIZATIONS, "n_resamples": 20}
    with pytest.raises(Ham10000Error, match="empty"):
        shortcut_results(labels, [], groups, **options)
    with pytest.raises(Ham10000Error, match=r"\(24, 7\) for 23 labels"):
        shortcut_results(labels[1:], [part], groups[1:], **options)
    with pytest.raises(Ham10000Error, match="23 lesion groups for 24 labels"):
        shortcut_results(labels, [part], groups[1:], **options)
    with pytest.raises(Ham10000Error, match="Seeds 0 and 1"):
        shortcut_results(labels, [part, {**part, "shuffled:age": part["shuffled:age"][:1]}], groups, **options)
    with pytest.raises(Ham10000Error, match="14 sites, but 2 names"):
        shortcut_results(labels, [part], groups, **{**options, "sites": ["back", "ear"]})
    with pytest.raises(Ham10000Error, match="does not sum to 1"):
        shortcut_results(labels, [{**part, "unknown:sex": part["unknown:sex"] / 2}], groups, **options)
