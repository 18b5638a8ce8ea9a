"""Curves: means over victims and seeds, along the auxiliary set's size or beta."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.metrics.base import METRICS
from lti.metrics.summary import CONFIDENCE, RESAMPLES
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

__all__ = ["CURVE_COLUMNS", "curves", "two_way_interval"]

_LINE = ("dataset", "fl_model", "batch_size", "defense", "attack", "variant")
CURVE_COLUMNS = (*_LINE, "metric", "x", "mean", "low", "high", "n", "seeds")
_BLOCK = 1 << 20  # resampled values at a time


def two_way_interval(
    values: npt.NDArray[np.floating[Any]],
    generator: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over seeds and victims.

    Seeds and victims are resampled independently of one another: all seeds attack the same
    victims. A single seed, or a single victim, says nothing about its spread and adds none.

    Args:
        values: ``(seeds, victims)``.
        generator: draws the resamples, and is advanced.
        resamples: number of resamples.
        confidence: coverage asked for, in (0, 1).

    Returns:
        (low, high); both NaN for a single value.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics, 2007.
    """
    import numpy as np

    seeds, victims = values.shape
    if values.size < 2:
        return float("nan"), float("nan")
    means = np.empty(resamples)
    block = max(1, _BLOCK // values.size)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        # How often each seed and each victim was drawn.
        rows = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=count)
        columns = generator.multinomial(victims, np.full(victims, 1 / victims), size=count)
        means[start : start + count] = np.einsum(
            "rs,sv,rv->r", rows, values, columns, optimize=True
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(means / (seeds * victims), [tail, 1 - tail])
    return float(low), float(high)


def curves(
    metrics: Iterable[pd.DataFrame],
    *,
    over: str,
    names: Sequence[str],
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Average victims and seeds of every point of every curve.

    Args:
        metrics: rows of :func:`lti.metrics.measure.measure`, of any number of runs.
        over: the column along which curves run, ``aux_size`` or ``beta``.
        names: metrics, in the order of the result.
        resamples: bootstrap resamples.

    Returns:
        The columns :data:`CURVE_COLUMNS`, a row a point: ``x`` is the value of ``over``, ``n``
        the number of victims, ``seeds`` that of auxiliary sets. The interval is that of
        :func:`two_way_interval`; batches are resampled whole. A metric that could not be had has
        NaN.

    Raises:
        LTIError: no rows, a run without a value of ``over``, or seeds with other victims.
    """
    import numpy as np
    import pandas as pd

    parts = list(metrics)
    if not parts:
        raise LTIError("no curve to compute: got no metric rows. Run the metric stage first.")
    frame = pd.concat(parts, ignore_index=True)
    if over not in frame or (frame[over].astype(str) == "").any():
        raise LTIError(
            f"some metric rows have no {over}; expected attacks that use an auxiliary set. Leave "
            f"the others out."
        )
    frame["x"] = frame[over].astype(float)
    rows: list[dict[str, Any]] = []
    for key, point in frame.groupby([*_LINE, "x"], sort=False):
        line: dict[str, Any] = dict(zip([*_LINE, "x"], key, strict=True))
        label = ", ".join(f"{name} {value}" for name, value in line.items())
        point = point.assign(batch=point["victim"] // int(line["batch_size"]))
        for name in names:
            if name not in METRICS or name not in point:
                raise LTIError(f"{label}: no metric {name}. Run the metric stage again.")
            grid = point.pivot_table(
                index="aux_seed", columns="batch", values=name, aggfunc="mean", dropna=False
            )
            values = grid.to_numpy(dtype=float)
            if np.isnan(values).any() and not np.isnan(values).all():
                raise LTIError(
                    f"{label}: {name} is missing for some victims of some seeds; expected the same "
                    f"victims of every seed. Run the metric stage again."
                )
            stream = [f"{field}={value}" for field, value in line.items()]
            low, high = two_way_interval(
                values, numpy_generator(0, "curve", *stream, name), resamples=resamples
            )
            rows.append(
                {
                    **line,
                    "metric": name,
                    "mean": values.mean(),
                    "low": low,
                    "high": high,
                    "n": point["victim"].nunique(),
                    "seeds": len(grid),
                }
            )
    order = list(names)
    lines = list(dict.fromkeys(tuple(row[field] for field in _LINE) for row in rows))
    rows.sort(
        key=lambda row: (
            order.index(row["metric"]),
            lines.index(tuple(row[field] for field in _LINE)),
            row["x"],
        )
    )
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))
