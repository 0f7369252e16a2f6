"""Writes the figures of `ham10000-predict --explain`: one file, or a folder with one for each sample."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from ham10000.modeling import Ham10000Error, Ham10000ForImageClassification, Ham10000Processor
from ham10000.training.explanation import explain, plot_explanation
from ham10000.training.prediction_inputs import Sample

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")


def explanation_paths(samples: Sequence[Sample], target: str) -> list[Path]:
    """Where the figure of each sample goes.

    Args:
        samples: What is explained.
        target: A file for one sample, whose suffix is one of `FIGURE_SUFFIXES`; else a folder, which need not exist.

    Returns:
        One path a sample; in a folder the sample's name with `.png`, numbered where two are alike.

    Raises:
        Ham10000Error: For a file though there are several samples, another suffix, or a path that is an input.
    """
    path = Path(target)
    is_file = path.suffix != "" and not path.is_dir()
    if is_file and len(samples) > 1:
        raise Ham10000Error(f"--explain {target!r} is one file, but there are {len(samples)} samples; give a folder.")
    if is_file and path.suffix.lower() not in FIGURE_SUFFIXES:
        raise Ham10000Error(f"--explain {target!r}: expected {', '.join(FIGURE_SUFFIXES)}, or a folder.")
    if not is_file and path.is_file():
        raise Ham10000Error(f"--explain {target!r} is a file that is there already; give a .png file or a folder.")
    paths = [path]
    if not is_file:
        stems: list[str] = []
        for number, sample in enumerate(samples, start=1):
            stem = _file_stem(sample.name or "", is_picture=sample.picture is not None) or f"row_{number}"
            # In lower case, because some file systems take a.png and A.png for one file.
            taken = {name.lower() for name in stems}
            stems.append(stem if stem.lower() not in taken else f"{stem}_{number}")
        paths = [path / f"{stem}.png" for stem in stems]
    pictures = {sample.picture.resolve() for sample in samples if sample.picture is not None}
    for figure in paths:
        if figure.resolve() in pictures:
            raise Ham10000Error(f"--explain would overwrite the picture {str(figure)!r}; give another folder.")
    return paths


def _file_stem(name: str, *, is_picture: bool) -> str:
    """A name for a file of any system, from a picture's path or a csv's cell."""
    stem = Path(name).stem if is_picture else name
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:100]


def write_explanations(
    model: Ham10000ForImageClassification,
    processor: Ham10000Processor,
    samples: Sequence[Sample],
    paths: Sequence[Path],
    *,
    label: str = "mel",
    unknown_values: str = "error",
) -> None:
    """Explains every sample and draws its figure; a progress bar on stderr if there are several.

    Args:
        model: The model as loaded.
        processor: Its processor.
        samples: What is explained.
        paths: Result of `explanation_paths`.
        label: The class explained beside the predicted one.
        unknown_values: As the samples were predicted.

    Raises:
        Ham10000Error: As `explain`, or if a file cannot be written.
    """
    pairs = list(zip(samples, paths, strict=True))
    for sample, path in tqdm(pairs, desc="Explaining", unit="image", disable=len(pairs) == 1):
        name = Path(sample.name or "").name if sample.picture is not None else sample.name
        explanation = explain(
            model,
            processor,
            sample.picture,
            sample.metadata or None,
            label=label,
            name=name,
            unknown_values=unknown_values,
        )
        try:
            plot_explanation(explanation, path)
        except OSError as error:
            raise Ham10000Error(f"Cannot write --explain {str(path)!r}: {error}.") from error
    written = str(paths[0]) if len(paths) == 1 else f"{len(paths)} figures to {paths[0].parent}"
    print(f"wrote {written}", file=sys.stderr)


__all__ = ["FIGURE_SUFFIXES", "explanation_paths", "write_explanations"]
