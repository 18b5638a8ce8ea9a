"""Auxiliary sets of several distributions, none of which holds a victim."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lti.data.samples import Samples
from lti.data.selection import select
from lti.errors import LTIError

__all__ = ["mix", "refuse_victims"]


def mix(
    in_distribution: Samples,
    shifted: Sequence[Samples],
    *,
    size: int,
    beta: float,
    seed: int,
) -> tuple[Samples, np.ndarray]:
    """Return an auxiliary set of which a share ``beta`` is of the victims' distribution.

    ``beta * size`` samples, rounded, come from ``in_distribution`` and the rest from
    ``shifted``, in equal numbers from each of its parts. Shares hold from the beginning: of the
    first n samples, ``beta * n``, rounded, are in-distribution. Every part keeps the order of its
    own permutation. A smaller set is therefore a prefix of every larger one of the same seed and
    ``beta``, and the samples of one part are a prefix of those of that part in every set of the
    same seed that takes more of them.

    Args:
        in_distribution: samples like the victims.
        shifted: samples of other classes, of other data sets, or synthetic ones.
        size: how many in all, 1 or more.
        beta: share of ``in_distribution``, 0 to 1.
        seed: root seed.

    Returns:
        The samples, and bool (size,): True where a sample is from ``in_distribution``.

    Raises:
        LTIError: ``beta`` or ``size`` is out of range, nothing is shifted, samples are of different
            shapes, or a part has too few.
    """
    if not 0 <= beta <= 1:
        raise LTIError(f"beta {beta}: expected a share from 0 to 1. Correct it.")
    if size < 1:
        raise LTIError(f"auxiliary: size {size}; expected 1 or more. Ask for at least one sample.")
    if not shifted:
        raise LTIError("shifted: got no samples; expected one part or more. Name some.")
    shapes = {samples.value.shape[1:] for samples in (in_distribution, *shifted)}
    if len(shapes) > 1:
        raise LTIError(
            f"the parts of an auxiliary set have samples of the shapes "
            f"{', '.join(map(str, sorted(shapes)))}; expected one. Choose parts that are alike."
        )
    # How many of the first n are in-distribution; halves are rounded up.
    reached = np.floor(np.arange(size + 1) * beta + 0.5).astype(np.int64)
    flag = np.diff(reached) > 0
    part = np.where(flag, 0, 1 + (np.cumsum(~flag) - 1) % len(shifted))
    names = ["in-distribution", *(f"shifted/{number}" for number in range(len(shifted)))]
    chosen = []
    for number, (samples, what) in enumerate(zip((in_distribution, *shifted), names, strict=True)):
        n = int((part == number).sum())
        if n > len(samples):
            kind, _, _ = what.partition("/")
            raise LTIError(
                f"auxiliary: size {size} at beta {beta} needs {n} {kind} samples, but there are "
                f"{len(samples)}. Use a smaller size or another beta."
            )
        chosen.append(select(samples, size=n, seed=seed, what=what) if n else samples.take([]))
    rank = np.empty(size, dtype=np.int64)
    begin = 0
    for number, samples in enumerate(chosen):
        rank[part == number] = begin + np.arange(len(samples))
        begin += len(samples)
    return (
        Samples(
            np.concatenate([samples.value for samples in chosen])[rank],
            np.concatenate([samples.label for samples in chosen])[rank],
            np.concatenate([samples.index for samples in chosen])[rank],
        ),
        flag,
    )


def refuse_victims(auxiliary: Samples, victims: Samples, *, what: str) -> None:
    """Check that no image of the attacker is one of the victims', pixel for pixel.

    Text is not checked: short sentences recur, and tables tell victims with a near copy apart
    (:mod:`lti.data.near_copies`).

    Args:
        auxiliary: what the attacker has.
        victims: everything that victims are drawn from.
        what: names the victims in the message.

    Raises:
        LTIError: an image is in both.
    """
    if auxiliary.key != "image" or victims.key != "image":
        return
    place = {image.tobytes(): position for position, image in enumerate(victims.value)}
    for image, index in zip(auxiliary.value, auxiliary.index, strict=True):
        position = place.get(image.tobytes())
        if position is not None:
            raise LTIError(
                f"auxiliary: the sample of index {index} is the victim of index "
                f"{victims.index[position]} of {what}; expected no image in both. Draw the "
                f"auxiliary set from other data."
            )
