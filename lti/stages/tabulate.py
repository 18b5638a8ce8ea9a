"""The stage that writes the table of one metric, or of a few that belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["tabulate"]


def tabulate(
    *,
    summary: Annotated[Path, typer.Option(help="The experiment's summary.")],
    metric: Annotated[list[str], typer.Option(help="A metric to show; repeated.")],
    title: Annotated[str, typer.Option(help="Heading of the table.")],
    backbone_card: Annotated[
        list[Path] | None,
        typer.Option(help="Card of a metric's backbone, which says if it is missing; repeated."),
    ] = None,
    near_copies: Annotated[
        Path | None, typer.Option(help="The victims' near copies, for the footnote.")
    ] = None,
    output: Output,
    markdown: Annotated[Path, typer.Option(help="Markdown table to write.")],
    latex: Annotated[Path, typer.Option(help="LaTeX table to write.")],
    log: Log = None,
) -> None:
    """Set attacks against defenses and batch sizes, and the paper's values against ours."""
    from lti.metrics.backbones import missing_reasons
    from lti.metrics.near_copies import read_near_copies
    from lti.progress import Progress
    from lti.report.grid import metric_cells, write_cells
    from lti.report.grid_latex import write_grid_latex
    from lti.report.grid_markdown import write_grid_markdown
    from lti.report.table import read_summary

    missing = missing_reasons(metric, backbone_card or ())
    rows = read_summary(summary)
    tables = [metric_cells(rows, name) for name in dict.fromkeys(metric)]
    write_cells(output, tables)
    copies = None if near_copies is None else read_near_copies(near_copies)
    write_grid_markdown(markdown, tables, title=title, missing=missing, near_copies=copies)
    write_grid_latex(latex, tables, title=title, missing=missing, near_copies=copies)
    Progress("table", log=log).say(f"{output}\n{markdown}\n{latex}")
