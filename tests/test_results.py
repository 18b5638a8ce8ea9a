"""The committed results: their form, and what they must reach."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from lti.metrics.summary import SUMMARY_COLUMNS
from lti.report.paper import paper_value

VISION_CPU = Path(__file__).parents[1] / "docs" / "results" / "vision_cpu" / "summary.csv"
LEAST_PSNR = {"none": 21.0, "sign": 18.2, "prune": 15.6, "gauss": 18.3}


@pytest.fixture(scope="module")
def summary() -> pd.DataFrame:
    return pd.read_csv(VISION_CPU, keep_default_na=False, na_values=[""])


def test_columns_and_cells(summary):
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    cells = summary.groupby(["attack", "defense", "metric"]).size()
    assert (cells == 1).all() and len(cells) == 2 * 4 * 3
    assert (summary["dataset"] == "cifar10").all() and (summary["fl_model"] == "lenet").all()
    assert ((summary["low"] <= summary["mean"]) & (summary["mean"] <= summary["high"])).all()


def test_enough_victims(summary):
    least = summary.groupby("attack")["n"].min()
    assert least["lti"] >= 1000 and least["ig"] >= 64


@pytest.mark.parametrize(("defense", "least"), LEAST_PSNR.items())
def test_lti_reaches_what_it_must(summary, defense, least):
    row = summary.query("attack == 'lti' and metric == 'psnr' and defense == @defense")
    assert row["mean"].item() >= least


def test_papers_values_stand_beside_ours(summary):
    for row in summary.itertuples():
        expected = paper_value(
            dataset=row.dataset,
            fl_model=row.fl_model,
            batch_size=row.batch_size,
            defense=row.defense,
            attack=row.attack,
            metric=row.metric,
        )
        assert row.paper == expected if expected is not None else pd.isna(row.paper)
