"""Summaries as CSV for machines and as Markdown for readers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lti.checksums import read_checked, write_checked
from lti.errors import LTIError
from lti.metrics.base import METRICS, Metric
from lti.metrics.summary import SUMMARY_COLUMNS
from lti.report.grid import counts, grids, interval, metric_cells, number
from lti.report.labels import defense_label, setting_label
from lti.report.notes import footnotes

if TYPE_CHECKING:
    import pandas as pd

    from lti.metrics.near_copies import NearCopies

__all__ = [
    "markdown_notes",
    "markdown_row",
    "markdown_table",
    "read_summary",
    "write_markdown",
    "write_summary",
]


def write_summary(path: Path | str, summary: pd.DataFrame) -> None:
    """Write a summary as CSV with a checksum; six digits; equal summaries give equal bytes."""
    write_checked(path, summary.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def read_summary(path: Path | str) -> pd.DataFrame:
    """Read what :func:`write_summary` wrote; an empty ``paper`` becomes NaN.

    Raises:
        LTIError: the file is missing, damaged or not a summary.
    """
    from io import StringIO

    import pandas as pd

    remedy = "Delete it and run the same command again."
    numbers = ["mean", "low", "high", "paper"]
    try:
        # Text first: 'none' is a defense, not a missing value.
        frame = pd.read_csv(StringIO(read_checked(path)), dtype=str, keep_default_na=False)
        missing = [column for column in SUMMARY_COLUMNS if column not in frame]
        if missing:
            raise LTIError(f"{path}: lacks the columns {', '.join(missing)}. {remedy}")
        frame[["batch_size", "n"]] = frame[["batch_size", "n"]].astype(int)
        frame[numbers] = frame[numbers].replace("", "nan").astype(float)
    except ValueError as error:
        raise LTIError(f"{path}: cannot be read as a summary ({error}). {remedy}") from None
    return frame


def markdown_table(
    summary: pd.DataFrame,
    *,
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> str:
    """Return Markdown: for every setting and metric a table of attacks by defenses.

    A cell reads ``mean [low, high] (paper: value)``. The best attack of each column is
    bold, judged at the digits shown, so that attacks that tie there are both bold. Where the
    summary tells victims apart, every set of them has rows of its own and its own best.
    Footnotes define the metrics, the interval and the paper's numbers.

    Args:
        summary: as :func:`lti.metrics.summary.summarise` returns it; its order is kept.
        missing: metrics that were not measured, and why: their tables hold dashes.
        near_copies: by which the summary tells victims apart, for the footnote.
    """
    missing = missing or {}
    names = list(dict.fromkeys([*summary["metric"], *missing]))
    lines: list[str] = []
    shown = []
    for (dataset, fl_model, batch_size), setting in summary.groupby(
        ["dataset", "fl_model", "batch_size"], sort=False
    ):
        lines += [f"### {setting_label(str(dataset), str(fl_model), int(str(batch_size)))}", ""]
        for name in names:
            metric = METRICS[name]
            cells = metric_cells(setting, name)
            shown.append(cells)
            lines += [f"**{metric.label}**, {metric.direction} is better", ""]
            lines += [*_block(cells, metric), ""]
    notes = footnotes(shown, metrics=names, missing=missing, near_copies=near_copies)
    return "\n".join([*lines, *markdown_notes(notes)]) + "\n"


def write_markdown(
    path: Path | str,
    summary: pd.DataFrame,
    *,
    title: str = "",
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> None:
    """Write :func:`markdown_table` below a heading to a file, with a checksum."""
    heading = f"## {title}\n\n" if title else ""
    text = markdown_table(summary, missing=missing, near_copies=near_copies)
    write_checked(path, heading + text)


def markdown_row(cells: Iterable[str]) -> str:
    """Return a table's row; a bar inside a cell does not end it."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown_notes(notes: Iterable[str]) -> list[str]:
    """Return the notes below a table; a message in angle brackets does not read as HTML."""
    return [f"- {note.replace('<', '&lt;')}" for note in notes]


def _block(cells: pd.DataFrame, metric: type[Metric]) -> list[str]:
    """Return the lines of one table."""
    blocks = grids(cells)
    names = ["attack", "victims"] if "victims" in cells else ["attack"]
    defenses = [defense_label(defense) for _, defense in blocks[0].columns]
    lines = [
        markdown_row([*names, *defenses, "n"]),
        markdown_row([*[":--"] * len(names), *["--:"] * (len(defenses) + 1)]),
    ]
    for grid in blocks:
        for attack in grid.attacks:
            row = [attack, grid.victims][: len(names)]
            for column in grid.columns:
                cell = grid.cells.get((attack, column))
                row.append("" if cell is None else _cell(cell, metric))
            lines.append(markdown_row([*row, counts(grid, attack)]))
    return lines


def _cell(cell: pd.Series, metric: type[Metric]) -> str:
    text = number(cell["mean"], metric)
    if cell["best"]:
        text = f"**{text}**"
    text = f"{text} {interval(cell, metric)}".rstrip()
    if not math.isnan(cell["paper"]):
        text += f" (paper: {number(cell['paper'], metric)})"
    return text
