"""The stage that measures reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["measure_attack"]


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
    truth, read = read_arrays(victims)
    frame = measure(truth, arrays, metadata, metrics=metric)
    # The paper's numbers are of its data sets and models, not of others under their names.
    names = (read["dataset"], metadata["fl_model_settings"]["use"])
    same = names == (metadata["dataset"], metadata["fl_model"])
    frame["paper_defense"] = paper_defense(metadata["defense_settings"]) if same else ""
    write_metrics(output, frame)
    means = ", ".join(f"{name} {frame[name].mean():.4g}" for name in metric)
    progress = Progress(f"measure {metadata['defense']} {metadata['variant']}", log=log)
    progress.say(f"{len(frame):,} victims: {means}")
