"""One run of an attack, measured on the audit's scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.auditing.recovery import (
    ERRORS,
    error_of,
    exchanged,
    recovered,
    recovered_each,
    worst,
)
from lti.auditing.result import AttackFinding, Estimate
from lti.errors import LTIError
from lti.files import read_arrays
from lti.metrics.base import METRICS
from lti.metrics.measure import measure, read_metrics
from lti.metrics.summary import bootstrap_interval
from lti.report.labels import attack_label
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from lti.data.samples import Modality
    from lti.metrics.tokens import Text

    Array = npt.NDArray[Any]

__all__ = ["Measured", "Run", "measure_run"]

EXCHANGES = 10
"""Exchanges of reconstructions among victims, for what chance recovers."""


@dataclass(frozen=True)
class Run:
    """One attack on one defense."""

    metrics: Path
    """The measure stage's rows."""
    reconstructions: Path


@dataclass(frozen=True, eq=False)
class Measured:
    """One run, measured."""

    defense: str
    settings: Mapping[str, Any]
    names: tuple[str, ...]
    n: int
    finding: AttackFinding
    share: Array
    floor: pd.DataFrame
    reconstructions: Path


def measure_run(
    run: Run, modality: Modality, victims: Mapping[str, Array], guess: Array, text: Text | None
) -> Measured:
    """Return what a run recovers, and what chance does.

    Args:
        run: its files.
        modality: of the victims.
        victims: as :func:`lti.metrics.measure.measure` takes them.
        guess: the best constant one.
        text: what is known of the tokens; for text alone.

    Raises:
        LTIError: the files do not belong together, or lack the metric that errors are read from.
    """
    import numpy as np

    frame = read_metrics(run.metrics)
    _, metadata = read_arrays(run.reconstructions)
    batch_size = int(metadata["batch_size"])
    columns = [str(column) for column in frame]
    names = tuple(name for name in columns if name in METRICS and not frame[name].isna().all())
    n = len(frame)
    guesses = np.broadcast_to(guess, (n // batch_size, batch_size, *guess.shape))
    floor = measure(victims, {"reconstruction": guesses}, metadata, metrics=names, text=text)
    metric = ERRORS[modality]
    if metric not in names:
        raise LTIError(f"{run.metrics}: lacks {metric}; expected it. Measure it too.")
    error, bound = (
        error_of(rows[metric].to_numpy(dtype=float), modality) for rows in (frame, floor)
    )
    variant = metadata["variant"] or metadata["attack"]
    share = recovered_each(error, bound)
    chance = _chance(run, metadata, victims, bound, modality, text)
    finding = AttackFinding(
        attack=attack_label(variant),
        metrics={name: _estimate(frame[name].to_numpy(dtype=float), batch_size) for name in names},
        recovered=recovered(error, bound, batch_size=batch_size, generator=_resamples()),
        worst=worst(share, generator=_resamples()),
        chance=chance[0],
        chance_worst=chance[1],
    )
    return Measured(
        defense=metadata["defense"],
        settings=metadata["defense_settings"],
        names=names,
        n=n,
        finding=finding,
        share=share,
        floor=floor,
        reconstructions=run.reconstructions,
    )


def _chance(
    run: Run,
    metadata: Mapping[str, Any],
    victims: Mapping[str, Array],
    floor: Array,
    modality: Modality,
    text: Text | None,
) -> tuple[float, float]:
    """Return the mean share, and the most of the worst, where reconstructions are exchanged."""
    import numpy as np

    made = read_arrays(run.reconstructions)[0]["reconstruction"]
    flat = made.reshape(-1, *made.shape[2:])
    label = np.asarray(victims["label"][: len(flat)])
    metric, shares, worsts = ERRORS[modality], [], []
    for number in range(EXCHANGES):
        order = exchanged(label, numpy_generator(0, "audit", "exchange", number))
        moved = {"reconstruction": flat[order].reshape(made.shape)}
        frame = measure(victims, moved, metadata, metrics=[metric], text=text)
        error = error_of(frame[metric].to_numpy(dtype=float), modality)
        shares.append(1.0 - float(error.sum() / floor.sum()))
        worsts.append(worst(recovered_each(error, floor), generator=_resamples()).mean)
    return float(np.mean(shares)), max(worsts)


def _resamples() -> np.random.Generator:
    """Return what draws resamples: the same victims for all attacks, defenses and metrics."""
    return numpy_generator(0, "audit", "bootstrap")


def _estimate(values: Array, batch_size: int) -> Estimate:
    batches = values.reshape(-1, batch_size).mean(axis=1)
    low, high = bootstrap_interval(batches, _resamples())
    return Estimate(float(values.mean()), low, high, len(values))
