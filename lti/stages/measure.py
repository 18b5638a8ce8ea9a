"""The stage that measures reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output, Threads

__all__ = ["measure_attack"]


def measure_attack(
    *,
    victims: Annotated[Path, typer.Option(help="The victims.")],
    reconstructions: Annotated[Path, typer.Option(help="The attack's reconstructions.")],
    metric: Annotated[list[str], typer.Option(help="A metric; may be repeated.")],
    backbone: Annotated[
        list[Path] | None, typer.Option(help="A fetched backbone; may be repeated.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The data set's tokenizer; for text alone.")
    ] = None,
    output: Output,
    threads: Threads = None,
    log: Log = None,
) -> None:
    """Compare every reconstruction with its victim: one row per victim."""
    from lti.errors import LTIError
    from lti.files import read_arrays
    from lti.metrics.measure import measure, write_metrics
    from lti.metrics.tokens import read_text
    from lti.progress import Progress
    from lti.report.paper import paper_defense

    if backbone:  # torch takes longer to import than the other metrics to compute
        from lti.compute import acquire

        acquire(threads=threads)
    arrays, metadata = read_arrays(reconstructions)
    truth, read = read_arrays(victims)
    backbones = {str(read_arrays(path)[1]["backbone"]): path for path in backbone or ()}
    if tokenizer is not None and "text" not in read:
        raise LTIError(
            f"--tokenizer: got {tokenizer}; {victims} holds no text of which its metadata would "
            f"say more. Leave the option out, or prepare the data set again."
        )
    text = read_text(tokenizer, read["text"]) if tokenizer is not None else None
    frame = measure(truth, arrays, metadata, metrics=metric, backbones=backbones, text=text)
    # The paper's numbers are of its data sets and models, not of others under their names.
    names = (read["dataset"], metadata["fl_model_settings"]["use"])
    same = names == (metadata["dataset"], metadata["fl_model"])
    settings = metadata["defense_settings"]
    paper = paper_defense(settings, batch_size=metadata["batch_size"])
    frame["paper_defense"] = paper if same else ""
    write_metrics(output, frame)
    means = ", ".join(f"{name} {frame[name].mean():.4g}" for name in metric)
    progress = Progress(f"measure {metadata['defense']} {metadata['variant']}", log=log)
    progress.say(f"{len(frame):,} victims: {means}")
