"""How answers change when only the metadata do: shuffled, unknown, missing at random, or swept."""

import zlib
from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import torch

from ham10000.modeling import Ham10000Config
from ham10000.training.evaluation.bootstrap import Bootstrap, Estimate, Sample
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm
from ham10000.training.inference.explanation import SWEEP_AGES
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.utils.files import JsonObject

REPEATS = 5  # how often what is random is drawn
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

    values: list[float] | list[str]
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
    missing: list[JsonObject]
    age_sweep: Sweep | None
    site_sweep: Sweep | None


def changes(config: Ham10000Config, metadata: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and changed metadata (M, N, fields), one at a time.

    Shuffling a field breaks its tie to the class and keeps its distribution (permutation importance: Breiman 2001,
    10.1023/A:1010933404324, section 10).

    Args:
        config: Metadata schema.
        metadata: (N, fields) raw metadata.

    Yields:
        `shuffled:FIELD`, `unknown:FIELD`, both also for `all`; `missing:SHARE`; `age_sweep` and `site_sweep`.
    """

    def generator(name: str) -> np.random.Generator:
        # By name, so that a draw does not depend on which other fields the model has.
        return np.random.default_rng((0, zlib.crc32(name.encode())))

    fields = {name: [column] for column, name in enumerate(config.metadata_fields)}
    for field, columns in (fields | {"all": list(range(len(fields)))}).items():
        draws = generator(f"shuffled:{field}")
        shuffled = metadata.repeat(REPEATS, 1, 1)
        for table in shuffled:
            table[:, columns] = metadata[torch.from_numpy(draws.permutation(len(metadata)))][:, columns]
        yield f"shuffled:{field}", shuffled
        unknown = metadata.clone()[None]
        unknown[..., columns] = float("nan")
        yield f"unknown:{field}", unknown
    for share in MISSING_SHARES:
        absent = generator(f"missing:{share}").random((REPEATS, *metadata.shape)) < share
        yield f"missing:{share}", metadata.repeat(REPEATS, 1, 1).masked_fill(torch.from_numpy(absent), float("nan"))
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
    """
    seeds, classes = range(len(fitted.heads)), fitted.predictions.classes
    as_is = fitted.all_answers(rule)  # (S, N)
    base = _macro_f1(bootstrap, as_is[:, None])
    fields: dict[str, dict[str, Effect]] = {}
    found: Shortcuts = {
        "repeats": REPEATS,
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
        if kind in ("age_sweep", "site_sweep"):
            probabilities = np.stack([fitted.calibrated(logits[s], s) for s in seeds]).mean(axis=0)  # (M, N, K)
            melanoma, suspicious = (
                bootstrap.means(probabilities[..., np.isin(classes, labels)].sum(axis=-1))
                for labels in (["mel"], malignant)
            )
            of_age = kind == "age_sweep"
            found["age_sweep" if of_age else "site_sweep"] = {
                "values": list(SWEEP_AGES if of_age else config.localization_vocabulary),
                "melanoma": [sample.summary() for sample in melanoma],
                "malignant": [sample.summary() for sample in suspicious],
                "flips": bootstrap.means((answers != as_is[:, None]).any(axis=1).mean(axis=0)[None])[0].summary(),
                "change": (_slope(melanoma, SWEEP_AGES) if of_age else _range(melanoma)).summary(),
            }
            continue
        score, flips = _macro_f1(bootstrap, answers), _flips(bootstrap, answers, as_is)
        if kind == "missing":
            found["missing"].append({"share": float(what), "macro_f1": score.summary(), "flips": flips})
            continue
        if name == "unknown:all":
            hidden = {"share": 1.0, "macro_f1": score.summary(), "flips": flips}
        drop = base - score
        effect: Effect = {
            "drop": drop.summary(),
            "p": bootstrap_p_value(drop.values),
            "p_holm": None,
            "flips": flips,
        }
        fields.setdefault(what, {})[kind] = effect
    found["missing"].append(hidden)
    single = [field for field in fields if field != "all"]
    for kind in ("shuffled", "unknown"):
        for field, p in zip(single, holm([fields[field][kind]["p"] for field in single]), strict=True):
            fields[field][kind]["p_holm"] = p
            if kind == "shuffled" and p < ALPHA and (fields[field][kind]["drop"]["estimate"] or 0) > 0:
                found["named"].append(field)
    return found


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
