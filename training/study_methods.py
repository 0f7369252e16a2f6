"""The end of the study's report: how its numbers were made, what they cannot say, how to make them again."""

import dataclasses
import json
import shlex
from typing import Any

from ham10000.training.config import TrainConfig
from ham10000.training.markdown_text import bullets, code, escape, fence, join, percent, section, words
from ham10000.training.run_folder import portable_training
from ham10000.training.study_data import TITLES, n_seeds, seed_counts, seeds_phrase
from ham10000.training.study_runs import IMAGE_RUN

REFERENCES = (
    "Davison & Hinkley 1997, *Bootstrap Methods and their Application*, Cambridge University Press.",
    "Efron & Tibshirani 1993, *An Introduction to the Bootstrap*, Chapman & Hall.",
    "Fagerland, Lydersen & Laake 2013, The McNemar test for binary matched-pairs data: mid-p and asymptotic are "
    "better than exact conditional, *BMC Medical Research Methodology* 13:91.",
    "Field & Welsh 2007, Bootstrapping clustered data, *Journal of the Royal Statistical Society B* 69:369-390.",
    "Guo, Pleiss, Sun & Weinberger 2017, On calibration of modern neural networks, ICML, arXiv:1706.04599.",
    "Holm 1979, A simple sequentially rejective multiple test procedure, *Scandinavian Journal of Statistics* 6:65-70"
    ".",
    "Owen 2007, The pigeonhole bootstrap, *Annals of Applied Statistics* 1:386-411.",
    "Tschandl, Rosendahl & Kittler 2018, The HAM10000 dataset, *Scientific Data* 5:180161.",
)
# Settings that are said elsewhere in the command, or that differ from run to run of one study.
_NOT_SHARED = {
    "data",
    "output_dir",
    "cache_dir",
    "protocol",
    "folds",
    "fold",
    "split_file",
    "modality",
    "fusion",
    "seed",
    "trackers",
    "resume",
    "overwrite",
}


def methods(study: dict[str, Any]) -> str:
    """How intervals, p-values, temperatures and perturbations were made."""
    settings = study["settings"]
    several = n_seeds(study) > 1
    primaries = {c["primary"] for p in study["protocols"].values() for c in p["comparisons"]}
    readers = any(v["shortcuts"] for p in study["protocols"].values() for v in p["variants"].values())
    resampled = (
        "lesions and training seeds, each drawn with replacement and crossed (Owen 2007)"
        if several
        else "lesions, drawn with replacement (Field & Welsh 2007); with one training seed they hold for these models"
    )
    items = [
        f"**Intervals** are {percent(settings['confidence'], 0)} percentile intervals (Efron & Tibshirani 1993) from "
        f"{settings['n_resamples']:,} resamples of {resampled}. Photographs of one lesion are not independent, so a "
        "lesion comes with all its photographs. A resample without a class averages the other classes; the bootstrap "
        "interval of the ECE lies too high.",
    ]
    if primaries:
        named = words([TITLES.get(name, escape(name)) for name in sorted(primaries)])
        items += [
            f"**Comparisons** are paired: both models are scored on the same resample. P-values are two-sided, "
            "twice the smaller tail of the resampled differences, with one added above and below (Davison & Hinkley "
            f"1997). The primary metric, {named}, decides, with Holm's correction (1979) over the comparisons of one "
            "protocol; a verdict other than *cannot be told apart* takes an adjusted p below 0.05.",
            "**Smallest detectable effect**: (z of the two-sided level + z of 80 % power) times the bootstrap "
            "standard error of the difference; that of the primary metric is for the corrected level, 0.05 over the "
            "number of comparisons.",
            "**McNemar** compares accuracy by the mid-p test (Fagerland et al. 2013) on one photograph a lesion, "
            "since the test takes its pairs as independent"
            + ("; with several seeds on the averaged probabilities." if several else "."),
        ]
    items += [
        _own_settings(modality, entry["values"]) for modality, entry in settings.get("variant_config", {}).items()
    ]
    items.append(
        "**Calibration**: one temperature a run, fitted on the validation set by the log loss (Guo et al. 2017) and "
        "saved with the checkpoint. It changes no ranking within an image and so no predicted class."
    )
    if readers:
        items.append(
            "**Shortcuts** are looked for in the trained models, without retraining. A shuffle permutes a field's "
            "values among the scored images, the fields of *all together* jointly, and is averaged over several "
            "permutations; *missing at random* sets each field of each image to unknown with the given "
            "probability; a sweep sets one field of every image to one value after the other. Flips are counted "
            "against the first class of the untouched input. Intervals here resample lesions, on "
            "the mean over the seeds."
        )
    return section("Methods", bullets(items), "References:", bullets(REFERENCES))


def _own_settings(modality: str, values: dict[str, Any]) -> str:
    """What sets one modality's runs apart from the others."""
    listed = ", ".join(f"{escape(name)} {escape(str(value))}" for name, value in values.items())
    text = f"**Settings of {escape(modality)}**, over those shared: {listed}."
    if values.get("pretrained") != IMAGE_RUN:
        return text
    if values.get("freeze_backbone"):
        return (
            f"{text} Its backbone is that of the image run of the same seed, unchanged: what differs is the metadata "
            "and the layers after the backbone."
        )
    return (
        f"{text} It starts from the backbone that the image run of the same seed ended with, and so has seen every "
        "training image more often than the image variant."
    )


def limits(study: dict[str, Any]) -> str:
    """What the study cannot say."""
    seeds = n_seeds(study)
    return section(
        "Limits",
        bullets(
            [
                "One data set and no external test: other clinics, cameras, skin types and frequencies of disease may "
                "give another answer.",
                "Age and site are confounded with referral: who was photographed, where and why differs between the "
                "collections that HAM10000 joins. A gain from metadata may be a gain from that.",
                "One training seed: differences between trainings are not in any interval."
                if seeds == 1
                else f"{seeds_phrase(study)}: the differences between trainings are known as well as so few numbers "
                "tell them.",
                "Intervals are conditional on the split and the recipe; another choice of images for training is not "
                "in them."
                if not study["settings"]["folds"]
                else "Intervals are conditional on the recipe and on one division into folds; the models of different "
                "folds share most of their training images.",
                "Settings were chosen on data of the same source"
                + ("" if study["settings"].get("variant_config") else ", for all variants alike")
                + "; a variant tuned for itself might gain.",
                "The classes are those of HAM10000 and not exhaustive, and only part of the labels is histologically "
                "confirmed.",
            ]
        ),
    )


def _option(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def study_command(settings: dict[str, Any]) -> str:
    """The command that makes the study anew, with every setting that differs from the default.

    Args:
        settings: `settings` of a study.json, with `protocols` added.

    Returns:
        One shell command; places on a machine are cut to their last part.
    """
    seeds = seed_counts({"settings": settings, "protocols": settings["protocols"]})
    numbers = list(seeds.values()) if len(set(seeds.values())) > 1 else [max(seeds.values())]
    config = portable_training({"config": {**settings["config"], "data": settings["data"]}})["config"]
    words_ = ["ham10000-study", "--data", str(config["data"])]
    for modality, entry in settings.get("variant_config", {}).items():
        words_ += ["--variant_config", f"{modality}={entry['file']}"]
    for protocol in settings["protocols"]:
        words_ += ["--protocol", protocol]
    words_ += ["--seeds", *map(str, numbers), "--variants", *settings["variants"]]
    if settings["folds"]:
        words_ += ["--folds", str(settings["folds"])]
    # The study's own defaults live in its parser; saying these two always needs no copy of them.
    words_ += ["--views", str(settings["views"]), "--n_resamples", str(settings["n_resamples"])]
    for field in dataclasses.fields(TrainConfig):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = config.get(field.name, default)
        if field.name not in _NOT_SHARED and value != default and value is not None:
            words_ += [f"--{field.name}", *_option(value)]
    return shlex.join([*words_, "--output_dir", "runs/study"])


def _seed_numbers(study: dict[str, Any]) -> str:
    """Such as `0, 1 and 2`, or `0, 1 and 2 (lesion-grouped); 0 (image-stratified)`."""
    texts = {name: words([str(seed) for seed in range(number)]) for name, number in seed_counts(study).items()}
    if len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{text} ({escape(name)})" for name, text in texts.items())


def repeat(study: dict[str, Any]) -> str:
    """The command, the splits, the versions, the machine and the commits."""
    settings, protocols = study["settings"], study["protocols"]
    facts = settings["environment"]
    versions = ", ".join(f"{escape(name)} {escape(v)}" for name, v in (facts.get("versions") or {}).items() if v)
    splits = [
        f"{escape(name)}: {words([f'{size:,} {escape(part)}' for part, size in protocol['split']['sizes'].items()])} "
        f"images, seed {protocol['split']['seed']}, SHA-256 {code(protocol['split']['sha256'])}"
        for name, protocol in protocols.items()
    ]
    costs = [values["cost"] for protocol in protocols.values() for values in protocol["variants"].values()]
    commits = [code(name[:10]) for name in dict.fromkeys(name for cost in costs for name in cost["commits"])]
    hardware = words([escape(name) for name in dict.fromkeys(cost["hardware"] for cost in costs)])
    git = facts.get("git") or {}
    if git.get("commit"):
        changed = ", with uncommitted changes" if git.get("dirty") else ""
        commits.append(f"the report's data from {code(git['commit'][:10])}{changed}")
    backbone, size = settings["config"].get("backbone"), settings["config"].get("image_size")
    pixels = f" at {' x '.join(map(str, size))} px" if size else ""
    network = f"Network: {code(backbone)}{pixels}" if any(key != "metadata" for key in settings["variants"]) else ""
    return section(
        "How to repeat",
        fence("bash", study_command({**settings, "protocols": list(protocols)})),
        bullets(
            [
                f"Training seeds: {_seed_numbers(study)}.",
                f"{network}." if network else "",
                *(f"Split {text}{' (first fold)' if settings['folds'] else ''}." for text in splits),
                f"Versions: {versions}." if versions else "",
                f"Hardware: {hardware}.",
                f"Commits: {words(commits)}." if commits else "Commits: not recorded, the package was installed.",
            ]
        ),
        join("Every number of this report is in `study.json`, from which it was rendered."),
    )


__all__ = ["REFERENCES", "limits", "methods", "repeat", "study_command"]
