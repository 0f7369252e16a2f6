"""How answers change when only the metadata do: shuffled, unknown, missing at random, or swept."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from ham10000.modeling import Ham10000Config, Ham10000Error
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm
from ham10000.training.inference.explanation import SWEEP_AGES
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.resampling import Bootstrap, Estimate, Sample

MISSING_SHARES = tuple(tenths / 10 for tenths in range(1, 10))
# A field is named where the loss from shuffling it has a Holm-corrected p below this.
ALPHA = 0.05


class Effect(TypedDict):
    """Of one change: macro-F1 lost, its p-value alone and after Holm (None for all fields), and the share of flips."""

    drop: Estimate
    p: float
    p_holm: float | None
    flips: Estimate


class Sweep(TypedDict):
    """Along a sweep, with the image fixed: values, melanoma and malignant probability, flips, and slope or range."""

    values: list[Any]
    melanoma: list[Estimate]
    malignant: list[Estimate]
    flips: Estimate
    change: Estimate


class Shortcuts(TypedDict):
    """What each field of metadata is worth to a variant, and how far it moves the answers."""

    repeats: int
    as_is: Estimate
    fields: dict[str, dict[str, Effect]]
    named: list[str]
    missing: list[dict[str, Any]]
    age_sweep: Sweep | None
    site_sweep: Sweep | None


def changes(
    config: Ham10000Config, metadata: torch.Tensor, *, seed: int = 0, repeats: int = 5
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and changed metadata (M, N, fields), one at a time.

    Shuffling a field breaks its tie to the class and keeps its distribution (permutation importance: Breiman 2001,
    10.1023/A:1010933404324, section 10).

    Args:
        config: Metadata schema.
        metadata: (N, fields) raw metadata.
        seed: Seed of the permutations and of what goes missing.
        repeats: How often what is random is drawn.

    Yields:
        `shuffled:FIELD`, `unknown:FIELD`, both also for `all`; `missing:SHARE`; `age_sweep` and `site_sweep`.
    """

    def generator(name: str) -> np.random.Generator:
        # By name, so that a draw does not depend on which other fields the model has.
        return np.random.default_rng((seed, zlib.crc32(name.encode())))

    fields = {name: [column] for column, name in enumerate(config.metadata_fields)}
    for field, columns in (fields | {"all": list(range(len(fields)))}).items():
        draws = generator(f"shuffled:{field}")
        shuffled = metadata.repeat(repeats, 1, 1)
        for table in shuffled:
            table[:, columns] = metadata[torch.from_numpy(draws.permutation(len(metadata)))][:, columns]
        yield f"shuffled:{field}", shuffled
        unknown = metadata.clone()[None]
        unknown[..., columns] = float("nan")
        yield f"unknown:{field}", unknown
    for share in MISSING_SHARES:
        absent = generator(f"missing:{share}").random((repeats, *metadata.shape)) < share
        yield f"missing:{share}", metadata.repeat(repeats, 1, 1).masked_fill(torch.from_numpy(absent), float("nan"))
    for field, name, values in (
        ("age", "age_sweep", SWEEP_AGES),
        ("localization", "site_sweep", range(len(config.localization_vocabulary))),
    ):
        if field in fields:
            swept = metadata.repeat(len(values), 1, 1)
            swept[:, :, fields[field][0]] = torch.tensor(list(values), dtype=metadata.dtype)[:, None]
            yield name, swept


def shortcut_results(
    fitted: CrossFitted,
    metadata: torch.Tensor,
    config: Ham10000Config,
    bootstrap: Bootstrap,
    *,
    rule: str,
    malignant: Sequence[str],
) -> Shortcuts:
    """Changes the metadata of every image, lets its own fold's head answer, and compares.

    Everything is a mean over seeds and draws, computed in every resample of the lesions.

    Args:
        fitted: A variant that reads metadata.
        metadata: (N, fields) its images' raw metadata.
        config: Metadata schema.
        bootstrap: Resampled lesions of the same images.
        rule: Decision rule of answers.
        malignant: Names of the malignant classes.

    Returns:
        The variant's entry in study.json.

    Raises:
        Ham10000Error: For the image variant.
    """
    if not fitted.heads:
        raise Ham10000Error("The image variant reads no metadata, so there is nothing to change.")
    seeds = range(len(fitted.heads))
    as_is = fitted.all_answers(rule)  # (S, N)
    base = _macro_f1(bootstrap, as_is[:, None])
    fields: dict[str, dict[str, Effect]] = {}
    results: Shortcuts = {
        "repeats": 0,
        "as_is": base.summary(),
        "fields": fields,
        "named": [],
        "missing": [{"share": 0.0, "macro_f1": base.summary(), "flips": _flips(bootstrap, as_is[:, None], as_is)}],
        "age_sweep": None,
        "site_sweep": None,
    }
    for name, tables in changes(config, metadata):
        logits = np.stack([[fitted.head_logits(table, s) for table in tables] for s in seeds])  # (S, M, N, K)
        answers = np.stack([fitted.answers(logits[s], s, rule) for s in seeds])
        kind, _, what = name.partition(":")
        if kind in ("shuffled", "unknown"):
            drop = base - _macro_f1(bootstrap, answers)
            effect: Effect = {
                "drop": drop.summary(),
                "p": bootstrap_p_value(drop.values),
                "p_holm": None,
                "flips": _flips(bootstrap, answers, as_is),
            }
            fields.setdefault(what, {})[kind] = effect
            results["repeats"] = max(results["repeats"], len(tables))
        elif kind == "missing":
            score = _macro_f1(bootstrap, answers).summary()
            results["missing"].append(
                {"share": float(what), "macro_f1": score, "flips": _flips(bootstrap, answers, as_is)}
            )
        else:
            probabilities = np.stack([fitted.calibrated(logits[s], s) for s in seeds]).mean(axis=0)  # (M, N, K)
            curves = {
                group: bootstrap.means(probabilities[..., np.isin(fitted.predictions.classes, labels)].sum(axis=-1))
                for group, labels in (("melanoma", ["mel"]), ("malignant", malignant))
            }
            flips = bootstrap.means((answers != as_is[:, None]).any(axis=1).mean(axis=0)[None])[0]
            if name == "age_sweep":
                results["age_sweep"] = _sweep(SWEEP_AGES, curves, flips, _slope(curves["melanoma"], SWEEP_AGES))
            else:
                results["site_sweep"] = _sweep(
                    config.localization_vocabulary, curves, flips, _range(curves["melanoma"])
                )
    everything = fields["all"]["unknown"]
    total = _macro_f1(bootstrap, _hidden_answers(fitted, metadata, rule)[:, None])
    results["missing"].append({"share": 1.0, "macro_f1": total.summary(), "flips": everything["flips"]})
    results["named"] = _named(fields)
    return results


def _named(fields: dict[str, dict[str, Effect]]) -> list[str]:
    """Corrects the p-values of the single fields by Holm, and names those whose shuffling costs macro-F1."""
    single = [field for field in fields if field != "all"]
    for kind in ("shuffled", "unknown"):
        corrected = holm([fields[field][kind]["p"] for field in single])
        for field, p in zip(single, corrected, strict=True):
            fields[field][kind]["p_holm"] = p
    return [field for field in single if _matters(fields[field]["shuffled"])]


def _hidden_answers(fitted: CrossFitted, metadata: torch.Tensor, rule: str) -> np.ndarray:
    hidden = torch.full_like(metadata, float("nan"))
    return np.stack([fitted.answers(fitted.head_logits(hidden, s), s, rule) for s in range(len(fitted.heads))])


def _matters(effect: Effect) -> bool:
    drop, p = effect["drop"]["estimate"], effect["p_holm"]
    return drop is not None and drop > 0 and p is not None and p < ALPHA


def _macro_f1(bootstrap: Bootstrap, answers: np.ndarray) -> Sample:
    """(S, M, N) class ids to the mean macro-F1 over the M draws; every seed counts alike in each resample."""
    samples = [bootstrap.scores(of_draw, ["macro_f1"])["macro_f1"] for of_draw in answers.transpose(1, 0, 2)]
    return Sample(
        np.mean([sample.per_seed for sample in samples], axis=0),
        np.mean([sample.values for sample in samples], axis=0),
    )


def _flips(bootstrap: Bootstrap, answers: np.ndarray, as_is: np.ndarray) -> Estimate:
    """Share of images whose answer is another one than as is; (S, M, N) and (S, N) class ids."""
    return bootstrap.means((answers != as_is[:, None]).mean(axis=(0, 1))[None])[0].summary()


def _sweep(values: Sequence[Any], curves: dict[str, list[Sample]], flips: Sample, change: Sample) -> Sweep:
    return {
        "values": list(values),
        "melanoma": [sample.summary() for sample in curves["melanoma"]],
        "malignant": [sample.summary() for sample in curves["malignant"]],
        "flips": flips.summary(),
        "change": change.summary(),
    }


def _slope(curve: Sequence[Sample], ages: Sequence[float]) -> Sample:
    """The least-squares slope per decade of age."""
    decades = np.array(ages) / 10 - np.mean(ages) / 10
    slopes = decades / (decades**2).sum()
    means, values = [sample.estimate for sample in curve], np.stack([sample.values for sample in curve])
    return Sample(np.array([means @ slopes]), slopes @ values)


def _range(curve: Sequence[Sample]) -> Sample:
    """The highest minus the lowest value of the curve."""
    means = np.array([sample.estimate for sample in curve])
    # The same two sites in every resample: the largest difference of each would lie above that of the sample.
    return curve[int(means.argmax())] - curve[int(means.argmin())]


__all__ = ["ALPHA", "MISSING_SHARES", "Effect", "Shortcuts", "Sweep", "changes", "shortcut_results"]
