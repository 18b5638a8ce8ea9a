"""Summaries as CSV for machines and as Markdown for readers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lti.errors import LTIError
from lti.files import atomic_path
from lti.metrics.base import METRICS, Metric
from lti.metrics.summary import CONFIDENCE, RESAMPLES, SUMMARY_COLUMNS
from lti.report.labels import attack_label, defense_label, further_columns, setting_label
from lti.report.paper import PAPER

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["markdown_table", "read_summary", "write_markdown", "write_summary"]


def write_summary(path: Path | str, summary: pd.DataFrame) -> None:
    """Write a summary as CSV with six significant digits; equal summaries give equal bytes."""
    with atomic_path(path) as temporary:
        summary.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def read_summary(path: Path | str) -> pd.DataFrame:
    """Read what :func:`write_summary` wrote; an empty ``paper`` becomes NaN.

    Raises:
        LTIError: the file is missing or not a summary.
    """
    import pandas as pd

    remedy = "Delete it and run the same command again."
    numbers = ["mean", "low", "high", "paper"]
    try:
        # Text first: 'none' is a defense, not a missing value.
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = [column for column in SUMMARY_COLUMNS if column not in frame]
        if missing:
            raise LTIError(f"{path}: lacks the columns {', '.join(missing)}. {remedy}")
        frame[["batch_size", "n"]] = frame[["batch_size", "n"]].astype(int)
        frame[numbers] = frame[numbers].replace("", "nan").astype(float)
    except (OSError, ValueError) as error:
        raise LTIError(f"{path}: cannot be read as a summary ({error}). {remedy}") from None
    return frame


def markdown_table(summary: pd.DataFrame) -> str:
    """Return Markdown: for every setting and metric a table of attacks by defenses.

    A cell reads ``mean [low, high] (paper: value)``. The best attack of each column is
    bold, judged at the digits shown, so that attacks that tie there are both bold.
    Footnotes define the metrics, the interval and the paper's numbers.

    Args:
        summary: as :func:`lti.metrics.summary.summarise` returns it; its order is kept.
    """
    lines: list[str] = []
    for (dataset, fl_model, batch_size), setting in summary.groupby(
        ["dataset", "fl_model", "batch_size"], sort=False
    ):
        lines += [f"### {setting_label(str(dataset), str(fl_model), int(str(batch_size)))}", ""]
        for name, block in setting.groupby("metric", sort=False):
            metric = METRICS[str(name)]
            lines += [f"**{metric.label}**, {metric.direction} is better", ""]
            lines += [*_block(block, metric), ""]
    return "\n".join([*lines, *_footnotes(summary)]) + "\n"


def write_markdown(path: Path | str, summary: pd.DataFrame, *, title: str = "") -> None:
    """Write :func:`markdown_table` below a heading to a file, atomically."""
    heading = f"## {title}\n\n" if title else ""
    with atomic_path(path) as temporary:
        temporary.write_text(heading + markdown_table(summary), encoding="utf-8", newline="\n")


def _row(cells: Iterable[str]) -> str:
    # A bar would end the cell early.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _block(block: pd.DataFrame, metric: type[Metric]) -> list[str]:
    """Return the lines of one table."""
    defenses = list(dict.fromkeys(block["defense"]))
    further = further_columns(block.columns)
    labels = [
        attack_label(row["attack"], {key: row[key] for key in further})
        for _, row in block.iterrows()
    ]
    shown = block.assign(row=labels, rounded=block["mean"].round(metric.decimals))
    pick = max if metric.direction == "higher" else min
    best = {d: pick(column) for d, column in shown.groupby("defense")["rounded"]}
    # Attacks in the order of the summary, even where the first defense lacks some of them.
    attacks = list(dict.fromkeys(shown["attack"]))
    rows = sorted(
        dict.fromkeys(zip(shown["attack"], shown["row"], strict=True)),
        key=lambda pair: attacks.index(pair[0]),
    )
    lines = [
        _row(["attack", *map(defense_label, defenses), "n"]),
        _row([":--", *["--:"] * (len(defenses) + 1)]),
    ]
    for _, label in rows:
        own = shown[shown["row"] == label]
        cells = []
        for defense in defenses:
            found = own[own["defense"] == defense]
            cells.append(
                " <br> ".join(
                    _cell(row, metric, bold=row["rounded"] == best[defense])
                    for _, row in found.iterrows()
                )
            )
        counts = sorted(set(own["n"]))
        n = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        lines.append(_row([label, *cells, n]))
    return lines


def _cell(row: pd.Series, metric: type[Metric], *, bold: bool) -> str:
    digits = metric.decimals
    text = f"{row['mean']:.{digits}f}"
    if bold:
        text = f"**{text}**"
    if not math.isnan(row["low"]):
        text += f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
    if not math.isnan(row["paper"]):
        text += f" (paper: {row['paper']:.{digits}f})"
    return text


def _footnotes(summary: pd.DataFrame) -> list[str]:
    notes = []
    batches = summary["batch_size"].gt(1).any()
    unit = "over victims, or over whole batches where B > 1" if batches else "over victims"
    notes.append(
        f"[low, high]: {CONFIDENCE:.0%} percentile bootstrap interval of the mean, "
        f"{RESAMPLES:,} resamples {unit}. n: number of victims. Bold: the best attack of a column."
    )
    if batches:
        notes.append("B > 1: inside a batch, reconstructions are matched to victims by least MSE.")
    notes += [METRICS[name].note for name in dict.fromkeys(summary["metric"]) if METRICS[name].note]
    if summary["paper"].notna().any():
        notes.append(
            f"paper: the value in {PAPER}, shown where the setting is the paper's; its settings "
            f"of SSIM may differ from ours."
        )
    return [f"- {note}" for note in notes]
