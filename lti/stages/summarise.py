"""The stage that summarises an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["summarise_experiment"]


def summarise_experiment(
    *,
    title: Annotated[str, typer.Option(help="Heading of the table.")],
    metrics: Annotated[list[Path], typer.Option(help="Rows of one cell; repeated.")],
    metric: Annotated[list[str], typer.Option(help="A metric to report; repeated.")],
    backbone_card: Annotated[
        list[Path] | None,
        typer.Option(help="Card of a metric's backbone, which says if it is missing; repeated."),
    ] = None,
    near_copies: Annotated[
        Path | None, typer.Option(help="The victims' near copies: those without are reported too.")
    ] = None,
    variations: Annotated[
        bool, typer.Option(help="Columns aux_size, beta and seed of the auxiliary set.")
    ] = False,
    output: Output,
    table: Annotated[Path, typer.Option(help="Markdown table to write.")],
    chart: Annotated[Path, typer.Option(help="Chart to write, PNG or PDF.")],
    log: Log = None,
) -> None:
    """Average the victims of every cell and set the paper's values beside them."""
    from lti.metrics.backbones import missing_reasons
    from lti.metrics.measure import read_metrics
    from lti.metrics.near_copies import read_near_copies
    from lti.metrics.summary import summarise
    from lti.progress import Progress
    from lti.report.chart import plot_summary
    from lti.report.table import write_markdown, write_summary

    missing = missing_reasons(metric, backbone_card or ())
    copies = None if near_copies is None else read_near_copies(near_copies)
    summary = summarise(
        [read_metrics(path) for path in metrics],
        near_copies=copies,
        shown=("aux_size", "beta", "aux_seed") if variations else (),
    )
    summary = summary[summary["metric"].isin(metric)].rename(columns={"aux_seed": "seed"})
    write_summary(output, summary)
    write_markdown(table, summary, title=title, missing=missing, near_copies=copies)
    plot_summary(chart, summary, metrics=metric)
    Progress("summary", log=log).say(f"{output}\n{table}\n{chart}")
