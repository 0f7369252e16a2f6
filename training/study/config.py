"""The study's settings: one YAML file names the runs, the heads and, before any result, what decides."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from ham10000.modeling import Ham10000Error
from ham10000.training.data.split import PROTOCOLS
from ham10000.training.evaluation.decision import COVERAGES, RULES
from ham10000.training.study.heads import HEAD_VARIANTS, HeadSettings

VARIANTS = ("image", *HEAD_VARIANTS)
# Of the model's own logits, which square-root class weights have put half-way between the other two rules.
TRAINED = "trained"
STUDY_RULES = (TRAINED, *RULES)


@dataclass(frozen=True)
class ProtocolPlan:
    """The image runs of one protocol: folds, each the test part once, or None for its single split, and seeds."""

    folds: int | None = None
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class StudyConfig:
    """A study, as its YAML file says it."""

    recipe: str = "recipe_b0.yaml"  # what `ham10000-train` is given for every image run; relative to the study's file
    # Heads are fitted for the first protocol, lesion-grouped, which needs folds.
    protocols: Mapping[str, ProtocolPlan] = field(default_factory=lambda: {PROTOCOLS[0]: ProtocolPlan(folds=5)})
    rule: str = TRAINED  # of every score that rests on answers
    primary: str = "macro_f1"  # the metric that verdicts rest on
    # The first variant minus the second. The first pair is the primary one, and all are Holm's family.
    comparisons: tuple[tuple[str, str], ...] = (("fusion", "control"), ("control", "image"), ("fusion", "image"))
    coverages: tuple[float, ...] = COVERAGES  # of the prediction sets
    n_resamples: int = 2000
    heads: HeadSettings = field(default_factory=HeadSettings)

    def __post_init__(self) -> None:
        """Checks every value."""
        # Out of folds the report says that no model had seen a scored lesion.
        first, plan = next(iter(self.protocols.items()), ("", ProtocolPlan()))
        protocols, variants = set(self.protocols), {name for pair in self.comparisons for name in pair}
        seeds = [plan.seeds for plan in self.protocols.values()]
        for name, ok, expected in (
            ("rule", self.rule in STUDY_RULES, f"one of {list(STUDY_RULES)}"),
            ("primary", self.primary in ("macro_f1", "balanced_accuracy", "accuracy"), "a metric of the answers"),
            ("protocols", first == PROTOCOLS[0] or (len(protocols) == 1 and not plan.folds), f"led by {PROTOCOLS[0]}"),
            ("protocols", protocols and protocols <= set(PROTOCOLS), f"some of {list(PROTOCOLS)}"),
            ("protocols", all(0 < len(set(one)) == len(one) for one in seeds), "given distinct seeds"),
            ("comparisons", self.comparisons and variants <= set(VARIANTS), f"pairs of {list(VARIANTS)}"),
            ("coverages", all(0 < value < 1 for value in self.coverages), "between 0 and 1"),
            ("n_resamples", self.n_resamples >= 2, "at least 2"),
        ):
            if not ok:
                raise Ham10000Error(f"study: `{name}` must be {expected}, got {getattr(self, name)!r}.")


def read_study_config(path: str | Path) -> StudyConfig:
    """Reads a study's YAML file; `recipe` becomes a path that can be opened, and an unknown key is an error."""
    path = Path(path)
    try:
        values = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        known = {item.name for item in dataclasses.fields(StudyConfig)}
        if unknown := sorted(set(values) - known):
            raise Ham10000Error(f"unknown key(s) {unknown}. Known keys: {', '.join(sorted(known))}.")
        if "protocols" in values:
            values["protocols"] = {
                name: ProtocolPlan(**{**plan, "seeds": tuple(plan.get("seeds", (0,)))})
                for name, plan in values["protocols"].items()
            }
        if "heads" in values:
            values["heads"] = HeadSettings(**values["heads"])
        for name in {"comparisons", "coverages"} & set(values):
            values[name] = tuple(tuple(item) if isinstance(item, list) else item for item in values[name])
        config = StudyConfig(**values)
    except (AttributeError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise Ham10000Error(f"Cannot read the study's file {str(path)!r}: {error}") from error
    return dataclasses.replace(config, recipe=str(path.parent / config.recipe))
