"""The words of a card: what the model is, what it is for, where it fails, whom to cite."""

from ham10000.hub_upload.card_markdown import bullets, code, count, escape, fence, join, percent, section, words
from ham10000.hub_upload.card_metadata import weights_license
from ham10000.hub_upload.card_results import headline_text, protocol_text
from ham10000.hub_upload.run_files import RunFiles
from ham10000.modeling import LABELS, MALIGNANT

RESEARCH_BANNER = (
    "> **For research only. Not a medical device.** Never use it for diagnosis, triage or any decision about a "
    "person, and never for looking at your own skin. A suspicious lesion belongs before a dermatologist."
)
SYNTHETIC_BANNER = (
    "> **SYNTHETIC data: these numbers mean nothing about skin.** {what} computer-made pictures, which stand in for "
    "HAM10000 so that the code can be tried without it. This model has no use but to test software."
)
_READS = {
    "image": "one dermatoscopic image",
    "fusion": "one dermatoscopic image and, where known, the patient's {fields}",
    "metadata": "the patient's {fields}, and no image at all",
}
_FIELD_NAMES = {"age": "age", "sex": "sex", "localization": "the lesion's site"}

_CITATION = """
@article{tschandl2018ham10000,
  author  = {Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  title   = {The {HAM10000} dataset, a large collection of multi-source dermatoscopic images of common pigmented
             skin lesions},
  journal = {Scientific Data},
  volume  = {5},
  pages   = {180161},
  year    = {2018},
  doi     = {10.1038/sdata.2018.161}
}

@software{ham10000_package,
  author  = {{The ham10000 maintainers}},
  title   = {ham10000: image, metadata and fusion models for HAM10000},
  license = {Apache-2.0}
}
"""


def field_words(run: RunFiles) -> str:
    """The metadata fields the model reads, such as `age, sex and the lesion's site`."""
    return words([_FIELD_NAMES[name] for name in run.config["metadata_fields"]])


def title(run: RunFiles) -> str:
    """The card's first heading."""
    names = {"image": "image-only", "fusion": "image and metadata", "metadata": "metadata-only"}
    return f"# HAM10000 {names[run.modality]} classifier"


def banners(run: RunFiles) -> str:
    """What must be read before anything else."""
    synthetic = ""
    if run.synthetic:
        verbs = [
            *(["trained"] if run.synthetic_training else []),
            *(["evaluated"] if run.synthetic_evaluation else []),
        ]
        synthetic = SYNTHETIC_BANNER.format(what=f"It was {words(verbs)} on")
    return join(synthetic, RESEARCH_BANNER)


def summary(run: RunFiles) -> str:
    """What it is, how good it is and what that rests on, in one paragraph."""
    reads = _READS[run.modality].format(fields=field_words(run) if run.modality != "image" else "")
    parts = [
        f"This model reads {reads}. It gives a score to each of the seven classes of "
        "[HAM10000](https://doi.org/10.1038/sdata.2018.161)."
    ]
    if run.evaluation is None:
        parts.append("**It has not been evaluated: how good it is, is not known.**")
    else:
        parts += [headline_text(run), protocol_text(run)]
    if run.synthetic_evaluation:
        parts.append("The test data are synthetic.")
    return " ".join(parts)


def uses_section(run: RunFiles) -> str:
    """What it is for, and what it is not for."""
    purposes = {
        "image": "as the image-only variant that metadata must improve on",
        "fusion": "on what metadata add to an image, and at the price of which shortcuts",
        "metadata": "as the floor: how much age, sex and site tell without looking",
    }
    intended = bullets(
        [
            f"Research on classification, calibration, leakage and shortcuts in dermatoscopy; here "
            f"{purposes[run.modality]}.",
            "Teaching, and testing software around such models.",
        ]
    )
    out_of_scope = bullets(
        [
            "Diagnosis, triage, screening, treatment, insurance: anything that touches a real person.",
            "Clinical (phone) photographs, several lesions in a picture, mucosa, nails, or a picture that is no "
            "lesion."
            if run.modality != "metadata"
            else "Any claim about a lesion: it has never seen one.",
            "Other diagnoses than the seven. The scores always sum to one: whatever is shown, some class wins.",
        ]
    )
    return section("What it is for", intended, "**Not for:**", out_of_scope)


def conversion_section(run: RunFiles) -> str:
    """Where converted weights come from."""
    if run.conversion is None:
        return ""
    conversion = run.conversion
    return section(
        "Where the weights come from",
        f"They were not trained by this package but carried over, tensor by tensor, from the "
        f"{escape(conversion['architecture'])} checkpoint {code(conversion['source_file'])} "
        f"({code(conversion['format'])}, sha256 {code(conversion['source_sha256'])}). How that was trained, and on "
        "which images, its own source must say.",
    )


def _run_limits(run: RunFiles) -> list[str]:
    """Limits that follow from the numbers of this very run."""
    limits = []
    if run.training is not None:
        training, best = run.training, run.training["best"]
        parts = ("train", "validation") if run.trained_on_validation else ("train",)
        of_parts = training["split"]["class_counts"]
        counts = {label: sum(of_parts[part][label] for part in parts) for label in LABELS}
        rare = min(LABELS, key=lambda label: counts[label])
        limits.append(
            f"Small classes: {rare} has {count(counts[rare])} training images, nv {count(counts['nv'])}. One run "
            f"with one seed ({count(training['config']['seed'])}); another seed gives other figures."
        )
        if not training["finished"]:
            limits.append("The training was not finished.")
        elif (
            best is not None
            and training["config"].get("patience") is not None
            and best["epoch"] == training["epochs_trained"]
            and "validation_macro_f1" in best
        ):
            limits.append("The best epoch was the last one, so longer training might have helped.")
    if run.evaluation is not None:
        per_class = run.evaluation["metrics"]["per_class"]
        weak = [
            f"{label} ({percent(per_class[label]['recall'], 0)})"
            for label in MALIGNANT
            if per_class[label]["support"] and per_class[label]["recall"] < 0.8
        ]
        if weak:
            limits.append(f"It overlooks malignant lesions. Share of the images found: {words(weak)}.")
    return limits


def limitations_section(run: RunFiles) -> str:
    """Where it fails, from the run and from what is known of the data."""
    shortcuts = {
        "image": "Rulers, ink, hairs, dark corners and the camera differ between the sources and the classes; a "
        "network may read them instead of the lesion.",
        "fusion": "Age is the strongest metadata field and the dangerous one: a model that leans on it overlooks "
        "melanoma in the young. Rulers, ink, hairs and the camera are shortcuts of the image.",
        "metadata": "It knows the frequencies of diagnoses by age, sex and site in one collection, and nothing of "
        "the lesion. Two people of equal age, sex and site get the same scores.",
    }
    known = [
        shortcuts[run.modality],
        "The data come from two centres, in Austria and Australia, and show mostly light skin. Dark skin, other "
        "devices and clinics are not represented; expect it to be worse there.",
        "Lesions were collected because somebody found them worth a photograph: the class frequencies are no "
        "clinic's, and healthy skin is absent.",
        "Not every label rests on histology (about half do); others rest on follow-up, expert consensus or confocal "
        "microscopy.",
    ]
    if run.synthetic_training:
        known = ["Pictures and metadata are computer-made; nothing about skin can be concluded."]
    return section("Limitations", bullets([*_run_limits(run), *known]))


def ethics_section(run: RunFiles) -> str:
    """Ethical and safety considerations."""
    return section(
        "Ethical and safety considerations",
        bullets(
            [
                "A missed melanoma can kill, and a false alarm costs a scar and weeks of fear. No threshold of this "
                "model was chosen for either.",
                "Whoever shows its output to a patient or a clinician makes a medical device of it, with all duties "
                "of one.",
                "Look at the subgroups before the mean: a good average may hide a group in which it fails."
                if run.evaluation is not None and run.evaluation.get("subgroups")
                else "Its errors need not be spread evenly over age, sex, site and skin type; they are not shown "
                "here.",
                "The images are de-identified. Do not try to find out who a patient was.",
                "Age, sex and site are personal data when you add a real person's; the model needs none of them "
                "stored."
                if run.modality != "image"
                else "",
            ]
        ),
    )


def licence_section(run: RunFiles) -> str:
    """Licences of code and of weights, told apart."""
    weights = (
        "The weights are Apache-2.0 too: no photograph of HAM10000 went into them."
        if weights_license(run) == "apache-2.0"
        else "HAM10000 is [CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), and so are the "
        "**weights**, as far as they derive from it: name the authors, no commercial use."
    )
    return section(
        "Licence",
        f"The **code** (the Python files of this repository) is Apache-2.0. {weights} The metadata above name the "
        f"licence of the weights ({code(weights_license(run))}).",
    )


def citation_section() -> str:
    """Whom to cite."""
    return section(
        "Citation", "Please cite the data set and, if you use it, this package:", fence("bibtex", _CITATION)
    )


__all__ = [
    "RESEARCH_BANNER",
    "banners",
    "citation_section",
    "conversion_section",
    "ethics_section",
    "field_words",
    "licence_section",
    "limitations_section",
    "summary",
    "title",
    "uses_section",
]
