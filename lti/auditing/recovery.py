"""How much of a victim comes back, on a scale from the best constant guess to the victim itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lti.auditing.result import Estimate
from lti.data.samples import to_float
from lti.errors import LTIError
from lti.metrics.summary import CONFIDENCE, RESAMPLES

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    import numpy.typing as npt

    from lti.data.samples import Modality, Samples

    Array = npt.NDArray[Any]

__all__ = [
    "ERRORS",
    "WORST",
    "constant_guess",
    "error_of",
    "exchanged",
    "recovered",
    "recovered_each",
    "worst",
]

ERRORS: dict[Modality, str] = {"image": "mse", "text": "token_accuracy"}
"""The metric that a victim's error is read from."""

WORST = 0.01
"""Share of the victims of whom the most comes back."""


def constant_guess(auxiliary: Samples, *, special: Collection[int] = ()) -> Array:
    """Return the one sample that is closest to all auxiliary samples.

    The mean image, float32 ``(3, h, w)`` in [0, 1], which has the least mean squared error; or
    the most frequent token of each position, int32 ``(length,)``.

    Args:
        auxiliary: the samples.
        special: tokens that do not count, since metrics leave them out too.
    """
    import numpy as np

    if auxiliary.modality == "image":
        mean = np.zeros(auxiliary.value.shape[1:], dtype=np.float64)
        for start in range(0, len(auxiliary), 4096):
            mean += to_float(auxiliary.value[start : start + 4096]).sum(axis=0, dtype=np.float64)
        return (mean / len(auxiliary)).astype(np.float32)
    columns = auxiliary.value.T
    left_out = sorted(special)
    guess = []
    for column in columns:
        real = column[~np.isin(column, left_out)]
        guess.append(np.bincount(real if len(real) else column).argmax())
    return np.array(guess, dtype=np.int32)


def exchanged(label: Array, generator: np.random.Generator) -> Array:
    """Return whose reconstruction stands for whose: victims of one label are exchanged by chance.

    What is recovered with it is what needs no gradient: the look of a class, and that the best of
    many victims, or of a batch's orderings, is near something by chance.

    Args:
        label: ``(n,)``, known to the attacker.
        generator: of the exchange.

    Returns:
        int ``(n,)``, a permutation.
    """
    import numpy as np

    order = np.arange(len(label))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        order[members] = generator.permutation(members)
    return order


def error_of(values: Array, modality: Modality) -> Array:
    """Return each victim's error, from its :data:`ERRORS` metric: 0 for the victim itself."""
    return values if modality == "image" else 1.0 - values


def recovered_each(error: Array, floor: Array) -> Array:
    """Return each victim's share, ``1 - error / floor``; 0 where a guess has no error either.

    Args:
        error: ``(n,)``, of the reconstructions.
        floor: ``(n,)``, of the constant guess.
    """
    import numpy as np

    share = 1.0 - np.divide(error, floor, out=np.ones_like(error), where=floor > 0)
    return np.asarray(share)


def recovered(
    error: Array, floor: Array, *, batch_size: int, generator: np.random.Generator
) -> Estimate:
    """Return the share over all victims, ``1 - sum(error) / sum(floor)``, with its interval.

    The ratio of the sums, not the mean of ratios: a victim that is close to the constant guess
    would drown the others. The interval is a 95 % percentile bootstrap over client batches.

    Args:
        error: ``(n,)``, of the reconstructions; n is a multiple of the batch size.
        floor: ``(n,)``, of the constant guess.
        batch_size: victims that share a gradient.
        generator: draws the resamples.

    Raises:
        LTIError: nothing to compare with: the constant guess has no error at all.
    """
    import numpy as np

    total = float(floor.sum())
    if total <= 0:
        raise LTIError(
            "the best constant guess equals every victim; expected victims that differ. Use other "
            "victims."
        )
    mean = 1.0 - float(error.sum()) / total
    errors, floors = (v.reshape(-1, batch_size).sum(axis=1) for v in (error, floor))
    if len(errors) < 2:
        return Estimate(mean, math.nan, math.nan, len(error))
    drawn = generator.integers(len(errors), size=(RESAMPLES, len(errors)))
    bottom = floors.take(drawn).sum(axis=1)
    shares = 1.0 - errors.take(drawn).sum(axis=1) / np.where(bottom > 0, bottom, np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(shares, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), len(error))


def worst(share: Array, *, generator: np.random.Generator) -> Estimate:
    """Return the mean share of the :data:`WORST` part of the victims, at least one.

    Args:
        share: ``(n,)``, of :func:`recovered_each`.
        generator: draws the bootstrap's resamples, over all victims.
    """
    import numpy as np

    count = max(1, round(WORST * len(share)))

    def top(values: Array) -> Array:
        part = np.partition(values, values.shape[-1] - count, axis=-1)[..., -count:]
        return np.asarray(part.mean(axis=-1))

    drawn = share.take(generator.integers(len(share), size=(RESAMPLES // 10, len(share))))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(top(drawn), [tail, 1 - tail])
    return Estimate(float(top(share)), float(low), float(high), count)
