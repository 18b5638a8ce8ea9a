"""Differential privacy of DP-SGD: the epsilon of a training."""

from __future__ import annotations

from typing import Literal

from lti.errors import LTIError

__all__ = ["epsilon"]


def epsilon(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    rounds: int,
    delta: float,
    accountant: Literal["prv", "rdp"] = "prv",
) -> float:
    """Return epsilon, as Opacus accounts for it, after so many rounds of DP-SGD.

    Neighbouring data sets differ by one sample more or less, batches are drawn by Poisson
    sampling, and every round sends one noisy sum: :mod:`lti.defenses.dp_sgd` with the same
    ``noise_multiplier``.

    Args:
        noise_multiplier: z, above 0: the noise's standard deviation, per clipping norm.
        sampling_rate: the expected share of the samples in a batch, in (0, 1].
        rounds: 1 or more.
        delta: in (0, 1); below 1 / number of samples to mean something.
        accountant: ``prv``, numerical composition (Gopi et al. 2021), an upper bound that is
            nearly tight; ``rdp``, Renyi differential privacy (Mironov et al. 2019), looser.

    Raises:
        LTIError: a value out of range.
    """
    checks = (
        ("noise_multiplier", noise_multiplier, noise_multiplier > 0, "above 0"),
        ("sampling_rate", sampling_rate, 0 < sampling_rate <= 1, "in (0, 1]"),
        ("rounds", rounds, rounds >= 1, "1 or more"),
        ("delta", delta, 0 < delta < 1, "in (0, 1)"),
        ("accountant", accountant, accountant in ("prv", "rdp"), "'prv' or 'rdp'"),
    )
    for name, value, right, allowed in checks:
        if not right:
            raise LTIError(f"{name}: got {value!r}; expected {allowed}. Change it.")
    import numpy as np
    from opacus.accountants import create_accountant

    history = create_accountant(mechanism=accountant)
    history.history = [(noise_multiplier, sampling_rate, rounds)]
    with np.errstate(divide="ignore"):  # at a sampling rate of 1 it takes the logarithm of 0
        return float(history.get_epsilon(delta=delta))
