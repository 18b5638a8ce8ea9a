"""The sentences as a picture: wrapped text, wrong tokens red and underlined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.report.style import FAINT, INK, WRONG, check_suffix, drawing_style, save_figure
from lti.report.text_notes import has_paper, lines_of

if TYPE_CHECKING:
    from lti.report.text_examples import TextBlock, TextExample
    from lti.report.text_lines import TextLine

__all__ = ["plot_texts"]

# In points: of the picture, its text and lines, around it and between columns, before groups.
_WIDTH, _SIZE, _LINE, _MARGIN, _GAP = 800.0, 8.0, 11.5, 10.0, 10.0
_BLOCK_GAP, _EXAMPLE_GAP, _DEFENSE_GAP = 18.0, 14.0, 4.0
_COLORS = {"right": INK, "wrong": WRONG, "special": FAINT, "unknown": INK}
_MISSING = "□"

_Fragment = tuple[str, str]
"""A part of a word, and its color."""


def plot_texts(path: Path | str, blocks: Sequence[TextBlock], *, notes: Iterable[str] = ()) -> None:
    """Draw victims above their reconstructions, the paper's beside ours.

    Args:
        path: output, ``.png`` or ``.pdf``.
        blocks: in the order given, from top to bottom.
        notes: what stands below, such as :func:`lti.report.text_notes.text_notes`.

    Raises:
        LTIError: nothing to draw, or another suffix.
    """
    check_suffix(path)
    if not any(block.examples for block in blocks):
        raise LTIError("no sentences to draw; expected at least one victim. Run an attack.")
    with drawing_style():
        sheet = _Sheet()
        for number, block in enumerate(blocks):
            if number:
                sheet.y += _BLOCK_GAP
            _draw_block(sheet, block)
        shown = {c for line in lines_of(blocks) for token in line.tokens for c in token.text}
        if not all(map(_has_glyph, shown)):
            notes = [*notes, f"{_MISSING} a character that this font lacks; the web page has it."]
        sheet.y += _EXAMPLE_GAP
        for note in notes:
            sheet.write(_MARGIN, _words_of(note, FAINT), width=_WIDTH - 2 * _MARGIN)
        save_figure(sheet.figure(), path)


class _Sheet:
    """What is to be drawn, collected from top to bottom, since that gives the height.

    Attributes:
        y: points from the top edge to the next line of text.
    """

    def __init__(self) -> None:
        self.y = _MARGIN
        self._texts: list[tuple[float, float, str, dict[str, Any]]] = []
        self._underlines: list[tuple[float, float, float]] = []
        self._rules: list[float] = []

    def rule(self) -> None:
        """Draw a line across, above the next text."""
        self._rules.append(self.y - 1.5)

    def put(self, x: float, text: str, **style: Any) -> None:
        """Write a label into the next line, and stay there."""
        self._texts.append((x, self.y, text, style))

    def write(self, x: float, words: Iterable[Sequence[_Fragment]], *, width: float) -> None:
        """Write words, wrapped, and go on below them."""
        for line in _wrapped(words, width):
            for start, text, color in line:
                self._texts.append((x + start, self.y, text, {"color": color}))
                if color == WRONG:
                    self._underlines.append((x + start, x + start + _advance(text), self.y))
            self.y += _LINE

    def figure(self) -> Any:
        """Return the figure, whose axes count points from the top left."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import LineCollection
        from matplotlib.figure import Figure

        height = self.y + _MARGIN
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, _WIDTH)
        axes.set_ylim(height, 0)
        baseline = 0.75 * _LINE
        for x, y, text, style in self._texts:
            # No mathematics: a dollar is a token like any other.
            axes.text(x, y + baseline, text, size=_SIZE, parse_math=False, **style)
        # Ends of a hair's breadth apart, so that neighbours are told from one long token.
        lines = [
            [(left + 0.3, y + baseline + 1.7), (right - 0.3, y + baseline + 1.7)]
            for left, right, y in self._underlines
        ]
        axes.add_collection(LineCollection(lines, colors=WRONG, linewidths=0.8))
        rules = [[(_MARGIN, y), (_WIDTH - _MARGIN, y)] for y in self._rules]
        axes.add_collection(LineCollection(rules, colors="#CCCCCC", linewidths=0.5))
        return figure


def _draw_block(sheet: _Sheet, block: TextBlock) -> None:
    rows = [row for example in block.examples for row in example.rows]
    sheet.put(_MARGIN, block.title, weight="bold")
    sheet.y += _LINE
    # From left to right: defense, attack, share and sentence of ours, and of the paper's.
    defense, attack = (
        max(map(_advance, ["original", *labels])) + _GAP
        for labels in ([row.defense for row in rows], [row.attack for row in rows])
    )
    share = _advance("100%") + _GAP / 2
    left = _MARGIN + defense + attack
    right = (_WIDTH - _MARGIN - left + _GAP) / 2 + left
    if has_paper(block):
        sheet.put(left + share, "ours", color=FAINT)
        sheet.put(right + share, "the paper's", color=FAINT)
        sheet.y += _LINE
    for number, example in enumerate(block.examples):
        if number:
            sheet.y += _EXAMPLE_GAP
        _draw_example(sheet, example, (_MARGIN + defense, left, right), share=share)


def _draw_example(
    sheet: _Sheet, example: TextExample, columns: tuple[float, float, float], *, share: float
) -> None:
    attack, left, right = columns
    whole = _WIDTH - _MARGIN - left - share
    alone = all(row.paper is None for row in example.rows)
    width = whole if alone else _WIDTH - _MARGIN - right - share
    sheet.put(_MARGIN, example.title, weight="bold")
    sheet.y += _LINE + _DEFENSE_GAP
    sheet.rule()
    sheet.put(_MARGIN, "original")
    sheet.write(left + share, _words(example.truth), width=whole)
    for defense, group in groupby(example.rows, key=lambda row: row.defense):
        sheet.y += _DEFENSE_GAP
        sheet.rule()
        sheet.put(_MARGIN, defense)
        for row in group:
            top = bottom = sheet.y
            sheet.put(attack, row.attack)
            for x, line in ((left, row.ours), (right, row.paper)):
                if line is not None:
                    sheet.y = top
                    if line.accuracy is not None:
                        accuracy = f"{line.accuracy:.0%}"
                        end = x + share - _GAP / 2
                        sheet.put(end, accuracy, ha="right", color=FAINT)
                    sheet.write(x + share, _words(line), width=width)
                    bottom = max(bottom, sheet.y)
            sheet.y = bottom


def _words(line: TextLine) -> Iterator[list[_Fragment]]:
    """Yield the words of a line: a token that begins with a space begins a word."""
    word: list[_Fragment] = []
    for token in line.tokens:
        text = "".join(c if _has_glyph(c) else _MISSING for c in token.text)
        if token.kind == "unknown":
            yield from _words_of(text, _COLORS[token.kind])
            continue
        if text.startswith(" ") and word:
            yield word
            word = []
        if shown := text.removeprefix(" "):
            word.append((shown, _COLORS[token.kind]))
    if word:
        yield word


def _words_of(text: str, color: str) -> Iterator[list[_Fragment]]:
    return ([(word, color)] for word in text.split())


def _wrapped(
    words: Iterable[Sequence[_Fragment]], width: float
) -> Iterator[list[tuple[float, str, str]]]:
    """Yield lines no wider than ``width``: where each fragment begins, the fragment, its color.

    A word that is too wide for a line of its own is parted between any two characters.
    """
    line: list[tuple[float, str, str]] = []
    x = 0.0
    for word in words:
        space = _advance(" ") if line else 0.0
        long = sum(_advance(text) for text, _ in word)
        if line and x + space + long > width:
            yield line
            line, x, space = [], 0.0, 0.0
        x += space
        parts = word if long <= width else [(c, color) for text, color in word for c in text]
        for text, color in parts:
            if line and x + _advance(text) > width:
                yield line
                line, x = [], 0.0
            line.append((x, text, color))
            x += _advance(text)
    yield line


@cache
def _font() -> Any:
    """Return the font that the figures are drawn with, and its properties."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    properties = FontProperties(family="DejaVu Sans", size=_SIZE)
    return properties, frozenset(get_font(findfont(properties)).get_charmap())


def _has_glyph(character: str) -> bool:
    return ord(character) in _font()[1]


@cache
def _advance(text: str) -> float:
    """Return how far a text moves the pen, in points, spaces at its ends included."""
    from matplotlib.textpath import text_to_path

    def width(shown: str) -> float:
        return float(text_to_path.get_text_width_height_descent(shown, _font()[0], False)[0])

    return width(f"|{text}|") - width("||")
