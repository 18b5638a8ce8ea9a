"""The sentences as a web page of its own: a table for every setting."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from lti.files import atomic_path
from lti.report.text_notes import has_paper

if TYPE_CHECKING:
    from lti.report.text_examples import TextBlock, TextExample
    from lti.report.text_lines import TextLine, Token

__all__ = ["text_html", "write_text_html"]

# Contrast of text with white: ink 15.9, wrong 6.5, faint 5.3 to 1. Colors as in style.py.
_STYLE = """\
:root { color-scheme: light; }
body { color: #222222; background: #ffffff; font: 15px/1.45 "DejaVu Sans", Verdana, sans-serif;
  margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1.5rem 0; }
caption { font-size: 1.2em; font-weight: bold; text-align: left; padding: 0.5rem; }
th, td { padding: 0.25rem 0.6rem; text-align: left; vertical-align: baseline; }
th { font-weight: normal; white-space: nowrap; }
thead th, tr.victim th { font-weight: bold; }
tr.victim th { padding-top: 1.4rem; }
tr.first > * { border-top: 1px solid #999999; }
td.number { text-align: right; color: #6b6b6b; }
td.text { overflow-wrap: anywhere; min-width: 16rem; }
td.text > * { unicode-bidi: isolate; } /* tokens stay in their order, whatever their script */
mark { color: #b3261e; background: none; text-decoration: underline; }
.special { color: #6b6b6b; }
.notes { color: #6b6b6b; font-size: 13px; }"""


def text_html(blocks: Iterable[TextBlock], *, title: str, notes: Iterable[str] = ()) -> str:
    """Return the page: for every setting a table, with a group of rows for every victim.

    Nothing is loaded from elsewhere. A wrong token is a ``mark``, red and underlined, and names
    the true one as its title.

    Args:
        blocks: in the order shown.
        title: the heading.
        notes: what stands below, such as :func:`lti.report.text_notes.text_notes`.
    """
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{_STYLE}\n</style>",
        "</head>",
        "<body>",
        f"<h1>{escape(title)}</h1>",
    ]
    for block in blocks:
        lines += _table(block)
    below = (f"<li>{escape(note)}</li>" for note in notes)
    lines += ['<ul class="notes">', *below, "</ul>", "</body>", "</html>"]
    return "\n".join(lines) + "\n"


def write_text_html(
    path: Path | str,
    blocks: Iterable[TextBlock],
    *,
    title: str,
    notes: Iterable[str] = (),
) -> None:
    """Write :func:`text_html` to a file, atomically; equal sentences give equal bytes."""
    text = text_html(blocks, title=title, notes=notes)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _table(block: TextBlock) -> list[str]:
    columns = ["defense", "attack", "right", "reconstruction"]
    if has_paper(block):
        columns += ["right", "the paper's reconstruction"]
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    lines = ["<table>", f"<caption>{escape(block.title)}</caption>"]
    lines.append(f"<thead><tr>{head}</tr></thead>")
    for example in block.examples:
        lines += _group(example, len(columns))
    return [*lines, "</table>"]


def _group(example: TextExample, columns: int) -> list[str]:
    """Return the rows of a victim: where it is from, the truth, the attacks on each defense."""
    lines = [
        "<tbody>",
        f'<tr class="victim"><th scope="rowgroup" colspan="{columns}">{escape(example.title)}'
        "</th></tr>",
        f'<tr class="first"><th scope="row" colspan="3">original</th>'
        f'<td class="text" colspan="{columns - 3}">{_line(example.truth)}</td></tr>',
    ]
    for defense, group in groupby(example.rows, key=lambda row: row.defense):
        rows = list(group)
        for number, row in enumerate(rows):
            cells = [f'<th scope="row">{escape(row.attack)}</th>', *_cells(row.ours)]
            if columns > 4:
                cells += _cells(row.paper)
            first = ""
            if not number:
                first = ' class="first"'
                cells.insert(0, f'<th scope="row" rowspan="{len(rows)}">{escape(defense)}</th>')
            lines.append(f"<tr{first}>{''.join(cells)}</tr>")
    return [*lines, "</tbody>"]


def _cells(line: TextLine | None) -> list[str]:
    if line is None:
        return ["<td></td>", "<td></td>"]
    accuracy = "" if line.accuracy is None else f"{line.accuracy:.0%}"
    return [f'<td class="number">{accuracy}</td>', f'<td class="text">{_line(line)}</td>']


def _line(line: TextLine) -> str:
    return "".join(map(_token, line.tokens))


def _token(token: Token) -> str:
    space = " " if token.text.startswith(" ") else ""
    text = escape(token.text.removeprefix(" "))
    if token.kind == "wrong":
        return f'{space}<mark title="true: {escape(token.true)}">{text}</mark>'
    if token.kind == "special":
        return f'{space}<span class="special">{text}</span>'
    return space + text
