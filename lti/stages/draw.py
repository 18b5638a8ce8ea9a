"""The stage that draws the picture: victims above their reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["draw_reconstructions"]


def draw_reconstructions(
    *,
    victims: Annotated[Path, typer.Option(help="The victims.")],
    reconstructions: Annotated[list[Path], typer.Option(help="A row of the picture; repeated.")],
    count: Annotated[int, typer.Option(min=1, help="Victims shown.")] = 12,
    seed: Annotated[int, typer.Option(help="Root seed of the choice of victims.")] = 0,
    output: Output,
    log: Log = None,
) -> None:
    """Draw the same victims, chosen by a seed, above what each attack made of them."""
    from lti.data.selection import to_float
    from lti.files import read_arrays
    from lti.progress import Progress
    from lti.report.picture import picture_row, plot_reconstructions

    truth = read_arrays(victims)[0]
    runs = [read_arrays(path) for path in reconstructions]
    variants: dict[str, set[str]] = {}
    for _, metadata in runs:
        variants.setdefault(metadata["attack"], set()).add(metadata["variant"])
    rows = [
        picture_row(
            truth,
            arrays,
            defense=metadata["defense"],
            attack=metadata["attack"],
            variant=metadata["variant"] if len(variants[metadata["attack"]]) > 1 else "",
        )
        for arrays, metadata in runs
    ]
    covered = min(len(row.images) for row in rows)
    plot_reconstructions(output, to_float(truth["image"][:covered]), rows, count=count, seed=seed)
    Progress("picture", log=log).say(str(output))
