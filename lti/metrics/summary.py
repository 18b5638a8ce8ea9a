"""The summary: one row per cell and metric, with a bootstrap interval and the paper's value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.metrics.base import METRICS
from lti.metrics.measure import OPTIONAL_COLUMNS, RUN_COLUMNS, VICTIM_COLUMNS
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from lti.metrics.near_copies import NearCopies

__all__ = [
    "CONFIDENCE",
    "RESAMPLES",
    "SUBSETS",
    "SUMMARY_COLUMNS",
    "bootstrap_interval",
    "summarise",
]

SUMMARY_COLUMNS = (
    "dataset",
    "fl_model",
    "batch_size",
    "defense",
    "attack",
    "metric",
    "mean",
    "low",
    "high",
    "n",
    "paper",
)
SUBSETS = ("all", "novel")
"""Values of the column ``victims``, where there is one: novel is who has no near copy."""

CONFIDENCE = 0.95
RESAMPLES = 10_000

_CELL = SUMMARY_COLUMNS[:5]
_SUBSET = "victims"
_SAID_TWICE = ("aux_size", "aux_seed", "beta")
_PART = "_part"
_BLOCK = 1 << 17  # resampled values at a time: 1 MB of indices stays in the cache


def bootstrap_interval(
    values: npt.NDArray[np.floating[Any]],
    generator: np.random.Generator,
    *,
    weights: npt.NDArray[np.number[Any]] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean.

    Args:
        values: (n,) independent values.
        generator: draws the resamples, and is advanced.
        weights: (n,) positive weights of the values in the mean; all alike if None.
        resamples: number of resamples.
        confidence: coverage asked for, in (0, 1).

    Returns:
        (low, high); both NaN for fewer than two values, which say nothing about the spread.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np

    n = len(values)
    if n < 2:
        return float("nan"), float("nan")
    means = np.empty(resamples)
    block = max(1, _BLOCK // n)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(n, size=(rows, n))
        if weights is None:
            means[start : start + rows] = values.take(drawn).mean(1)
        else:
            total = (values * weights).take(drawn).sum(1)
            means[start : start + rows] = total / weights.take(drawn).sum(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def summarise(
    metrics: pd.DataFrame | Iterable[pd.DataFrame],
    *,
    defenses: Sequence[str] = (),
    attacks: Sequence[str] = (),
    near_copies: NearCopies | None = None,
    shown: Sequence[str] = (),
    resamples: int = RESAMPLES,
) -> pd.DataFrame:
    """Average the victims of every cell.

    The interval is a 95 % percentile bootstrap over victims or, for B > 1, over whole
    batches, since victims of one batch share a gradient. Its random stream is named after
    the cell, so no number depends on which other cells there are.

    Args:
        metrics: rows of :func:`lti.metrics.measure.measure`, of any number of runs. A column
            ``paper_defense`` names the paper's defense where the whole setting is the
            paper's (and is empty elsewhere); without it no paper value is attached. Further
            columns that are no metric (say ``beta``) tell cells apart.
        defenses: their order in the result; others follow as they first appear.
        attacks: the same for attacks.
        near_copies: of these victims. With it every row comes twice, told apart by a column
            ``victims``: ``all``, and ``novel`` for the means over the victims of whom the
            auxiliary set has no near copy. An attack may cover only some of either; a cell
            without any novel victim has an ``n`` of 0 and no mean.
        shown: columns of the result whether or not they tell rows apart.
        resamples: bootstrap resamples.

    Returns:
        The columns :data:`SUMMARY_COLUMNS`. ``variant`` follows ``attack`` where some attack
        occurs in more than one variant, and so does any other column that is needed to tell
        two rows apart. ``n`` counts victims; ``paper`` is NaN where there is none. A metric
        that was asked for and could not be had (its column is there and wholly empty) has a
        row whose ``mean``, ``low`` and ``high`` are NaN.

    Raises:
        LTIError: no rows, a victim twice in a cell, a batch in part, a value missing for
            some of a cell's victims, or near copies of fewer victims than there are.
    """
    import pandas as pd

    parts = [metrics] if isinstance(metrics, pd.DataFrame) else list(metrics)
    # As objects: filling a column that only some parts have must not turn 5000 into 5000.0.
    parts = [part.astype(object) for part in parts if len(part)]
    if not parts:
        raise LTIError("nothing to summarise: got no metric rows. Run the metric stage first.")
    # Once joined, a metric that a part lacks looks like one that could not be had.
    frame = pd.concat(
        [part.assign(**{_PART: number}) for number, part in enumerate(parts)], ignore_index=True
    )
    columns = [str(column) for column in frame if column != _PART]
    required = [key for key in RUN_COLUMNS if key not in OPTIONAL_COLUMNS]
    missing = [key for key in (*required, "victim") if key not in columns]
    if missing:
        raise LTIError(
            f"the metric rows lack the columns {', '.join(missing)}; got {', '.join(columns)}. "
            f"Run the metric stage again."
        )
    names = [column for column in columns if column in METRICS]
    if "paper_defense" not in frame:
        frame["paper_defense"] = ""
    frame["paper_defense"] = frame["paper_defense"].fillna("")
    keys = [c for c in columns if c not in {*names, *VICTIM_COLUMNS, "paper_defense"}]
    further = [key for key in keys if key not in _CELL]
    frame[further] = frame[further].where(frame[further].notna(), "")

    if near_copies is not None and len(near_copies.similarity) <= frame["victim"].max():
        raise LTIError(
            f"near copies of {len(near_copies.similarity)} victims, and metric rows of victim "
            f"{frame['victim'].max()}; expected the same victims. Pass those that belong together."
        )
    cells = frame[keys].drop_duplicates(ignore_index=True)
    needed = _columns_to_show(cells, further)
    shown = [key for key in further if key in needed or key in shown]
    rows: list[dict[str, Any]] = []
    # sort=False: in order of first appearance, the order that breaks ties below.
    for values, cell in frame.groupby(keys, sort=False):
        key: dict[str, Any] = dict(zip(keys, values, strict=True))
        asked = {column for number in cell[_PART].unique() for column in parts[number]}
        reported = [name for name in names if name in asked]
        rows.extend(_cell_rows(key, cell, reported, near_copies, resamples))
    subset = {} if near_copies is None else {_SUBSET: _ranks(SUBSETS)}
    order = {
        "dataset": _ranks(cells["dataset"]),
        "fl_model": _ranks(cells["fl_model"]),
        "batch_size": None,
        "defense": _ranks([*defenses, *cells["defense"]]),
        "attack": _ranks([*attacks, *cells["attack"]]),
        **{key: _ranks(cells[key]) for key in shown},
        **subset,
        "metric": _ranks(names),
    }
    rows.sort(key=lambda row: [rank[row[k]] if rank else row[k] for k, rank in order.items()])
    return pd.DataFrame(rows, columns=[*_CELL, *shown, *subset, *SUMMARY_COLUMNS[5:]]).astype(
        {"batch_size": int, "n": int, "mean": float, "low": float, "high": float, "paper": float}
    )


def _ranks(values: Iterable[Any]) -> dict[Any, int]:
    return {value: rank for rank, value in enumerate(dict.fromkeys(values))}


def _columns_to_show(cells: pd.DataFrame, further: Sequence[str]) -> list[str]:
    """Pick the columns beyond the usual ones without which two rows would look the same."""
    show = []
    for key in further:
        within = ["attack"] if key == "variant" else list(_CELL)
        if (cells.groupby(within)[key].nunique() > 1).any():
            show.append(key)
    # What an auxiliary set is called says no more than its size, seed and beta, mostly.
    rest = [key for key in show if key != "auxiliary"]
    return show if cells.duplicated([*_CELL, *rest]).any() else rest


def _cell_rows(
    key: dict[str, Any],
    cell: pd.DataFrame,
    names: Sequence[str],
    near_copies: NearCopies | None,
    resamples: int,
) -> Iterable[dict[str, Any]]:
    """Yield the row of every metric of one cell, and again of its novel victims."""
    label = ", ".join(f"{name} {value}" for name, value in key.items() if value != "")
    batch_size = int(key["batch_size"])
    cell = cell.sort_values("victim")
    if cell["victim"].duplicated().any():
        twice = cell.loc[cell["victim"].duplicated(), "victim"].iloc[0]
        raise LTIError(
            f"{label}: victim {twice} occurs twice; expected once. Was a metrics file given twice?"
        )
    batches = cell["victim"] // batch_size
    if (batches.value_counts() != batch_size).any():
        raise LTIError(
            f"{label}: a batch is there only in part; expected all {batch_size} victims of every "
            f"batch. Run the metric stage again."
        )
    flags = cell["paper_defense"].unique()
    if len(flags) > 1:
        raise LTIError(f"{label}: paper_defense is {', '.join(map(repr, flags))}; expected one.")
    if near_copies is None:
        yield from _metric_rows(key, cell, names, paper=flags[0], resamples=resamples)
        return
    novel = cell[near_copies.novel[cell["victim"].to_numpy(dtype=int)]]
    named = [{_SUBSET: subset} for subset in SUBSETS]
    for row in _metric_rows(key, cell, names, paper=flags[0], resamples=resamples):
        yield named[0] | row
    # The paper's numbers are of all of its victims.
    yield from _metric_rows(key | named[1], novel, names, paper="", resamples=resamples)


def _metric_rows(
    key: dict[str, Any], cell: pd.DataFrame, names: Sequence[str], *, paper: str, resamples: int
) -> Iterable[dict[str, Any]]:
    """Yield the row of every metric over these victims of a cell."""
    from lti.report.paper import paper_value

    label = ", ".join(f"{name} {value}" for name, value in key.items() if value != "")
    batches = cell["victim"] // int(key["batch_size"])
    # Named by content, without what is empty: a column that only other cells need moves nothing.
    # The auxiliary set's identifier says what its size, seed and beta do.
    stream = [
        f"{name}={value}" for name, value in key.items() if value != "" and name not in _SAID_TWICE
    ]
    for name in names:
        column = cell[name].astype(float)
        if column.isna().any() and not column.isna().all():
            raise LTIError(
                f"{label}: {name} is missing for {int(column.isna().sum())} of {len(cell)} "
                f"victims; expected a value for each. Run the metric stage again."
            )
        grouped = column.dropna().groupby(batches)
        sizes = grouped.size().to_numpy(dtype=int)
        low, high = bootstrap_interval(
            grouped.mean().to_numpy(dtype=float),
            numpy_generator(0, "bootstrap", *stream, name),
            # A batch may have fewer novel victims than another.
            weights=sizes if len(set(sizes)) > 1 else None,
            resamples=resamples,
        )
        value = None
        if paper:
            known = {k: key[k] for k in ("dataset", "fl_model", "attack", "batch_size")}
            size = key.get("aux_size", "")
            value = paper_value(
                **known, defense=paper, metric=name, aux_size=None if size == "" else int(size)
            )
        yield {
            **key,
            "metric": name,
            "mean": column.mean(),
            "low": low,
            "high": high,
            "n": len(cell),
            "paper": float("nan") if value is None else value,
        }
