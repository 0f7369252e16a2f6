"""The demo in a browser: an image, age, sex and site in; probabilities, heat maps and metadata effects out.

`examples/app.py` starts it on your own machine; `ham10000-space` makes a Hugging Face Space of it.
"""

import argparse
import contextlib
import functools
import html
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

# Before gradio is imported, which reads it then: this page tells nobody that it was opened.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import numpy as np
from huggingface_hub import snapshot_download
from PIL import Image, UnidentifiedImageError

from ham10000.hub_upload.run_files import RunFiles, read_run
from ham10000.modeling import (
    LABEL_DESCRIPTIONS,
    LABELS,
    MODALITIES,
    Ham10000Error,
    Ham10000ForImageClassification,
    Ham10000Processor,
    load_image,
)
from ham10000.training.data.synthetic import Lesion, render
from ham10000.training.evaluation.decision import decide, prediction_sets, saved_thresholds
from ham10000.training.inference import explanation
from ham10000.training.inference.explanation_figure import overlay_heatmap
from ham10000.training.inference.output import DISCLAIMER, points
from ham10000.training.inference.prediction import SHIPPED_CHECKPOINTS, calibration_of, load_checkpoint
from ham10000.training.utils.cli import add_debug_argument, run_cli
from ham10000.training.utils.files import JsonObject
from ham10000.training.utils.markdown_text import bullets, escape, join, percent, plain, table, words

try:
    import gradio as gr
except ImportError as missing:
    raise SystemExit(f"error: The demo needs gradio ({missing}): `pip install ham10000[app]`.") from missing

MOST_PROBABLE = "the most probable one"
_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# Files that say what a model was trained on; the weights come through `load_checkpoint`.
_RUN_FILES = ["config.json", "processor_config.json", "train_config.json", "split.csv", "eval_results.json"]
_FIELDS = {"age": "age", "sex": "sex", "site": "localization"}
_TITLES = {field: title for title, field in _FIELDS.items()} | {explanation.ALL_FIELDS: "all of them"}
# What Gradio's theme cannot say: the notice stays in view, the thumbnails in the buttons are large enough to see.
_CSS = """
#ham-notice { position: fixed; inset: 0 0 auto 0; z-index: 1000; padding: .5rem 1rem; background: #7a1f00; }
#ham-notice * { color: #fff; margin: 0; text-align: center; font-weight: 600; }
.gradio-container > .main { padding-top: 3.4rem !important; }
#ham-samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); gap: .5rem; }
#ham-samples button { flex-direction: column; gap: .2rem; padding: .3rem; font: 400 .68rem/1.2 system-ui; }
#ham-samples img { width: 100%; height: auto; margin: 0; }
[id^=ham-model] :is(th, td) { padding: .35rem .5rem !important; word-break: normal; overflow-wrap: normal; }
@media (max-width: 600px) { #ham-notice * { font-size: .75rem; line-height: 1.3; } }
#ham-warning [role] { border-left: .35rem solid #b58900; background: rgba(181, 137, 0, .15); padding: .6rem .8rem; }
"""
_ABOUT = f"""
- The classes of a model add up to 100 %, whatever the image shows.
- Grad-CAM (Selvaraju et al. 2017): yellow marks the region that speaks most for the class; where there is no colour,
  nothing speaks for it. Each map is scaled to its own maximum: maps compare in place, not in strength. It says where
  the network looks, not whether it is right.
- Metadata: the image stays the same, only what the model is told changes; in brackets the difference in percentage
  points. These are statements about the model, not about skin.
- An upload goes to this server only, and is deleted there after an hour. The samples are drawn by this package.

{DISCLAIMER}
"""


@dataclass(frozen=True, eq=False)
class DemoModel:
    """One column of the comparison; `run` is None where the files next to the weights cannot be read."""

    name: str
    model: Ham10000ForImageClassification
    processor: Ham10000Processor
    run: RunFiles | None = None

    def shown(self, label: str) -> str:
        """A class by its plain name, with its label in brackets."""
        description = (self.model.config.label_descriptions or {}).get(label, label)
        return label if description == label else f"{description} ({label})"


class Answer(NamedTuple):
    """What one model says: effects, the heat map of the class `label` on the image, and why something is missing."""

    effects: explanation.MetadataEffects | None = None
    overlay: Image.Image | None = None
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Chosen:
    """The image in use: RGB with its name, or neither, with the reason in `error` if something is wrong.

    `encoded` keeps it as each backbone saw it, by the model's place: other metadata need not wait for that again.
    """

    image: Image.Image | None = None
    name: str = ""
    error: str = ""
    encoded: dict[int, explanation.EncodedImage] = field(default_factory=dict, compare=False, repr=False)


def load_models(references: Sequence[str] = ()) -> list[DemoModel]:
    """Loads what is compared.

    Args:
        references: A checkpoint folder or `user/name@revision` each; by default those that come with the source tree.

    Raises:
        Ham10000Error: If there is none, a checkpoint cannot be loaded, a Hub id has no revision, or the models have
            different label sets.
    """
    folders = [SHIPPED_CHECKPOINTS / f"ham10000-{name}" for name in MODALITIES]
    if not (references := references or [str(path) for path in folders if path.is_dir()]):
        raise Ham10000Error(
            f"No model to show: there is no {SHIPPED_CHECKPOINTS.as_posix()}/ham10000-*. Give --checkpoints folders "
            "of runs, as `make demo` trains them, or Hub ids with their revision, such as user/ham10000-fusion@v1.0."
        )
    models: list[DemoModel] = []
    for reference in references:
        match = None if Path(reference).exists() else _HUB_ID.fullmatch(reference)
        repo_id, revision = match.groups() if match else (reference, None)
        if match and revision is None:
            advice = f"For a model on the Hub, pin a revision you have read: {f'{repo_id}@v1.0'!r}."
            raise Ham10000Error(f"There is no folder {reference!r}. {advice}")
        model, processor = load_checkpoint(repo_id, revision)
        labels = model.config.label_names
        if models and labels != (first := models[0].model.config.label_names):
            expected = "only models of one label set are shown side by side"
            raise Ham10000Error(f"{reference!r} has the labels {labels}, the first model {first}; {expected}.")
        run = None
        # A checkpoint without these files is complete for prediction, so their absence is no error.
        with contextlib.suppress(Ham10000Error, OSError, ValueError):
            folder = snapshot_download(repo_id, revision=revision, allow_patterns=_RUN_FILES) if match else repo_id
            run = read_run(folder)
        models.append(DemoModel(Path(repo_id).resolve().name, model, processor, run))
    return models


def sample_images() -> dict[str, Image.Image]:
    """One synthetic image of each class by its label; the same ones every time."""
    generators = {label: np.random.default_rng((3, number)) for number, label in enumerate(LABELS)}
    return {label: render(Lesion.draw(label, rng), rng, (400, 300)) for label, rng in generators.items()}


def read_upload(path: str | None) -> Chosen:
    """Reads an uploaded file, if there is one; an error is for the visitor and names no path of this machine."""
    if path is None:
        return Chosen()
    name = Path(path).name
    try:
        return Chosen(load_image(Path(path).read_bytes()), name)
    except Ham10000Error as error:
        unknown = isinstance(error.__cause__, UnidentifiedImageError)
        reason = "not an image, or of a kind that cannot be read here" if unknown else "damaged or cut off"
        advice = "Choose a complete JPEG, PNG, TIFF, WEBP or BMP file."
        return Chosen(error=f"“{name}” cannot be shown: it is {reason}. {advice}")
    except OSError:
        return Chosen(error=f"“{name}” did not arrive. Choose it again.")


def answer(
    shown: DemoModel, image: explanation.EncodedImage | None, metadata: Mapping[str, object], label: str | None = None
) -> Answer:
    """Predicts with one model and explains a class, by default the most probable one.

    `image` is one after this model's backbone. What is None or absent in `metadata`, or a value the model does not
    know, is missing; an impossible age raises `Ham10000Error`.
    """
    config = shown.model.config
    if config.uses_image and image is None:
        return Answer(note="This model needs an image.")
    row = {name: metadata.get(name) for name in shown.processor.metadata_fields} if config.uses_metadata else None
    image, note = (image, "") if config.uses_image else (None, "This model reads no image.")
    given, heatmaps = (shown.model, shown.processor, image, row), {}
    try:
        explained = explanation.explain(*given, label=label, unknown_values="missing")
        effects, heatmaps = explained.effects, explained.heatmaps
    except Ham10000Error as error:  # such as a backbone without a spatial feature map; a wrong age is raised again
        effects, note = explanation.metadata_effects(*given, unknown_values="missing"), f"No heat map: {error}"
    label = label or effects.labels[int(effects.baseline.argmax())]
    overlay = overlay_heatmap(image.image, heatmaps[label]) if image is not None and label in heatmaps else None
    return Answer(effects, overlay, label, note)


def summary(shown: DemoModel, answered: Answer, *, warned: bool = False) -> str:
    """What is said of the probabilities, as Markdown; where the image has a warning, no class is the answer."""
    effects, config = answered.effects, shown.model.config
    if effects is None:
        return f"**{escape(answered.note)}**"
    lines = []
    if effects.malignant:
        total = percent(effects.malignant_total())
        lines.append(f"Malignant total ({escape(' + '.join(effects.malignant))}): **{total}**")
    row = effects.baseline[None]  # (1, classes)
    if config.class_prior is not None and not warned:
        chosen = effects.labels[int(decide(row, config.class_prior, "balanced")[0])]
        lines.append(f"By the balanced rule, as if all classes were equally frequent: {escape(shown.shown(chosen))}")
    if config.conformal_thresholds and not warned:
        coverage = min((float(key) for key in config.conformal_thresholds), key=lambda value: abs(value - 0.9))
        chosen_set = prediction_sets(row, saved_thresholds(config.conformal_thresholds, coverage))[0]
        names = [escape(label) for label, inside in zip(effects.labels, chosen_set, strict=True) if inside]
        lines.append(f"{coverage:.0%} prediction set: {words(names) if names else 'empty, unlike every class'}")
    if shown.run is not None and shown.run.synthetic_training:
        lines.append("Trained on SYNTHETIC images: its numbers mean nothing about skin")
    return bullets([*lines, _misses(shown), f"Probabilities: {escape(calibration_of(shown.model))}"])


def _misses(shown: DemoModel) -> str:
    """How many images of each malignant class the evaluation called something else; empty without one."""
    if shown.run is None or shown.run.evaluation is None:
        return ""
    evaluation, labels, parts = shown.run.evaluation, shown.model.config.label_names, []
    # Melanoma first, which costs the most.
    for label in sorted(shown.model.config.malignant_labels or (), key=lambda name: name != "mel"):
        row = evaluation["metrics"]["confusion_matrix"][labels.index(label)]
        total, missed = sum(row), sum(row) - row[labels.index(label)]
        if total:
            parts.append(f"{escape(label)} {missed} of {total} ({percent(missed / total, 0)})")
    return f"**Missed** on its {escape(evaluation['split']['name'])} images: {', '.join(parts)}" if parts else ""


def effects_table(effects: explanation.MetadataEffects | None, label: str, field: str) -> str:
    """What the metadata changed, and what other values of one field would change, as Markdown."""
    if effects is None or not effects.given:
        return ""
    without = [name for name, value in effects.given.items() if value != explanation.UNKNOWN]
    without += [explanation.ALL_FIELDS] * (len(without) > 1)
    index = effects.labels.index(label)

    def cells(probabilities: np.ndarray) -> list[str]:
        totals = [(effects.malignant_total(row), float(row[index])) for row in (probabilities, effects.baseline)]
        shares = [*zip(*totals, strict=True)][0 if effects.malignant else 1 :]
        changed = probabilities is not effects.baseline
        return [percent(now) + (f" ({points(100 * (now - given))})" if changed else "") for now, given in shares]

    rows = [["**as given**", *cells(effects.baseline)]]
    unknown = [row for row in effects.rows if row.value == explanation.UNKNOWN and row.field in without]
    for row in [*unknown, *effects.varied(field)]:
        name = f"{_TITLES[row.field]} {escape(row.value)}"
        rows.append([f"**{name}**" if effects.given.get(row.field) == row.value else name, *cells(row.probabilities)])
    head = ["metadata", *(["malignant"] if effects.malignant else []), escape(label)]
    return join("**What the metadata changed**", table(head, rows))


def results(
    models: Sequence[DemoModel], chosen: Chosen, age: str, sex: str, site: str, label: str, varied: str
) -> list[object]:
    """Image and warning, then per model probabilities, summary, heat map and effects, by the values of the page."""
    given = {"age": age, "sex": sex, "localization": site}
    metadata = {name: None if value in (None, explanation.UNKNOWN, "") else value for name, value in given.items()}
    names = {models[0].shown(name): name for name in models[0].model.config.label_names}
    updates: list[object] = []
    unlike, error, images = None, chosen.error, chosen.encoded
    try:
        for place, shown in enumerate(models):
            if chosen.image is not None and shown.model.config.uses_image and place not in images:
                encoded = explanation.encode_image(shown.model, shown.processor, chosen.image)
                images[place] = replace(encoded, image=chosen.image)  # one copy of the pixels for all models
        unlike = next((image.warning for image in images.values() if image.warning), None)
        for place, shown in enumerate(models):
            answered = answer(shown, images.get(place), metadata, names.get(label))
            effects, explained = answered.effects, answered.label and shown.shown(answered.label)
            shares = {} if effects is None else dict(zip(names, effects.baseline.tolist(), strict=True))
            heat, alt = answered.overlay, f"Heat map of {shown.name} for {explained}"
            updates += [
                # On an image unlike the training data no class is named as the answer.
                gr.Label(shares or None, show_heading=not unlike, visible=bool(shares)),
                summary(shown, answered, warned=bool(unlike)),
                gr.Image(heat, visible=heat is not None, label=f"Evidence for {explained}", alt_text=alt),
                join(
                    escape(answered.note) if effects else "", effects_table(effects, answered.label, _FIELDS[varied])
                ),
            ]
    except Ham10000Error as refused:
        error, updates = str(refused), [gr.Label(visible=False), "", gr.Image(visible=False), ""] * len(models)
    image = gr.Image(chosen.image, label=chosen.name or "No image", alt_text="The chosen image")
    role, text = ("alert", error) if error else ("status", unlike)
    return [image, f'<p role="{role}">{html.escape(text)}</p>' if text else "", *updates]


def build_page(models: Sequence[DemoModel]) -> gr.Blocks:
    """Builds the page for at least one model; `serve` adds theme and style."""
    first, samples = models[0], sample_images()
    readers = [shown.processor for shown in models if shown.model.config.uses_metadata] or [first.processor]
    sexes = dict.fromkeys(name for one in readers for name in one.sex_vocabulary)
    sites = dict.fromkeys(name for one in readers for name in one.localization_vocabulary)
    synthetic = [escape(shown.name) for shown in models if shown.run and shown.run.synthetic_training]

    def sample(name: str) -> tuple[Chosen, None]:
        return Chosen(samples[name], f"Synthetic sample, drawn as {name}"), None

    # Uploaded images, and their traces, are deleted after an hour.
    with gr.Blocks(title="HAM10000 models, side by side", delete_cache=(600, 3600)) as page:
        gr.Markdown(DISCLAIMER, elem_id="ham-notice")
        gr.Markdown("# HAM10000 models, side by side")
        gr.Markdown("One dermatoscopic image, and what models say that read the image, the metadata, or both.")
        if synthetic:
            void = "These numbers show that the software works and mean nothing about skin."
            gr.Markdown(f"**Trained on SYNTHETIC images: {', '.join(synthetic)}.** {void}")
        chosen = gr.State(sample("nv")[0])
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=300):
                file = gr.File(label="Your image", height=130, elem_id="ham-file")
                gr.Markdown("Or a synthetic sample, named for the class it imitates:")
                with tempfile.TemporaryDirectory() as folder, gr.Row(elem_id="ham-samples"):
                    buttons = {}
                    for name, picture in samples.items():
                        icon = Path(folder, f"{name}.png")  # which Gradio copies
                        picture.resize((160, 120)).save(icon)
                        buttons[name] = gr.Button(LABEL_DESCRIPTIONS[name], icon=icon, size="sm", min_width=90)
                preview = gr.Image(interactive=False, buttons=["fullscreen"])
                # Not filterable: typing would add to the word "unknown"; the arrow keys choose.
                choose = functools.partial(gr.Dropdown, filterable=False)
                ages = [explanation.UNKNOWN, *map(str, explanation.SWEEP_AGES)]
                age = choose(ages, label="Age in years, in steps of 5")
                sex = choose([explanation.UNKNOWN, *sexes], label="Sex")
                site = choose([explanation.UNKNOWN, *sites], label="Site on the body")
                classes = [MOST_PROBABLE, *map(first.shown, first.model.config.label_names)]
                label = choose(classes, label="Class to explain")
                varied = gr.Radio(list(_FIELDS), value="age", label="Field to vary")
            with gr.Column(scale=3, min_width=320):
                outputs: list[gr.blocks.Block] = [preview, gr.HTML(elem_id="ham-warning")]
                with gr.Row(equal_height=False):
                    for number, shown in enumerate(models):
                        with gr.Column(min_width=260, elem_id=f"ham-model-{number}"):
                            gr.Markdown(f"## {escape(shown.name)}\n{shown.model.config.modality} model")
                            outputs += [gr.Label(label="Probabilities"), gr.Markdown()]
                            outputs += [gr.Image(interactive=False, buttons=["fullscreen"]), gr.Markdown()]
                with gr.Accordion("What these numbers are, and are not", open=False):
                    gr.Markdown(_ABOUT)
        hidden: JsonObject = {"api_visibility": "private"}
        options = hidden | {"inputs": [chosen, age, sex, site, label, varied], "outputs": outputs}
        # One at a time, in order: an older answer must not overwrite a newer one.
        options |= {"fn": functools.partial(results, models), "show_progress": "minimal", "concurrency_id": "results"}
        file.upload(read_upload, file, chosen, show_progress="hidden", **hidden).then(**options)
        file.clear(Chosen, None, chosen, show_progress="hidden", **hidden).then(**options)
        for name, button in buttons.items():
            pick = functools.partial(sample, name)
            button.click(pick, None, [chosen, file], show_progress="hidden", **hidden).then(**options)
        changes = [age.change, sex.change, site.change, label.change, varied.change]
        # The image stays as it is, so it is not sent again.
        changed = options | {"fn": lambda *values: results(models, *values)[1:], "outputs": outputs[1:]}
        gr.on(changes, trigger_mode="always_last", **changed)
        page.load(**options)
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
    """
    # Fonts of the visitor's machine: Gradio's own are fetched from another server.
    theme = gr.themes.Default(primary_hue="orange", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    options: JsonObject = {"share": False, "ssr_mode": False, "enable_monitoring": False, "footer_links": []}
    options |= {"prevent_thread_lock": True, "quiet": True, "max_file_size": "25mb", "theme": theme, "css": _CSS}
    try:
        _, address, _ = page.queue(max_size=32).launch(server_name=host, server_port=port, **options)
    except OSError as error:
        raise Ham10000Error(f"The demo cannot be served: {plain(error)[:200]} Give another --port.") from error
    if wait:
        print(f"Open      {address}  (Ctrl-C ends it)\nnote: {DISCLAIMER}", flush=True)
        page.block_thread()
    return str(address)


@run_cli
def main(argv: Sequence[str]) -> None:
    """Command line of the demo."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], epilog=DISCLAIMER)
    parser.add_argument("--checkpoints", nargs="+", metavar="DIR_OR_HUB_ID@REVISION", help="models to compare")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--host", help="default: this machine only; 0.0.0.0 for everyone who can reach it")
    add_debug_argument(parser)
    arguments = parser.parse_args(argv)
    serve(build_page(load_models(arguments.checkpoints or ())), port=arguments.port, host=arguments.host)
