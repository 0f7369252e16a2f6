"""For the tests of the report: a plausible study.json by its schema, seeded, with every option that changes it.

Numbers are invented, but fit together as those of a real study do: estimates lie in their intervals, means are those
of the seeds, images are at least as many as lesions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ham10000.modeling import LABELS, LOCALIZATIONS
from ham10000.training.config import TrainConfig

METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "weighted_f1",
    "auroc_macro",
    "melanoma_sensitivity_at_95_specificity",
    "ece_uncalibrated",
    "ece",
    "nll_uncalibrated",
    "nll",
)
IMAGE_VALUES = (0.657, 0.691, 0.810, 0.806, 0.946, 0.360, 0.099, 0.041, 0.72, 0.58)
COUNTS = (33, 51, 110, 12, 111, 671, 14)
LESIONS = (23, 33, 73, 7, 61, 538, 10)
GROUPS = {
    "age": ("under 30", "30-44", "45-59", "60 and over", "unknown"),
    "sex": ("female", "male", "unknown"),
    "site": ("head and neck", "trunk", "upper extremity", "lower extremity", "acral or genital", "unknown"),
    "photographs": ("1", "2", "3 or more"),
}
FIELDS = ("age", "sex", "localization")


class Example:
    """Builds the parts; one generator, so that one seed gives one study."""

    def __init__(self, *, seeds: int, undefined: bool, too_small: bool, random_seed: int) -> None:
        self.seeds, self.undefined, self.too_small = seeds, undefined, too_small
        self.random = np.random.default_rng(random_seed)

    def interval(self, estimate: float, half: float = 0.06, **more: Any) -> dict[str, Any]:
        low, high = (estimate + sign * half * self.random.uniform(0.8, 1.2) for sign in (-1, 1))
        return {"estimate": estimate, "low": low, "high": high, "n_defined": 2000, **more}

    def share(self, estimate: float, half: float = 0.02) -> dict[str, Any]:
        value = self.interval(estimate, half)
        return value | {"low": max(0.0, value["low"]), "high": min(1.0, value["high"])}

    def metric(self, mean: float, half: float = 0.06, sd: float = 0.012) -> dict[str, Any]:
        values = np.clip(mean + self.random.normal(0, sd, self.seeds), 0, 0.99)
        mean = float(values.mean())
        return {
            "mean": mean,
            "sd": float(values.std(ddof=1)) if self.seeds > 1 else None,
            "per_seed": values.tolist(),
            "low": max(0.0, mean - half * self.random.uniform(0.8, 1.2)),
            "high": min(1.0, mean + half * self.random.uniform(0.8, 1.2)),
        }

    def nothing(self) -> dict[str, Any]:
        return {"mean": None, "sd": None, "per_seed": [None] * self.seeds, "low": None, "high": None}

    def metrics(self, shift: float, names: Sequence[str] = METRICS) -> dict[str, Any]:
        found = {
            name: self.metric(
                value if name.startswith(("ece", "nll")) else max(0.13, value + shift * (1 - value) / 0.343),
                half=0.015 if name.startswith("ece") else 0.06,
                sd=0.004 if name.startswith("ece") else 0.012,
            )
            for name, value in zip(METRICS, IMAGE_VALUES, strict=True)
            if name in names
        }
        if self.undefined and "auroc_macro" in found:
            found["auroc_macro"] = self.nothing()
            found["melanoma_sensitivity_at_95_specificity"] |= {"low": None, "high": None}
        return found

    def per_class(self, shift: float) -> dict[str, Any]:
        rows = {
            label: {name: self.metric(min(0.95, 0.5 + 0.06 * k + shift), 0.1) for name in ("recall", "f1")}
            for k, label in enumerate(LABELS)
        }
        if self.undefined:
            rows["df"] = {"recall": self.nothing(), "f1": self.metric(0.0, 0.0, 0.0)}
        return rows

    def subgroups(self, shift: float) -> dict[str, Any]:
        fields, gaps = {}, {}
        for field, names in GROUPS.items():
            rows = []
            for place, name in enumerate(names):
                malignant = 4 if name in ("unknown", "acral or genital") or self.too_small else 40 + 10 * place
                row = {
                    "group": name,
                    "n_images": 120 + 60 * place,
                    "n_lesions": 90 + 40 * place,
                    "n_malignant": 0 if name == "unknown" else malignant,
                    "n_malignant_lesions": 0 if name == "unknown" else malignant * 3 // 4,
                }
                row["too_few"] = row["n_malignant_lesions"] < 10
                row |= {
                    "accuracy": self.share(0.8 - 0.02 * place, 0.05),
                    "malignant_sensitivity": self.share(min(0.95, 0.55 + 0.08 * place + shift), 0.1),
                    "malignant_specificity": self.share(0.93 - 0.02 * place, 0.03),
                }
                if not row["n_malignant"]:
                    row["malignant_sensitivity"] = {"estimate": None, "low": None, "high": None, "n_defined": 0}
                rows.append(row)
            fields[field], gaps[field] = rows, self._gap(rows)
        return {"min_malignant_lesions": 10, "fields": fields, "largest_gaps": gaps}

    def _gap(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        found = {
            row["group"]: row["malignant_sensitivity"]["estimate"]
            for row in rows
            if not row["too_few"] and row["group"] != "unknown"
        }
        if len(found) < 2:
            return None
        lowest, highest = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        difference = self.interval(found[highest] - found[lowest], 0.12)
        return {"lowest": lowest, "highest": highest, "difference": difference}

    def leakage(self) -> dict[str, Any]:
        names = ("macro_f1", "balanced_accuracy", "accuracy")
        parts: dict[str, Any] = {
            "seen": {"n_images": 398, "n_lesions": 310, "metrics": {name: self.metric(0.86) for name in names}},
            "unseen": {"n_images": 601, "n_lesions": 560, "metrics": {name: self.metric(0.72) for name in names}},
        }
        parts["classes"] = [label for label in LABELS if label != "df"]
        parts["difference"] = {name: self.metric(0.14, 0.05) for name in names}
        if self.undefined:
            parts["difference"]["macro_f1"] = self.nothing()
        return parts

    def cost(self, variant: str, folds: int) -> dict[str, Any]:
        runs = self.seeds * folds
        slow = variant != "metadata"
        return {
            "training_seconds": (self.random.uniform(0.9, 1.1, runs) * (2040 if slow else 7)).tolist(),
            "images_per_second": (self.random.uniform(0.9, 1.1, runs) * (39 if slow else 19472)).tolist(),
            "parameters": 5_879_447 if slow else 9_415,
            "peak_rss_mib": [3051.7 if slow else 1024.0] * runs,
            "peak_cuda_mib": None,
            "hardware": "2 cores of AMD EPYC",
            "best_epoch": [9] * runs,
            "epochs": [10] * runs,
            "commits": ["c0ffee" + "0" * 34],
        }

    def drop(self, estimate: float, p: float | None) -> dict[str, Any]:
        return {
            "macro_f1_drop": self.interval(estimate, 0.02, p=0.012),
            "p_holm": p,
            "flip_share": self.share(max(0.02, 2 * estimate)),
        }

    def shortcuts(self, variant: str, named: Sequence[str], sites: Sequence[str], macro_f1: float) -> dict[str, Any]:
        fields = {}
        for field in (*FIELDS, "all"):
            large = 0.08 if field in named else 0.16 if field == "all" else 0.002
            p = None if field == "all" else 0.003 if field in named else 0.9
            fields[field] = {"shuffled": self.drop(large, p), "unknown": self.drop(large * 0.7, p)}
        ages, level = list(range(0, 90, 5)), np.linspace(0.04, self.random.uniform(0.1, 0.2), 18)
        sites_level = np.linspace(0.06, 0.15, len(sites))[self.random.permutation(len(sites))]
        reads = ", ".join(named)
        return {
            "n_images": sum(COUNTS),
            "repeats": 5,
            "macro_f1": self.interval(macro_f1),
            "fields": fields,
            "named": list(named),
            "note": "That a model reads a field is not by itself wrong.",
            "sentence": f"{variant} reads {reads}: shuffling costs 0.080 macro-F1."
            if named
            else f"No field could be shown to matter to {variant} at this size.",
            "missing": [
                {
                    "share": k / 10,
                    "macro_f1": self.interval(macro_f1 - 0.006 * k),
                    "flip_share": self.share(0.02 * k) if k else {"estimate": 0.0, "low": 0.0, "high": 0.0},
                }
                for k in range(11)
            ],
            "age_sweep": {
                "ages": ages,
                "melanoma": _curve(level, 0.015),
                "malignant": _curve(level * 2, 0.03),
                "flip_share": self.share(0.31),
                "slope_per_decade": self.interval(float(level[-1] - level[0]) / 8.5, 0.004),
            },
            "site_sweep": {
                "sites": list(sites),
                "melanoma": _curve(sites_level, 0.015),
                "malignant": _curve(sites_level * 2, 0.03),
                "flip_share": self.share(0.22),
                "range": self.interval(0.09, 0.02),
            },
        }

    def comparison(self, model: str, other: str, kind: str, verdict: str) -> dict[str, Any]:
        sign = {"helps": 1, "hurts": -1}.get(verdict, 0)
        p = 0.012 if sign else 0.41
        metrics = {}
        for name in METRICS:
            if name.endswith("_uncalibrated"):
                continue
            centre = 0.044 * sign + 0.004
            metrics[name] = self.interval(
                -centre / 4 if name in ("ece", "nll") else centre,
                0.03,
                p=p,
                standard_error=0.0155,
                smallest_detectable=0.0434,
                per_seed=(centre + self.random.normal(0, 0.008, self.seeds)).tolist(),
            )
        if self.undefined:
            metrics["auroc_macro"] = dict.fromkeys(metrics["auroc_macro"]) | {"per_seed": [None] * self.seeds}
        primary = metrics["macro_f1"]
        words = verdict if sign else "cannot be told apart at this size (745 lesions); 0.051 would have been found"
        return {
            "name": f"{model} - {other}",
            "model": model,
            "other": other,
            "kind": kind,
            "primary": "macro_f1",
            "metrics": metrics,
            "p_holm": p,
            "smallest_detectable": 0.0511,
            "mcnemar": {
                "images": {"only_model_right": 61, "only_other_right": 44, "p": 0.098},
                "lesions": {"only_model_right": 40, "only_other_right": 31, "p": 0.29},
                "p_holm": 0.58,
            },
            "verdict": verdict,
            "sentence": f"{model} against {other}: macro-F1 {primary['estimate']:+.3f}, p = {p} after Holm: {words}.",
        }


def _curve(level: np.ndarray, half: float) -> dict[str, Any]:
    return {"mean": level.tolist(), "low": (level - half).tolist(), "high": (level + half).tolist()}


def _class_changes(generator: np.random.Generator) -> dict[str, Any]:
    def both(images: int) -> dict[str, int]:
        return {"images": images, "lesions": images * 2 // 3}

    return {
        label: {
            "n_images": count,
            "n_lesions": lesions,
            "right_to_wrong": both(int(generator.integers(0, 3 + count // 12))),
            "wrong_to_right": both(int(generator.integers(0, 5 + count // 12))),
        }
        for label, count, lesions in zip(LABELS, COUNTS, LESIONS, strict=True)
    }


def _moved() -> list[dict[str, Any]]:
    directions = (("nv", "mel", "wrong_to_right"), ("mel", "nv", "right_to_wrong"), ("nv", "bkl", "wrong_to_wrong"))
    rows = []
    for index in range(30):
        before, after, direction = directions[index % 3]
        rows.append(
            {
                "lesion_id": f"HAM_{index // 2:07d}",
                "image_id": f"ISIC_{index:07d}",
                "dx": "mel",
                "before": before,
                "after": after,
                "direction": direction,
            }
        )
    benign = {"dx": "nv", "before": "mel", "after": "nv", "direction": "wrong_to_right"}
    return rows + [{"lesion_id": "HAM_0009999", "image_id": "ISIC_0009999", **benign}]


def _forbidden(example: Example) -> dict[str, Any]:
    rows = [("age, sex, localization", 17, 0.226, None), ("age, sex, localization, dx_type", 21, 0.331, 0.105)]
    rows.append(("dx_type, dataset", 8, 0.262, None))
    return {
        "rows": [
            {
                "features": features,
                "trained_on": "train",
                "n_columns": columns,
                "macro_f1": example.interval(score, 0.03),
                "balanced_accuracy": example.interval(score + 0.01, 0.03),
                "gain": None if gain is None else example.interval(gain, 0.02),
            }
            for features, columns, score, gain in rows
        ],
        "sentence": "dx_type would have bought 0.105 macro-F1 above the allowed metadata.",
    }


def _protocol(example: Example, name: str, options: dict[str, Any]) -> dict[str, Any]:
    grouped, variants = name == "lesion-grouped", options["variants"]
    lift = 0.0 if grouped else 0.12
    shifts = {"metadata": -0.43, "image": 0.0} | {key: 0.044 for key in variants if key.startswith("fusion-")}
    found = {}
    for variant in variants:
        shift = shifts[variant] + lift
        tta = (
            {"views": 4, "metrics": example.metrics(shift + 0.01)}
            if options["tta"] and variant != "metadata"
            else None
        )
        macro_f1 = IMAGE_VALUES[0] + shift
        found[variant] = {
            "metrics": example.metrics(shift),
            "per_class": example.per_class(shift / 2),
            "temperatures": [1.31] * example.seeds,
            "subgroups": example.subgroups(shift / 2),
            "confusion_matrix": np.diag(np.array(COUNTS, dtype=float)).tolist(),
            "leakage": example.leakage() if options["leakage"] and not grouped else None,
            "cost": example.cost(variant, options["folds"] or 1),
            "tta": tta,
            "shortcuts": None
            if variant == "image"
            else example.shortcuts(variant, options["named"], options["sites"], macro_f1),
        }
    fusions = [key for key in variants if key.startswith("fusion-")]
    pairs = [(key, "image", "metadata", options["verdict"]) for key in fusions if "image" in variants]
    pairs += [(key, fusions[0], "fusion", "cannot be told apart") for key in fusions[1:]]
    if options["tta"]:
        pairs += [(f"{key} (4 views)", key, "tta", "cannot be told apart") for key in variants if key != "metadata"]
    sizes = {"train": 8012, "validation": 1001, "test": 1002} if grouped else {"train": 7964, "validation": 995}
    with_image = fusions if "image" in variants else []
    return {
        "split": {
            "protocol": name,
            "seed": 42,
            "sizes": sizes | ({} if grouped else {"test": 999}),
            "sha256": ("ab" if grouped else "cd") * 32,
            "leakage": {part: {"all": 0.0 if grouped else 0.398} for part in ("validation", "test")},
        },
        "evaluated": {
            "n_images": sum(COUNTS),
            "n_lesions": sum(LESIONS),
            "class_counts": dict(zip(LABELS, COUNTS, strict=True)),
            "class_lesions": dict(zip(LABELS, LESIONS, strict=True)),
        },
        "variants": found,
        "comparisons": [example.comparison(*pair) for pair in pairs],
        "class_changes": {key: _class_changes(example.random) for key in with_image},
        "moved": {key: _moved() for key in with_image},
        "forbidden": _forbidden(example) if options["forbidden"] else None,
    }


def study_example(
    *,
    seeds: int = 1,
    folds: int | None = None,
    protocols: Sequence[str] = ("lesion-grouped",),
    variants: Sequence[str] = ("metadata", "image", "fusion-concat"),
    verdict: str = "helps",
    tta: bool = False,
    leakage: bool = True,
    named: Sequence[str] = ("localization",),
    sites: Sequence[str] = LOCALIZATIONS,
    forbidden: bool = True,
    too_small: bool = False,
    undefined: bool = False,
    random_seed: int = 0,
) -> dict[str, Any]:
    """A study.json as Python values.

    Args:
        seeds: Number of training seeds.
        folds: Folds of the cross-validation, None for a plain split.
        protocols: In the order of the schema.
        variants: Variant keys.
        verdict: Of the comparisons of fusion and image.
        tta: Whether test-time augmentation was scored and compared.
        leakage: Whether image-stratified has test lesions that are in train.
        named: Fields whose shuffling costs something.
        sites: The vocabulary of the site sweep.
        forbidden: Whether the forbidden columns were probed.
        too_small: Whether every subgroup is too small.
        undefined: Whether some metrics and intervals are undefined (null).
        random_seed: Seed of the noise.
    """
    example = Example(seeds=seeds, undefined=undefined, too_small=too_small, random_seed=random_seed)
    options = {
        "variants": list(variants),
        "verdict": verdict,
        "tta": tta,
        "leakage": leakage,
        "named": list(named),
        "sites": list(sites),
        "forbidden": forbidden,
        "folds": folds,
    }
    config = TrainConfig(data="ham10000", backbone="tf_efficientnetv2_b0", image_size=[192], epochs=10).to_dict()
    environment = {
        "versions": {"python": "3.11.7", "ham10000": "0.1.0", "torch": "2.15.0", "timm": "1.0.31", "datasets": None},
        "platform": "Linux",
        "cpu": {"model": "AMD EPYC", "count": 2},
        "memory_mib": 24106,
        "gpu": None,
        "git": {"commit": "c0ffee" + "0" * 34, "dirty": False},
        "peak_rss_mib": 3051.7,
        "peak_cuda_mib": None,
    }
    settings = {
        "config": config,
        "seeds": list(range(seeds)),
        "folds": folds,
        "variants": list(variants),
        "views": 4 if tta else 1,
        "n_resamples": 2000,
        "confidence": 0.95,
        "data": "ham10000",
        "environment": environment,
    }
    return {
        "format": 1,
        "settings": settings,
        "protocols": {name: _protocol(example, name, options) for name in protocols},
    }


# Every kind of study the report must be able to tell, by name.
EXAMPLES: dict[str, dict[str, Any]] = {
    "one seed": {},
    "seeds, both protocols": {"seeds": 3, "protocols": ("lesion-grouped", "image-stratified"), "tta": True},
    "folds": {"seeds": 2, "folds": 5, "verdict": "cannot be told apart"},
    "all fusions": {
        "seeds": 2,
        "protocols": ("lesion-grouped", "image-stratified"),
        "variants": ("metadata", "image", "fusion-concat", "fusion-gated", "fusion-metablock", "fusion-film"),
        "verdict": "hurts",
        "tta": True,
        "named": ("age", "localization"),
    },
    "no fusion": {"variants": ("metadata", "image"), "named": ()},
    "image only": {"variants": ("image",), "forbidden": False},
    "metadata only": {"variants": ("metadata",), "forbidden": False},
    "no image": {"variants": ("metadata", "fusion-film"), "named": ()},
    "quiet": {"seeds": 2, "verdict": "cannot be told apart", "named": (), "leakage": False},
    "image-stratified without leak": {"protocols": ("image-stratified",), "leakage": False},
    "small and undefined": {
        "protocols": ("lesion-grouped", "image-stratified"),
        "too_small": True,
        "undefined": True,
        "verdict": "cannot be told apart",
    },
}

__all__ = ["EXAMPLES", "METRICS", "study_example"]
