"""Trains one variant: `accelerate launch training/train.py --modality fusion --data DIR --output_dir runs/fusion`."""

import contextlib
import copy
import dataclasses
import hashlib
import logging
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import timm
import torch
import transformers
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, set_seed
from huggingface_hub import try_to_load_from_cache

from ham10000.modeling import LABELS, Ham10000Error, Ham10000ForImageClassification, create_model, create_processor
from ham10000.modeling.image_statistics_ham10000 import fit_image_statistics
from ham10000.training import run_folder
from ham10000.training.config import TrainConfig, parse_arguments
from ham10000.training.data import loader
from ham10000.training.data.augment import Augment
from ham10000.training.data.sources import DataReport, label_names, load_data
from ham10000.training.data.split import Split, apply_split, leakage_text, load_split, make_split
from ham10000.training.engine import ClassificationLoss, Engine, Progress, answered_prior, logit_offset
from ham10000.training.evaluation.plots import plot_training_curves
from ham10000.training.inference.prediction import load_checkpoint
from ham10000.training.run_folder import RunFile
from ham10000.training.utils.cli import lost_processes_explained, run_cli
from ham10000.training.utils.files import JsonObject, atomic_write_json, read_json
from ham10000.training.utils.hardware import environment, keep_freed_memory, resolve_precision

Data = tuple[datasets.Dataset, DataReport]
# What may differ between a run and its resumption without changing the result: places, and equal paths to the data.
FREE_TO_CHANGE = {"data", "pretrained", "init_from", "output_dir", "cache_dir", "trackers"}
FREE_TO_CHANGE |= {"save_every_steps", "keep_checkpoints", "resume", "overwrite"}


def build_model(config: TrainConfig, labels: Sequence[str] = LABELS) -> Ham10000ForImageClassification:
    """The model at the beginning of a run, from the run's seed; an error if there is no such backbone or weights."""
    set_seed(config.seed)
    # What is overwritten anyway must not need the network or the file.
    given = "none" if config.resume or config.init_from else config.pretrained
    return create_model(config.model_config(labels), pretrained={"timm": True, "none": False}.get(given, given))


def start_from(model: Ham10000ForImageClassification, checkpoint: str, config: TrainConfig) -> JsonObject:
    """Copies the weights of a checkpoint into a model; the classifier too, row by row, where the labels are the same.

    Refuses another network, and one that calls others of the same labels malignant unless the run's configuration says
    which are. Returns the `base_model` of `train_config.json`: `name`, `labels`, `data` as `data_behind`,
    and whether the classifier was taken over, as `head`.
    """
    source, _ = load_checkpoint(checkpoint)
    ours, theirs = model.config, source.config
    fields = ["modality", "metadata_hidden_sizes", "metadata_fields", "sex_vocabulary", "localization_vocabulary"]
    fields = fields[:1] + (fields[1:] + ["age_offset", "age_scale"] if ours.uses_metadata else [])
    fields += ["backbone"] * ours.uses_image + ["fusion"] * (ours.modality == "fusion")
    for name in fields:
        if getattr(ours, name) != getattr(theirs, name):
            raise Ham10000Error(
                f"`init_from` {checkpoint!r} has {name} {getattr(theirs, name)!r}, this run {getattr(ours, name)!r}: "
                f"leave {name} out, or start from its backbone alone by --pretrained."
            )
    weights, own = source.state_dict(), model.state_dict()
    same_labels = set(ours.label_names) == set(theirs.label_names)
    malignant = [sorted(network.malignant_labels or ()) for network in (theirs, ours)]
    if same_labels and config.malignant_labels is None and malignant[0] != malignant[1]:
        raise Ham10000Error(
            f"`init_from` {checkpoint!r} counts {malignant[0]} as malignant, this run {malignant[1]}: say which by "
            f"--malignant_labels {' '.join(malignant[0]) or 'none'}."
        )
    for name in [name for name in weights if name.startswith("classifier.")]:
        # By name: another order of the same labels must not exchange two classes.
        rows = [theirs.label_names.index(label) for label in ours.label_names] if same_labels else []
        weights[name] = weights[name][rows] if same_labels else own[name]
    if differs := [name for name in own if name not in weights or own[name].shape != weights[name].shape]:
        raise Ham10000Error(
            f"`init_from` {checkpoint!r} does not fit: {len(differs)} weights such as {differs[0]} have another "
            f"shape. Its backbone_kwargs are {theirs.backbone_kwargs}, this run's {ours.backbone_kwargs}."
        )
    model.load_state_dict(weights)
    folder = Path(checkpoint)
    name, data = folder.resolve().name if folder.is_dir() else checkpoint, data_behind(folder, theirs.label_names)
    return {"name": name, "labels": theirs.label_names, "data": data, "head": same_labels}


def data_behind(checkpoint: Path, labels: Sequence[str]) -> str | None:
    """The data of a checkpoint, or of the base model of a synthetic one: `HAM10000`, `synthetic`, a name, or None."""
    training = read_json(checkpoint / RunFile.TRAINING, optional=True) or {}
    data = run_folder.image_origin(checkpoint / RunFile.SPLIT)
    if data != "synthetic" and (data is None or set(labels) != set(LABELS)):
        data = Path(training["config"]["data"]).name if "config" in training else None
    earlier = training.get("base_model") or training.get("pretrained_from")
    return earlier.get("data") if earlier and data == "synthetic" else data


def weights_origin(config: TrainConfig) -> JsonObject:
    """What `train_config.json` says of the file whose weights a new run has loaded to start from.

    `weights_sha256` is as `sha256sum` and the Hub give it; None for random weights, and for those that are not one
    safetensors file at hand. `pretrained_from` has name and data of the checkpoint of this package whose backbone
    `--pretrained` takes; None for other weights.
    """
    given = config.init_from or ("none" if config.modality == "metadata" else config.pretrained)
    path = Path(given)
    folder = path.parent if path.is_file() else path
    if path.is_dir():
        path /= RunFile.WEIGHTS
    elif config.init_from or given == "timm":
        hub_id = config.init_from or getattr(timm.get_pretrained_cfg(config.backbone), "hf_hub_id", None)
        cached = try_to_load_from_cache(hub_id, RunFile.WEIGHTS) if hub_id else None
        path = Path(cached) if isinstance(cached, str) else path
    origin: JsonObject = dict.fromkeys(("pretrained_from", "weights_sha256"))
    if path.is_file():
        with path.open("rb") as file:
            origin["weights_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    found = None if config.init_from else read_json(folder / RunFile.CONFIG, optional=True)
    if found and found.get("model_type") == "ham10000":
        data = data_behind(folder, list(found["id2label"].values()))
        origin["pretrained_from"] = {"name": folder.resolve().name, "data": data}
    return origin


def check_forward(model: Ham10000ForImageClassification, config: TrainConfig, processes: int = 1) -> None:
    """Runs a copy of the model, in training mode, on black images of every size of the run.

    A Vision Transformer takes one size, a pooling layer needs some pixels, batch norm more than one sample of those
    that each of the processes gets: found here, it costs neither the time to build the cache nor an earlier run.
    """
    if not model.config.uses_image:  # a metadata encoder takes any batch
        return
    probe, model_config = copy.deepcopy(model), model.config
    if config.freeze_backbone:
        probe.backbone.eval()  # as the engine does
    batch = max(1, min(2, config.batch_size // (config.gradient_accumulation_steps * processes)))
    sizes = {config.size, *(config.train_size(epoch) for epoch in range(config.epochs))}
    for height, width in sorted(sizes):
        pixels = torch.zeros(batch, 3, height, width)
        metadata = torch.zeros(batch, len(model_config.metadata_fields)) if model_config.uses_metadata else None
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                shape = tuple(probe(pixel_values=pixels, metadata=metadata).logits.shape)
            if shape != (batch, model_config.num_labels):
                raise ValueError(f"its logits have the shape {shape}")
        except Exception as error:  # timm and torch raise a dozen types here
            own_size = "x".join(str(side) for side in model.backbone.pretrained_cfg["input_size"][1:])
            raise Ham10000Error(
                f"The {config.modality} model (backbone {config.backbone!r}, backbone_kwargs "
                f"{config.backbone_kwargs!r}, fusion {config.fusion!r}) cannot be trained on {batch} sample(s) of "
                f"{height}x{width} pixels: {str(error) or type(error).__name__}. Change image_size or train_scales "
                f"(the backbone's own size is {own_size}), backbone_kwargs, batch_size."
            ) from error


def build_engine(
    config: TrainConfig,
    accelerator: Accelerator,
    dataset: datasets.Dataset,
    split: Split,
    model: Ham10000ForImageClassification | None = None,
) -> Engine:
    """Puts model, loaders and loss together to an engine, ready for `fit`.

    Args:
        config: The run's configuration.
        accelerator: Device, processes and precision.
        dataset: The whole source.
        split: Its division.
        model: Result of `build_model`; None builds it.
    """
    model = build_model(config, split.labels) if model is None else model
    device = accelerator.device
    processor = create_processor(model.config, image_size=config.size, resizer=config.resizer)
    parts = apply_split(dataset, split)
    trained_on = datasets.concatenate_datasets([parts[part] for part in config.train_parts])
    caching: JsonObject = {"cache_dir": config.cache_dir, "progress": accelerator.is_main_process}
    common: JsonObject = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    common["channels_last"] = config.channels_last
    validation_loader = None
    with accelerator.main_process_first():
        frames = loader.open_images(
            dataset, processor, device, train_size=config.largest_train_size, short_side=config.cache_size, **caching
        )
        if not config.train_on_validation:
            images = loader.open_images(parts["validation"], processor, device, **caching)
            samples = loader.Samples.from_dataset(parts["validation"], processor)
            validation_loader = loader.EvalLoader(
                samples, images, processor, device, batch_size=config.eval_batch_size, **common
            )
    if model.config.uses_image and accelerator.is_main_process:  # which saves it
        processor.image_processor.image_statistics = fit_image_statistics(loader.features_of_images(trained_on))
    train_loader = loader.TrainLoader(
        loader.Samples.from_dataset(trained_on, processor),
        frames,
        processor,
        device,
        augment=Augment.from_config(config, processor),
        batch_size=config.batch_size,
        micro_batches=config.gradient_accumulation_steps,
        size=config.train_size,
        sampling=config.sampling,
        seed=config.seed,
        **common,
    )
    drawn = loader.class_shares(split.counts(config.train_parts), config.sampling)
    weights = split.class_weights(config.class_weights, config.train_parts)
    model.config.class_prior = answered_prior(drawn, weights, config.logit_adjustment).tolist()
    loss = ClassificationLoss(
        torch.tensor(weights, dtype=torch.float32, device=device),
        label_smoothing=config.label_smoothing,
        offset=logit_offset(drawn, config.logit_adjustment).to(device),
    )
    kept = {name: value for name, value in config.to_dict().items() if name not in FREE_TO_CHANGE}
    # `auto` may be another precision on the machine that resumes.
    fingerprint = {**kept, "mixed_precision": accelerator.mixed_precision, "split_sha256": split.sha256}
    return Engine(config, accelerator, model, processor, train_loader, validation_loader, loss, fingerprint)


def run_summary(config: TrainConfig, split: Split, engine: Engine, start: JsonObject) -> JsonObject:
    """What `train_config.json` says of a run: its configuration, and once it has ended its result and cost.

    `start` is what was known when it began: the `time`, `origin` of the weights, `notes` of the data report, and
    `environment`, as the code on disk may be another one by the end.
    """
    progress, now = engine.progress, environment()
    weights = split.class_weights(config.class_weights, config.train_parts).tolist()
    rates = sorted(row["images_per_second"] for row in progress.history)
    return {
        "config": config.to_dict(),
        "mixed_precision": engine.accelerator.mixed_precision,
        "processes": engine.accelerator.num_processes,
        "device": str(engine.accelerator.device),
        "split": {key: value for key, value in split.summary().items() if key != "dropped"},
        **start["origin"],
        "class_weights": dict(zip(split.labels, weights, strict=True)),
        "data_notes": start["notes"],
        "parameters": engine.model.num_parameters(),
        "finished": engine.is_finished,
        "epochs_trained": progress.epoch,
        # The epoch that the checkpoint has; named so by earlier versions.
        "best": engine.kept,
        "training_seconds": round(sum(row["seconds"] for row in progress.history), 1),
        "session_seconds": round(time.perf_counter() - start["time"], 1),
        "median_images_per_second": rates[len(rates) // 2] if rates else None,
        "environment": start["environment"] | {name: now[name] for name in ("peak_rss_mib", "peak_cuda_mib")},
    }


def train(config: TrainConfig, accelerator: Accelerator, data: Data | None = None) -> Progress:
    """Trains one run from its configuration to its last epoch, and writes its folder.

    Args:
        config: The run's configuration.
        accelerator: Device, processes and precision; may serve one run after another.
        data: Result of `load_data` for `config.data`, where several runs share it; None reads it.

    Returns:
        The progress, with the history.

    Raises:
        Ham10000Error: For a folder that already holds a run or is being written by another process, data or settings
            that do not fit, or a loss that is no longer finite.
        Interrupted: After SIGTERM or SIGINT between two steps, with the state saved.
    """
    if data is None and not config.data:
        load_configured(config)  # says what is missing, before there is a folder
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    directory = Path(config.output_dir)
    if config.resume and run_folder.ended_before_saving(directory):
        accelerator.print(f"note: {config.output_dir!r} was ended before it had saved a step; starting it again")
        config = dataclasses.replace(config, resume=False, overwrite=True)
    with lost_processes_explained(config.output_dir), contextlib.ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(run_folder.only_writer(directory))
            run_folder.prepare_output_dir(directory, may_have_run=config.resume or config.overwrite)
            stack.callback(run_folder.tidy_output_dir, directory)  # of one that fails before it replaces another
        accelerator.wait_for_everyone()
        return _train(config, accelerator, data)


def load_configured(config: TrainConfig) -> Data:
    """Reads the data of a run as its configuration says."""
    if not config.data:
        raise Ham10000Error(
            "--data is missing: give a csv above or next to its images, a folder or a Hub id; `--data synthetic` "
            "tries the program on synthetic images."
        )
    return load_data(config.data, config.data_options(), **dict.fromkeys(config.data_fixes, True))


def _train(config: TrainConfig, accelerator: Accelerator, data: Data | None) -> Progress:
    start: JsonObject = {"time": time.perf_counter(), "environment": environment()}
    directory = Path(config.output_dir)
    dataset, report = load_configured(config) if data is None else data
    own_split = directory / RunFile.SPLIT
    if saved := own_split if config.resume and own_split.is_file() else config.split_file:
        split = load_split(saved)
    else:
        split = make_split(dataset, config.protocol, seed=config.split_seed, folds=config.folds, fold=config.fold)
    if split.labels != label_names(dataset):
        raise Ham10000Error(
            f"The split has the labels {split.labels}, the data {label_names(dataset)}; give --labels in the order of "
            "the split, or make a new one."
        )
    if split.dropped:
        note = f"{split.protocol} leaves out {len(split.dropped):,} images without an age, as the published split does"
        report = dataclasses.replace(report, notes=[*report.notes, note])
    # Before anything is written: data and settings that do not fit must leave an earlier run as it was.
    model = build_model(config, split.labels)
    if config.resume:
        recorded = read_json(directory / RunFile.TRAINING, optional=True) or {}
        origin = {name: recorded.get(name) for name in ("base_model", "pretrained_from", "weights_sha256")}
    else:
        base = start_from(model, config.init_from, config) if config.init_from else None
        origin = {"base_model": base, **weights_origin(config)}
    check_forward(model, config, accelerator.num_processes)
    is_new = accelerator.is_main_process and not config.resume
    begun = run_folder.begin_run(directory, config.to_dict()) if is_new else directory
    engine = build_engine(config, accelerator, dataset, split, model)
    engine.folder = begun
    if config.resume:
        engine.restore()
    accelerator.print(report)
    accelerator.print(describe_run(config, split, engine))
    if base_model := origin["base_model"]:
        head = "body and classifier" if base_model["head"] else "body; a new classifier, as its labels are others"
        accelerator.print(f"Start     {base_model['name']}: {head}")
    if accelerator.log_with:
        scalars = {name: value for name, value in config.to_dict().items() if isinstance(value, (int, float, str))}
        try:
            accelerator.init_trackers("logs", config=scalars)
        except Exception as error:  # each tracker's own: no login, no network, no room
            raise Ham10000Error(
                f"The trackers {config.trackers} cannot start: {type(error).__name__}: {error}. Set them up, or train "
                "with `--trackers none`."
            ) from error
    start |= {"origin": origin, "notes": report.notes}
    if accelerator.is_main_process:
        split.save(engine.folder)
        atomic_write_json(engine.folder / RunFile.TRAINING, run_summary(config, split, engine, start))
    progress = engine.fit()
    if accelerator.is_main_process:
        ended = run_summary(config, split, engine, start)
        atomic_write_json(engine.folder / RunFile.TRAINING, ended)
        curves = directory / "figures" / "training_curves.png"
        plot_training_curves(progress.history, curves, ended["best"]["epoch"])
        accelerator.print(describe_result(config, engine.describe_kept(), ended))
    return progress


def build_accelerator(config: TrainConfig, trackers: Sequence[str] = ()) -> Accelerator:
    """The processes, device and precision of a run; one for a process.

    Args:
        config: Its precision and folder.
        trackers: Accelerate trackers.
    """
    check_trackers(trackers)
    precision: str = config.mixed_precision
    if precision == "auto":
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "auto")  # `accelerate launch` always sets it
        if precision not in ("auto", "no", "bf16", "fp16"):
            raise Ham10000Error(f"`accelerate launch` asks for mixed_precision={precision!r}; use no, bf16 or fp16.")
    names: list[Any] = list(trackers)
    return Accelerator(
        # Without this, several processes on a machine without an accelerator would not find each other.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=resolve_precision(precision),
        log_with=names or None,
        project_dir=config.output_dir,
    )


def check_trackers(trackers: Sequence[str]) -> None:
    """Refuses what Accelerate would leave out without a word: a tracker that is unknown or not installed."""
    known, installed = LoggerType.list(), [str(name) for name in get_available_trackers()]
    for name in trackers:
        if name not in (*installed, "all"):
            problem = "whose package is not installed" if name in known else "which Accelerate does not know"
            raise Ham10000Error(
                f"`trackers` names {name!r}, {problem}. Installed here: {', '.join(installed) or 'none'}; "
                "'none' writes no logs."
            )


def quiet_libraries() -> None:
    """Silences progress bars and logs of libraries, which would drown a run's own."""
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("accelerate").setLevel(logging.ERROR)


def run(config: TrainConfig) -> None:
    """Does what the command line of `ham10000-train` asks for."""
    quiet_libraries()
    accelerator = build_accelerator(config, [name for name in config.trackers if name != "none"])
    train(config, accelerator)
    accelerator.end_training()


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of this file; that of `ham10000-train`, in `__main__.py`, answers `--help` without torch."""
    run(parse_arguments(argv))


_WRAPPER = textwrap.TextWrapper(80, subsequent_indent=" " * 10, break_long_words=False, break_on_hyphens=False)


def _titled(title: str, text: str) -> str:
    """A few words on one subject, in lines of 80 characters; a non-breaking space keeps two words together."""
    return _WRAPPER.fill(f"{title:<10}{text}").replace("\xa0", " ")


def describe_run(config: TrainConfig, split: Split, engine: Engine) -> str:
    """A few lines on what is about to be trained."""
    model, leak = engine.model, split.leakage(config.train_parts)["test"]["all"]
    network = f", {config.backbone} at {config.size[0]}x{config.size[1]}" if model.config.uses_image else ""
    network += f", {config.fusion} fusion" if config.modality == "fusion" else ""
    weights = zip(split.labels, split.class_weights(config.class_weights, config.train_parts), strict=True)
    parts = {
        "Model": f"{config.modality}{network}, {model.num_parameters() / 1e6:.2f} M parameters",
        "Split": f"{split.protocol}, seed {split.seed}, {' / '.join(str(size) for size in split.sizes.values())}; "
        f"{leakage_text(leak, 'test')}; sha256 {split.sha256[:16]}",
        "Weights": ", ".join(f"{label}\xa0{weight:.4f}" for label, weight in weights),
        "Run": f"{config.epochs} epochs of {engine.train_loader.steps_per_epoch} steps, batch {config.batch_size}, "
        f"seed {config.seed}, {engine.accelerator.device}, precision {engine.accelerator.mixed_precision}, "
        f"{engine.accelerator.num_processes} process(es)",
    }
    return "\n".join(_titled(title, text) for title, text in parts.items())


def describe_result(config: TrainConfig, kept: str, summary: JsonObject) -> str:
    """The last words of a run: which epoch is kept, at what cost (by its `run_summary`), and what to do next."""
    facts, folder = summary["environment"], config.output_dir
    speed = f"median {summary['median_images_per_second']:,.1f} training images/s"
    cost = f"{summary['session_seconds']:,.0f} s, {speed}, peak resident memory {facts['peak_rss_mib']:,.0f} MiB"
    if facts["peak_cuda_mib"]:
        cost += f", peak GPU memory {facts['peak_cuda_mib']:,.0f} MiB"
    # Not wrapped: to be copied.
    last = f"Saved     {folder}\nNext      ham10000-evaluate --checkpoint {folder} --data {config.data}"
    return "\n".join([_titled("Result", kept), _titled("Cost", cost), last])


if __name__ == "__main__":
    sys.exit(main())
