"""What was audited, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["facts_of"]


def facts_of(
    *,
    fl_model: Mapping[str, Any],
    victims: Mapping[str, Any],
    auxiliary: Mapping[str, Any],
    run: Mapping[str, Any],
) -> dict[str, str]:
    """Return the lines of a page's head, by heading.

    Args:
        fl_model: the FL model's card.
        victims: metadata of the victims.
        auxiliary: metadata of the auxiliary set.
        run: metadata of one attack's reconstructions.
    """
    settings = fl_model["fl_model"]
    made = settings.get("factory") or settings.get("file") or settings["use"]
    batch_size = int(run.get("batch_size", 1))
    calibrated = fl_model.get("calibrated")
    return {
        "Model": f"{made} ({_weights(fl_model)})",
        "Parameters": f"{fl_model['parameters']:,}, of which the attacker sees the gradients of "
        f"{fl_model['attacked']:,}",
        **(
            {
                "BatchNorm": f"{calibrated['layers']} layers, statistics of "
                f"{calibrated['samples']:,} auxiliary samples"
            }
            if calibrated
            else {}
        ),
        "Data": f"{victims['dataset']}, {len(victims['class_names'])} classes",
        "Victims": f"{victims['size']:,} samples, "
        + ("one a gradient" if batch_size == 1 else f"{batch_size} a gradient"),
        "Auxiliary data": f"{auxiliary['size']:,} samples of {auxiliary['dataset']}",
        "The attacker knows": "the model's weights, the defense and its settings, the victims' "
        "labels, and the auxiliary data; not the noise's draws and not the victims",
    }


def _weights(fl_model: Mapping[str, Any]) -> str:
    """Return where an FL model's weights are from."""
    settings = fl_model["fl_model"]
    if settings["use"] == "program":
        return "weights as saved"
    if fl_model.get("pretrained"):
        return "public weights"
    return f"as it is made, seed {settings.get('seed', 0)}"
