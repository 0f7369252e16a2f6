"""The demo in a browser: a picture, age, sex and site in; probabilities, heat maps and metadata effects out.

`examples/app.py` starts it on a machine of one's own; `ham10000-space` makes a Hugging Face Space of it.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before gradio is imported, which reads it then: this page tells nobody that it was opened.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import numpy as np
from PIL import Image, UnidentifiedImageError

from ham10000.hub_upload import app_html
from ham10000.hub_upload.app_models import DemoModel, answer, load_models, vocabularies
from ham10000.modeling import LABELS, MODALITIES, Ham10000Error, load_image
from ham10000.training.data.synthetic import Lesion, render
from ham10000.training.inference.explanation import SWEEP_AGES, UNKNOWN
from ham10000.training.inference.output import DISCLAIMER
from ham10000.training.inference.prediction import SHIPPED_CHECKPOINTS
from ham10000.training.utils.cli import add_debug_argument, run_cli

try:
    import gradio as gr
except ImportError as missing:
    raise SystemExit(f"error: The demo needs gradio ({missing}): `pip install ham10000[app]`.") from missing

DEFAULT_CHECKPOINTS = tuple(SHIPPED_CHECKPOINTS / f"ham10000-{name}" for name in MODALITIES)
MOST_PROBABLE = "the most probable one"
_MAX_FILE = "25mb"
_SAMPLE_SIZE = (400, 300)
_SAMPLE_SEED = 3
# Pictures that were uploaded, and their traces, are deleted after this many seconds.
_KEEP_SECONDS = 3600
_FIELDS = {"age": "age", "sex": "sex", "site": "localization"}


@dataclass(frozen=True)
class Chosen:
    """The picture in use.

    Attributes:
        picture: RGB, or None.
        name: As shown.
        error: Why there is no picture, in words; empty where nothing is wrong.
    """

    picture: Image.Image | None = None
    name: str = ""
    error: str = ""


def sample_pictures() -> list[tuple[Image.Image, str]]:
    """One synthetic picture of each class with its label; the same ones every time."""
    samples = []
    for number, label in enumerate(LABELS):
        rng = np.random.default_rng((_SAMPLE_SEED, number))
        samples.append((render(Lesion.draw(label, rng), rng, _SAMPLE_SIZE), label))
    return samples


def read_upload(path: str | None) -> Chosen:
    """Reads an uploaded file.

    Args:
        path: Where the browser's file lies, or None if it was taken away.

    Returns:
        The picture, or words for whoever chose the file; they hold its name and no path of this machine.
    """
    if path is None:
        return Chosen()
    name = Path(path).name
    shown = name if len(name) <= 60 else f"{name[:40]}…{name[-15:]}"
    try:
        return Chosen(load_image(Path(path).read_bytes()), shown)
    except Ham10000Error as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            reason = "it is no picture, or of a kind that cannot be read here"
        else:
            reason = "it is damaged or cut off"
        return Chosen(
            error=f"“{shown}” cannot be shown: {reason}. Choose a complete JPEG, PNG, TIFF, WEBP or BMP file."
        )
    except OSError:
        return Chosen(error=f"“{shown}” did not arrive. Choose it again.")


def results(
    models: Sequence[DemoModel], chosen: Chosen, age: str, sex: str, site: str, label: str, varied: str
) -> tuple[str, str, str, str, str]:
    """Everything that depends on the inputs.

    Args:
        models: What is compared.
        chosen: The picture.
        age: Years, or `UNKNOWN`; likewise `sex` and `site`.
        sex: As above.
        site: As above.
        label: The class that is explained, or `MOST_PROBABLE`.
        varied: `age`, `sex` or `site`.

    Returns:
        HTML of the picture, of warnings, of probabilities, of heat maps, of metadata effects.
    """
    preview = app_html.picture_html(chosen.picture, chosen.name)
    given = {"age": age, "sex": sex, "localization": site}
    metadata = {name: None if value in (None, UNKNOWN, "") else value for name, value in given.items()}
    explained = label.split(",")[0] if label and label != MOST_PROBABLE else None
    warning = app_html.box(chosen.error, error=True)
    try:
        unlike = None if chosen.picture is None else _unlike_training(models, chosen.picture)
        warning += app_html.box(unlike or "")
        answers = [answer(model, chosen.picture, metadata, explained) for model in models]
    except Ham10000Error as error:
        return preview, warning + app_html.box(str(error), error=True), "", "", ""
    return (
        preview,
        warning,
        app_html.probabilities_html(answers, warned=bool(unlike)),
        app_html.explanation_html(answers, chosen.picture),
        app_html.effects_html(answers, explained, _FIELDS[varied]),
    )


def _unlike_training(models: Sequence[DemoModel], image: Image.Image) -> str | None:
    """The first warning of a model whose training images the image is unlike."""
    readers = (model.members[0][1].image_processor for model in models if model.reads_image)
    return next(filter(None, (reader.unlike_training(image) for reader in readers)), None)


def _sample(index: int) -> Chosen:
    picture, caption = sample_pictures()[index]
    return Chosen(picture, f"Synthetic sample, drawn as {caption}")


def build_page(models: Sequence[DemoModel]) -> gr.Blocks:
    """Builds the page.

    Args:
        models: What is compared, at least one.

    Returns:
        The page, not yet served; `serve` adds theme and style.
    """
    sexes, sites = vocabularies(models)
    with gr.Blocks(title="HAM10000 models, side by side", delete_cache=(600, _KEEP_SECONDS)) as page:
        gr.HTML(app_html.notice(), padding=False)
        gr.HTML(app_html.header_html(models), padding=False)
        chosen = gr.State(_sample(LABELS.index("nv")))
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Your picture", height=130, elem_id="ham-file")
                gr.HTML(
                    '<div class="ham"><p class="ham-fine">It goes to this server only, and is deleted there after an '
                    "hour. Or take a sample, drawn by this package and named for the class it imitates:</p></div>",
                    padding=False,
                )
                gallery = gr.Gallery(
                    sample_pictures(),
                    label="Synthetic samples",
                    show_label=False,
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    object_fit="cover",
                    elem_id="ham-samples",
                    buttons=[],
                )
                preview = gr.HTML(padding=False)
                age = gr.Dropdown(
                    [UNKNOWN, *map(str, SWEEP_AGES)],
                    value=UNKNOWN,
                    label="Age in years, in steps of 5 as in HAM10000",
                    filterable=False,  # typing would add to the word "unknown"; the arrow keys choose
                )
                sex = gr.Radio([UNKNOWN, *sexes], value=UNKNOWN, label="Sex")
                site = gr.Dropdown([UNKNOWN, *sites], value=UNKNOWN, label="Site on the body", filterable=False)
            with gr.Column(scale=3, min_width=320):
                warning = gr.HTML(padding=False, elem_id="ham-warning")
                shares = gr.HTML(padding=False, elem_id="ham-shares")
                gr.HTML('<div class="ham"><h2>Where the network looks</h2></div>', padding=False)
                label = gr.Dropdown(
                    [MOST_PROBABLE, *(f"{name}, {text}" for name, text in models[0].descriptions.items())],
                    value=MOST_PROBABLE,
                    label="Class to explain",
                    filterable=False,
                )
                heat = gr.HTML(padding=False, elem_id="ham-heat")
                gr.HTML('<div class="ham"><h2>What the metadata changed</h2></div>', padding=False)
                varied = gr.Radio(list(_FIELDS), value="age", label="Field to vary")
                effects = gr.HTML(padding=False, elem_id="ham-effects")
        inputs = [chosen, age, sex, site, label, varied]
        outputs = [preview, warning, shares, heat, effects]

        def run(*values: Any) -> tuple[str, str, str, str, str]:
            return results(models, *values)

        def pick(event: gr.SelectData) -> tuple[Chosen, None]:
            return _sample(int(event.index)), None

        hidden: Any = {"api_visibility": "private"}
        options = {"inputs": inputs, "outputs": outputs, "show_progress": "minimal", **hidden}
        file.upload(read_upload, file, chosen, show_progress="hidden", **hidden).then(run, **options)
        file.clear(Chosen, None, chosen, show_progress="hidden", **hidden).then(run, **options)
        gallery.select(pick, None, [chosen, file], show_progress="hidden", **hidden).then(run, **options)
        gr.on(
            [age.change, sex.change, site.change, label.change, varied.change],
            run,
            trigger_mode="always_last",
            **options,
        )
        page.load(run, **options)
    return page


def serve(page: gr.Blocks, *, port: int | None = None, host: str | None = None, wait: bool = True) -> str:
    """Serves the page.

    Args:
        page: From `build_page`.
        port: The port; by default the first free one from 7860, or `$GRADIO_SERVER_PORT`.
        host: The address; by default this machine only, or `$GRADIO_SERVER_NAME`, which a Space sets.
        wait: Whether to serve until interrupted.

    Returns:
        The page's address on this machine.

    Raises:
        Ham10000Error: If the port is taken.
    """
    theme = gr.themes.Default(
        primary_hue="orange",
        font=["system-ui", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Consolas", "monospace"],
    )
    try:
        _, address, _ = page.queue(max_size=32).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            ssr_mode=False,
            max_file_size=_MAX_FILE,
            theme=theme,
            css=app_html.CSS,
            footer_links=[],
            enable_monitoring=False,
        )
    except OSError as error:
        reason = re.sub(r"\s+", " ", str(error))
        raise Ham10000Error(f"The demo cannot be served: {reason[:200]} Give another --port.") from error
    if wait:
        print(f"Open      {address}  (Ctrl-C ends it)\nnote: {DISCLAIMER}", flush=True)
        page.block_thread()
    return str(address)


def choose_checkpoints(given: Sequence[str] | None) -> list[str]:
    """The checkpoints to show.

    Args:
        given: Values of `--checkpoints`, or None for those of `DEFAULT_CHECKPOINTS` that exist.

    Raises:
        Ham10000Error: If there is none; the message says how to get some.
    """
    found = list(given or []) or [str(path) for path in DEFAULT_CHECKPOINTS if path.is_dir()]
    if not found:
        raise Ham10000Error(
            f"No model to show: there is no {SHIPPED_CHECKPOINTS.as_posix()}/ham10000-*. Run `make demo`, "
            "which trains small ones on synthetic pictures, then give --checkpoints runs/demo/image "
            "runs/demo/metadata runs/demo/fusion; or give Hub ids with their revision, such as "
            "user/ham10000-fusion@v1.0."
        )
    return found


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=DISCLAIMER)
    parser.add_argument(
        "--checkpoints",
        nargs="+",
        metavar="DIR_OR_HUB_ID@REVISION",
        help="models to compare; several runs of one variant joined by + are one column with a range",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--host", help="default: this machine only; 0.0.0.0 for everyone who can reach it")
    add_debug_argument(parser)
    arguments = parser.parse_args(argv)
    models = load_models(choose_checkpoints(arguments.checkpoints))
    serve(build_page(models), port=arguments.port, host=arguments.host)


__all__ = ["Chosen", "build_page", "choose_checkpoints", "main", "read_upload", "results", "sample_pictures", "serve"]


if __name__ == "__main__":
    sys.exit(main())
