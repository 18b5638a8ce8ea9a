"""The stage that sets accuracy beside leakage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output, parse_json_list

__all__ = ["draw_utility"]


def draw_utility(
    *,
    summary: Annotated[Path, typer.Option(help="The experiment's summary.")],
    trainings: Annotated[
        str,
        typer.Option(
            help="JSON list of trainings: objects with `fl_model`, `defense` and the file `card`."
        ),
    ],
    metric: Annotated[str, typer.Option(help="The metric of leakage.")],
    output: Output,
    chart: Annotated[Path, typer.Option(help="Chart to write, PNG or PDF.")],
    log: Log = None,
) -> None:
    """Set the accuracy under each defense beside the most that an attack leaks, and draw both."""
    from lti.metrics.utility import read_training, utility_table
    from lti.progress import Progress
    from lti.report.table import read_summary, write_summary
    from lti.report.utility import plot_utility

    table = utility_table(
        read_summary(summary),
        {
            (entry["fl_model"], entry["defense"]): read_training(entry["card"])
            for entry in parse_json_list(trainings, option="trainings")
        },
        metric=metric,
    )
    write_summary(output, table)
    plot_utility(chart, table)
    Progress("utility", log=log).say(f"{output}\n{chart}")
