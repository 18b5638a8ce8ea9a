"""What federated training under each defense reached, for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lti.auditing.result import Estimate, Utility
from lti.defenses import DEFENSES
from lti.files import read_card
from lti.metrics.utility import read_training

__all__ = ["DELTA", "utility_of"]

DELTA = 1e-5
"""Of (epsilon, delta)-differential privacy."""


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
            read_card(entry["card"]),
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
    """Return what DP-SGD guarantees a client's sample towards the server; nothing of others.

    The server sees every message, so the choice of clients hides nothing: a client of the fewest
    samples takes part in its share of the rounds, and draws its batches from its own samples.
    """
    defense, training = card["defense"], card["training"]
    if defense["use"] != "dp-sgd":
        return {}
    from lti.defenses.privacy import epsilon

    fewest = min(size for size in card["samples_of_clients"] if size)
    rounds = math.ceil(training["rounds"] * training["clients_per_round"] / training["clients"])
    found = epsilon(
        noise_multiplier=defense["noise_multiplier"],
        sampling_rate=min(1.0, training["batch_size"] / fewest),
        rounds=rounds,
        delta=DELTA,
    )
    return {"epsilon": found, "delta": DELTA}
