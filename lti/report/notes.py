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

    from lti.metrics.near_copies import NearCopies

__all__ = ["footnotes"]


_MATCHING = {"image": "by least MSE", "text": "so that the fewest tokens are wrong"}


def footnotes(
    tables: Sequence[pd.DataFrame],
    *,
    metrics: Sequence[str],
    missing: Mapping[str, str],
    near_copies: NearCopies | None = None,
) -> list[str]:
    """Return the notes below a table, a sentence or two each.

    Args:
        tables: the results of :func:`lti.report.grid.metric_cells` that are shown.
        metrics: their metrics, in the order of the table.
        missing: why a metric was not measured, by its name.
        near_copies: by which the tables tell victims apart.
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
        nobody = ", or no victim to measure" if "victims" in cells else ""
        notes.append(f"{DASH}: not measured{nobody}.")
    batches = cells["batch_size"].gt(1).any()
    unit = "over victims, or over whole batches where B > 1" if batches else "over victims"
    notes.append(
        f"[low, high]: {CONFIDENCE:.0%} percentile bootstrap interval of the mean, "
        f"{RESAMPLES:,} resamples {unit}. n: number of victims. Bold: the best attack of a column."
    )
    if batches:
        matched = " or ".join(
            _MATCHING[modality]
            for modality in dict.fromkeys(METRICS[name].modality for name in metrics)
        )
        notes.append(f"B > 1: inside a batch, reconstructions are matched to victims {matched}.")
    if near_copies is not None:
        defined = f" ({near_copies.definition})" if near_copies.definition else ""
        notes.append(
            f"Without a near copy: victims to whom no sample of the auxiliary set has a "
            f"similarity{defined} of {near_copies.threshold:g} or more. {near_copies.count:,} of "
            f"{len(near_copies.similarity):,} victims have a near copy."
        )
    notes += [METRICS[name].note for name in metrics if METRICS[name].note]
    if cells["paper"].notna().any():
        ssim = "; its settings of SSIM may differ from ours" if "ssim" in metrics else ""
        notes.append(f"paper: the value in {PAPER}, shown where the setting is the paper's{ssim}.")
    return notes
