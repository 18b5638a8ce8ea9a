"""Where the marks and labels of privacy against utility lie."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lti.auditing.result import Level
from lti.metrics.utility import pareto_frontier
from lti.report.audit_labels import (
    LINE_HEIGHT,
    Box,
    Label,
    box_around,
    box_of_line,
    free_row,
    place_labels,
    text_width,
)

__all__ = ["Mark", "Plot", "Point", "frontier", "lay_out"]

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 14, 44  # around the axes, in pixels
_LOWEST = -0.06  # of the share axis; marks further left stand on its edge

_Ends = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A defense: the share that the best attack recovers, and the accuracy it leaves.

    Attributes:
        share: mean, low and high; the mean is finite, the others may be NaN.
        accuracy: likewise, in [0, 1].
    """

    name: str
    level: Level
    share: tuple[float, float, float]
    accuracy: tuple[float, float, float]


@dataclass(frozen=True)
class Mark:
    """A point in pixels, with the ends of its intervals; none where they are not known."""

    name: str
    level: Level
    x: float
    y: float
    across: _Ends | None
    upright: _Ends | None


@dataclass(frozen=True)
class Plot:
    """Everything drawn, in pixels from the upper left.

    Attributes:
        left: with ``top``, ``right`` and ``bottom``, where the axes lie.
        xticks: position and share.
        yticks: position and accuracy.
        undefended: height of the accuracy without a defense; None where there is no one value.
        half: height of half of it: below, most of what was learned is lost.
        frontier: corners of the line through defenses that no other beats in both.
        notes: what the lines say; their ``x`` is the right end.
        unlabelled: names for which there was no room.
    """

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    xticks: tuple[tuple[float, float], ...]
    yticks: tuple[tuple[float, float], ...]
    undefended: float | None
    half: float | None
    frontier: tuple[tuple[float, float], ...]
    marks: tuple[Mark, ...]
    notes: tuple[Label, ...]
    labels: tuple[Label, ...]
    unlabelled: tuple[str, ...]


def frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other beats: better in one mean and as good in the other.

    By share, from low to high; so accuracy rises too. Equal points are all in or all out.
    """
    import numpy as np

    accuracy = np.array([point.accuracy[0] for point in points])
    share = np.array([point.share[0] for point in points])
    on = pareto_frontier(accuracy, share)
    chosen = [point for point, best in zip(points, on, strict=True) if best]
    return sorted(chosen, key=lambda point: (point.share[0], -point.accuracy[0]))


def lay_out(
    points: Sequence[Point], *, width: int, height: int, undefended: float | None = None
) -> Plot:
    """Place everything; labels overlap neither each other nor a mark.

    Args:
        points: at least one.
        width: of the whole plot, in pixels.
        height: likewise.
        undefended: accuracy without a defense, in [0, 1].
    """
    right, bottom = width - _RIGHT, height - _BOTTOM
    reached = [v for point in points for v in point.accuracy if math.isfinite(v)]
    highest = min(max([*reached, undefended or 0.0, 0.1]), 1.0) * 1.08
    step = 0.2 if highest > 0.5 else 0.1 if highest > 0.25 else 0.05

    def x(share: float) -> float:
        kept = min(max(share, _LOWEST), 1.0)
        return round(_LEFT + (kept - _LOWEST) / (1.0 - _LOWEST) * (right - _LEFT), 1)

    def y(accuracy: float) -> float:
        kept = min(max(accuracy, 0.0), highest)
        return round(bottom - kept / highest * (bottom - _TOP), 1)

    marks = []
    for point in points:
        at = x(point.share[0]), y(point.accuracy[0])
        ends = _ends(point.share, x), _ends(point.accuracy, y)
        marks.append(Mark(point.name, point.level, *at, *ends))
    best = [(x(p.share[0]), y(p.accuracy[0])) for p in frontier(points)]
    corners = best[:1]
    for (_, before), after in pairwise(best):
        corners += [(after[0], before), after]
    lines = [box_of_line(*mark.across, mark.y, mark.y) for mark in marks if mark.across]
    lines += [box_of_line(mark.x, mark.x, *mark.upright) for mark in marks if mark.upright]
    lines += [box_of_line(a[0], b[0], a[1], b[1]) for a, b in pairwise(corners)]
    area = (_LEFT + 2.0, _TOP - 4.0, right - 2.0, bottom - 2.0)
    level = half = None
    notes: list[Label] = []
    taken: list[Box] = []
    if undefended is not None:
        level, half = y(undefended), y(undefended / 2)
        lines.append(box_of_line(_LEFT, right, level, level))
        dots = [box_around(mark.x, mark.y) for mark in marks]
        for text, rows in (
            ("without a defense", (level - LINE_HEIGHT - 2, level + 2)),
            ("less than half that accuracy", (bottom - LINE_HEIGHT - 4, half + 3)),
        ):
            box = free_row(text_width(text), rows, area, [*dots, *lines, *taken])
            taken.append(box)
            notes.append(Label(text, round(box[2], 1), round(box[3] - 4, 1)))
    labels, unlabelled = place_labels(
        [(mark.name, mark.x, mark.y) for mark in marks],
        area,
        texts=taken,
        lines=lines,
        longest=24 if width > 500 else 15,
    )
    return Plot(
        width,
        height,
        _LEFT,
        _TOP,
        right,
        bottom,
        tuple((x(v), v) for v in (0.0, 0.25, 0.5, 0.75, 1.0)),
        tuple((y(n * step), n * step) for n in range(int(highest / step + 1e-9) + 1)),
        level,
        half,
        tuple(corners),
        tuple(marks),
        tuple(notes),
        labels,
        unlabelled,
    )


def _ends(values: tuple[float, float, float], scale: Callable[[float], float]) -> _Ends | None:
    _, low, high = values
    return (scale(low), scale(high)) if math.isfinite(low) and math.isfinite(high) else None
