"""What metadata give away: how answers change when only they do, and how far they go without an image.

`dx_type` says how a diagnosis was made and `dataset` where an image came from; both give the class away and exist for
no new patient. How much they give away is measured with logistic regressions that live inside one function call:
nothing here can save a model, and `Ham10000Config` refuses both columns as inputs.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypedDict

import numpy as np
import pandas as pd
import torch
from sklearn.base import ClassifierMixin
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.utils.class_weight import compute_sample_weight

from ham10000.modeling import MALIGNANT, METADATA_FIELDS, Ham10000Config, Ham10000Error
from ham10000.training.evaluation.bootstrap import Bootstrap, Estimate, Sample, mean_sample
from ham10000.training.evaluation.comparison import bootstrap_p_value, holm
from ham10000.training.evaluation.metrics import softmax
from ham10000.training.inference.explanation import SWEEP_AGES
from ham10000.training.study.crossfit import CrossFitted
from ham10000.training.study.predictions import Predictions
from ham10000.training.utils.files import JsonObject

REPEATS = 5  # how often what is random is drawn
MISSING_SHARES = tuple(tenths / 10 for tenths in range(1, 10))
ALPHA = 0.05  # of every test: a field is named where the loss from shuffling it has a smaller p after Holm
FORBIDDEN = ("dx_type", "dataset")
# Below this a probability says no more than "not at all"; without a floor one logarithm would outweigh all others.
_LOWEST_PROBABILITY = 1e-6
_AGE_STEP = 5  # years; the ages of HAM10000 are multiples of it


class Effect(TypedDict):
    """Of one change: macro-F1 lost, its p-value alone and after Holm (None for all fields), and the share of flips."""

    drop: Estimate
    p: float
    p_holm: float | None
    flips: Estimate


class Sweep(TypedDict):
    """Along a sweep, with the image fixed: values, melanoma and malignant probability, flips, and slope or range."""

    values: list[int] | list[str]
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
    age_sweep: Sweep
    site_sweep: Sweep


class Baseline(TypedDict):
    """One row: what was fitted on what, its scores, and the macro-F1 gained over the allowed inputs alone."""

    name: str
    scores: dict[str, Estimate]
    gain: Estimate | None


def changes(config: Ham10000Config, metadata: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields names and changed metadata (M, N, fields), one at a time.

    They are `shuffled:FIELD` and `unknown:FIELD`, both also for `all`, `missing:SHARE`, `age_sweep` and `site_sweep`.
    Shuffling is permutation importance (Breiman 2001, 10.1023/A:1010933404324, section 10).
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
        swept = metadata.repeat(len(values), 1, 1)
        swept[:, :, fields[field][0]] = torch.tensor(list(values), dtype=metadata.dtype)[:, None]
        yield name, swept


def shortcut_results(
    fitted: CrossFitted, metadata: torch.Tensor, config: Ham10000Config, bootstrap: Bootstrap, rule: str
) -> Shortcuts:
    """A variant's entry in study.json: what each field of metadata is worth to it, and how far it moves the answers.

    Every image's metadata are changed and its own fold's head answers. Everything is a mean over seeds and draws,
    computed in every resample of the lesions; `p_holm` is the p-value after Holm's correction over the single fields.
    """
    as_is = fitted.answers(rule)  # (S, N)
    base = _macro_f1(bootstrap, as_is[:, None])
    fields: dict[str, dict[str, Effect]] = {}
    sweeps: dict[str, Sweep] = {}
    missing = [{"share": 0.0, "macro_f1": base.summary(), "flips": _flips(bootstrap, as_is[:, None], as_is)}]
    for name, tables in changes(config, metadata):
        logits = fitted.head_logits(tables)
        answers = fitted.answers(rule, logits)  # (S, M, N)
        kind, _, what = name.partition(":")
        if kind in ("age_sweep", "site_sweep"):
            probabilities = fitted.probabilities(logits).mean(axis=0)  # (M, N, K)
            melanoma, malignant = (
                bootstrap.means(probabilities[..., np.isin(fitted.predictions.classes, labels)].sum(axis=-1))
                for labels in (["mel"], MALIGNANT)
            )
            of_age = kind == "age_sweep"
            sweeps[kind] = {
                "values": [*SWEEP_AGES] if of_age else [*config.localization_vocabulary],
                "melanoma": [sample.summary() for sample in melanoma],
                "malignant": [sample.summary() for sample in malignant],
                "flips": bootstrap.means((answers != as_is[:, None]).any(axis=1).mean(axis=0)[None])[0].summary(),
                "change": (_slope(melanoma, SWEEP_AGES) if of_age else _range(melanoma)).summary(),
            }
            continue
        score, flips = _macro_f1(bootstrap, answers), _flips(bootstrap, answers, as_is)
        if kind == "missing" or name == "unknown:all":
            share = float(what) if kind == "missing" else 1.0
            missing.append({"share": share, "macro_f1": score.summary(), "flips": flips})
        if kind != "missing":
            drop = base - score
            effect: Effect = {
                "drop": drop.summary(),
                "p": bootstrap_p_value(drop.values),
                "p_holm": None,
                "flips": flips,
            }
            fields.setdefault(what, {})[kind] = effect
    single, named = [field for field in fields if field != "all"], []
    for kind in ("shuffled", "unknown"):
        for field, p in zip(single, holm([fields[field][kind]["p"] for field in single]), strict=True):
            fields[field][kind]["p_holm"] = p
            if kind == "shuffled" and p < ALPHA and (fields[field][kind]["drop"]["estimate"] or 0) > 0:
                named.append(field)
    return {
        "repeats": REPEATS,
        "as_is": base.summary(),
        "fields": fields,
        "named": named,
        "missing": sorted(missing, key=lambda row: row["share"]),
        "age_sweep": sweeps["age_sweep"],
        "site_sweep": sweeps["site_sweep"],
    }


def _macro_f1(bootstrap: Bootstrap, answers: np.ndarray) -> Sample:
    """(S, M, N) class ids to the mean macro-F1 over the M draws; every seed counts alike in each resample."""
    return mean_sample([bootstrap.scores(draw, ["macro_f1"])["macro_f1"] for draw in answers.transpose(1, 0, 2)])


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


# Answers to beat, and answers nobody may give


def baseline_rows(
    image: Predictions, frame: pd.DataFrame, bootstrap: Bootstrap
) -> tuple[list[Baseline], list[Baseline]]:
    """Fits every baseline on the other folds, like the heads with square-root class weights, and scores it.

    Returns the baselines that anyone may use, and the regressions with those forbidden columns that tell images apart.
    """
    if missing := sorted({*METADATA_FIELDS, *FORBIDDEN} - set(frame.columns)):
        raise Ham10000Error(f"The data lack the column(s) {missing}, which baselines need.")
    metadata = list(METADATA_FIELDS)
    seen = np.log(np.maximum(softmax(image.logits[0]), _LOWEST_PROBABILITY))
    unseen = seen[:, :0]
    majority = np.bincount(image.labels).argmax()
    answers = {
        f"always {image.classes[majority]}": np.full(len(image.labels), majority),
        "logistic regression on metadata": _regression(image, frame, metadata, unseen),
        "gradient boosting on metadata": _boosting(image, frame),
    }
    allowed = [_row(name, ids, bootstrap) for name, ids in answers.items()]
    # A column that the source lacks is "unknown" in every row: a gain of 0 would say that it gives nothing away.
    known = tuple(name for name in FORBIDDEN if frame[name].nunique() > 1)
    if not known:
        return allowed, []
    single: list[tuple[str, ...]] = [(name,) for name in known] if len(known) > 1 else []
    forbidden = []
    for base, columns, extra, added in (
        ("age, sex, site", metadata, unseen, ((), *single, known)),
        ("", [], unseen, (known,)),
        ("image", [], seen, ((), known)),
    ):
        reference: np.ndarray | None = None
        for more in added:
            ids = _regression(image, frame, [*columns, *more], extra)
            forbidden.append(_row(", ".join(filter(None, [base, *more])), ids, bootstrap, reference))
            reference = ids if not more else reference
    return allowed, forbidden


def _row(name: str, ids: np.ndarray, bootstrap: Bootstrap, reference: np.ndarray | None = None) -> Baseline:
    scores = bootstrap.scores(ids[None], ("macro_f1", "balanced_accuracy", "accuracy"))
    gain = None
    if reference is not None:
        gain = (scores["macro_f1"] - bootstrap.scores(reference[None], ["macro_f1"])["macro_f1"]).summary()
    return {"name": name, "scores": {key: value.summary() for key, value in scores.items()}, "gain": gain}


def _out_of_fold(image: Predictions, features: np.ndarray, make: Callable[[], ClassifierMixin]) -> np.ndarray:
    """(N,) class ids, each fold's from a model fitted on the others."""
    ids = np.empty(len(image.labels), dtype=np.int64)
    for fold in np.unique(image.folds):
        test = image.folds == fold
        labels = image.labels[~test]
        weights = np.sqrt(compute_sample_weight("balanced", labels))
        model = make().fit(features[~test], labels, sample_weight=weights)
        ids[test] = model.predict(features[test])
    return ids


def _regression(image: Predictions, frame: pd.DataFrame, columns: Sequence[str], extra: np.ndarray) -> np.ndarray:
    """Multinomial logistic regression on one-hot columns (age in steps, missing a value of its own) and more."""
    table = frame[list(columns)].copy()
    if "age" in table:
        steps = table["age"].astype(float) // _AGE_STEP * _AGE_STEP
        table["age"] = [f"{age:g}" if age == age else "unknown" for age in steps]
    one_hot = pd.get_dummies(table.fillna("unknown").astype(str)) if columns else table
    features = np.hstack([extra, one_hot.to_numpy(dtype=float)])
    return _out_of_fold(image, features, lambda: LogisticRegression(max_iter=2000))


def _boosting(image: Predictions, frame: pd.DataFrame) -> np.ndarray:
    """scikit-learn's histogram gradient boosting with its defaults; sex and site categorical, age as a number."""
    categorical = [name != "age" for name in METADATA_FIELDS]
    table = [
        frame[name].astype(float) if name == "age" else pd.factorize(frame[name].fillna("unknown"))[0]
        for name in METADATA_FIELDS
    ]
    make = partial(HistGradientBoostingClassifier, categorical_features=categorical, random_state=0)
    return _out_of_fold(image, np.column_stack(table), make)
