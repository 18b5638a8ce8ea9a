"""A metric's table as LaTeX floats, and the differences to the paper as a second one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lti.files import atomic_path
from lti.metrics.base import METRICS, Metric
from lti.report.grid import Grid, counts, grids, interval, number, signed
from lti.report.labels import defense_label
from lti.report.notes import footnotes

if TYPE_CHECKING:
    import pandas as pd

    from lti.metrics.near_copies import NearCopies

__all__ = ["escape", "grid_latex", "write_grid_latex"]

_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        # Outside mathematics the old font encoding shows these three as other characters.
        **{character: f"${character}$" for character in "<>|"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\u2013": "--",
        "\n": " ",
    }
)
_Texts = Callable[[Grid, str], Sequence[Sequence[str]]]


def escape(text: str) -> str:
    r"""Return plain text as LaTeX: ``"95%"`` as ``r"95\%"``."""
    return text.translate(_ESCAPES)


def grid_latex(
    tables: Sequence[pd.DataFrame],
    *,
    title: str,
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> str:
    r"""Return LaTeX floats: for every metric one, with a block of rows for every FL model.

    Where the cells tell victims apart, every set of them has a block of its own.
    Columns are grouped by batch size; below each mean stands its interval. A metric that the
    paper has values of is followed by a second float: ours - the paper's, with the paper's
    value below. The document loads ``booktabs``; a comment at the top says so.

    Args:
        tables: the results of :func:`lti.report.grid.metric_cells`, a metric each.
        title: what captions begin with.
        missing: why a metric was not measured, by its name.
        near_copies: by which the tables tell victims apart, for the footnote.
    """
    lines = [
        r"% Needs \usepackage{booktabs}. Include with \input where a float may stand.",
        "% As wide as the text of an A4 page with eight columns of values; table* spans both",
        "% columns of a two-column document.",
    ]
    for cells in tables:
        name = str(cells["metric"].iloc[0])
        metric = METRICS[name]
        label = "tab:" + name.replace("_", "-")
        heading = f"{title}: {metric.label}"
        notes = footnotes([cells], metrics=[name], missing=missing or {}, near_copies=near_copies)
        blocks = grids(cells)
        sizes = [f"B = {size}" for size in blocks[0].batches]
        if len(sizes) > 1:
            notes.append(f"Several n of an attack are those at {' / '.join(sizes)}.")
        lines += _float(
            blocks,
            texts=partial(_values, metric=metric),
            caption=f"{heading}, {metric.direction} is better.",
            label=label,
            notes=notes,
        )
        known = cells[cells["difference"].notna()]
        if len(known):
            lines += _float(
                grids(known),
                texts=partial(_differences, metric=metric),
                caption=f"{heading}, ours minus the paper's; below it the paper's value.",
                label=f"{label}-difference",
                notes=[],
            )
    return "\n".join(lines) + "\n"


def write_grid_latex(
    path: Path | str,
    tables: Sequence[pd.DataFrame],
    *,
    title: str,
    missing: Mapping[str, str] | None = None,
    near_copies: NearCopies | None = None,
) -> None:
    """Write :func:`grid_latex` to a file, atomically; equal cells give equal bytes."""
    text = grid_latex(tables, title=title, missing=missing, near_copies=near_copies)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _float(
    blocks: Sequence[Grid], *, texts: _Texts, caption: str, label: str, notes: Sequence[str]
) -> Iterator[str]:
    width = 1 + len(blocks[0].columns)
    yield ""
    yield r"\begin{table*}[tp]"
    yield r"\centering"
    yield rf"\caption{{{escape(caption)}}}"
    yield rf"\label{{{label}}}"
    yield r"\footnotesize"
    yield r"\setlength{\tabcolsep}{2.5pt}"
    yield rf"\begin{{tabular}}{{l{'c' * (width - 1)}}}"
    yield r"\toprule"
    heads, rules, first = [""], [], 2
    for batch_size, defenses in blocks[0].batches.items():
        heads.append(rf"\multicolumn{{{len(defenses)}}}{{c}}{{$B = {batch_size}$}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + len(defenses) - 1}}}")
        first += len(defenses)
    yield _row(heads)
    yield "".join(rules)
    yield _row(["Attack", *(escape(defense_label(defense)) for _, defense in blocks[0].columns)])
    for grid in blocks:
        yield r"\midrule"
        yield _row([rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(grid.label)}}}}}"])
        for attack in grid.attacks:
            yield r"\addlinespace"
            yield from map(_row, texts(grid, attack))
    yield r"\bottomrule"
    yield r"\end{tabular}"
    if notes:
        yield ""
        yield r"\smallskip"
        yield r"\parbox{\linewidth}{\scriptsize"
        yield from (rf"{escape(note)}\par" for note in notes)
        yield "}"
    yield r"\end{table*}"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _small(text: str) -> str:
    return rf"{{\scriptsize {text}}}" if text else ""


def _values(grid: Grid, attack: str, *, metric: type[Metric]) -> list[list[str]]:
    """Return an attack's two lines: means, then their intervals."""
    means = [escape(attack)]
    intervals = [_small(f"$n$ = {escape(counts(grid, attack))}")]
    for column in grid.columns:
        cell = grid.cells.get((attack, column))
        mean = "" if cell is None else escape(number(cell["mean"], metric))
        means.append(rf"\textbf{{{mean}}}" if cell is not None and cell["best"] else mean)
        intervals.append("" if cell is None else _small(interval(cell, metric)))
    return [means, intervals]


def _differences(grid: Grid, attack: str, *, metric: type[Metric]) -> list[list[str]]:
    """Return an attack's two lines: differences, then the paper's values."""
    ours, paper = [escape(attack)], [""]
    for column in grid.columns:
        cell = grid.cells.get((attack, column))
        ours.append("" if cell is None else f"${signed(cell['difference'], metric)}$")
        paper.append("" if cell is None else _small(f"({number(cell['paper'], metric)})"))
    return [ours, paper]
