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
    samples: Annotated[
        Path | None,
        typer.Option(help="The data set's auxiliary part, for a model that is calibrated."),
    ] = None,
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Make an FL model's initial weights and write them with a card."""
    import torch

    from lti.data.samples import as_input
    from lti.data.selection import read_selection
    from lti.errors import LTIError
    from lti.files import read_card
    from lti.fl_models import FL_MODELS, FLTask, save_fl_model
    from lti.progress import Progress

    model = FL_MODELS.parse(parse_json(fl_model, option="fl-model"))
    x = None
    if model.calibration_samples:
        if samples is None:
            raise LTIError(
                f"--samples: got none, and {model.name} is calibrated on "
                f"{model.calibration_samples} samples; expected the data set's auxiliary part. "
                f"Give it."
            )
        value = read_selection(samples).samples.value[: model.calibration_samples]
        x = as_input(torch.from_numpy(value))
    written = save_fl_model(output, card, model, FLTask.of(read_card(dataset_card)), x=x)
    progress = Progress(f"fl-model {model.name}", log=log)
    progress.say(f"{written['parameters']:,} parameters, {written['attacked']:,} of them attacked")
    if "note" in written:
        progress.say(written["note"])
