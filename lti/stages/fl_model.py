"""The stage that draws an FL model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lti.stages.options import Log, Output, parse_json

__all__ = ["draw_fl_model"]


def draw_fl_model(
    *,
    fl_model: Annotated[str, typer.Option(help="JSON settings of the FL model.")],
    dataset_card: Annotated[Path, typer.Option(help="Card of the data set that it is for.")],
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Make an FL model's initial weights and write them with a card."""
    from lti.files import read_card
    from lti.fl_models import FL_MODELS, FLTask, save_fl_model
    from lti.progress import Progress

    model = FL_MODELS.parse(parse_json(fl_model, option="fl-model"))
    written = save_fl_model(output, card, model, FLTask.of(read_card(dataset_card)))
    progress = Progress(f"fl-model {model.name}", log=log)
    progress.say(f"{written['parameters']:,} parameters, {written['attacked']:,} of them attacked")
    if "note" in written:
        progress.say(written["note"])
