"""Publishes a checkpoint on the Hugging Face Hub: assembled, verified in a clean process, then one atomic commit.

python hub_upload/push_to_hub.py --checkpoint runs/fusion --repo_id user/ham10000-fusion --dry_run
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import transformers
from huggingface_hub import HfApi

from ham10000.hub_upload.bundle import assemble_bundle, describe_tree, find_sibling
from ham10000.hub_upload.model_card import Stated
from ham10000.hub_upload.publish import check_names, find_token, publish_folder
from ham10000.hub_upload.run_files import RunFiles, Sibling, read_run
from ham10000.hub_upload.space import publish_space
from ham10000.hub_upload.verify_checkpoint import verify_checkpoint
from ham10000.modeling import MODALITIES, Ham10000Error
from ham10000.training.utils.cli import add_debug_argument, run_cli


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of `ham10000-push`."""
    parser = argparse.ArgumentParser(
        prog="ham10000-push",
        description=__doc__.split("\n")[0],
        epilog="The token is the one of `hf auth login`, or $HF_TOKEN; it is never an argument.",
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="folder of a finished run")
    parser.add_argument("--repo_id", required=True, help="user/name on the Hub; created if it is not there")
    parser.add_argument(
        "--space",
        action="store_true",
        help="publish the demo as a Space instead; then the options are those of ham10000-space",
    )
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--revision", default="main", help="branch to commit to; created if it is not there")
    parser.add_argument("--tag", default="v1.0", help="name of this release; the card's examples pin it")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead of committing; no tag")
    parser.add_argument("--dry_run", action="store_true", help="assemble and verify, show the files, upload nothing")
    parser.add_argument("--output_dir", type=Path, help="keep the assembled folder here, which must not exist")
    parser.add_argument(
        "--sibling",
        action="append",
        default=[],
        metavar="RUN[=REPO_ID]",
        help="another variant's run, for the card's comparison; repeatable",
    )
    parser.add_argument("--base_model", help="Hub id of the pretrained backbone, if it came from a local file")
    parser.add_argument("--dataset_name", help="name or Hub id of the training data, for the card")
    parser.add_argument(
        "--license", help="licence of the weights, as the Hub names it (default: HAM10000's, else none)"
    )
    parser.add_argument("--max_shard_size", help="split weights above this size, such as 2GB")
    parser.add_argument("--onnx", action="store_true", help="also export onnx/model.onnx (needs ham10000[onnx])")
    parser.add_argument("--message", help="commit message")
    add_debug_argument(parser)
    return parser


def sibling_repo_id(repo_id: str, run: RunFiles, other: RunFiles) -> str | None:
    """The id of another variant by the naming scheme `user/name-<modality>`, or None where it is not followed."""
    ending = f"-{run.modality}"
    return f"{repo_id.removesuffix(ending)}-{other.modality}" if repo_id.endswith(ending) else None


def read_siblings(arguments: Sequence[str], run: RunFiles, repo_id: str) -> list[Sibling]:
    """Parses `RUN[=REPO_ID]` and reads the runs.

    Args:
        arguments: Values of `--sibling`.
        run: The run that is published.
        repo_id: Its Hub id.

    Returns:
        One sibling each, in the order of `MODALITIES`.

    Raises:
        Ham10000Error: If a folder is no run.
    """
    siblings = []
    for argument in arguments:
        folder, _, name = argument.partition("=")
        other = read_run(Path(folder))
        siblings.append(find_sibling(run, Path(folder), name or sibling_repo_id(repo_id, run, other)))
    return sorted(siblings, key=lambda sibling: MODALITIES.index(sibling.run.modality))


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of `ham10000-push`."""
    if "--space" in argv:
        publish_space([argument for argument in argv if argument != "--space"])
        return
    arguments = build_parser().parse_args(argv)
    transformers.utils.logging.disable_progress_bar()
    check_names(arguments.repo_id, tag=arguments.tag, revision=arguments.revision)
    if not arguments.dry_run:
        find_token(HfApi())  # before minutes of work
    run = read_run(arguments.checkpoint)
    siblings = read_siblings(arguments.sibling, run, arguments.repo_id)
    if arguments.output_dir is not None and arguments.output_dir.exists():
        raise Ham10000Error(f"{str(arguments.output_dir)!r} exists; give --output_dir a folder that does not.")

    with tempfile.TemporaryDirectory(prefix="ham10000-push-") as scratch:
        bundle = Path(scratch, "bundle")
        print(f"Assemble  {arguments.checkpoint}", flush=True)
        assemble_bundle(
            arguments.checkpoint,
            bundle,
            repo_id=arguments.repo_id,
            revision=arguments.tag,
            siblings=siblings,
            base_model=arguments.base_model,
            max_shard_size=arguments.max_shard_size,
            onnx=arguments.onnx,
            stated=Stated(arguments.dataset_name, arguments.license),
        )
        compared = verify_checkpoint(bundle)
        print(f"Verify    loads without this package; {compared['logits']} logits equal to the last bit")
        print(describe_tree(bundle))
        if arguments.output_dir is not None:
            shutil.copytree(bundle, arguments.output_dir)
            print(f"Saved     {arguments.output_dir}; the card: {arguments.output_dir / 'README.md'}")
        if arguments.dry_run:
            print("Dry run   nothing was uploaded")
            return
        published = publish_folder(
            bundle,
            arguments.repo_id,
            api=HfApi(library_name="ham10000"),
            tag=arguments.tag,
            revision=arguments.revision,
            private=arguments.private,
            create_pr=arguments.create_pr,
            commit_message=arguments.message or f"Publish {arguments.tag}",
        )
    print(f"Published {published.url}")


if __name__ == "__main__":
    sys.exit(main())
