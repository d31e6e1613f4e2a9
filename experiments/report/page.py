"""A report as text: one page of HTML with all in it, and Markdown with figures beside it."""

import base64
import html
import io
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.report.tables import Table, markdown

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --background: #ffffff; --line: #d0d0d0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --background: #161616; --line: #444444; }
}
body {
  color: var(--text); background: var(--background); font: 16px/1.5 system-ui, sans-serif;
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere;
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
table { overflow-wrap: normal; }
th, td { padding: 0.35rem 0.8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid var(--text); vertical-align: bottom; }
/* Side by side where they fit; a caption is as wide as its picture. */
.figures { display: flex; flex-wrap: wrap; gap: 0 1rem; }
figure { margin: 1.5rem 0; min-width: 0; }
figcaption { width: 0; min-width: 100%; }
@media (max-width: 30rem) {
  body { margin: 1rem auto; }
  h1 { font-size: 1.5rem; }
  th, td { padding: 0.3rem 0.4rem; }
}
img { max-width: 100%; height: auto; }
"""


class Picture(NamedTuple):
    """A figure in two themes.

    Attributes:
        name: Name of its file, where it has one.
        caption: What stands below it.
        light: For a light background.
        dark: For a dark one.
        alternative: What it shows, for whoever does not see it; empty where the caption says it.
    """

    name: str
    caption: str
    light: Figure
    dark: Figure
    alternative: str = ""


def render_page(
    title: str, opening: str, parts: Sequence[Table | Picture], closing: Sequence[str]
) -> str:
    """Write the page: no other file, no network, no script.

    Args:
        title: Its title.
        opening: The paragraph below it.
        parts: Tables and pictures, in their order.
        closing: Lines at the end.

    Returns:
        HTML that stands alone.
    """
    body = [f"<h1>{html.escape(title)}</h1>", _paragraph(opening)]
    for is_table, group in itertools.groupby(parts, lambda part: isinstance(part, Table)):
        blocks = map(_part, group)
        body += blocks if is_table else ['<div class="figures">', *blocks, "</div>"]
    if closing:
        items = "".join(f"<li>{html.escape(line)}</li>" for line in closing)
        body.append(f"<h2>Made with</h2>\n<ul>{items}</ul>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Whatever a log smuggles in: a browser loads nothing for it, and runs nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def render_markdown(
    title: str, opening: str, parts: Sequence[Table | Picture], closing: Sequence[str]
) -> str:
    """Write the same in Markdown; the pictures are files beside it.

    Args:
        title: Its title.
        opening: The paragraph below it.
        parts: Tables and pictures, in their order.
        closing: Lines at the end.

    Returns:
        The text.
    """
    blocks = [f"# {title}", opening]
    for part in parts:
        if isinstance(part, Table):
            blocks += [f"## {part.title}", markdown(part).rstrip()]
        else:
            blocks.append(f"![{part.alternative or part.caption}]({part.name}.png)")
            if part.alternative:
                blocks.append(part.caption)
    if closing:
        blocks += ["## Made with", "\n".join(f"- {line}" for line in closing)]
    return "\n\n".join(blocks) + "\n"


def png(figure: Figure) -> bytes:
    """Draw a figure for a file beside the Markdown.

    Args:
        figure: The figure.

    Returns:
        A file in the format PNG.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def _table(table: Table) -> str:
    title = html.escape(table.title)
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in table.headings)
    lines = "\n".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>"
        for line in table.lines
    )
    return (
        # In the order of the tab key, so that it can be scrolled without a mouse.
        f'<h2>{title}</h2>\n<div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        "<table>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>\n"
        + "\n".join(map(_paragraph, table.remarks))
    )


def _part(part: Table | Picture) -> str:
    return _table(part) if isinstance(part, Table) else _picture(part)


def _picture(picture: Picture) -> str:
    caption = html.escape(picture.caption)
    alternative = html.escape(picture.alternative or picture.caption)
    return (
        "<figure>\n<picture>\n"
        f'<source media="(prefers-color-scheme: dark)" srcset="{_data_uri(picture.dark)}">\n'
        f'<img src="{_data_uri(picture.light)}" alt="{alternative}">\n'
        f"</picture>\n<figcaption>{caption}</figcaption>\n</figure>"
    )


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    # The same figure is the same file, for whoever commits it.
    with mpl.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
