"""The figure of an ablation: metrics along the auxiliary set's size or beta."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from lti.errors import LTIError
from lti.metrics.base import METRICS
from lti.report.labels import attack_label, defense_label, setting_label
from lti.report.style import FAINT, check_suffix, drawing_style, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["AXES", "plot_curves"]

LABEL = 36  # characters beside a panel; longer ones take two lines
AXES = {
    "aux_size": "auxiliary samples",
    "beta": "share of auxiliary data like the victims (beta)",
}
"""What curves run along, as their axis reads."""

# Okabe and Ito's palette, a defense a colour and a marker.
_LOOKS = (("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#009E73", "D"), ("#CC79A7", "v"))
_STYLES = ("-", "--", ":", "-.")
_WIDEST = 4


def plot_curves(path: Path | str, points: pd.DataFrame, *, over: str, note: str = "") -> None:
    """Draw every metric in a panel: a line a defense (and attack), a band its 95 % interval.

    Args:
        path: output, ``.png`` or ``.pdf``.
        points: as :func:`lti.metrics.curves.curves` returns them.
        over: what they run along, a key of :data:`AXES`; sizes are on a logarithmic axis.
        note: a line below the panels.

    Raises:
        LTIError: nothing to draw, or another suffix.
    """
    check_suffix(path)
    measured = points[points["mean"].notna()]
    if not len(measured):
        raise LTIError("no curve to draw: no metric was measured. Compute the metrics first.")
    names = list(dict.fromkeys(measured["metric"]))
    settings = list(measured.groupby(["dataset", "fl_model", "batch_size"], sort=False))
    lines = math.ceil(len(names) / _WIDEST)
    width = math.ceil(len(names) / lines)
    defenses = list(dict.fromkeys(measured["defense"]))
    attacks = list(dict.fromkeys(zip(measured["attack"], measured["variant"], strict=True)))
    with drawing_style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        rows = lines * len(settings)
        figure = Figure(
            figsize=(0.6 + 3.0 * width, 1.1 + 2.6 * rows),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
        )
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, width, squeeze=False)
        for index, ((dataset, fl_model, batch_size), block) in enumerate(settings):
            panels = grid[index * lines : (index + 1) * lines]
            for axes in panels.flat[len(names) :]:
                axes.set_axis_off()
            for axes, name in zip(panels.flat, names, strict=False):
                _panel(axes, block[block["metric"] == name], defenses, attacks, over)
                metric = METRICS[name]
                arrow = "\u2191" if metric.direction == "higher" else "\u2193"
                axes.set_title(f"{metric.label} {arrow}", size=10, loc="left")
            label = setting_label(str(dataset), str(fl_model), int(str(batch_size)))
            if len(label) > LABEL:
                label = label.replace(", ", "\n", 1)
            for axes in panels[:, 0]:
                axes.set_ylabel(label, size=9, labelpad=8)
        below = AXES[over] + (f"\n{note}" if note else "")
        figure.supxlabel(below, size=9)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False
        )
        save_figure(figure, path)


def _panel(
    axes: Axes,
    rows: pd.DataFrame,
    defenses: list[str],
    attacks: list[tuple[str, str]],
    over: str,
) -> None:
    """Draw one metric of one setting."""
    axes.spines[["top", "right"]].set_visible(False)
    if over == "aux_size":
        axes.set_xscale("log")
    for (defense, attack, variant), line in rows.groupby(
        ["defense", "attack", "variant"], sort=False
    ):
        colour, marker = _LOOKS[defenses.index(str(defense)) % len(_LOOKS)]
        style = _STYLES[attacks.index((str(attack), str(variant))) % len(_STYLES)]
        label = defense_label(str(defense))
        if len(attacks) > 1:
            label = f"{label}, {attack_label(str(attack), {'variant': str(variant)})}"
        x = line["x"].to_numpy(dtype=float)
        axes.plot(x, line["mean"], style, color=colour, marker=marker, ms=4, lw=1.5, label=label)
        low, high = (line[end].to_numpy(dtype=float) for end in ("low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    axes.grid(color="#E4E4E4", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT)
