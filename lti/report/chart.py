"""The chart: a summary's means, intervals and the paper's values, panel by panel."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.metrics.base import METRICS, Metric
from lti.report.labels import attack_labels, defense_label, setting_label, subset_label
from lti.report.style import FAINT, check_suffix, drawing_style, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_summary"]

# Okabe and Ito's palette, which readers with any colour vision tell apart.
_COLOURS = {
    "lti": "#D55E00",
    "ig": "#0072B2",
    "gi-gip": "#009E73",
    "lti-map": "#CC79A7",
    "tag": "#56B4E9",
    "nearest": "#7F7F7F",
}
_SPARE_COLOURS = ("#E69F00", "#000000", "#56B4E9", "#CC79A7")
_MARKERS = "osD^vPX<>"
_WIDEST = 5  # panels side by side; more metrics go below


def plot_summary(
    path: Path | str, summary: pd.DataFrame, *, metrics: Sequence[str] = ("psnr", "mse", "ssim")
) -> None:
    """Draw every cell's mean with its 95 % interval, and the paper's value where there is one.

    One row of panels per setting (data set, FL model, batch size), or more of them for more
    than five metrics, one panel per metric that the setting has, defenses along the axis, an
    attack a colour and a marker throughout. An FL model's panels of one metric share their
    limits. Where the summary tells victims apart, hollow markers are those without a near copy.

    Args:
        path: output, ``.png`` or ``.pdf``.
        summary: as :func:`lti.metrics.summary.summarise` returns it; its order is kept.
        metrics: those to draw, in this order; those without values are left out, unless
            all are without.

    Raises:
        LTIError: none of the metrics is in the summary, or another suffix.
    """
    check_suffix(path)
    present = set(summary["metric"])
    measured = set(summary.loc[summary["mean"].notna(), "metric"])
    names = [name for name in metrics if name in measured]
    names = names or [name for name in metrics if name in present]
    if not names:
        raise LTIError(
            f"no metric to draw: asked for {', '.join(metrics)}, the summary has "
            f"{', '.join(sorted(present)) or 'none'}. Choose among these."
        )
    summary = summary.assign(series=attack_labels(summary))
    values = summary[summary["mean"].notna() & summary["metric"].isin(names)]
    look = _looks(summary)
    scales = {name: _scale(rows, METRICS[str(name)]) for name, rows in values.groupby("metric")}
    limits = {
        (*model, name): _limits(rows, scales[str(name)])
        for (*model, name), rows in values.groupby(["dataset", "fl_model", "metric"])
    }
    settings = [
        (key, rows, [name for name in names if name in set(rows["metric"])])
        for key, rows in summary.groupby(["dataset", "fl_model", "batch_size"], sort=False)
    ]
    lines = [math.ceil(len(shown) / _WIDEST) for _, _, shown in settings]  # of panels
    pairs = zip(settings, lines, strict=True)
    width = max(math.ceil(len(shown) / count) for (_, _, shown), count in pairs if count)
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        figure = Figure(
            figsize=(1.0 + 3.4 * width, 0.9 + 2.7 * sum(lines)),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.06),
        )
        FigureCanvasAgg(figure)
        grid = figure.subplots(sum(lines), width, squeeze=False)
        ends = itertools.accumulate(lines)
        for (key, rows, shown), count, end in zip(settings, lines, ends, strict=True):
            panels = grid[end - count : end]
            for axes in panels.flat[len(shown) :]:
                axes.set_axis_off()
            for axes, name in zip(panels.flat, shown, strict=False):
                metric = METRICS[name]
                drawn = rows[rows["mean"].notna() & (rows["metric"] == name)]
                if len(drawn):
                    _set_axis(axes, scales[name], *limits[*key[:2], name])
                _panel(axes, drawn, look)
                arrow = "\u2191" if metric.direction == "higher" else "\u2193"
                axes.set_title(f"{metric.label} {arrow}", size=10, loc="left")
            dataset, fl_model, batch_size = key
            label = setting_label(str(dataset), str(fl_model), int(str(batch_size)))
            for axes in panels[:, 0]:
                axes.set_ylabel(label, size=9, labelpad=8)
        figure.align_ylabels(grid[:, 0])
        _legend(
            figure,
            look,
            paper=bool(summary["paper"].notna().any()),
            novel="victims" in summary,
        )
        save_figure(figure, path)


def _looks(summary: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Return colour and marker per series; variants of an attack share its colour."""
    looks: dict[str, tuple[str, str]] = {}
    attacks = list(dict.fromkeys(summary["attack"]))
    unknown = [attack for attack in attacks if attack not in _COLOURS]
    for index, (series, attack) in enumerate(
        dict(zip(summary["series"], summary["attack"], strict=True)).items()
    ):
        colour = _COLOURS.get(attack)
        if colour is None:
            colour = _SPARE_COLOURS[unknown.index(attack) % len(_SPARE_COLOURS)]
        looks[series] = (colour, _MARKERS[index % len(_MARKERS)])
    return looks


def _extremes(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the least and the largest of all that is drawn."""
    import numpy as np

    values = rows[["mean", "low", "high", "paper"]].to_numpy(dtype=float)
    return float(np.nanmin(values)), float(np.nanmax(values))


def _scale(rows: pd.DataFrame, metric: type[Metric]) -> str:
    least, most = _extremes(rows)
    # An MSE of 1e-4 beside one of 0.1 would lie on a linear axis.
    return "log" if metric.direction == "lower" and 0 < least < most / 30 else "linear"


def _limits(rows: pd.DataFrame, scale: str) -> tuple[float, float]:
    least, most = _extremes(rows)
    if scale == "log":
        return least / 1.3, most * 1.3
    return min(0.0, least * 1.08), max(most, 0.0) * 1.08 or 1.0


def _set_axis(axes: Axes, scale: str, least: float, most: float) -> None:
    axes.set(yscale=scale, ylim=(least, most))
    if scale == "log":
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        # The default writes "4 x 10^-1" at every step of a short axis.
        steps = (1.0, 2.0, 5.0) if most < 100 * least else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=steps))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _panel(axes: Axes, rows: pd.DataFrame, look: Mapping[str, tuple[str, str]]) -> None:
    """Draw one metric of one setting."""
    axes.spines[["top", "right"]].set_visible(False)
    if not len(rows):
        axes.text(0.5, 0.5, "not measured", ha="center", color=FAINT, transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
        return
    defenses = list(dict.fromkeys(rows["defense"]))
    present = set(rows["series"])
    series = [name for name in look if name in present]
    apart = "victims" in rows
    step = min(0.27 if apart else 0.2, 0.7 / max(1, len(series)))
    for _, row in rows.iterrows():
        colour, marker = look[row["series"]]
        offset = (series.index(row["series"]) - (len(series) - 1) / 2) * step
        x = defenses.index(row["defense"]) + offset
        face: dict[str, Any] = {"mec": "none"}
        if apart:
            novel = row["victims"] == "novel"
            x += step * (0.22 if novel else -0.22)
            face = {"mec": colour, "mfc": "white" if novel else colour}
        if row["low"] == row["low"]:
            axes.plot([x, x], [row["low"], row["high"]], color=colour, lw=1.8, zorder=3)
        axes.plot([x], [row["mean"]], marker=marker, ms=5, color=colour, zorder=4, **face)
        if row["paper"] == row["paper"]:
            half = step * 0.45
            axes.plot([x - half, x + half], [row["paper"]] * 2, color=colour, lw=2, zorder=5)
    axes.set_xlim(-0.5, max(1, len(defenses)) - 0.5)
    axes.set_xticks(range(len(defenses)), [defense_label(d) for d in defenses])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#E4E4E4", lw=0.8)
    axes.set_axisbelow(True)
    for edge in range(1, len(defenses)):
        axes.axvline(edge - 0.5, color="#EEEEEE", lw=0.8, zorder=0)


def _legend(
    figure: Figure, look: Mapping[str, tuple[str, str]], *, paper: bool, novel: bool
) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, lw=0, ms=6, mec="none", label=name)
        for name, (colour, marker) in look.items()
    ]
    interval = Line2D([], [], color=FAINT, marker="|", lw=0, ms=11, mew=1.8, label="95 % interval")
    handles.append(interval)
    if novel:
        hollow = Line2D([], [], marker="o", lw=0, ms=6, mec=FAINT, mfc="white")
        hollow.set_label(subset_label("novel"))
        handles.append(hollow)
    if paper:
        dash = Line2D([], [], color=FAINT, marker="_", lw=0, ms=11, mew=2, label="in the paper")
        handles.append(dash)
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 6),
        frameon=False,
        handlelength=1.0,
        columnspacing=1.8,
    )
