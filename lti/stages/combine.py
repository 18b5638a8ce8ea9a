"""The stage that sets experiments' summaries beside one another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["combine_summaries"]


def combine_summaries(
    *,
    title: Annotated[str, typer.Option(help="Heading of the tables.")],
    summary: Annotated[list[Path], typer.Option(help="An experiment's summary; repeated.")],
    tables: Annotated[
        list[Path], typer.Option(help="Its tables in Markdown, in the same order; repeated.")
    ],
    output: Output,
    table: Annotated[Path, typer.Option(help="Markdown file to write.")],
    chart: Annotated[Path, typer.Option(help="Chart to write, PNG or PDF.")],
    log: Log = None,
) -> None:
    """Join experiments' summaries, in their order, with their tables and one chart."""
    import pandas as pd

    from lti.checksums import read_checked, write_checked
    from lti.progress import Progress
    from lti.report.chart import plot_summary
    from lti.report.table import read_summary, write_summary

    parts = [read_summary(path) for path in summary]
    columns = max((list(part) for part in parts), key=len)
    joined = pd.concat(parts, ignore_index=True)[columns]
    if "victims" in joined:  # only text tells them apart
        joined["victims"] = joined["victims"].fillna("all")
    write_summary(output, joined)
    write_checked(table, "\n".join([f"# {title}\n", *map(read_checked, tables)]))
    plot_summary(chart, joined, metrics=list(joined["metric"].unique()))
    Progress("summary", log=log).say(f"{output}\n{table}\n{chart}")
