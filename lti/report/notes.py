"""What stands below a table: definitions, intervals, and why a value is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lti.metrics.base import METRICS
from lti.metrics.summary import CONFIDENCE, RESAMPLES
from lti.report.grid import DASH
from lti.report.paper import PAPER

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["footnotes"]


def footnotes(
    tables: Sequence[pd.DataFrame], *, metrics: Sequence[str], missing: Mapping[str, str]
) -> list[str]:
    """Return the notes below a table, a sentence or two each.

    Args:
        tables: the results of :func:`lti.report.grid.metric_cells` that are shown.
        metrics: their metrics, in the order of the table.
        missing: why a metric was not measured, by its name.
    """
    import pandas as pd

    cells = pd.concat(list(tables), ignore_index=True)
    absent = set(cells.loc[cells["mean"].isna(), "metric"])
    notes = [
        f"{METRICS[name].label}: not measured: {missing[name].strip().rstrip('.')}."
        for name in metrics
        if name in absent & set(missing)
    ]
    if absent - set(missing):
        notes.append(f"{DASH}: not measured.")
    batches = cells["batch_size"].gt(1).any()
    unit = "over victims, or over whole batches where B > 1" if batches else "over victims"
    notes.append(
        f"[low, high]: {CONFIDENCE:.0%} percentile bootstrap interval of the mean, "
        f"{RESAMPLES:,} resamples {unit}. n: number of victims. Bold: the best attack of a column."
    )
    if batches:
        notes.append("B > 1: inside a batch, reconstructions are matched to victims by least MSE.")
    notes += [METRICS[name].note for name in metrics if METRICS[name].note]
    if cells["paper"].notna().any():
        ssim = "; its settings of SSIM may differ from ours" if "ssim" in metrics else ""
        notes.append(f"paper: the value in {PAPER}, shown where the setting is the paper's{ssim}.")
    return notes
