"""What federated training under each defense reached, for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lti.auditing.result import Estimate, Utility
from lti.defenses import DEFENSES
from lti.files import read_json
from lti.metrics.utility import read_training

__all__ = ["utility_of"]


def utility_of(trainings: Sequence[Mapping[str, Any]]) -> dict[str, Utility]:
    """Return each defense's utility, by its identifier.

    Args:
        trainings: objects with ``defense`` and the files ``history`` and ``card`` of the stage
            ``train-federated``.

    Raises:
        LTIError: a file is missing or not of that stage.
    """
    read = {
        entry["defense"]: (
            read_training(entry["history"], entry["card"]),
            read_json(entry["card"]),
        )
        for entry in trainings
    }
    undefended = next(
        (
            facts["accuracy"]
            for facts, card in read.values()
            if card["defense"]["use"] == DEFENSES["none"].name
        ),
        math.nan,
    )
    return {
        defense: Utility(
            accuracy=Estimate(
                facts["accuracy"], facts["low"], facts["high"], facts["test_samples"]
            ),
            undefended=float(undefended),
            rounds=facts["rounds"],
            **_privacy(card),
        )
        for defense, (facts, card) in read.items()
    }


def _privacy(card: Mapping[str, Any]) -> dict[str, float]:
    return {key: card[key] for key in ("epsilon", "delta") if card.get(key) is not None}
