"""What this project set out to reach on HAM10000 at 200x150 pixels, and how far each variant of a study came."""

from dataclasses import dataclass
from typing import Any

from ham10000.training.markdown_text import decimal, escape, plural, table
from ham10000.training.study_data import TITLES, metric, seed_counts


@dataclass(frozen=True)
class Target:
    """A number to reach, set before the models were trained.

    Attributes:
        protocol: Protocol of the split.
        metric: Name of the metric.
        value: The bound.
        is_ceiling: Whether lower is better.
        because: Where the bound comes from.
    """

    protocol: str
    metric: str
    value: float
    because: str
    is_ceiling: bool = False

    def is_reached(self, found: float) -> bool:
        """Whether a value is on the right side of the bound."""
        return found <= self.value if self.is_ceiling else found >= self.value


TARGETS = (
    Target("lesion-grouped", "macro_f1", 0.76, "above 0.746, the best single CNN of the most careful public study"),
    Target("lesion-grouped", "ece", 0.03, "after temperature scaling", is_ceiling=True),
    Target("image-stratified", "macro_f1", 0.82, "above the published baseline's 0.8042"),
    Target("image-stratified", "accuracy", 0.88, "above the published baseline's 0.8665"),
)


def targets_table(study: dict[str, Any]) -> str:
    """Every target of a protocol that was run, beside the mean over seeds that the image and fusion variants reached.

    Args:
        study: Content of study.json.

    Returns:
        Markdown; nothing where the study has none of the protocols.
    """
    rows = []
    for target in TARGETS:
        protocol = study["protocols"].get(target.protocol)
        for variant, values in (protocol or {"variants": {}})["variants"].items():
            found = metric(values, target.metric)
            if variant == "metadata" or found is None:
                continue
            mean = found["mean"]
            gap = abs(mean - target.value)
            rows.append(
                [
                    f"{escape(target.protocol)}, {TITLES[target.metric]}",
                    f"{'≤' if target.is_ceiling else '≥'} {target.value:g}, {escape(target.because)}",
                    f"{escape(variant)}, {plural(seed_counts(study)[target.protocol], 'seed')}",
                    decimal(mean),
                    "reached" if target.is_reached(mean) else f"{decimal(gap)} short",
                ]
            )
    return table(["target", "bound", "model", "measured", "gap"], rows, align="lllrl")


__all__ = ["TARGETS", "Target", "targets_table"]
