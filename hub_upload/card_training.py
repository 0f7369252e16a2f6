"""The engineer's part of a card: data, network, preprocessing, training, cost, and the command to do it again."""

import shlex
from typing import Any

from PIL import Image

from ham10000.hub_upload.card_cost import (
    GRAMS_CO2E_PER_KWH,
    POWER_USAGE_EFFECTIVENESS,
    WATTS_PER_CORE,
    WATTS_PER_GB,
    training_footprint,
)
from ham10000.hub_upload.card_markdown import (
    bullets,
    code,
    count,
    decimal,
    details,
    escape,
    fence,
    figure,
    join,
    percent,
    plain,
    section,
    table,
    words,
)
from ham10000.hub_upload.run_files import RunFiles
from ham10000.modeling import LABELS, MALIGNANT
from ham10000.training.config import TrainConfig
from ham10000.training.run_folder import portable_training

# Settings that say where and how a run was watched, not what it computed.
_NOT_REPRODUCED = ("data", "output_dir", "cache_dir", "split_file", "trackers", "resume", "overwrite")
_FUSIONS = {
    "concat": "both embeddings are concatenated (late fusion)",
    "gated": "learned gates weigh the two embeddings",
    "metablock": "MetaBlock, the metadata gate the image features (Pacheco & Krohling 2021, "
    "10.1109/JBHI.2021.3062002)",
    "film": "FiLM, the metadata scale and shift the image features (Perez et al. 2018, arXiv:1709.07871)",
}


def data_section(run: RunFiles) -> str:
    """Labels, class counts, split and how missing metadata are handled."""
    header, align = ["id", "label", "diagnosis", "group"], "rlll"
    rows = [
        [
            str(index),
            label,
            escape(run.config["label_descriptions"][label]),
            "malignant or premalignant" if label in MALIGNANT else "benign",
        ]
        for index, label in enumerate(LABELS)
    ]
    blocks = []
    if run.training is not None:
        split = run.training["split"]
        header, align = [*header, "train", "validation", "test", "loss weight"], align + "rrrr"
        for row, label in zip(rows, LABELS, strict=True):
            row += [count(split["class_counts"][part][label]) for part in ("train", "validation", "test")]
            row.append(decimal(run.training["class_weights"][label]))
        blocks.append(_split_text(run))
    vocabularies = {
        "age": f"age in years, encoded as (age - {run.config['age_offset']:g}) / {run.config['age_scale']:g}",
        "sex": f"sex, one of {words([escape(value) for value in run.config['sex_vocabulary']], 'or')}",
        "localization": f"site, one of "
        f"{words([escape(value) for value in run.config['localization_vocabulary']], 'or')}",
    }
    if run.modality != "image":
        blocks += [
            "Metadata, each field with a state of its own for *missing* (a missing age is neither 0 nor the mean; 0 "
            "is a real age):",
            bullets(vocabularies[name] for name in run.config["metadata_fields"]),
            f"In training each field is hidden with probability {run.config['metadata_field_dropout']:g} and the "
            f"whole row with {run.config['metadata_dropout']:g}, so that the model knows the missing state. How the "
            "diagnosis was made and which source an image came from give the label away and are never inputs.",
        ]
    return section("Data and labels", table(header, rows, align=align), *blocks)


def _split_text(run: RunFiles) -> str:
    assert run.training is not None
    split = run.training["split"]
    sizes, leakage = split["sizes"], split["leakage"]
    notes = [note for note in portable_training(run.training)["data_notes"] if note]
    text = (
        f"{count(sum(sizes.values()))} images: {words([f'{count(sizes[part])} {part}' for part in sizes])}. Protocol "
        f"{escape(split['protocol'])}, split seed {count(split['seed'])}"
    )
    if split.get("folds"):
        text += f", fold {count(split['fold'])} of {count(split['folds'])}"
    text += (
        f"; sha256 of the assignment {code(split['sha256'])}, each image's side in `split.csv`. Images whose lesion "
        f"is also in train: validation {percent(leakage['validation']['all'])}, test "
        f"{percent(leakage['test']['all'])}."
    )
    if run.trained_on_validation:
        text += " This model was trained on train and validation together."
    return join(text, bullets(f"Note of the data check: {escape(note)}." for note in notes))


def model_section(run: RunFiles) -> str:
    """Network and preprocessing."""
    config = run.config
    parts = []
    if run.modality != "metadata":
        keywords = f" with {code(_compact(config['backbone_kwargs']))}" if config["backbone_kwargs"] else ""
        parts.append(f"Image: timm's {code(config['backbone'])}{keywords}, pooled features.")
        processor = run.processor["image_processor"]
        size, resample = processor["size"], Image.Resampling(processor["resample"]).name.lower()
        mean, std = (", ".join(f"{value:g}" for value in processor[name]) for name in ("image_mean", "image_std"))
        preprocessing = (
            f"Preprocessing: upright by EXIF, RGB, resized to {size['height']} x {size['width']} pixels (height x "
            f"width, {resample}, the aspect ratio is not kept), values in [0, 1] normalised by mean ({mean}) and "
            f"standard deviation ({std}). `processor_config.json` holds all of it."
        )
    else:
        preprocessing = ""
    if run.modality != "image":
        widths = " and ".join(str(width) for width in config["metadata_hidden_sizes"])
        parts.append(f"Metadata: one-hot and scaled fields with missing flags, then an MLP of width {widths}.")
    if run.modality == "fusion":
        parts.append(f"Fusion: {code(config['fusion'])}, {_FUSIONS[config['fusion']]}.")
    parts.append(f"Then dropout {config['classifier_dropout']:g} and a linear classifier of {len(LABELS)} classes.")
    if run.training is not None:
        parts.append(f"{run.training['parameters'] / 1e6:.2f} M parameters.")
    return section("Network and preprocessing", " ".join(parts), preprocessing)


def _compact(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def _augmentation(config: dict[str, Any]) -> str:
    area, color = config["augment_min_area"], config["augment_color"]
    steps = [
        "horizontal and vertical flips" if config["augment_flip"] else "",
        f"rotation up to {config['augment_rotation']:g} degrees" if config["augment_rotation"] else "",
        f"resized crops of at least {percent(area, 0)} of the area" if area < 1 else "",
        f"brightness, contrast, saturation and hue jitter of strength {color:g}" if color else "",
        # Runs of earlier versions do not have these settings.
        f"mixup with alpha {config['mixup']:g}" if config.get("mixup") else "",
        f"CutMix with alpha {config['cutmix']:g}" if config.get("cutmix") else "",
    ]
    first, last = config.get("train_scales", (1.0, 1.0))
    if (first, last) != (1.0, 1.0):
        steps.append(f"pictures of {percent(first, 0)} of the side in the first epoch, {percent(last, 0)} in the last")
    return f"Augmentation: {words([step for step in steps if step] or ['none'])}."


def training_section(run: RunFiles) -> str:
    """Settings, the best epoch, the curve, what it cost and how to do it again."""
    if run.training is None:
        return ""
    training = portable_training(run.training)
    config, best = training["config"], training["best"]
    start = {
        "timm": f"from timm's pretrained weights of {code(config['backbone'])}",
        "none": "from random weights",
    }.get(config["pretrained"], f"from the weights in {code(config['pretrained'])}")
    if config.get("freeze_backbone"):
        start += ", the backbone frozen"
    settings = (
        f"AdamW, {'from random weights' if run.modality == 'metadata' else start}, "
        f"{count(training['epochs_trained'])} epochs{_stopping(config)}, batches of {count(config['batch_size'])}, learning rate "
        f"{config['learning_rate']:g} (backbone) and {config['head_learning_rate']:g} (the rest), "
        f"{escape(config['schedule'])} schedule, weight decay {config['weight_decay']:g}, label smoothing "
        f"{config['label_smoothing']:g}, class weights {escape(config['class_weights'])}{_prior(config)}, averaged "
        f"weights {config['ema_decay']:g}, precision {escape(training['mixed_precision'])}, seed "
        f"{count(config['seed'])}."
    )
    if run.modality == "metadata":
        settings = settings.replace(
            f"{config['learning_rate']:g} (backbone) and {config['head_learning_rate']:g} (the rest)",
            f"{config['head_learning_rate']:g}",
        )
    chosen = ""
    if run.trained_on_validation:
        chosen = (
            f"The published weights are those of epoch {count(training['epochs_trained'])}, the last: the validation "
            "images were trained on as well, with settings chosen before, so none was left to choose an epoch by."
        )
    elif best:
        chosen = (
            f"The published weights are those of epoch {count(best['epoch'])}, {_choice(config)}: macro-F1 "
            f"{decimal(best['validation_macro_f1'])} (balanced accuracy "
            f"{decimal(best.get('validation_balanced_accuracy'))}, accuracy "
            f"{decimal(best.get('validation_accuracy'))}, "
            f"loss {decimal(best.get('validation_loss'))})."
        )
    every = table(
        ["setting", "value"], [[code(name), code(_setting(value))] for name, value in config.items()], align="ll"
    )
    return section(
        "Training",
        settings,
        "" if run.modality == "metadata" else _augmentation(config),
        chosen,
        figure(run.figures, "training_curves.png", "Loss and validation macro-F1 by epoch"),
        details("All settings", every),
        section("What it cost", _cost(training), level=3),
        section("Do it again", _reproduce(run, training), level=3),
    )


def _stopping(config: dict[str, Any]) -> str:
    if config.get("patience") is None:
        return ""
    return f" (at most {count(config['epochs'])}, patience {count(config['patience'])})"


def _choice(config: dict[str, Any]) -> str:
    """Why the epoch that is kept is; runs of earlier versions, which have a `loader`, chose it by macro-F1."""
    if config.get("patience") is None:
        return "the last of a fixed schedule; on the validation images"
    return "the best by validation " + ("macro-F1" if "loader" in config else "loss")


def _prior(config: dict[str, Any]) -> str:
    """How classes are drawn and adjusted; runs of earlier versions have no sampling."""
    parts = []
    if config.get("sampling", "natural") != "natural":
        parts.append("classes drawn by the square root of their size")
    if config.get("logit_adjustment"):
        parts.append(f"logit adjustment {config['logit_adjustment']:g}")
    return "".join(f", {part}" for part in parts)


def _setting(value: Any) -> str:
    if value is None or value == [] or value == "":
        return "not set"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _cost(training: dict[str, Any]) -> str:
    environment = training["environment"]
    gpu = environment.get("gpu")
    hardware = f"{count(environment['cpu']['count'])} cores of {escape(environment['cpu']['model'])}"
    if gpu and training["device"] != "cpu":
        hardware = f"{count(training['processes'])} x {escape(gpu['model'])}, {hardware}"
    text = (
        f"{_duration(training['training_seconds'])} on {hardware}, {environment['memory_mib'] / 1024:.0f} GB of memory"
    )
    if environment.get("peak_rss_mib"):
        text += f" (peak {environment['peak_rss_mib'] / 1024:.1f} GB)"
    if training.get("median_images_per_second"):
        text += f", {training['median_images_per_second']:,.0f} training images per second"
    footprint = training_footprint(training)
    if footprint is None:
        carbon = "No estimate of its energy: the power of this hardware is not known."
    else:
        carbon = (
            f"**Estimated** {footprint.kilowatt_hours:.2g} kWh and {footprint.grams_co2e:.2g} g CO2e, by the "
            "[Green Algorithms](https://doi.org/10.1002/advs.202100707) formula. Assumed, not measured: "
            f"{WATTS_PER_CORE:g} W per "
            f"core{' and each GPU at its design power' if training['device'] != 'cpu' else ''}, all of them busy; "
            f"{WATTS_PER_GB:g} W per GB of the machine's memory; a data centre's overhead of "
            f"{POWER_USAGE_EFFECTIVENESS:g}; {GRAMS_CO2E_PER_KWH:g} g CO2e per kWh, the world's average. Trials "
            "before this run are not counted."
        )
    return join(text + ".", carbon)


def _reproduce(run: RunFiles, training: dict[str, Any]) -> str:
    environment = training["environment"]
    versions = [f"{escape(name)} {escape(version)}" for name, version in environment["versions"].items() if version]
    git = environment.get("git")
    commit = ""
    if git:
        dirty = " with changes that were not committed" if git.get("dirty") else ""
        commit = f"Commit {code(git['commit'])} of the package{dirty}. "
    return join(
        fence("bash", reproduce_command(training)),
        "`HAM10000/` is your copy of the data set. Settings that are not named are the defaults of that commit; all "
        "are in `train_config.json`, which `--config` reads. On a CPU the same machine gives the same bits."
        if not run.synthetic_training
        else "The data are made from a seed; nothing needs to be downloaded.",
        f"{commit}Made with {', '.join(versions)}.",
    )


def reproduce_command(training: dict[str, Any]) -> str:
    """The commands that train and evaluate such a model again.

    Args:
        training: Result of `portable_training`.

    Returns:
        Two shell commands with every setting that is not the default.
    """
    config = training["config"]
    data = plain(config["data"]) if str(config["data"]).startswith("synthetic") else "HAM10000/"
    output_dir = f"runs/{plain(config['modality'])}"
    arguments = ["--data", data, "--output_dir", output_dir]
    for name, default in TrainConfig().to_dict().items():
        value = config.get(name, default)
        if name in _NOT_REPRODUCED or value == default or value is None:
            continue
        arguments += [f"--{name}", *map(plain, value if isinstance(value, list) else [value])]
    if config.get("split_file"):
        arguments += ["--split_file", "split.csv"]
    lines, line = [], "ham10000-train"
    for word in map(shlex.quote, arguments):
        # A line break before an option keeps the option and its values together.
        if word.startswith("--") and len(line) > 80:
            lines.append(line)
            line = "   "
        line += f" {word}"
    evaluation = f"ham10000-evaluate --checkpoint {shlex.quote(output_dir)} --data {shlex.quote(data)} --split test"
    return " \\\n".join([*lines, line]) + f"\n{evaluation}"


__all__ = ["data_section", "model_section", "reproduce_command", "training_section"]
