"""The demo's results as HTML: tables that a screen reader reads, with bars beside the numbers."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ham10000.hub_upload.app_models import Answer, DemoModel
from ham10000.training.inference.explanation import ALL_FIELDS, UNKNOWN, MetadataEffects
from ham10000.training.inference.output import DISCLAIMER

FIELD_TITLES = {"age": "age", "sex": "sex", "localization": "site", ALL_FIELDS: "all of them"}
# A picture in a page: enough for a phone's width at twice the density.
_SHOWN_SIDE = 800

# Bars in two colours that differ with any colour blindness (Okabe & Ito 2008); the text beside them says the same.
CSS = """
:root { --ham-benign: #0072b2; --ham-malignant: #d55e00; --ham-notice: #7a1f00; --ham-track: rgba(127,127,127,.18); }
.dark { --ham-benign: #56b4e9; --ham-malignant: #e69f00; }
.gradio-container { width: 100%; max-width: 1320px !important; box-sizing: border-box; margin: 0 auto; }
.gradio-container > .main { padding: 2rem 1rem 1rem !important; }
.gradio-container .column { gap: .6rem; }
.gradio-container .column > #ham-warning:not(:has(.ham)) { display: none; }
.ham summary { cursor: pointer; font-size: .82rem; margin-bottom: .5rem; }
.ham dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .6rem; margin: .3rem 0 .7rem; font-size: .85rem; }
.ham dt { font-weight: 600; } .ham dd { margin: 0; }
#ham-notice { position: fixed; inset: 0 0 auto 0; z-index: 1000; background: var(--ham-notice); color: #fff;
  padding: .55rem 1rem; text-align: center; font-size: .95rem; line-height: 1.3; font-weight: 600; margin: 0; }
#ham-notice p { margin: 0; color: #fff; }
.ham { color: var(--body-text-color); font-size: .92rem; line-height: 1.4; }
.ham h1 { font-size: 1.5rem; margin: .2rem 0; }
.ham h2 { font-size: 1.08rem; margin: 1.1rem 0 .5rem; }
.ham h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
.ham p { margin: .25rem 0; }
.ham .ham-fine { color: color-mix(in srgb, var(--body-text-color) 78%, transparent); font-size: .82rem; }
.ham-cards { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15.5rem), 1fr)); }
.ham-card { border: 1px solid var(--border-color-primary); border-radius: .6rem; padding: .7rem .8rem;
  background: var(--block-background-fill); min-width: 0; }
.ham table { width: 100%; border-collapse: collapse; margin: .4rem 0; font-variant-numeric: tabular-nums; }
.ham th, .ham td { padding: .14rem .25rem; text-align: left; font-weight: 400; vertical-align: middle;
  border: 0 !important;
  overflow-wrap: anywhere; }
.ham thead th { color: color-mix(in srgb, var(--body-text-color) 78%, transparent); font-size: .8rem;
  vertical-align: bottom; }
.ham caption { text-align: left; padding-top: .5rem; }
.ham table, .ham tr, .ham thead, .ham tbody { border: 0 !important; }
.ham td.ham-number, .ham th.ham-number { text-align: right; white-space: nowrap; }
.ham tr.ham-first > * { font-weight: 700; }
.ham tr.ham-total > * { border-top: 1px solid var(--border-color-primary) !important; padding-top: .35rem;
  font-weight: 600; }
.ham tr.ham-given > * { font-weight: 700; background: var(--ham-track); }
.ham td.ham-bar { width: 38%; min-width: 3.4rem; }
.ham .ham-track { display: block; position: relative; height: .78rem; border-radius: .2rem; overflow: hidden;
  background: var(--ham-track); }
.ham .ham-fill { display: block; height: 100%; border-radius: .2rem; background: var(--ham-benign); min-width: 1px; }
.ham .ham-fill.ham-malignant { background: var(--ham-malignant); }
.ham .ham-range { position: absolute; top: 40%; height: 20%; min-width: 2px; background: var(--body-text-color); }
.ham-key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; background: var(--ham-benign); }
.ham-key.ham-malignant { background: var(--ham-malignant); }
.ham-box { border-left: .35rem solid #b58900; background: rgba(181,137,0,.13); padding: .6rem .8rem; margin: .5rem 0;
  border-radius: .3rem; }
.ham-box.ham-error { border-color: #c0392b; background: rgba(192,57,43,.13); }
.ham figure { margin: 0; }
.ham img { width: 100%; height: auto; border-radius: .4rem; display: block; }
.ham figcaption { font-size: .82rem; padding: .25rem 0; }
.ham-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }
.gradio-container :focus-visible { outline: 3px solid #f0a000 !important; outline-offset: 2px; }
#ham-samples .grid-wrap { height: auto; max-height: none; min-height: 0; padding: .4rem; overflow: visible; }
#ham-samples .grid-container { grid-template-columns: repeat(4, 1fr) !important; gap: .35rem; padding: 0;
  grid-template-rows: none !important; grid-auto-rows: auto !important; height: auto !important; }
#ham-samples .gallery-item { height: auto; }
#ham-samples .thumbnail-item { aspect-ratio: 4 / 3; height: auto; width: 100%; }
#ham-samples .caption-label { font-size: .75rem; padding: 0 .3rem; }
#ham-file .wrap { line-height: 1.3; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 3.2rem .6rem 1rem !important; }
  #ham-notice { font-size: .84rem; padding: .45rem .7rem; }
}
"""


def notice() -> str:
    """The line that is always in view."""
    return f'<p id="ham-notice" role="note">{html.escape(DISCLAIMER)}</p>'


def box(text: str, *, error: bool = False) -> str:
    """A warning or an error in words; nothing for no text."""
    if not text:
        return ""
    kind, role = (" ham-error", "alert") if error else ("", "status")
    return f'<div class="ham"><div class="ham-box{kind}" role="{role}">{html.escape(text)}</div></div>'


def image_tag(picture: Image.Image, alt: str) -> str:
    """A picture within the page, without a request of its own.

    Args:
        picture: RGB; made smaller where it is large.
        alt: What it shows.
    """
    shown = picture.copy()
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    stream = io.BytesIO()
    shown.save(stream, format="JPEG", quality=88)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(alt)}">'


def picture_html(picture: Image.Image | None, name: str) -> str:
    """The chosen picture with its name."""
    if picture is None:
        return '<div class="ham"><p class="ham-fine">No picture is chosen.</p></div>'
    width, height = picture.size
    return (
        f'<div class="ham"><figure>{image_tag(picture, "The chosen picture")}'
        f"<figcaption>{html.escape(name)}, {width} × {height} pixels</figcaption></figure></div>"
    )


def probabilities_html(answers: Sequence[Answer], *, warned: bool = False) -> str:
    """A card for each model: its probabilities with bars, and the malignant total where it has malignant classes.

    Args:
        answers: One a model; all of one label set.
        warned: Whether the picture has a warning: then no class is shown as the answer.
    """
    model = answers[0].model
    malignant = model.members[0][0].config.malignant_labels
    key = (
        '<span class="ham-key ham-malignant" aria-hidden="true"></span> malignant or a precursor '
        f'({html.escape(" + ".join(malignant))}) <span class="ham-key" aria-hidden="true"></span> other classes. '
        if malignant
        else ""
    )
    key = f'<p class="ham-fine">{key}The classes always add up to 100 %, whatever the picture shows.</p>'
    names = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(model.descriptions[label])}</dd>" for label in model.labels
    )
    names = f"<details><summary>What the {len(model.labels)} classes are</summary><dl>{names}</dl></details>"
    cards = "".join(_card(answer, warned=warned) for answer in answers)
    return f'<div class="ham"><h2>Probabilities</h2>{key}{names}<div class="ham-cards">{cards}</div></div>'


def _card(answer: Answer, *, warned: bool = False) -> str:
    model = answer.model
    title = f"<h3>{html.escape(model.name)}</h3>"
    if answer.effects is None:
        body = f'<p class="ham-box" role="status">{html.escape(answer.note)}</p>'
        return f'<article class="ham-card" data-model="{html.escape(model.name)}">{title}{body}</article>'
    shares = answer.effects.baseline
    best = int(shares.argmax())
    reads = " and ".join(
        [
            *(["the picture"] if model.reads_image else []),
            *([", ".join(_field_text(f, v) for f, v in answer.effects.given.items())] if model.reads_metadata else []),
        ]
    )
    rows = "".join(_class_row(answer, index, first=index == best and not warned) for index in range(len(model.labels)))
    risk = answer.effects.malignant_total()
    total = (
        ""
        if not answer.effects.malignant
        else f'<tr class="ham-total"><th scope="row">malignant total</th>{_bar_cell(risk, True)}'
        f'<td class="ham-number" data-share="malignant">{risk:.1%}</td></tr>'
    )
    return (
        f'<article class="ham-card" data-model="{html.escape(model.name)}">{title}'
        f'<p class="ham-fine">{html.escape(model.modality)} model, reads {html.escape(reads)}</p>'
        f'<table><caption class="ham-hidden">Probabilities of {html.escape(model.name)}</caption>'
        f"<tbody>{rows}{total}</tbody></table>"
        + ("" if warned else f"<p><b>Most probable:</b> {html.escape(model.descriptions[model.labels[best]])}</p>")
        + f'<p class="ham-fine">{html.escape(_honesty(answer))}</p></article>'
    )


def _field_text(field: str, value: str) -> str:
    return f"{FIELD_TITLES[field]} {value}"


def _class_row(answer: Answer, index: int, *, first: bool) -> str:
    assert answer.effects is not None
    label, share = answer.model.labels[index], float(answer.effects.baseline[index])
    interval = None
    if answer.low is not None and answer.high is not None:
        interval = float(answer.low[index]), float(answer.high[index])
    text = f"{share:.1%}"
    if interval:
        text += f'<br><span class="ham-fine">{interval[0]:.1%} to {interval[1]:.1%}</span>'
    name = html.escape(answer.model.descriptions[label])
    return (
        f'<tr{" class=ham-first" if first else ""}><th scope="row" title="{name}">'
        f"{html.escape(label)}</th>{_bar_cell(share, label in answer.effects.malignant, interval)}"
        f'<td class="ham-number" data-share="{html.escape(label)}">{text}</td></tr>'
    )


def _bar_cell(share: float, malignant: bool, interval: tuple[float, float] | None = None) -> str:
    kind = " ham-malignant" if malignant else ""
    mark = ""
    if interval:
        low, high = interval
        mark = f'<span class="ham-range" style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></span>'
    fill = f'<span class="ham-fill{kind}" style="width:{100 * share:.1f}%"></span>'
    return f'<td class="ham-bar" aria-hidden="true"><span class="ham-track">{fill}{mark}</span></td>'


def _honesty(answer: Answer) -> str:
    """What these numbers are, and are not."""
    model = answer.model
    calibration = f"Probabilities: {' and '.join(model.calibrations)}."
    if answer.low is None:
        interval = "One training run gives one number a class, so there is no interval."
    else:
        interval = f"Mean, and range from lowest to highest, of {len(model.members)} training runs."
    synthetic = "Trained on SYNTHETIC pictures: its numbers mean nothing about skin. " if model.synthetic else ""
    return f"{synthetic}{calibration} {interval}"


def explanation_html(answers: Sequence[Answer], picture: Image.Image | None) -> str:
    """The heat maps side by side.

    Args:
        answers: One a model.
        picture: What they are about, or None.
    """
    if picture is None:
        return '<div class="ham"><p>There is no picture, so there is nothing to show here.</p></div>'
    parts = []
    for answer in answers:
        name = html.escape(answer.model.name)
        if answer.overlay is None:
            parts.append(f'<div class="ham-card"><h3>{name}</h3><p>{html.escape(answer.note)}</p></div>')
            continue
        words = f"{answer.label}, {answer.model.descriptions[answer.label]}"
        alt = f"Heat map of {answer.model.name} for {words}"
        parts.append(
            f'<figure class="ham-card" data-overlay="{html.escape(answer.label)}"><h3>{name}</h3>'
            f"{image_tag(answer.overlay, alt)}<figcaption>evidence for {html.escape(words)}</figcaption></figure>"
        )
    return (
        f'<div class="ham"><div class="ham-cards">{"".join(parts)}</div>'
        '<p class="ham-fine">Grad-CAM (Selvaraju et al. 2017): yellow marks the region that speaks most for the '
        "class, where there is no colour nothing speaks for it. Each map is scaled to its own maximum: maps compare "
        "in place, not in strength. It says where the network looks, not whether it is right.</p></div>"
    )


def effects_html(answers: Sequence[Answer], label: str | None, field: str) -> str:
    """What the metadata changed, and what other values of one field would change.

    Args:
        answers: One a model.
        label: The class shown beside the malignant total; None for each model's most probable one.
        field: The field that is varied: age, sex or localization.
    """
    reading = [answer for answer in answers if answer.effects is not None and answer.effects.given]
    if not reading:
        return '<div class="ham"><p>No model here reads metadata and has all it needs.</p></div>'
    cards = "".join(_effects_card(answer, label or answer.label, field) for answer in reading)
    return (
        f'<div class="ham"><div class="ham-cards">{cards}</div>'
        '<p class="ham-fine">The picture stays the same; only what the model is told changes. These are statements '
        "about the model, not about skin. Differences are in percentage points from the first line.</p></div>"
    )


def _effects_card(answer: Answer, label: str, field: str) -> str:
    effects = answer.effects
    assert effects is not None
    index = effects.labels.index(label)
    base = _pair(effects, effects.baseline, index)
    lines = [_effects_row("as given", base, None, given=True)]
    known = [name for name, value in effects.given.items() if value != UNKNOWN]
    for name in (*known, *([ALL_FIELDS] if len(known) > 1 else [])):
        changed = effects.unknown(name)
        if changed is not None:
            lines.append(_effects_row(f"{FIELD_TITLES[name]} unknown", _pair(effects, changed, index), base))
    nothing = "" if known else '<p class="ham-fine">No metadata was given, so none changed anything.</p>'
    titles = [*(["malignant total"] if effects.malignant else []), html.escape(label)]
    head = "".join(f'<th scope="col" class="ham-number" colspan="2">{title}</th>' for title in titles)
    head = f'<thead><tr><th scope="col">metadata</th>{head}</tr></thead>'
    varied = ""
    rows = effects.varied(field)
    if rows:
        body = "".join(
            _varied_row(row.value, _pair(effects, row.probabilities, index), effects.given.get(field) == row.value)
            for row in rows
        )
        varied = (
            f'<table data-varied="{field}"><caption class="ham-fine">the same with another {FIELD_TITLES[field]}'
            f'</caption><thead><tr><th scope="col">{FIELD_TITLES[field]}</th>'
            f'<th scope="col" colspan="2">{titles[0]}</th>'
            + "".join(f'<th scope="col" class="ham-number">{title}</th>' for title in titles[1:])
            + f"</tr></thead><tbody>{body}</tbody></table>"
        )
    return (
        f'<article class="ham-card"><h3>{html.escape(answer.model.name)}</h3>'
        f"<table>{head}<tbody>{''.join(lines)}</tbody></table>{nothing}{varied}</article>"
    )


def _pair(effects: MetadataEffects, shares: np.ndarray, index: int) -> tuple[float, ...]:
    """The malignant total, where there are malignant classes, and the share of one class."""
    total = (effects.malignant_total(shares),) if effects.malignant else ()
    return (*total, float(shares[index]))


def _effects_row(name: str, pair: tuple[float, ...], base: tuple[float, ...] | None, *, given: bool = False) -> str:
    cells = ""
    for position, share in enumerate(pair):
        change = "" if base is None else f"{100 * (share - base[position]):+.1f}"
        cells += f'<td class="ham-number">{share:.1%}</td><td class="ham-number ham-fine">{change}</td>'
    kind = " class=ham-given" if given else ""
    return f'<tr{kind}><th scope="row">{html.escape(name)}</th>{cells}</tr>'


def _varied_row(value: str, pair: tuple[float, ...], given: bool) -> str:
    kind = " class=ham-given" if given else ""
    shown = html.escape(value) + (" (given)" if given else "")
    return (
        f'<tr{kind}><th scope="row">{shown}</th>{_bar_cell(pair[0], len(pair) > 1)}'
        + "".join(f'<td class="ham-number">{share:.1%}</td>' for share in pair)
        + "</tr>"
    )


def header_html(models: Sequence[DemoModel]) -> str:
    """Title, what this is, and whether the models are toys."""
    synthetic = [model.name for model in models if model.synthetic]
    warning = ""
    if synthetic:
        warning = (
            '<div class="ham-box" role="note"><b>Trained on SYNTHETIC pictures:</b> '
            f"{html.escape(', '.join(synthetic))}. These numbers show that the software works and mean nothing about "
            "skin.</div>"
        )
    return (
        '<div class="ham"><h1>HAM10000 models, side by side</h1>'
        "<p>One dermatoscopic picture, and what models say that read the picture, the metadata, or both.</p>"
        f"{warning}</div>"
    )


__all__ = [
    "CSS",
    "FIELD_TITLES",
    "UNKNOWN",
    "box",
    "effects_html",
    "explanation_html",
    "header_html",
    "image_tag",
    "notice",
    "picture_html",
    "probabilities_html",
]
