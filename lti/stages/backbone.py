"""The stage that fetches a metric's pretrained network."""

from __future__ import annotations

from typing import Annotated

import typer

from lti.stages.options import Log, Output

__all__ = ["fetch_backbone"]


def fetch_backbone(
    *,
    backbone: Annotated[str, typer.Option(help="Its name, such as vgg16.")],
    required: Annotated[
        str, typer.Option(help="Backbones without which nothing can go on, between commas.")
    ] = "",
    output: Output,
    card: Output,
    log: Log = None,
) -> None:
    """Fetch pretrained weights from a mirror or their public home, or write why they are not."""
    from lti.metrics.backbones import fetch_backbone_weights
    from lti.progress import Progress

    progress = Progress(f"backbone {backbone}", log=log)
    must = backbone in required.split(",")
    reason = fetch_backbone_weights(backbone, output, card, required=must)
    progress.say(reason or "fetched and checked")
