"""The stage that draws an ablation's curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["draw_curves"]


def draw_curves(
    *,
    metrics: Annotated[list[Path], typer.Option(help="Rows of one cell; repeated.")],
    metric: Annotated[list[str], typer.Option(help="A metric to show; repeated.")],
    over: Annotated[str, typer.Option(help="What curves run along: aux_size or beta.")],
    note: Annotated[str, typer.Option(help="A line below the figure.")] = "",
    output: Output,
    pdf: Annotated[Path, typer.Option(help="The same as PDF.")],
    data: Annotated[Path, typer.Option(help="The curves' points as CSV.")],
    log: Log = None,
) -> None:
    """Average victims and seeds, and draw the means with their bands."""
    from lti.errors import LTIError
    from lti.metrics.curves import curves
    from lti.metrics.measure import read_metrics
    from lti.progress import Progress
    from lti.report.curves import AXES, plot_curves
    from lti.report.table import write_summary

    if over not in AXES:
        raise LTIError(f"--over: got {over!r}; expected one of {', '.join(AXES)}. Use one.")
    points = curves([read_metrics(path) for path in metrics], over=over, names=metric)
    write_summary(data, points)
    for path in (output, pdf):
        plot_curves(path, points, over=over, note=note)
    Progress("curves", log=log).say(f"{output}\n{pdf}\n{data}")
