"""The training loop, readable from top to bottom."""

import contextlib
import math
import signal
import time
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training import run_folder
from ham10000.training.config import TrainConfig
from ham10000.training.data.augment import Targets, mix_batch
from ham10000.training.data.loader import EvalLoader, TrainLoader, mix_seeds
from ham10000.training.evaluation.metrics import compute_metrics
from ham10000.training.inference.prediction import predict_logits
from ham10000.training.utils.cli import Interrupted, noted_signals, progress_bar
from ham10000.training.utils.files import atomic_write_json
from ham10000.training.utils.hardware import keep_strided_depthwise_fp32

# What is printed of an epoch, in at most 80 characters: name in the history, and format.
_COLUMNS = {
    "epoch": ("epoch", "d"),
    "train loss": ("train_loss", ".4f"),
    "val. loss": ("validation_loss", ".4f"),
    "macro-F1": ("validation_macro_f1", ".4f"),
    "balanced acc.": ("validation_balanced_accuracy", ".4f"),
    "accuracy": ("validation_accuracy", ".4f"),
    "images/s": ("images_per_second", ".0f"),
}
_READ_EVERY = 20  # steps between two looks at the loss, each of which waits for the device


def logit_offset(drawn: np.ndarray, tau: float) -> torch.Tensor:
    """`tau * log(drawn)`, added to the logits in training only.

    Logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, arXiv:2007.07314, equation
    10), at tau = 1 the balanced softmax (Ren et al., NeurIPS 2020, arXiv:2007.10740). Without it the logits answer for
    a class prior of `drawn ** (1 - tau)`: at 0 the classes as drawn, at 1 equal classes.

    `drawn` is the (classes,) share of each class among the rows an epoch draws; the result is (classes,) float32.
    """
    return torch.from_numpy(tau * np.log(drawn) if tau else np.zeros(len(drawn))).float()  # a share may be 0


def answered_prior(drawn: np.ndarray, class_weights: np.ndarray, tau: float) -> np.ndarray:
    """The class prior that a model's probabilities answer for, by how it was trained.

    Args:
        drawn: (classes,) share of each class among the rows an epoch draws.
        class_weights: (classes,) weights of the loss, which multiply it.
        tau: Strength of the logit adjustment, which takes `drawn ** tau` off.

    Returns:
        (classes,) shares, summing to one.
    """
    prior = drawn ** (1 - tau) * class_weights
    return prior / prior.sum()


@dataclass(frozen=True, eq=False)
class ClassificationLoss:
    """Weighted cross-entropy whose normaliser is the caller's.

    Summed over the micro-batches and processes of one optimiser step and divided by the step's `weight_sum`, it equals
    `torch.nn.functional.cross_entropy(..., weight=class_weights, label_smoothing=...)` on the whole batch, however the
    batch was cut.
    """

    class_weights: torch.Tensor  # (classes,)
    _: KW_ONLY
    label_smoothing: float = 0.0  # as in `torch.nn.functional.cross_entropy`
    offset: torch.Tensor | float = 0.0  # (classes,), added to the logits in training only, see `logit_offset`

    def weight_sum(self, labels: torch.Tensor) -> torch.Tensor:
        """Scalar sum of the class weights of (batch,) labels, the normaliser of the batch."""
        return self.class_weights[labels].sum()

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Scalar float32 sum of the weighted losses of (batch, classes) logits and (batch,) labels."""
        logits = logits.float() + self.offset
        return nn.functional.cross_entropy(
            logits, labels, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="sum"
        )


@dataclass
class Progress:
    """Where a run stands; saved with every training state."""

    epoch: int = 0  # the one in progress, from 0
    step: int = 0  # optimiser steps done in it
    loss_sum: float = 0.0  # over the epoch's steps
    seconds: float = 0.0  # training time of the epoch so far
    history: list[dict[str, Any]] = field(default_factory=list)  # one row per finished epoch


def build_optimizer(model: Ham10000ForImageClassification, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a lower learning rate for the backbone, and no weight decay on biases and norms.

    `peak_lr` of each group is what the schedule scales.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    settings = []
    for (in_backbone, decays), parameters in sorted(groups.items(), key=lambda item: item[0]):
        peak = config.learning_rate if in_backbone else config.head_learning_rate
        decay = config.weight_decay if decays else 0.0
        settings.append({"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay})
    return torch.optim.AdamW(settings, fused=True)


def learning_rate_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """Share of the peak learning rate at a step of a run, from 0: linear warm-up, then cosine to 0 or constant."""
    warmup_steps = config.warmup_fraction * total_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if config.schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1.0, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(eq=False, repr=False)
class Engine:
    """One training run: epochs, validation, early stopping, checkpoints.

    Randomness is reseeded from (seed, step) before every step, so dropout and metadata dropout of a resumed run equal
    those of an uninterrupted one without any saved generator state.

    Batch norm is not synchronised between processes, for the reasons in `examples/guides/training.md`: in training
    each normalises by its own share of the batch; validated, saved and resumed are the main process's statistics.
    """

    config: TrainConfig
    accelerator: Accelerator  # device, processes, precision, trackers
    model: Ham10000ForImageClassification  # in training mode, not yet on the device
    processor: Ham10000Processor  # saved with the checkpoint
    train_loader: TrainLoader
    validation_loader: EvalLoader | None  # None validates nothing
    loss: ClassificationLoss
    fingerprint: dict[str, Any]  # what must not change between a run and its resumption

    def __post_init__(self) -> None:
        config = self.config
        # Another place than the run's folder as long as that has a run which this one will replace, see `begin_run`.
        self.folder = Path(config.output_dir)
        # With patience and validation images the epochs are compared; without, the last is kept.
        self.chooses = config.patience is not None and self.validation_loader is not None
        self.total_steps = config.epochs * self.train_loader.steps_per_epoch
        self.progress = Progress()
        if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision == "bf16":
            keep_strided_depthwise_fp32(self.model)
        if config.freeze_backbone:
            self.model.backbone.requires_grad_(False)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        self.model = self.model.to(self.accelerator.device)
        self.modules: dict[str, nn.Module] = {"model": self.model}  # whose weights a training state has
        self.published_model = self.model  # validated and saved: the average of the weights where there is one
        self.average = None
        if config.ema_decay:
            # timm's warm-up 1 - (1 + step) ** -power: with its power of 2/3 a decay of 0.998 is not reached in 11,000
            # steps. With 1 the average is the plain mean until 1 / (1 - decay) steps, and from there on the decay is
            # the one that was asked for.
            self.average = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True, warmup_power=1.0)
            self.published_model = self.modules["average"] = self.average.module
        self.optimizer = build_optimizer(self.model, config)
        self.wrapped, self.prepared_optimizer = self.accelerator.prepare(self.model, self.optimizer)

    @property
    def kept(self) -> dict[str, Any] | None:
        """The row of the epoch whose weights the checkpoint has; None before the first."""
        history = self.progress.history
        if self.chooses:
            return min(history, key=lambda row: row["validation_loss"], default=None)
        return history[-1] if history else None

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are trained, or `patience` epochs have passed since the one that is kept."""
        epoch, kept, patience = self.progress.epoch, self.kept, self.config.patience
        is_out_of_patience = patience is not None and kept is not None and epoch - kept["epoch"] >= patience
        return epoch == self.config.epochs or is_out_of_patience

    def fit(self) -> Progress:
        """Trains all epochs and keeps the last; with `patience` keeps the one of the lowest validation loss.

        A fixed schedule chooses nothing: the learning rate has ended, and so the last epoch is the trained model.
        Macro-F1 is never what chooses: with a dozen images of the rarest class it moves by chance.

        SIGTERM or SIGINT ends the run after the step by an Interrupted, with its state saved. A loss that is no longer
        finite is a Ham10000Error.
        """
        if not self.is_finished:
            validates = self.validation_loader is not None
            shown = [title for title, (name, _) in _COLUMNS.items() if validates or not name.startswith("validation_")]
            self.accelerator.print("  ".join(shown))
        with noted_signals() as self.stop_signal:
            while not self.is_finished:
                self._train_epoch()
                self._end_epoch(self._validate())
        # Killed between the last state and its history, a run has nothing left to do but this.
        self._write_history()
        return self.progress

    def _end_epoch(self, row: dict[str, Any]) -> None:
        """Saves and prints an epoch, whose row of the history is given."""
        self.progress = Progress(self.progress.epoch + 1, history=[*self.progress.history, row])
        is_kept = self.kept is row
        if is_kept and self.accelerator.is_main_process:
            run_folder.save_checkpoint(self.folder, self.published_model, self.processor, dtype=self.config.save_dtype)
        self._save_state()
        self._write_history()
        self.accelerator.log({name: value for name, value in row.items() if name != "epoch"}, step=row["epoch"])
        cells = [f"{row[name]:{len(title)}{form}}" for title, (name, form) in _COLUMNS.items() if name in row]
        self.accelerator.print("  ".join([*cells, "kept"] if is_kept and self.chooses else cells))

    def restore(self) -> None:
        """Takes up the run in the output folder where its last saved state left it; writes nothing."""
        state = run_folder.load_training_state(
            self.config.output_dir, self.modules, self.optimizer, self.fingerprint, self.accelerator.print
        )
        if self.accelerator.scaler is not None and "scaler" in state:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        # Earlier versions also saved what `kept` finds in the history.
        names = {item.name for item in fields(Progress)}
        self.progress = Progress(**{name: value for name, value in state["progress"].items() if name in names})
        self.accelerator.print(
            f"Resuming after {self.progress.epoch} epochs and {self.progress.step} steps ({self.describe_kept()})"
        )

    def _train_epoch(self) -> None:
        progress, config, steps = self.progress, self.config, self.train_loader.steps_per_epoch
        self.wrapped.train()
        if config.freeze_backbone:
            # Its batch norm keeps the statistics it came with, and drop path does not drop what cannot adapt.
            self.model.backbone.eval()
        device = self.accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        loss_sum = torch.tensor(progress.loss_sum, dtype=dtype, device=device)
        start = time.perf_counter() - progress.seconds  # as if the steps before a resumption had just been done
        unread: list[torch.Tensor] = []
        bar_style = {"desc": f"Epoch {progress.epoch + 1}/{config.epochs}", "unit": "step", "leave": False}
        is_hidden = not self.accelerator.is_local_main_process
        # Closed on the way out of an error as well, whose message would stand on the bar's line otherwise.
        with progress_bar(total=steps, initial=progress.step, disable=is_hidden, **bar_style) as bar:
            for labels, micro_batches in self.train_loader.epoch(progress.epoch, progress.step):
                number = progress.epoch * steps + progress.step
                unread.append(self._step(number, labels, micro_batches))
                loss_sum += unread[-1]
                progress.step += 1
                bar.update()
                # Reading the loss waits for the device, so it is read now and then.
                is_read = progress.step % _READ_EVERY == 0 or progress.step == steps
                signum = self._agreed_signal(is_read)
                is_saved = signum or (config.save_every_steps and progress.step % config.save_every_steps == 0)
                if is_read or is_saved:
                    self._check_finite(unread)
                    unread.clear()
                    progress.loss_sum, progress.seconds = loss_sum.item(), time.perf_counter() - start
                    bar.set_postfix(loss=f"{progress.loss_sum / progress.step:.4f}", refresh=False)
                if is_saved:
                    self._save_state()
                if signum:
                    self._stop(signum)

    def _stop(self, signum: int) -> None:
        """Ends the run, after the main process has saved its state: a launcher ends all as soon as one is gone."""
        self.accelerator.wait_for_everyone()
        message = (
            f"Stopped by {signal.Signals(signum).name} in epoch {self.progress.epoch + 1}, after step "
            f"{self.progress.step} of {self.train_loader.steps_per_epoch}; the state is saved. Continue with "
            f"--resume --output_dir {self.config.output_dir}"
        )
        raise Interrupted(message if self.accelerator.is_main_process else "", signum)

    def _agreed_signal(self, is_read: bool) -> int:
        """The signal that has come to any process; several must agree, or one would wait for the others for ever.

        On GPUs they ask each other only when the loss is read anyway, which is soon. On CPUs asking costs nothing, and
        so many steps could take longer than the half minute that a launcher leaves.
        """
        if self.accelerator.num_processes == 1:
            return self.stop_signal()
        if not is_read and self.accelerator.device.type != "cpu":
            return 0
        received = torch.tensor([self.stop_signal()], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())

    def _step(self, number: int, labels: torch.Tensor, micro_batches: list[Any]) -> torch.Tensor:
        """One optimiser step; returns the loss of the global batch."""
        config, world_size = self.config, self.accelerator.num_processes
        torch.manual_seed(mix_seeds(config.seed, number, self.accelerator.process_index))
        factor = learning_rate_factor(number, self.total_steps, config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        normalizer = self.loss.weight_sum(labels)
        total = torch.zeros((), device=self.accelerator.device)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1
            targets: Targets = [(batch.labels, 1.0)]
            if batch.pixel_values is not None:
                seed = mix_seeds(config.seed, number, index)
                batch.pixel_values, targets = mix_batch(
                    batch.pixel_values, batch.labels, mixup=config.mixup, cutmix=config.cutmix, seed=seed
                )
            # Gradients are exchanged once a step, with the last micro-batch.
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                logits = self.wrapped(**batch.inputs).logits
                # The partners are the same samples in another order, so their weights have the same sum.
                losses = [share * self.loss(logits, target) for target, share in targets]
                loss = torch.stack(losses).sum() / normalizer
                # Data parallelism averages gradients over processes; the loss is already divided by the whole batch.
                self.accelerator.backward(loss * world_size)
            total += loss.detach()
        if config.max_gradient_norm:
            self.accelerator.clip_grad_norm_(self.wrapped.parameters(), config.max_gradient_norm)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.model, step=number)
        return self.accelerator.reduce(total, reduction="sum") if world_size > 1 else total

    def _validate(self) -> dict[str, Any]:
        progress = self.progress
        model = self.published_model.eval()
        if self.accelerator.num_processes > 1:
            # Gradients are exchanged, the running statistics of batch norm are not: validated as they are, a mixture
            # of networks would be judged, none of which is saved. So all take the buffers of the main process.
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        scores = {}
        if (loader := self.validation_loader) is not None:
            logits = predict_logits(model, loader, accelerator=self.accelerator, autocast=self.accelerator.autocast)
            probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
            metrics = compute_metrics(loader.samples.labels.numpy(), probabilities, model.config.label_names)
            names = ("macro_f1", "balanced_accuracy", "accuracy")
            scores = {"validation_loss": metrics["nll"], **{f"validation_{name}": metrics[name] for name in names}}
        steps = self.train_loader.steps_per_epoch
        return {
            "epoch": progress.epoch + 1,
            "train_loss": progress.loss_sum / steps,
            **scores,
            # Not the optimiser's own: after a resumption at the end of an epoch it has not been set yet.
            "learning_rate": self.optimizer.param_groups[-1]["peak_lr"]
            * learning_rate_factor((progress.epoch + 1) * steps - 1, self.total_steps, self.config),
            "seconds": progress.seconds,
            "images_per_second": steps * self.train_loader.batch_size / progress.seconds,
        }

    def describe_kept(self) -> str:
        """Which epoch is kept, and why, as text."""
        kept = self.kept
        if kept is None:
            return "no epoch finished yet"
        loss = f"validation loss {kept['validation_loss']:.4f}" if "validation_loss" in kept else "no validation"
        choice = "the lowest validation loss" if self.chooses else "the last"
        return f"epoch {kept['epoch']} is kept, {choice}: {loss}"

    def _write_history(self) -> None:
        if self.accelerator.is_main_process:
            atomic_write_json(self.folder / run_folder.RunFile.HISTORY, self.progress.history)

    def _check_finite(self, losses: list[torch.Tensor]) -> None:
        """Raises for the first of the last steps' losses that is not finite, and names its images."""
        values = torch.stack(losses).tolist() if losses else []
        for step, value in enumerate(values, self.progress.step - len(values)):
            if not math.isfinite(value):
                names = self.train_loader.image_ids(self.progress.epoch, step)
                raise Ham10000Error(
                    f"The loss is {value} in epoch {self.progress.epoch + 1}, step {step + 1}, on the images "
                    f"{', '.join(names)}. Lower the learning rate, or use bf16 or no mixed precision; if it happens "
                    "again at another learning rate, look at these images. The last saved state is untouched."
                )

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            state = {"progress": asdict(self.progress), "fingerprint": self.fingerprint}
            if self.accelerator.scaler is not None:
                state["scaler"] = self.accelerator.scaler.state_dict()
            step = self.progress.epoch * self.train_loader.steps_per_epoch + self.progress.step
            keep = self.config.keep_checkpoints
            run_folder.save_training_state(self.folder, state, self.modules, self.optimizer, step=step, keep=keep)
            self.folder = Path(self.config.output_dir)
            run_folder.replace_run(self.folder)
