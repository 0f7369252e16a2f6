"""`transformers.Trainer` instead of this package's loop: the model, the processor and the metrics are ordinary ones.

    python examples/transformers_trainer.py --data HAM10000/ --backbone tf_efficientnetv2_s.in21k_ft_in1k \
        --pretrained timm --image_size 224 --epochs 10 --output_dir runs/trainer

Ends with the proof that what it saved is the model it trained: reloaded, the test probabilities are equal to the bit.
By default on synthetic images, with a small network. Choose the Trainer for its own features (hyperparameter search,
DeepSpeed, callbacks); the package's loop is faster, augments on the device and resumes to the bit.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageClassification, AutoProcessor, Trainer, TrainingArguments

from ham10000.modeling import Ham10000Config, Ham10000Processor, create_model, create_processor
from ham10000.training.data.sources import load_data
from ham10000.training.data.split import apply_split, make_split
from ham10000.training.evaluation.metrics import HEADLINE_METRICS, Ham10000Metrics, softmax, trainer_compute_metrics
from ham10000.training.train import quiet_libraries
from ham10000.training.utils.cli import run_cli


def prepare(dataset: datasets.Dataset, processor: Ham10000Processor, *, flip: bool) -> datasets.Dataset:
    """Rows as the Trainer collates them, made when they are asked for: pixel_values, metadata and labels.

    Args:
        dataset: A part of the data.
        processor: The model's processor.
        flip: Whether to mirror half of the images at random, the least of augmentations.

    Returns:
        The dataset with a transform.
    """

    def transform(rows: dict[str, list[Any]]) -> dict[str, Any]:
        metadata = [{name: rows[name][i] for name in processor.metadata_fields} for i in range(len(rows["dx"]))]
        inputs = dict(processor(images=rows["image"], metadata=metadata))
        if flip:
            mirrored = torch.rand(len(metadata)) < 0.5
            inputs["pixel_values"][mirrored] = inputs["pixel_values"][mirrored].flip(-1)
        return {**inputs, "labels": rows["dx"]}

    return dataset.with_transform(transform)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Trains, evaluates, saves, reloads and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:300")
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--pretrained", choices=["timm", "none"], default="none")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--epochs", type=float, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/examples/trainer"))
    options = parser.parse_args(argv)

    quiet_libraries()
    dataset, report = load_data(options.data)
    print(report)
    split = make_split(dataset, "lesion-grouped")
    config = Ham10000Config(modality="fusion", backbone=options.backbone)
    torch.manual_seed(0)
    model = create_model(config, pretrained=options.pretrained == "timm")
    processor = create_processor(config, image_size=options.image_size)
    parts = {
        name: prepare(part, processor, flip=name == "train") for name, part in apply_split(dataset, split).items()
    }
    weights = torch.tensor(split.class_weights("sqrt"), dtype=torch.float32)

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return F.cross_entropy(outputs.logits.float(), labels, weight=weights.to(labels.device))

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output_dir / "states"),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=64,
            learning_rate=options.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            eval_strategy="epoch",
            save_strategy="epoch",
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="macro_f1",
            remove_unused_columns=False,  # the transform needs the columns that the model does not read
            label_names=["labels"],
            report_to=[],
            disable_tqdm=not sys.stderr.isatty(),
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=0,
        ),
        train_dataset=parts["train"],
        eval_dataset=parts["validation"],
        compute_loss_func=loss,
        compute_metrics=trainer_compute_metrics,
        # No `processing_class`: the Trainer asks every processor for a tokenizer. It is saved below instead.
    )
    trainer.train()

    answer = trainer.predict(parts["test"])
    probabilities = softmax(answer.predictions[0] if isinstance(answer.predictions, tuple) else answer.predictions)
    metric = Ham10000Metrics(keep_in_memory=True)  # an `evaluate` metric
    results = metric.compute(predictions=probabilities, references=answer.label_ids)
    print(f"\n{results['n_images']} test photographs of lesions the model has not seen")
    for name in HEADLINE_METRICS:
        print(f"  {name:<40} {'undefined here' if results[name] is None else f'{results[name]:.3f}'}")

    trainer.save_model(str(options.output_dir))
    processor.save_pretrained(options.output_dir)
    reloaded = AutoModelForImageClassification.from_pretrained(options.output_dir)
    rows = prepare(apply_split(dataset, split)["test"], AutoProcessor.from_pretrained(options.output_dir), flip=False)
    trainer.model = trainer.model_wrapped = reloaded.to(trainer.args.device)
    again = trainer.predict(rows).predictions
    again = softmax(again[0] if isinstance(again, tuple) else again)
    difference = float(np.abs(again - probabilities).max())
    print(f"Saved {options.output_dir}; reloaded, its probabilities differ by at most {difference:g}")
    print("Research software, not for diagnosis.")


if __name__ == "__main__":
    sys.exit(main())
