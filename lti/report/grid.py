"""A metric's cells as a grid: attacks by defenses by batch sizes, with the best marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lti.files import atomic_path
from lti.metrics.base import METRICS, Metric
from lti.report.labels import attack_labels, setting_label, subset_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "DASH",
    "Grid",
    "counts",
    "grids",
    "interval",
    "metric_cells",
    "number",
    "signed",
    "write_cells",
]

DASH = "\u2013"
"""Stands for a value that was not measured."""

_COLUMN = ["dataset", "fl_model", "batch_size", "defense", "victims"]  # the last may lack
_VALUES = ("mean", "low", "high", "n", "paper")


def metric_cells(summary: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return one metric of every cell that a summary has, of whatever metric.

    Args:
        summary: as :func:`lti.metrics.summary.summarise` returns it; its order is kept.
        name: a metric, which the summary may lack.

    Returns:
        One row per cell: ``metric``, the columns that name the cell, ``mean``, ``low``,
        ``high``, ``n``, ``paper``, ``difference`` (mean - paper) and ``best``: whether no
        attack does better on that defense (and these ``victims``) at the digits shown. A
        value that was not measured is NaN (``n``: NA) and never the best.
    """
    metric = METRICS[name]
    keys = [column for column in summary.columns if column not in ("metric", *_VALUES)]
    own = summary[summary["metric"] == name]
    cells = summary[keys].drop_duplicates().merge(own[[*keys, *_VALUES]], on=keys, how="left")
    shown = cells["mean"].map(lambda mean: float(f"{mean:.{metric.decimals}f}"))
    column = shown.groupby([cells[key] for key in _COLUMN if key in cells])
    best = column.transform("max") if metric.direction == "higher" else column.transform("min")
    cells.insert(0, "metric", name)
    return cells.assign(
        n=cells["n"].where(cells["mean"].notna()).astype("Int64"),
        difference=cells["mean"] - cells["paper"],
        best=shown == best,
    )


def write_cells(path: Path | str, cells: Sequence[pd.DataFrame]) -> None:
    """Write :func:`metric_cells` of one or more metrics as one CSV, atomically.

    Numbers have six significant digits; equal cells give equal bytes.
    """
    import pandas as pd

    with atomic_path(path) as temporary:
        pd.concat(list(cells), ignore_index=True).to_csv(
            temporary, index=False, float_format="%.6g", lineterminator="\n"
        )


@dataclass(frozen=True)
class Grid:
    """One FL model's cells of one metric, over one set of victims.

    Attributes:
        label: the data set, the FL model and, where there are several sets, the victims, as
            shown.
        victims: the set of victims as shown, such as ``"all victims"``; empty where there is
            one.
        attacks: labels of the rows.
        columns: batch size and defense of every column, by batch size.
        cells: rows of :func:`metric_cells` by attack and column; those that there are.
    """

    label: str
    victims: str
    attacks: list[str]
    columns: list[tuple[int, str]]
    cells: dict[tuple[str, tuple[int, str]], pd.Series]

    @property
    def batches(self) -> dict[int, list[str]]:
        """The defenses of every batch size."""
        found: dict[int, list[str]] = {}
        for batch_size, defense in self.columns:
            found.setdefault(batch_size, []).append(defense)
        return found


def grids(cells: pd.DataFrame) -> list[Grid]:
    """Arrange the rows of :func:`metric_cells`, or some of them.

    There is a grid for every FL model and, in its turn, every set of ``victims``. All grids
    have the same columns and their rows in the same order.
    """
    labels = attack_labels(cells.drop(columns=["difference", "best"]))
    subsets = cells["victims"].map(subset_label) if "victims" in cells else ""
    cells = cells.assign(row=labels, subset=subsets)
    attacks = list(dict.fromkeys(labels))
    defenses = list(dict.fromkeys(cells["defense"]))
    pairs = {(int(row["batch_size"]), str(row["defense"])) for _, row in cells.iterrows()}
    columns = sorted(pairs, key=lambda pair: (pair[0], defenses.index(pair[1])))
    arranged = []
    models = cells.groupby(["dataset", "fl_model", "subset"], sort=False)
    for (dataset, fl_model, subset), own in models:
        present = set(own["row"])
        found = {
            (str(row["row"]), (int(row["batch_size"]), str(row["defense"]))): row
            for _, row in own.iterrows()
        }
        rows = [attack for attack in attacks if attack in present]
        label = setting_label(str(dataset), str(fl_model))
        label = f"{label}: {subset}" if subset else label
        arranged.append(Grid(label, str(subset), rows, columns, found))
    return arranged


def number(value: float, metric: type[Metric]) -> str:
    """Return a value at the metric's digits; a dash for NaN."""
    return DASH if value != value else f"{value:.{metric.decimals}f}"


def signed(value: float, metric: type[Metric]) -> str:
    """Return a difference with its sign, and zero at the digits shown without one."""
    text = f"{value:+.{metric.decimals}f}"
    return text if float(text) else text[1:]


def interval(cell: pd.Series, metric: type[Metric]) -> str:
    """Return ``"[low, high]"``, or "" where there is none."""
    if cell["low"] != cell["low"]:
        return ""
    return f"[{number(cell['low'], metric)}, {number(cell['high'], metric)}]"


def counts(grid: Grid, attack: str) -> str:
    """Return an attack's numbers of victims: one, or one a batch size with bars between."""
    texts = []
    for batch_size in grid.batches:
        found = {
            int(cell["n"])
            for (row, (size, _)), cell in grid.cells.items()
            if row == attack and size == batch_size and cell["mean"] == cell["mean"]
        }
        ends = sorted({min(found), max(found)}) if found else []
        texts.append(" to ".join(f"{end:,}" for end in ends) or DASH)
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)
