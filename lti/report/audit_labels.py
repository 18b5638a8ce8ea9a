"""Where the labels of a plot's marks find room."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = [
    "LINE_HEIGHT",
    "Box",
    "Label",
    "box_around",
    "box_of_line",
    "free_row",
    "overlap",
    "place_labels",
    "text_width",
]

LINE_HEIGHT = 15
"""Of a label, in pixels."""

_SIZE = 12  # of the text, in pixels
_RADIUS = 7  # of a mark, with the space that it needs
_CLEAR = 5  # of a label from marks that are not its own
_NO_LEADER = 6  # pixels from a mark up to which it is plain whose label it is
_RINGS = (0, 6, 14, 24, 36, 50, 66, 84, 104, 128, 156)
_ANGLES = [math.tau * number / 24 for number in range(24)]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom; y grows downwards."""

Anchor = tuple[str, float, float]
"""A name and where its mark is."""


@dataclass(frozen=True)
class Label:
    """A text in pixels.

    Attributes:
        text: the name, perhaps cut.
        x: its left end.
        y: its baseline.
        leader: ends of the line to its mark; None where the mark is next to it.
    """

    text: str
    x: float
    y: float
    leader: Box | None = None


def box_around(x: float, y: float, radius: float = _RADIUS) -> Box:
    """Return the square around a mark."""
    return x - radius, y - radius, x + radius, y + radius


def box_of_line(x1: float, x2: float, y1: float, y2: float) -> Box:
    """Return what a horizontal or vertical line covers."""
    return min(x1, x2) - 1, min(y1, y2) - 1, max(x1, x2) + 1, max(y1, y2) + 1


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def text_width(text: str) -> float:
    """Return pixels that a wide sans serif needs at most; others than ASCII count as square."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" or not c.isascii() for c in text)
    return _SIZE * (0.64 * (len(text) - wide) + 1.05 * wide) + 2


def free_row(width: float, tops: Sequence[float], area: Box, obstacles: Sequence[Box]) -> Box:
    """Return the first free place at one of these heights, from the right; else the first."""
    boxes = [
        (right - width, top, right, top + LINE_HEIGHT)
        for top in tops
        for right in (area[2] - step for step in range(4, int(area[2] - area[0] - width), 12))
    ]
    free = [box for box in boxes if not any(overlap(box, other) for other in obstacles)]
    return (free or boxes)[0]


def place_labels(
    anchors: Sequence[Anchor],
    area: Box,
    *,
    texts: Sequence[Box],
    lines: Sequence[Box],
    longest: int,
) -> tuple[tuple[Label, ...], tuple[str, ...]]:
    """Give every mark the nearest free place.

    Labels overlap neither each other, nor other texts, nor a mark; where there is room they keep
    off lines too, and leaders cross nothing. Who is served first matters in a crowd: of several
    orders the one with the shortest leaders counts.

    Args:
        anchors: the marks.
        area: that labels stay in.
        texts: that stand already.
        lines: to keep off.
        longest: characters of a label; longer names are cut.

    Returns:
        The labels, and the names for which there was no room.
    """
    orders = [
        list(anchors),
        *(sorted(anchors, key=lambda a: a[1], reverse=turn) for turn in (False, True)),
        *(sorted(anchors, key=lambda a: a[2], reverse=turn) for turn in (False, True)),
    ]
    found = [_place(order, area, texts, lines, longest) for order in orders]
    _, labels, missing = min(found, key=lambda placed: placed[0])
    return tuple(labels), tuple(missing)


def _place(
    anchors: Sequence[Anchor],
    area: Box,
    texts: Sequence[Box],
    lines: Sequence[Box],
    longest: int,
) -> tuple[float, list[Label], list[str]]:
    """Serve the marks one after the other; return what it cost too."""
    cost, labels, missing = 0.0, list[Label](), list[str]()
    taken = list(texts)
    dots = [box_around(x, y) for _, x, y in anchors]
    for (name, x, y), own in zip(anchors, dots, strict=True):
        text = name if len(name) <= longest else name[: longest - 1].rstrip() + "…"
        others = [dot for dot in dots if dot != own]
        near = [(b[0] - _CLEAR, b[1] - _CLEAR, b[2] + _CLEAR, b[3] + _CLEAR) for b in others]
        # What a label keeps off, and what its leader does: all at first, then what it must.
        for penalty, off, crossed in (
            (0, [*taken, own, *near, *lines], [*taken, *others]),
            (30, [*taken, own, *near], [*taken, *others]),
            (100, [*taken, own, *near], taken),
            (300, [*taken, *dots], []),
        ):
            place = _free_place(x, y, text_width(text), area, off, crossed)
            if place is not None:
                cost += penalty
                break
        if place is None:
            missing.append(name)
            cost += 1000
            continue
        box, leader = place
        taken.append(box)
        if leader is not None:
            taken += _along(leader)
            cost += math.dist(leader[:2], leader[2:])
        labels.append(Label(text, round(box[0], 1), round(box[3] - 4, 1), leader))
    return cost, labels, missing


def _free_place(
    x: float, y: float, width: float, area: Box, off: Sequence[Box], crossed: Sequence[Box]
) -> tuple[Box, Box | None] | None:
    for box, (ex, ey), ring in _places(x, y, width):
        inside = box[0] >= area[0] and box[1] >= area[1]
        if not inside or box[2] > area[2] or box[3] > area[3]:
            continue
        if any(overlap(box, other) for other in off):
            continue
        if ring <= _NO_LEADER:
            return box, None
        leader = (x, y, round(ex, 1), round(ey, 1))
        if not any(overlap(part, other) for part in _along(leader) for other in crossed):
            return box, leader
    return None


def _places(x: float, y: float, width: float) -> Iterator[tuple[Box, tuple[float, float], int]]:
    """Yield boxes around a mark, the near ones first, with the point where a leader ends."""
    for ring in _RINGS:
        for angle in _ANGLES:
            along, down = math.cos(angle), math.sin(angle)
            ex, ey = x + along * (_RADIUS + 3 + ring), y + down * (_RADIUS + 3 + ring)
            # The text begins, is centred or ends there, as the angle says.
            left = ex - width * (1 - along) / 2
            top = ey - LINE_HEIGHT * (1 - down) / 2
            yield (left, top, left + width, top + LINE_HEIGHT), (ex, ey), ring


def _along(leader: Box) -> list[Box]:
    """Return small boxes along a line, so that others stay off it."""
    x1, y1, x2, y2 = leader
    steps = max(1, int(math.dist((x1, y1), (x2, y2)) / 3))
    parts = [number / steps for number in range(steps + 1)]
    return [box_around(x1 + part * (x2 - x1), y1 + part * (y2 - y1), 1) for part in parts]
