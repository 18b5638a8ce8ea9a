"""The chart of accuracy against leakage, a point a defense."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.metrics.base import METRICS
from lti.report.labels import attack_label, defense_label, setting_label
from lti.report.style import FAINT, INK, check_suffix, drawing_style, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = ["plot_utility"]

# Okabe and Ito's palette, as the other charts'; it comes again after its end.
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_MARKERS = "os^Dv<>"
_WIDEST = 3  # panels side by side
_NEAR, _FAR = 7, 15  # points between a label and its mark


def plot_utility(path: Path | str, table: pd.DataFrame) -> None:
    """Draw every setting in a panel: accuracy (up) against leakage (right), 95 % intervals.

    A filled mark is on the Pareto frontier: every defense that is more accurate leaks more. The
    dashed steps are the accuracy that can be had with so much leakage or less. Labels name the
    defense and the attack that leaks most.

    Args:
        path: output, ``.png`` or ``.pdf``.
        table: as :func:`lti.metrics.utility.utility_table` returns it, of one metric.

    Raises:
        LTIError: another suffix.
    """
    check_suffix(path)
    metric = METRICS[table["metric"].iloc[0]]
    defenses = list(dict.fromkeys(table["defense"]))
    panels = list(table.groupby(["dataset", "fl_model", "batch_size"], sort=False))
    width = min(_WIDEST, len(panels))
    height = -(-len(panels) // width)
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(
            figsize=(0.6 + 4.6 * width, 0.9 + 3.7 * height),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
        )
        FigureCanvasAgg(figure)
        grid = figure.subplots(height, width, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        placed = []
        for axes, (key, rows) in zip(grid.flat, panels, strict=False):
            dataset, fl_model, batch_size = key
            axes.set_title(
                setting_label(str(dataset), str(fl_model), int(str(batch_size))),
                size=10,
                loc="left",
            )
            placed.append((axes, _panel(axes, rows, defenses), _steps(rows)))
        grid[0, 0].figure.supylabel("test accuracy \u2191", size=9)
        private = "less" if metric.direction == "higher" else "more"
        figure.supxlabel(
            f"{metric.label} of the most successful attack: {private} is more private", size=9
        )
        _legend(figure)
        figure.draw_without_rendering()
        for axes, labels, steps in placed:
            _place(axes, labels, steps)
        save_figure(figure, path)


def _panel(
    axes: Axes, rows: pd.DataFrame, defenses: Sequence[str]
) -> list[tuple[pd.Series[Any], Annotation]]:
    """Draw one setting, and return its points with their labels."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT)
    axes.margins(x=0.16, y=0.16)
    steps = _steps(rows)
    axes.plot(*zip(*steps, strict=True), color="#999999", lw=1.2, ls="--", zorder=2)
    labels = []
    for _, row in rows.iterrows():
        number = defenses.index(row["defense"])
        colour = _COLOURS[number % len(_COLOURS)]
        x, y = row["leakage"], row["accuracy"]
        axes.plot([row["leakage_low"], row["leakage_high"]], [y, y], color=colour, lw=1.4, zorder=3)
        axes.plot([x, x], [row["accuracy_low"], row["accuracy_high"]], color=colour, lw=1.4)
        axes.plot(
            *([x], [y]),
            marker=_MARKERS[number % len(_MARKERS)],
            ms=6,
            mec=colour,
            mfc=colour if row["frontier"] else "white",
            zorder=4,
        )
        text = f"{defense_label(row['defense'])}\n({attack_label(row['attack'])})"
        label = axes.annotate(
            text, (x, y), (0, 0), textcoords="offset points", size=8, color=INK, zorder=5
        )
        labels.append((row, label))
    return labels


def _steps(rows: pd.DataFrame) -> list[tuple[float, float]]:
    """Return the corners of the frontier, from the most private point to the most accurate."""
    frontier = rows[rows["frontier"]].sort_values("accuracy")
    corners: list[tuple[float, float]] = []
    for x, y in zip(frontier["leakage"], frontier["accuracy"], strict=True):
        if corners:
            corners.append((x, corners[-1][1]))
        corners.append((x, y))
    return corners


def _place(
    axes: Axes,
    labels: Sequence[tuple[pd.Series[Any], Annotation]],
    steps: Sequence[tuple[float, float]],
) -> None:
    """Move each label beside its point, where it covers least of what is there already."""
    from matplotlib.transforms import Bbox

    renderer = axes.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    inside = axes.get_window_extent(renderer)
    corners = axes.transData.transform(steps)
    taken = [Bbox([one.clip(max=two) - 2, one.clip(min=two) + 2]) for one, two in pairwise(corners)]
    for row, _ in labels:
        ends = [
            (row["leakage"], row["accuracy"]),
            *((x, row["accuracy"]) for x in (row["leakage_low"], row["leakage_high"]) if x == x),
            *((row["leakage"], y) for y in (row["accuracy_low"], row["accuracy_high"]) if y == y),
        ]
        pixels = axes.transData.transform(ends)
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        centre = pixels[0]
        # The cross of both intervals, with the mark.
        taken.append(Bbox([[low[0] - 2, centre[1] - 2], [high[0] + 2, centre[1] + 2]]))
        taken.append(Bbox([[centre[0] - 2, low[1] - 2], [centre[0] + 2, high[1] + 2]]))
        taken.append(Bbox([centre - 9, centre + 9]))
    for _, label in labels:
        tried = []
        for order, (offset, horizontal, vertical) in enumerate(_offsets()):
            label.set(position=offset, ha=horizontal, va=vertical)
            box = label.get_window_extent(renderer)
            covered = sum(_overlap(box, other) for other in taken)
            outside = box.width * box.height - _overlap(box, inside)
            tried.append((covered + 2 * outside, order, offset, horizontal, vertical, box))
        _, _, offset, horizontal, vertical, box = min(tried, key=lambda entry: entry[:2])
        label.set(position=offset, ha=horizontal, va=vertical)
        taken.append(box)


def _offsets() -> Iterator[tuple[tuple[float, float], str, str]]:
    """Yield where a label may be, in points from its mark, and its alignment; best first."""
    for far in (_NEAR, _FAR, 2 * _FAR, 3 * _FAR):
        for x, horizontal in ((1, "left"), (-1, "right")):
            yield (far * x, far * 0.6), horizontal, "bottom"
            yield (far * x, -far * 0.6), horizontal, "top"
        yield (0, far), "center", "bottom"
        yield (0, -far), "center", "top"


def _overlap(one: Any, other: Any) -> float:
    """Return the area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))


def _legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            *([], []),
            color="#999999",
            lw=1.2,
            ls="--",
            marker="o",
            mfc=FAINT,
            mec=FAINT,
            label="Pareto frontier",
        ),
        Line2D([], [], lw=0, marker="o", mfc="white", mec=FAINT, label="dominated"),
        Line2D([], [], color=FAINT, marker="+", lw=0, ms=11, mew=1.4, label="95 % intervals"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
