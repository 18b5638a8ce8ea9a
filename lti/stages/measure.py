"""Stages that measure reconstructions and summarise an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["measure_attack", "summarise_experiment"]


def measure_attack(
    *,
    victims: Annotated[Path, typer.Option(help="The victims.")],
    reconstructions: Annotated[Path, typer.Option(help="The attack's reconstructions.")],
    metric: Annotated[list[str], typer.Option(help="A metric; may be repeated.")],
    output: Output,
    log: Log = None,
) -> None:
    """Compare every reconstruction with its victim: one row per victim."""
    from lti.files import read_arrays
    from lti.metrics.measure import measure, write_metrics
    from lti.progress import Progress
    from lti.report.paper import paper_defense

    arrays, metadata = read_arrays(reconstructions)
    frame = measure(read_arrays(victims)[0], arrays, metadata, metrics=metric)
    frame["paper_defense"] = paper_defense(metadata["defense_settings"])
    write_metrics(output, frame)
    means = ", ".join(f"{name} {frame[name].mean():.4g}" for name in metric)
    progress = Progress(f"measure {metadata['defense']} {metadata['variant']}", log=log)
    progress.say(f"{len(frame):,} victims: {means}")


def summarise_experiment(
    *,
    metrics: Annotated[list[Path], typer.Option(help="Rows of one cell; repeated.")],
    output: Output,
    table: Annotated[Path, typer.Option(help="Markdown table to write.")],
    chart: Annotated[Path, typer.Option(help="Chart to write, PNG or PDF.")],
    log: Log = None,
) -> None:
    """Average the victims of every cell and set the paper's values beside them."""
    from lti.metrics.measure import read_metrics
    from lti.metrics.summary import summarise
    from lti.progress import Progress
    from lti.report.chart import plot_summary
    from lti.report.table import write_markdown, write_summary

    summary = summarise([read_metrics(path) for path in metrics])
    write_summary(output, summary)
    write_markdown(table, summary)
    plot_summary(chart, summary)
    Progress("summary", log=log).say(f"{output}\n{table}\n{chart}")
