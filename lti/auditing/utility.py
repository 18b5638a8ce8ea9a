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
        trainings: objects with ``defense`` and the ``card`` of the stage ``train-federated``.

    Raises:
        LTIError: a file is missing or not of that stage.
    """
    read = {
        entry["defense"]: (
            read_training(entry["card"]),
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
    """Return what Renyi accounting says of DP-SGD for a client's sample; nothing of others.

    Towards a server that sees every message, so that the choice of clients hides nothing, of the
    client that took part most often, pilots included, and of the one with the fewest samples.
    Where samples are not clipped one by one, or BatchNorm's statistics are made from raw samples,
    there is no such number. Batches have a fixed size here, where the accountant takes them for
    Poisson samples.
    """
    defense, training = card["defense"], card["training"]
    if defense["use"] != "dp-sgd" or defense["defense_at"] != "sample" or card["batch_norm"]:
        return {}
    from lti.defenses.privacy import epsilon

    fewest = min(size for size in card["samples_of_clients"] if size)
    found = epsilon(
        noise_multiplier=defense["noise_multiplier"],
        sampling_rate=min(1.0, training["batch_size"] / fewest),
        rounds=card["participations"],
        delta=DELTA,
        accountant="rdp",  # the other takes memory without bounds where there is little noise
    )
    return {"epsilon": found, "delta": DELTA}
