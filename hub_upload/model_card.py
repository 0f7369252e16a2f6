"""The model card of a published checkpoint, rendered from the files of its run and never typed."""

from collections.abc import Sequence

from ham10000.hub_upload.card_comparison import comparison_section
from ham10000.hub_upload.card_markdown import join
from ham10000.hub_upload.card_metadata import card_data
from ham10000.hub_upload.card_results import results_section
from ham10000.hub_upload.card_sections import (
    banners,
    citation_section,
    conversion_section,
    ethics_section,
    licence_section,
    limitations_section,
    summary,
    title,
    uses_section,
)
from ham10000.hub_upload.card_training import data_section, model_section, training_section
from ham10000.hub_upload.card_usage import usage_section
from ham10000.hub_upload.run_files import RunFiles, Sibling


def render_model_card(
    run: RunFiles,
    *,
    repo_id: str,
    revision: str,
    siblings: Sequence[Sibling] = (),
    base_model: str | None = None,
    has_onnx: bool = False,
) -> str:
    """Renders the README.md of a model repository, for a dermatologist first and an engineer second.

    Sections without data vanish: a checkpoint that was converted, or not evaluated, gets a card that says so.

    Args:
        run: Result of `read_run`.
        repo_id: Repository the card is for, such as `user/ham10000-fusion`.
        revision: Tag or commit that every example pins.
        siblings: Other variants to compare with.
        base_model: Hub id of the weights the backbone started from, where they came from a local file.
        has_onnx: Whether the repository holds `onnx/model.onnx`.

    Returns:
        Markdown with YAML front matter, ending in a newline.

    Example:
        >>> card = render_model_card(read_run("runs/fusion"), repo_id="user/ham10000-fusion", revision="v1.0")
    """
    front_matter = card_data(run, repo_id=repo_id, base_model=base_model, has_onnx=has_onnx).to_yaml()
    body = join(
        title(run),
        banners(run),
        summary(run),
        uses_section(run),
        usage_section(run, repo_id, revision, has_onnx=has_onnx),
        results_section(run, comparison_section(run, siblings)),
        limitations_section(run),
        ethics_section(run),
        data_section(run),
        model_section(run),
        conversion_section(run),
        training_section(run),
        licence_section(run),
        citation_section(),
    )
    return f"---\n{front_matter}\n---\n\n{body}\n"


__all__ = ["render_model_card"]
