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
    """Draw the same victims, chosen by a seed, above what each attack made of them.

    The picture has a block for every FL model and batch size among the reconstructions, in
    the order given. The victims are drawn from those that every row covers.
    """
    from lti.data.samples import to_float
    from lti.errors import LTIError
    from lti.files import read_arrays
    from lti.progress import Progress
    from lti.report.labels import setting_label
    from lti.report.picture import (
        PictureBlock,
        PictureRow,
        choose_positions,
        picture_row,
        plot_reconstructions,
    )

    truth = read_arrays(victims)[0]
    if "image" not in truth:
        raise LTIError(
            f"{victims} holds {', '.join(sorted(truth))}; expected an array 'image'. Only images "
            f"make a picture: choose victims of an image data set."
        )
    # Read twice, one file at a time: all of 10,000 victims of many runs would fill the memory.
    covered = len(truth["image"])
    variants: dict[str, set[str]] = {}
    for path in reconstructions:
        arrays, metadata = read_arrays(path)
        n_batches, batch_size = arrays["reconstruction"].shape[:2]
        covered = min(covered, n_batches * batch_size)
        variants.setdefault(metadata["attack"], set()).add(metadata["variant"])
    shown = choose_positions(covered, count, seed=seed)
    blocks: dict[str, list[PictureRow]] = {}
    for path in reconstructions:
        arrays, metadata = read_arrays(path)
        title = setting_label(metadata["dataset"], metadata["fl_model"], metadata["batch_size"])
        row = picture_row(
            truth,
            arrays,
            positions=shown,
            defense=metadata["defense"],
            attack=metadata["attack"],
            variant=metadata["variant"] if len(variants[metadata["attack"]]) > 1 else "",
        )
        blocks.setdefault(title, []).append(row)
    plot_reconstructions(
        output,
        to_float(truth["image"][shown]),
        [PictureBlock(title, rows) for title, rows in blocks.items()],
    )
    Progress("picture", log=log).say(str(output))
