"""Trains from a Hub dataset without downloading it first: rows are read as they are needed, and no cache is built.

    python examples/stream_from_hub.py --repo_id user/dataset --revision 0123abc… --steps 2000 --image_size 224

The dataset needs the columns image, image_id, lesion_id, dx, age, sex and localization. The revision is pinned,
because a dataset that changes under a run is another experiment. Without --repo_id the script writes the same layout,
Parquet shards in `data/`, from synthetic images and streams these, without a network.

A stream cannot be stratified: nobody has seen all of it. So the side of a lesion is decided by a hash of its id alone,
which keeps its photographs together, on any machine and in any order.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ham10000.modeling import LABELS, Ham10000Config, Ham10000Error, Ham10000Processor, create_model, create_processor
from ham10000.training.data.sources import load_data
from ham10000.training.evaluation.metrics import HEADLINE_METRICS, compute_metrics, softmax
from ham10000.training.run_folder import save_checkpoint
from ham10000.training.train import quiet_libraries
from ham10000.training.utils.cli import run_cli

SHARDS = 4


def write_local_dataset(folder: Path, synthetic: int) -> Path:
    """Writes synthetic photographs as a Hub dataset repository lays them out: data/train-*-of-*.parquet."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    dataset, _ = load_data(f"synthetic:{synthetic}")
    for shard in range(SHARDS):
        path = folder / "data" / f"train-{shard:05d}-of-{SHARDS:05d}.parquet"
        dataset.shard(SHARDS, shard).to_parquet(path)
    return folder


def open_stream(source: str, revision: str | None) -> datasets.IterableDataset:
    """Opens all rows of a dataset for streaming; images stay encoded until they are used.

    Raises:
        Ham10000Error: If it cannot be reached or read, or a column is missing.
    """
    try:
        stream = datasets.load_dataset(source, split="train", streaming=True, revision=revision)
    except (datasets.exceptions.DatasetsError, HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise Ham10000Error(f"The dataset {source!r} cannot be opened at revision {revision!r}: {error}") from error
    wanted = {"image", "image_id", "lesion_id", "dx", "age", "sex", "localization"}
    if missing := sorted(wanted - set(stream.column_names or [])):
        raise Ham10000Error(f"{source}: columns {missing} are missing; it has {stream.column_names}.")
    return stream.select_columns(sorted(wanted)).cast_column("image", datasets.Image(decode=False))


def is_test(lesion_id: str) -> bool:
    """Whether a lesion is one of the fifth that is tested on."""
    return int(hashlib.sha256(lesion_id.encode()).hexdigest(), 16) % 5 == 0


def batches(
    stream: datasets.IterableDataset, processor: Ham10000Processor, batch_size: int, *, drop_last: bool = False
) -> Iterator[dict[str, torch.Tensor]]:
    """Model inputs with labels, at most one batch in memory."""
    to_name = stream.features["dx"].int2str if isinstance(stream.features["dx"], datasets.ClassLabel) else str
    for rows in stream.iter(batch_size=batch_size, drop_last_batch=drop_last):
        metadata: list[Any] = [
            {name: rows[name][i] for name in processor.metadata_fields} for i in range(len(rows["dx"]))
        ]
        inputs = dict(processor(images=[image["bytes"] for image in rows["image"]], metadata=metadata))
        names = [to_name(dx) for dx in rows["dx"]]
        if unknown := sorted(set(names) - set(LABELS)):
            raise Ham10000Error(f"The dataset has the dx {unknown}, expected {', '.join(LABELS)}. Rename them first.")
        yield {**inputs, "labels": torch.tensor([LABELS.index(name) for name in names])}


@run_cli
def main(argv: Sequence[str]) -> None:
    """Streams, trains, tests, saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo_id", help="Hub dataset; by default a local one of synthetic images is written")
    parser.add_argument("--revision", help="commit or tag of the dataset; required with --repo_id")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--backbone", default="test_resnet")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--synthetic", type=int, default=300, help="photographs of the data that the script writes")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/examples/stream"))
    options = parser.parse_args(argv)
    if options.repo_id and not options.revision:
        raise Ham10000Error("--repo_id needs --revision: name the commit you have looked at.")

    datasets.disable_progress_bars()
    quiet_libraries()
    local = None if options.repo_id else write_local_dataset(options.output_dir / "data", options.synthetic)
    stream = open_stream(options.repo_id or str(local), options.revision)
    # Shards in random order, then rows from a buffer: as far as a stream can be shuffled.
    train = stream.filter(lambda row: not is_test(row["lesion_id"])).shuffle(seed=0, buffer_size=200)
    test = stream.filter(lambda row: is_test(row["lesion_id"]))

    config = Ham10000Config(modality="fusion", backbone=options.backbone)
    torch.manual_seed(0)
    model, processor = create_model(config), create_processor(config, image_size=options.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps)
    step, epoch, losses = 0, 0, []
    while step < options.steps:
        train.set_epoch(epoch)  # another order in every pass
        before = step
        for batch in batches(train, processor, options.batch_size, drop_last=True):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            step += 1
            if step % 20 == 0 or step == options.steps:
                print(f"step {step}, pass {epoch + 1}: mean loss of the last 20 steps {np.mean(losses[-20:]):.3f}")
            if step == options.steps:
                break
        if step == before:
            raise Ham10000Error("The stream holds less than one batch to train on; lower --batch_size.")
        epoch += 1

    model.eval()
    labels, logits = [], []
    with torch.inference_mode():
        for batch in batches(test, processor, 64):
            labels.append(batch.pop("labels").numpy())
            logits.append(model(**batch).logits.numpy())
    results = compute_metrics(np.concatenate(labels), softmax(np.concatenate(logits)))
    print(f"\n{results['n_images']} test photographs of lesions the model has not seen")
    for name in HEADLINE_METRICS:
        print(f"  {name:<40} {'undefined here' if results[name] is None else f'{results[name]:.3f}'}")
    save_checkpoint(options.output_dir, model, processor)
    print(f"Saved {options.output_dir}. Research software, not for diagnosis.")


if __name__ == "__main__":
    sys.exit(main())
