"""A metric's table as Markdown, and below it the differences to the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lti.files import atomic_path
from lti.metrics.base import METRICS, Metric
from lti.report.grid import Grid, counts, grids, interval, number, signed
from lti.report.labels import defense_label
from lti.report.notes import footnotes
from lti.report.table import markdown_notes, markdown_row

if TYPE_CHECKING:
    import pandas as pd

    from lti.metrics.near_copies import NearCopies

__all__ = ["grid_markdown", "write_grid_markdown"]


def grid_markdown(
    tables: Sequence[pd.DataFrame],
    *,
    title: str,
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> str:
    """Return Markdown: for every metric and FL model a table of attacks by defenses.

    Where the cells tell victims apart, every set of them has a table of its own.

    Columns are grouped by batch size. A metric that the paper has values of is followed by
    a second table: ours - the paper's, with the paper's value in parentheses.

    Args:
        tables: the results of :func:`lti.report.grid.metric_cells`, a metric each.
        title: the heading.
        missing: why a metric was not measured, by its name.
        near_copies: by which the tables tell victims apart, for the footnote.
    """
    lines = [f"## {title}", ""]
    names = [str(cells["metric"].iloc[0]) for cells in tables]
    for name, cells in zip(names, tables, strict=True):
        metric = METRICS[name]
        lines += [f"### {metric.label}, {metric.direction} is better", ""]
        for grid in grids(cells):
            lines += [f"**{grid.label}**", "", *_values(grid, metric), ""]
        known = cells[cells["difference"].notna()]
        if len(known):
            lines += [f"### {metric.label}, ours - the paper's (the paper's)", ""]
            for grid in grids(known):
                lines += [f"**{grid.label}**", "", *_differences(grid, metric), ""]
    notes = footnotes(tables, metrics=names, missing=missing or {}, near_copies=near_copies)
    return "\n".join([*lines, *markdown_notes(notes)]) + "\n"


def write_grid_markdown(
    path: Path | str,
    tables: Sequence[pd.DataFrame],
    *,
    title: str,
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> None:
    """Write :func:`grid_markdown` to a file, atomically; equal cells give equal bytes."""
    text = grid_markdown(tables, title=title, missing=missing, near_copies=near_copies)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _header(grid: Grid, *more: str) -> Iterator[str]:
    names = [f"B = {size} <br> {defense_label(defense)}" for size, defense in grid.columns]
    yield markdown_row(["attack", *names, *more])
    yield markdown_row([":--", *["--:"] * (len(names) + len(more))])


def _values(grid: Grid, metric: type[Metric]) -> Iterator[str]:
    sizes = [f"B = {size}" for size in grid.batches]
    yield from _header(grid, f"n at {' / '.join(sizes)}" if len(sizes) > 1 else "n")
    for attack in grid.attacks:
        row = [attack]
        for column in grid.columns:
            cell = grid.cells.get((attack, column))
            if cell is None:
                row.append("")
                continue
            mean = number(cell["mean"], metric)
            parts = [f"**{mean}**" if cell["best"] else mean, interval(cell, metric)]
            row.append(" <br> ".join(part for part in parts if part))
        yield markdown_row([*row, counts(grid, attack)])


def _differences(grid: Grid, metric: type[Metric]) -> Iterator[str]:
    yield from _header(grid)
    for attack in grid.attacks:
        row = [attack]
        for column in grid.columns:
            cell = grid.cells.get((attack, column))
            row.append(
                ""
                if cell is None
                else f"{signed(cell['difference'], metric)} ({number(cell['paper'], metric)})"
            )
        yield markdown_row(row)
