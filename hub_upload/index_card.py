"""An index of the published variants: which there are, how they compare, and which to choose.

ham10000-index runs/image runs/metadata runs/fusion --repo_id user/ham10000 --output README.md
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ham10000.hub_upload.card_comparison import (
    comparison_table,
    leak_note,
    link,
    paired_table,
    same_protocol,
    variant_name,
)
from ham10000.hub_upload.card_markdown import bullets, escape, fence, join, section
from ham10000.hub_upload.card_metadata import DATASET, weights_license
from ham10000.hub_upload.card_sections import RESEARCH_BANNER, SYNTHETIC_BANNER, citation_section
from ham10000.hub_upload.run_files import RunFiles, Sibling, read_run
from ham10000.modeling import MODALITIES, Ham10000Error
from ham10000.training.cli import add_debug_argument, run_cli
from ham10000.training.comparison import compare_predictions
from ham10000.training.files import atomic_write_text

_CHOICES = {
    "image": "where there is only the picture, and as the one to compare others with.",
    "metadata": "only as the floor: what age, sex and site tell without looking.",
    "fusion": "where age, sex or site are known; it also takes a picture alone. Read its results by age band first.",
}


def _by_modality(siblings: Sequence[Sibling]) -> list[Sibling]:
    found = [sibling.run.modality for sibling in siblings]
    twice = sorted({modality for modality in found if found.count(modality) > 1})
    if not siblings or twice:
        raise Ham10000Error(
            f"An index needs each variant at most once and at least one of them, got {found}; leave one out."
        )
    return sorted(siblings, key=lambda sibling: MODALITIES.index(sibling.run.modality))


def render_index_card(
    siblings: Sequence[Sibling],
    *,
    repo_id: str,
    revision: str = "v1.0",
    comparisons: Sequence[tuple[str, str, dict[str, Any]]] = (),
) -> str:
    """Renders the README.md of an index repository or collection.

    Args:
        siblings: The variants, each at most once; `Sibling.comparison` is not read.
        repo_id: Repository of the index, such as `user/ham10000`.
        revision: Tag that the example pins.
        comparisons: (modality, other modality, result of `compare_predictions` of the first minus the second).

    Returns:
        Markdown with YAML front matter, ending in a newline.

    Raises:
        Ham10000Error: For no variant, or one that is there twice.
    """
    siblings = _by_modality(siblings)
    runs = [sibling.run for sibling in siblings]
    synthetic = any(run.synthetic for run in runs)
    trained_on_photographs = any(not run.synthetic_training for run in runs)
    front_matter = ModelCardData(
        language="en",
        license="cc-by-nc-4.0" if trained_on_photographs else weights_license(runs[0]),
        datasets=[DATASET] if trained_on_photographs else None,
        tags=["dermoscopy", "dermatology", "medical", "research-only", *([] if synthetic else [DATASET])],
    )
    choices = bullets(
        f"**{link(sibling.repo_id, variant_name(sibling.run))}**: {_CHOICES[sibling.run.modality]}"
        for sibling in siblings
    )
    body = join(
        f"# {escape(repo_id.split('/')[-1])}: image, metadata and fusion models for HAM10000",
        SYNTHETIC_BANNER.format(what="The numbers below come from") if synthetic else "",
        RESEARCH_BANNER,
        "The seven classes of [HAM10000](https://doi.org/10.1038/sdata.2018.161), read from a dermatoscopic image, "
        "from age, sex and site, or from both. The question behind them: do metadata improve on the image, and at the "
        "price of which shortcuts? Each variant's own card says where it fails and for whom.",
        section("Which to choose", choices, _example(siblings[-1], revision)),
        section("How they compare", *_results(siblings, with_published=not synthetic)),
        section("Differences", *_differences(comparisons)),
        section(
            "Licence",
            "Code: Apache-2.0. Weights: as HAM10000 "
            "[CC BY-NC 4.0](https://creativecommons.org/licenses/by-nc/4.0/), as far as they derive from it."
            if trained_on_photographs
            else "Code and weights: Apache-2.0; no photograph of HAM10000 went into them.",
        ),
        citation_section(),
    )
    return f"---\n{front_matter.to_yaml()}\n---\n\n{body}\n"


def _example(sibling: Sibling, revision: str) -> str:
    if sibling.repo_id is None:
        return ""
    return fence(
        "python",
        "from transformers import AutoModel, AutoProcessor\n\n"
        f'repo, revision = "{sibling.repo_id}", "{revision}"\n'
        "model = AutoModel.from_pretrained(repo, revision=revision, trust_remote_code=True).eval()\n"
        "processor = AutoProcessor.from_pretrained(repo, revision=revision, trust_remote_code=True)",
    )


def _results(siblings: Sequence[Sibling], *, with_published: bool) -> list[str]:
    evaluated = [sibling for sibling in siblings if sibling.run.evaluation is not None]
    unevaluated = [sibling for sibling in siblings if sibling.run.evaluation is None]
    blocks = []
    if evaluated:
        rows = [(link(sibling.repo_id, variant_name(sibling.run)), sibling.run) for sibling in evaluated]
        blocks += [comparison_table(rows, with_published=with_published), leak_note(with_published=with_published)]
        if not same_protocol([sibling.run for sibling in evaluated]):
            blocks.append("These variants were not all scored on the same images.")
    if unevaluated:
        names = ", ".join(sibling.run.modality for sibling in unevaluated)
        blocks.append(f"Not evaluated, so nothing is known of how good they are: {names}.")
    return blocks


def _differences(comparisons: Sequence[tuple[str, str, dict[str, Any]]]) -> list[str]:
    blocks = [paired_table(comparison, this, other) for this, other, comparison in comparisons]
    if blocks:
        blocks.append(
            "One training run each: another seed may move these differences, and none is adjusted for looking at "
            "several metrics."
        )
    return blocks


def compare_runs(runs: Sequence[RunFiles]) -> list[tuple[str, str, dict[str, Any]]]:
    """Compares each pair of variants that predicted the same images, the richer one first.

    Args:
        runs: The variants.

    Returns:
        As `comparisons` of `render_index_card`.
    """
    ordered = sorted(
        (run for run in runs if run.evaluation is not None and (run.folder / "predictions.csv").is_file()),
        key=lambda run: ("fusion", "image", "metadata").index(run.modality),
    )
    return [
        (run.modality, other.modality, compare_predictions(run.folder / "predictions.csv", other_file))
        for index, run in enumerate(ordered)
        for other in ordered[index + 1 :]
        for other_file in [other.folder / "predictions.csv"]
        if same_protocol([run, other])
    ]


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-index`."""
    parser = argparse.ArgumentParser(prog="ham10000-index", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN[=REPO_ID]", help="run, and its Hub id if another")
    parser.add_argument("--repo_id", required=True, help="id of the index; a variant's is REPO_ID-<modality>")
    parser.add_argument("--revision", default="v1.0", help="tag that the example pins")
    parser.add_argument("--output", type=Path, default=Path("README.md"), help="file to write")
    add_debug_argument(parser)
    arguments = parser.parse_args(argv)
    siblings = []
    for argument in arguments.runs:
        folder, _, name = argument.partition("=")
        run = read_run(folder)
        siblings.append(Sibling(run=run, repo_id=name or f"{arguments.repo_id}-{run.modality}"))
    for repo_id in (arguments.repo_id, *(sibling.repo_id for sibling in siblings)):
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise Ham10000Error(f"{repo_id!r} is no Hub id: {error}. Expected user/name.") from error
    siblings = _by_modality(siblings)
    comparisons = compare_runs([sibling.run for sibling in siblings])
    card = render_index_card(siblings, repo_id=arguments.repo_id, revision=arguments.revision, comparisons=comparisons)
    print(f"Saved     {atomic_write_text(arguments.output, card)}")


__all__ = ["compare_runs", "main", "render_index_card"]


if __name__ == "__main__":
    sys.exit(main())
