"""The results of a card: how good the model is, where it fails and for whom, each number from eval_results.json."""

from typing import Any

from ham10000.hub_upload.card_markdown import (
    bullets,
    count,
    decimal,
    details,
    escape,
    figure,
    interval,
    join,
    percent,
    section,
    table,
    words,
)
from ham10000.hub_upload.run_files import RunFiles
from ham10000.modeling import LABELS, MALIGNANT
from ham10000.training.evaluation_report import METRIC_TITLES
from ham10000.training.metrics import HEADLINE_METRICS

# In the order a reader asks for them, with what each means.
_MEANINGS = {
    "macro_f1": "mean over the classes, each counting the same however rare",
    "balanced_accuracy": "mean over the classes of the share found (recall)",
    "accuracy": "share of images classed rightly; nevi dominate it",
    "weighted_f1": "F1, each class weighted by its images",
    "auroc_macro": "how well each class is ranked above the others; 0.5 is chance",
    "melanoma_sensitivity_at_95_specificity": "share of melanomas flagged when 1 in 20 other images is flagged too",
    "ece": "gap between stated probability and hit rate; 0 is best",
    "brier": "squared error of the probabilities, 0 to 2; 0 is best",
    "nll": "log loss; 0 is best",
}
_SUBGROUP_FIELDS = {
    "age": "age band",
    "sex": "sex",
    "site": "anatomical site",
    "photographs": "photographs of the lesion",
}


def confidence(run: RunFiles) -> str:
    """Coverage of the intervals in words, such as `95 %`."""
    assert run.evaluation is not None
    return percent(run.evaluation["bootstrap"]["confidence"], 0)


def protocol_text(run: RunFiles) -> str:
    """What was tested on and whether the model had seen it, in plain words.

    Args:
        run: A run with an evaluation.

    Returns:
        Sentences.
    """
    assert run.evaluation is not None
    split = run.evaluation["split"]
    name, protocol = split["name"], split.get("protocol")
    if protocol is None:
        return (
            "All rows of the data were scored, without a split: whether the model was trained on any is not recorded."
        )
    if name == "train" or (name == "validation" and run.trained_on_validation):
        return "**These are the images it was trained on**: the figures say nothing about new ones."
    held_out = {
        "lesion-grouped": "all photographs of a lesion lie on one side of the split",
        "image-stratified": "photographs of one lesion may lie on both sides of the split",
    }
    text = f"The protocol is {escape(protocol)}: {held_out.get(protocol, 'see the split file')}. "
    if run.training is None or run.training["split"]["sha256"] != split.get("sha256"):
        return text + (
            "The split is not the one the model was trained with, so **it may have seen some of these images**."
        )
    leak = split["leakage"][name]["all"]
    if leak == 0:
        return text + "None of the scored images shows a lesion that the model was trained on."
    return text + (
        f"**{percent(leak)} of the scored images show a lesion that another photograph shows in training, so the "
        "figures are too high** for lesions the model has never seen."
    )


def headline_text(run: RunFiles) -> str:
    """The headline numbers in a sentence or three.

    Args:
        run: A run with an evaluation.

    Returns:
        Sentences.
    """
    assert run.evaluation is not None
    metrics, intervals = run.evaluation["metrics"], run.evaluation["intervals"]
    named = [
        f"{METRIC_TITLES[name]} **{interval(intervals[name])}**"
        for name in ("macro_f1", "balanced_accuracy", "accuracy")
    ]
    matrix = metrics["confusion_matrix"]
    melanoma = LABELS.index("mel")
    text = (
        f"On {count(metrics['n_images'])} {escape(run.evaluation['split']['name'])} images of "
        f"{count(run.evaluation['bootstrap']['n_lesions'])} lesions it reaches {words(named)} "
        f"({confidence(run)} intervals)."
    )
    if total := sum(matrix[melanoma]):
        text += f" Of {count(total)} melanoma images it calls {count(matrix[melanoma][melanoma])} melanoma."
    return text


def _headline(run: RunFiles) -> str:
    assert run.evaluation is not None
    evaluation = run.evaluation
    rows = [
        [METRIC_TITLES[name], interval(evaluation["intervals"][name]), meaning] for name, meaning in _MEANINGS.items()
    ]
    views = evaluation.get("views", 1)
    notes = [
        f"Brackets hold {confidence(run)} intervals from {count(evaluation['bootstrap']['n_resamples'])} bootstrap "
        "resamples of whole lesions. They hold the chance of the test set, not that of another training seed.",
        f"Predictions are averaged over {views} flipped views of each image." if views > 1 else "",
        *(
            f"{METRIC_TITLES[name]} is undefined: {escape(why)}."
            for name, why in evaluation["metrics"]["undefined"].items()
        ),
    ]
    return join(table(["metric", "value", "meaning"], rows, align="lrl"), " ".join(note for note in notes if note))


def _per_class(run: RunFiles) -> str:
    assert run.evaluation is not None
    metrics, intervals = run.evaluation["metrics"], run.evaluation["intervals"]["per_class"]
    rows = [
        [
            f"{label}: {escape(run.config['label_descriptions'][label])}",
            count(row["support"]),
            interval(intervals[label]["recall"]),
            decimal(row["precision"]),
            interval(intervals[label]["f1"]),
            decimal(row["auroc"]),
        ]
        for label, row in metrics["per_class"].items()
    ]
    scored = {label: row for label, row in metrics["per_class"].items() if row["support"]}
    worst = min(scored, key=lambda label: scored[label]["recall"])
    best = max(scored, key=lambda label: scored[label]["recall"])
    text = (
        f"Best found is {best} ({percent(scored[best]['recall'], 0)} of its images), worst {worst} "
        f"({percent(scored[worst]['recall'], 0)}). Classes with few images have wide intervals."
    )
    return join(
        text,
        table(["class", "images", "recall (share found)", "precision", "F1", "AUROC"], rows),
        figure(run.figures, "per_class.png", "Recall and F1 of each class with intervals"),
    )


def _confusions(run: RunFiles) -> str:
    assert run.evaluation is not None
    matrix = run.evaluation["metrics"]["confusion_matrix"]
    malignant = [index for index, label in enumerate(LABELS) if label in MALIGNANT]
    benign = [index for index in range(len(LABELS)) if index not in malignant]
    sick = sum(sum(matrix[index]) for index in malignant)
    missed = sum(matrix[index][column] for index in malignant for column in benign)
    healthy = sum(sum(matrix[index]) for index in benign)
    alarms = sum(matrix[index][column] for index in benign for column in malignant)
    sentences = []
    if sick:
        sentences.append(
            f"Of {count(sick)} images of the malignant or premalignant classes ({', '.join(MALIGNANT)}), "
            f"{count(missed)} ({percent(missed / sick, 0)}) are put into a benign class."
        )
    melanoma = LABELS.index("mel")
    errors = sorted(
        ((matrix[melanoma][column], LABELS[column]) for column in range(len(LABELS)) if column != melanoma),
        reverse=True,
    )
    if errors[0][0]:
        named = words([f"{label} ({count(number)})" for number, label in errors if number])
        sentences.append(f"Melanomas that are missed are read as {named}.")
    if healthy:
        sentences.append(
            f"Of {count(healthy)} benign images, {count(alarms)} ({percent(alarms / healthy, 0)}) are put into a "
            "malignant class."
        )
    rows = [[f"**{label}**", *map(count, row), count(sum(row))] for label, row in zip(LABELS, matrix, strict=True)]
    counts = table(["true class (row), predicted class (column)", *LABELS, "images"], rows)
    return join(
        " ".join(sentences),
        figure(run.figures, "confusion_matrix.png", "Confusion matrix"),
        details("The confusion matrix as numbers", counts),
    )


def _calibration(run: RunFiles) -> str:
    assert run.evaluation is not None
    temperature = run.config["temperature"]
    how = f"The logits are divided by the temperature {decimal(temperature)}, fitted after training."
    if temperature == 1:
        how = "The logits are not rescaled (temperature 1)."
    elif run.trained_on_validation:
        how = (
            f"The logits are divided by the temperature {decimal(temperature)}. No image was left to fit it to: it is "
            "that of runs with the same settings which left the validation images out, and may fit this model less."
        )
    return join(
        f"ECE {interval(run.evaluation['intervals']['ece'])}: the mean gap between the probability of the first label "
        f"and the share of hits at that probability, in 15 bins. {how} A score of 0.9 is no 90-percent chance "
        "of disease: in a clinic the classes have other frequencies than in this data set.",
        figure(run.figures, "reliability.png", "Reliability diagram: stated probability against hit rate"),
    )


def _gap_text(field: str, groups: list[dict[str, Any]], gap: dict[str, Any] | None) -> str:
    """The two groups of a field whose malignant sensitivity differs most, and whether that means anything."""
    title = f"**{_SUBGROUP_FIELDS[field].capitalize()}**"
    if gap is None:
        return f"{title}: fewer than two groups are large enough to compare."
    found = {group["group"]: group["malignant_sensitivity"]["estimate"] for group in groups}
    low, high = (f"{decimal(found[gap[end]])} in {escape(gap[end])}" for end in ("lowest", "highest"))
    difference = gap["difference"]
    text = f"{title}: from {low} to {high}, a gap of {interval(difference)}"
    if difference.get("low") is not None:
        text += ", which chance may explain" if difference["low"] <= 0 else ", an interval that leaves 0 out"
    return text + "."


def _subgroup_table(field: str, groups: list[dict[str, Any]]) -> str:
    rows = [
        [
            escape(group["group"]),
            f"{count(group['n_images'])} ({count(group['n_lesions'])})",
            f"{count(group['n_malignant'])} ({count(group['n_malignant_lesions'])})",
            interval(group["accuracy"]),
            "too few to say" if group["too_few"] else interval(group["malignant_sensitivity"]),
            interval(group["malignant_specificity"]),
        ]
        for group in groups
    ]
    header = [
        _SUBGROUP_FIELDS[field],
        "images (lesions)",
        "malignant images (lesions)",
        "accuracy",
        "malignant sensitivity",
        "malignant specificity",
    ]
    return table(header, rows)


def _subgroups(run: RunFiles) -> str:
    assert run.evaluation is not None
    subgroups = run.evaluation.get("subgroups")
    if not subgroups:
        return ""
    fields, gaps = subgroups["fields"], subgroups.get("largest_gaps") or {}
    intro = (
        f"Malignant means {words(MALIGNANT)}; an image counts as found when its first label is any of them. Groups "
        f"with fewer than {subgroups['min_malignant_lesions']} malignant lesions are too few to say anything about "
        "their sensitivity. "
    )
    if any(gaps.values()):
        intro += (
            "The share of malignant images found, in the groups that differ most (a pair picked for its gap, which is "
            "therefore overstated on average):"
        )
    picture = figure(run.figures, "subgroups.png", "Malignant sensitivity by subgroup")
    tables = join(*(_subgroup_table(field, groups) for field, groups in fields.items()))
    return join(
        intro.strip(),
        bullets(_gap_text(field, groups, gaps[field]) for field, groups in fields.items() if field in gaps),
        picture,
        details("By subgroup, as numbers", tables) if picture else tables,
    )


def results_section(run: RunFiles, *more: str) -> str:
    """The section on results, or nothing for a model that was not evaluated.

    Args:
        run: The run.
        *more: Ready parts that follow, such as the comparisons.

    Returns:
        Markdown.
    """
    if run.evaluation is None:
        return ""
    assert set(_MEANINGS) == set(HEADLINE_METRICS)
    return section(
        "How good it is",
        _headline(run),
        section("Class by class", _per_class(run), level=3),
        section("What it confuses", _confusions(run), level=3),
        section("By subgroup", _subgroups(run), level=3),
        section("Can its probabilities be believed?", _calibration(run), level=3),
        *more,
    )


__all__ = ["confidence", "headline_text", "protocol_text", "results_section"]
