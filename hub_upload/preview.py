"""A card as a web page, to be looked at before it is published."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt

# Close enough to the Hub's page to judge line lengths, tables and figures.
_STYLE = """
body { font: 16px/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; color: #1f2328;
       max-width: 860px; margin: 24px auto; padding: 0 20px; }
h1, h2 { border-bottom: 1px solid #d1d9e0; padding-bottom: .3em; } h2 { margin-top: 1.6em; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin: 1em 0; font-size: 14px; }
th, td { border: 1px solid #d1d9e0; padding: 5px 11px; } tr:nth-child(2n) { background: #f6f8fa; }
pre { background: #f6f8fa; padding: 14px; overflow: auto; font-size: 13px; border-radius: 6px; }
code { background: #eff1f3; padding: .15em .35em; border-radius: 5px; font-size: 85%; }
pre code { padding: 0; font-size: 100%; background: none; }
blockquote { margin: 1em 0; padding: .2em 1em; border-left: 4px solid #d1242f; background: #fff5f5; }
img { max-width: 100%; } details { margin: 1em 0; } summary { cursor: pointer; font-weight: 600; }
"""
# Values are escaped in the card; should one slip through, the page still runs no script and asks no other machine.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
_FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FIGURE = re.compile(r'src="(figures/[\w-]+\.png)"')
_HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")


def _with_anchors(body: str) -> str:
    """The headings with the ids that GitHub and the Hub give them, so that `#speed` leads somewhere."""
    used: dict[str, int] = {}

    def anchored(match: re.Match[str]) -> str:
        text = html.unescape(_TAG.sub("", match[2])).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        count = used[slug] = used.get(slug, -1) + 1
        anchor = slug if count == 0 else f"{slug}-{count}"
        return f'<h{match[1]} id="{anchor}">{match[2]}</h{match[1]}>'

    return _HEADING.sub(anchored, body)


def render_preview(markdown: str, folder: str | Path, *, open_details: bool = False) -> str:
    """Renders a card as one page that needs no other file; its first heading is the page's title.

    Args:
        markdown: The card, with or without front matter.
        folder: The folder the card belongs to; its figures are put into the page.
        open_details: Whether to unfold what is folded.

    Returns:
        HTML.
    """

    def inline(match: re.Match[str]) -> str:
        path = Path(folder, match[1])
        if not path.is_file():
            return match[0]
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    match = _FRONT_MATTER.match(markdown)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    metadata = ""
    if match:
        front_matter = parser.render(f"````yaml\n{match[1]}\n````")
        metadata = f"<details><summary>Front matter</summary>\n{front_matter}</details>\n"
    body = _FIGURE.sub(inline, parser.render(markdown[match.end() :] if match else markdown))
    if open_details:
        body = body.replace("<details>", "<details open>")
    heading = _HEADING.search(body)
    title = _TAG.sub("", heading[2]) if heading else "README.md"
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body>\n{_with_anchors(body)}\n{metadata}</body>\n</html>\n"
    )


__all__ = ["render_preview"]
