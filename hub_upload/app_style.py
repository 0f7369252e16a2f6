"""How the demo looks: one style sheet for light and dark, for a talk and for a phone."""

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

__all__ = ["CSS"]
