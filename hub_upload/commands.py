"""The command lines of `hub_upload`: ham10000-push, -space, -verify, -convert and -export-onnx.

What they call is imported once the arguments are parsed: torch takes seconds, for which `--help` and a mistyped option
need not wait.
"""

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ham10000.training.utils.cli import add_debug_argument, run_cli


def _parser(prog: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    add_debug_argument(parser)
    return parser


def _publishing_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that both kinds of publishing have, and values for those that one kind has."""
    token = "The token is the one of `hf auth login`, or $HF_TOKEN; it is never an argument."
    parser = _parser(prog, description, token)
    add = parser.add_argument
    add("--repo_id", required=True, help="user/name on the Hub; created if it is not there")
    add("--private", action="store_true", help="create the repository as private")
    add("--dry_run", action="store_true", help="assemble, check, show the files, upload nothing")
    add("--output_dir", type=Path, help="keep the assembled folder here, which must not exist")
    add("--message", help="commit message")
    add("--replace_card", action="store_true", help="replace a README.md that was edited on the Hub, else kept")
    parser.set_defaults(tag=None, revision="main", create_pr=False)
    return parser


@contextlib.contextmanager
def _release(arguments: argparse.Namespace, repo_type: str, message: str, try_it: str) -> Iterator[Path]:
    """Yields a new folder, and shows, keeps and publishes what was written there, as the options ask.

    What cannot be published is refused before the minutes that the writing takes. In `try_it` `{}` is the kept folder.
    """
    from huggingface_hub import HfApi
    from transformers.utils import logging

    from ham10000.hub_upload.bundle import describe_tree
    from ham10000.hub_upload.publish import Release, find_token, limit_waiting
    from ham10000.modeling import Ham10000Error

    logging.disable_progress_bar()
    limit_waiting()
    api = HfApi(library_name="ham10000")
    release = Release(api, arguments.repo_id, arguments.tag, arguments.revision, repo_type)
    if arguments.output_dir is not None and arguments.output_dir.exists():
        raise Ham10000Error(f"{str(arguments.output_dir)!r} exists; give --output_dir a folder that does not.")
    if not arguments.dry_run:
        find_token(api)
    with tempfile.TemporaryDirectory(prefix="ham10000-push-") as scratch:
        folder = Path(scratch, "release")
        yield folder
        print(describe_tree(folder))
        if arguments.output_dir is not None:
            shutil.copytree(folder, arguments.output_dir)
            print(f"Saved     {arguments.output_dir}; {try_it.format(arguments.output_dir)}")
        if arguments.dry_run:
            print("Dry run   nothing was uploaded")
            return
        if not arguments.replace_card:
            release.keep_edited_card(folder)
        options = {"private": arguments.private, "create_pr": arguments.create_pr}
        published = release.publish(folder, commit_message=arguments.message or message, **options)
        print(f"Published {published.url}")


@run_cli
def push(argv: Sequence[str]) -> None:
    """Command line of `ham10000-push`."""
    if "--space" in argv:
        _publish_space([argument for argument in argv if argument != "--space"])
        return
    description = "Publishes a checkpoint on the Hub: assembled, verified in a clean process, then as one commit."
    parser = _publishing_parser("ham10000-push", description)
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, help="folder of a finished run")
    space = "publish the demo as a Space instead; then the options are those of ham10000-space"
    add("--space", action="store_true", help=space)
    add("--revision", default="main", help="branch to commit to; created if it is not there")
    add("--tag", default="v1.0", help="name of this release; the card's examples pin it")
    add("--create_pr", action="store_true", help="open a pull request instead of committing; no tag")
    sibling = "another variant's run, for the card's comparison; repeatable"
    add("--sibling", action="append", default=[], metavar="RUN[=REPO_ID]", help=sibling)
    add("--base_model", help="Hub id of the pretrained backbone, if it came from a local file")
    add("--dataset_name", help="name or Hub id of the training data, for the card")
    add("--license", help="licence of the weights, as the Hub names it (default: HAM10000's, else none)")
    own = "also publish split.csv of data of your own: it names every image and its lesion or patient"
    add("--publish_split", action="store_true", help=own)
    add("--max_shard_size", help="split weights above this size, such as 2GB")
    add("--onnx", action="store_true", help="also export onnx/model.onnx (needs ham10000[onnx])")
    arguments = parser.parse_args(argv)
    from ham10000.hub_upload.bundle import assemble_bundle, read_sibling, verify_checkpoint
    from ham10000.hub_upload.model_card import Stated, publishes_split
    from ham10000.hub_upload.run_files import read_run
    from ham10000.modeling import MODALITIES

    with _release(arguments, "model", f"Publish {arguments.tag}", "the card: {}/README.md") as bundle:
        run = read_run(arguments.checkpoint)
        stated = Stated(**{name: getattr(arguments, name) for name in Stated._fields})
        siblings = [read_sibling(argument, run, arguments.repo_id) for argument in arguments.sibling]
        print(f"Assemble  {arguments.checkpoint}", flush=True)
        assemble_bundle(
            arguments.checkpoint,
            bundle,
            repo_id=arguments.repo_id,
            revision=arguments.tag,
            siblings=sorted(siblings, key=lambda sibling: MODALITIES.index(sibling.run.modality)),
            max_shard_size=arguments.max_shard_size,
            onnx=arguments.onnx,
            stated=stated,
        )
        if not publishes_split(run, stated):
            note = "split.csv stays here, as it names your images and lesions or patients; --publish_split adds it"
            print(f"note: {note}")
        print(f"Verify    loads without this package; {verify_checkpoint(bundle)} logits equal to the last bit")


def _publish_space(argv: Sequence[str]) -> None:
    """Command line of `ham10000-space`, and of `ham10000-push --space`."""
    description = "Makes a Hugging Face Space of the demo: a folder that starts by itself, published as one commit."
    parser = _publishing_parser("ham10000-space", description)
    add, model = parser.add_argument, "a model to show; repeatable"
    add("--model", action="append", required=True, metavar="USER/NAME@REVISION", help=model)
    add("--title", default="HAM10000 side by side", help="as the Hub shows it")
    add("--license", default="apache-2.0", help="of the Space's code; each model keeps its own")
    arguments = parser.parse_args(argv)
    from ham10000.hub_upload.bundle import assemble_space

    with _release(arguments, "space", "Publish the demo", "try it: python {}/app.py") as folder:
        assemble_space(folder, arguments.model, title=arguments.title, licence=arguments.license)


space = run_cli(_publish_space)


@run_cli
def verify(argv: Sequence[str]) -> None:
    """Command line of `ham10000-verify`."""
    description = "Proves that a checkpoint folder loads, with equal logits, where this package is not installed."
    runs_code = "It runs the Python code in the folder, in a process of its own but with all your rights"
    parser = _parser("ham10000-verify", description, f"{runs_code}: verify only folders whose code you have read.")
    parser.add_argument("checkpoint", help="checkpoint folder")
    folder = parser.parse_args(argv).checkpoint
    from ham10000.hub_upload.bundle import verify_checkpoint

    logits = verify_checkpoint(folder)
    print(f"{folder}: loads with trust_remote_code=True without this package; {logits} logits equal to the last bit")


@run_cli
def convert(argv: Sequence[str]) -> None:
    """Command line of `ham10000-convert`."""
    baseline = "a published baseline, torchvision's EfficientNetV2-S or a network of timm"
    parser = _parser("ham10000-convert", f"Converts {baseline}, into a checkpoint folder.")
    parser.add_argument("--checkpoint", required=True, help="the baseline's .pt, .pth or .safetensors file")
    parser.add_argument("--output_dir", required=True, help="folder to write, new or empty")
    parser.add_argument("--backbone", help="name of the timm network (default: torchvision's EfficientNetV2-S)")
    arguments = parser.parse_args(argv)
    from transformers.utils import logging

    from ham10000.hub_upload.convert_checkpoint import convert_checkpoint
    from ham10000.modeling import LABELS

    logging.disable_progress_bar()
    record = convert_checkpoint(arguments.checkpoint, arguments.output_dir, backbone=arguments.backbone)
    print(f"Source    {record['source_file']} ({record['format']}), sha256 {record['source_sha256']}")
    print(f"Note      the seven outputs are taken as {', '.join(LABELS)}, the baseline's alphabetical order")
    print(f"Checked   logits differ from {record['architecture']} by at most {record['max_logit_difference']:g}")
    print(f"Saved     {arguments.output_dir}")
    print(f"Next      ham10000-verify {arguments.output_dir}")


@run_cli
def export(argv: Sequence[str]) -> None:
    """Command line of `ham10000-export-onnx`."""
    description = "Writes a checkpoint as one ONNX file that runs without torch; any batch size, NaN is missing."
    parser = _parser("ham10000-export-onnx", description)
    parser.add_argument("checkpoint", help="checkpoint folder")
    parser.add_argument("--output", help="file to write (default: onnx/model.onnx in the checkpoint)")
    arguments = parser.parse_args(argv)
    from transformers.utils import logging

    from ham10000.hub_upload.export_onnx import export_onnx

    logging.disable_progress_bar()
    file = export_onnx(arguments.checkpoint, arguments.output)
    print(f"Saved     {file} ({file.stat().st_size / 2**20:.1f} MiB)")
