"""Accuracy beside leakage: what each defense costs, and what it still lets through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lti.errors import LTIError
from lti.metrics.base import METRICS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

__all__ = ["UTILITY_COLUMNS", "Trainings", "pareto_frontier", "read_training", "utility_table"]

Trainings: TypeAlias = "Mapping[tuple[str, str], Mapping[str, Any]]"
"""By FL model and defense: what :func:`read_training` returns."""

UTILITY_COLUMNS = (
    *("dataset", "fl_model", "batch_size", "defense", "attack"),
    *("metric", "leakage", "leakage_low", "leakage_high", "victims"),
    *("accuracy", "accuracy_low", "accuracy_high", "test_samples"),
    *("rounds", "client_batch", "learning_rate", "frontier"),
)
_CELL = ("dataset", "fl_model", "batch_size", "defense")


def read_training(card: Path | str) -> dict[str, Any]:
    """Return the last evaluation of a training and its settings.

    Raises:
        LTIError: the card is missing, damaged or not of the stage ``train-federated``.
    """
    from lti.files import read_card

    facts = read_card(card)
    try:
        last = facts["evaluation"]
        return {
            **{key: last[key] for key in ("accuracy", "low", "high")},
            "test_samples": int(last["n"]),
            "rounds": int(last["round"]),
            "client_batch": facts["training"]["batch_size"],
            "learning_rate": facts["learning_rate"],
        }
    except (TypeError, ValueError, KeyError) as error:
        raise LTIError(
            f"{card}: cannot be read as a training's card ({error!r}). Delete it and run the same "
            f"command again."
        ) from None


def pareto_frontier(
    accuracy: npt.NDArray[np.floating[Any]], leakage: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.bool_]:
    """Return which points no other point dominates.

    One dominates another if it is at least as accurate, leaks at most as much, and is better in
    one of both. Equal points do not dominate one another.

    Args:
        accuracy: ``(n,)``, higher is better.
        leakage: ``(n,)``, lower is better.

    Returns:
        bool ``(n,)``.
    """
    import numpy as np

    # (other, point)
    no_worse = (accuracy[:, None] >= accuracy) & (leakage[:, None] <= leakage)
    better = (accuracy[:, None] > accuracy) | (leakage[:, None] < leakage)
    return np.logical_not(np.any(no_worse & better, axis=0))


def utility_table(summary: pd.DataFrame, trainings: Trainings, *, metric: str) -> pd.DataFrame:
    """Set the accuracy under each defense beside the most that an attack leaks.

    Args:
        summary: as :func:`lti.metrics.summary.summarise` returns it.
        trainings: of every FL model and defense in it.
        metric: of leakage: what is closer to the victim leaks more.

    Returns:
        The columns :data:`UTILITY_COLUMNS`, a row per cell: the attack whose mean is the best of
        all attacks on it, and ``frontier``, whether no other defense on the same FL model and
        batch size dominates it (:func:`pareto_frontier`). Order as in the summary.

    Raises:
        LTIError: the metric was not measured on a cell, or there is no training for one.
    """
    import pandas as pd

    rows = summary[summary["metric"] == metric]
    if "victims" in rows:
        rows = rows[rows["victims"] == "all"]
    sign = 1.0 if METRICS[metric].direction == "higher" else -1.0
    result = []
    for key, cell in rows.groupby(list(_CELL), sort=False):
        named = dict(zip(_CELL, key, strict=True))
        if cell["mean"].isna().any():
            raise LTIError(f"{metric} was not measured on {named}; expected a value. Use another.")
        best = cell.iloc[int((sign * cell["mean"]).to_numpy().argmax())]
        pair = (str(named["fl_model"]), str(named["defense"]))
        if pair not in trainings:
            raise LTIError(f"no training of {' under '.join(pair)}; expected one. Give its files.")
        trained = trainings[pair]
        result.append(
            {
                **named,
                # Where an attack is there in several variants, the one that it is.
                "attack": best.get("variant", best["attack"]),
                "metric": metric,
                "leakage": best["mean"],
                "leakage_low": best["low"],
                "leakage_high": best["high"],
                "victims": best["n"],
                "accuracy": trained["accuracy"],
                "accuracy_low": trained["low"],
                "accuracy_high": trained["high"],
                **{k: trained[k] for k in ("test_samples", "rounds", "client_batch")},
                "learning_rate": trained["learning_rate"],
            }
        )
    if not result:
        raise LTIError(
            f"the summary has no metric {metric}; got {', '.join(sorted(set(summary['metric'])))}. "
            f"Choose among these."
        )
    table = pd.DataFrame(result)
    table["frontier"] = False
    for _, block in table.groupby(list(_CELL[:3]), sort=False):
        on = pareto_frontier(block["accuracy"].to_numpy(), sign * block["leakage"].to_numpy())
        table.loc[block.index, "frontier"] = on
    return table[list(UTILITY_COLUMNS)]
