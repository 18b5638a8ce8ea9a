"""The paper's values, tables and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from lti.errors import LTIError
from lti.metrics.image import PSNR
from lti.metrics.summary import summarise
from lti.report.chart import plot_summary
from lti.report.paper import paper_value
from lti.report.picture import (
    PictureRow,
    choose_positions,
    picture_row,
    plot_reconstructions,
)
from lti.report.table import markdown_table, read_summary, write_markdown, write_summary

CELL = {
    "dataset": "cifar10",
    "fl_model": "lenet",
    "batch_size": 1,
    "defense": "sign",
    "attack": "lti",
}


def metric_rows(psnr: float, *, n: int = 8, paper_defense: str = "", **cell) -> pd.DataFrame:
    run = {**CELL, "variant": "", "auxiliary": "", "seed": 0, **cell}
    spread = np.linspace(-1, 1, n)
    values = {"psnr": psnr + spread, "mse": 10 ** (-(psnr + spread) / 10), "ssim": 0.5}
    return pd.DataFrame({**run, "paper_defense": paper_defense, "victim": range(n), **values})


@pytest.fixture
def summary() -> pd.DataFrame:
    cells = [
        metric_rows(psnr, defense=defense, attack=attack, paper_defense=defense)
        for defense, pair in {"none": (22.0, 21.0), "sign": (10.0, 18.0)}.items()
        for attack, psnr in zip(("ig", "lti"), pair, strict=True)
    ]
    return summarise(cells, resamples=200)


# --- the paper's values


def test_paper_values():
    cell = {"dataset": "cifar10", "fl_model": "resnet20", "batch_size": 4, "attack": "gi-gip"}
    assert paper_value(**cell, defense="none", metric="psnr") == 11.064
    assert paper_value(**cell, defense="gauss", metric="ssim") == 0.012
    assert paper_value(**cell, defense="none", metric="mse") is None
    assert paper_value(**{**cell, "dataset": "photos"}, defense="none", metric="psnr") is None


def test_the_papers_lpips_stands_beside_the_metric_that_is_computed_like_it():
    cell = {"dataset": "cifar10", "fl_model": "lenet", "batch_size": 1, "attack": "ig"}
    assert paper_value(**cell, defense="sign", metric="lpips_paper") == 0.677
    assert paper_value(**cell, defense="sign", metric="lpips") is None


def test_paper_values_only_where_the_setting_is_the_papers():
    summary = summarise(
        [
            metric_rows(18, paper_defense="sign"),
            metric_rows(17, defense="gauss", paper_defense=""),  # another sigma, say
            metric_rows(16, dataset="photos", paper_defense="sign"),
        ],
        resamples=50,
    )
    paper = summary[summary["paper"].notna()]
    assert paper[["dataset", "defense", "metric", "paper"]].values.tolist() == [
        ["cifar10", "sign", "psnr", 18.986],
        ["cifar10", "sign", "ssim", 0.599],
    ]


# --- tables


def test_summary_csv_round_trip_with_fixed_bytes(summary, tmp_path):
    write_summary(tmp_path / "a.csv", summary)
    write_summary(tmp_path / "b.csv", read_summary(tmp_path / "a.csv"))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert_frame_equal(read_summary(tmp_path / "a.csv"), summary, rtol=1e-5, check_dtype=False)
    line = (tmp_path / "a.csv").read_text().splitlines()[1].split(",")
    assert line[:7] == ["cifar10", "lenet", "1", "none", "ig", "psnr", "22"]
    assert line[-2:] == ["8", "22.29"]


def test_a_file_that_is_no_summary_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LTIError, match="lacks the columns dataset"):
        read_summary(tmp_path / "x.csv")
    with pytest.raises(LTIError, match="cannot be read"):
        read_summary(tmp_path / "absent.csv")


def test_markdown_bolds_the_best_of_each_column_and_shows_the_paper(summary, tmp_path):
    write_markdown(tmp_path / "t.md", summary)
    text = (tmp_path / "t.md").read_text()
    lines = text.splitlines()
    psnr = lines.index("**PSNR (dB)**, higher is better")
    assert lines[psnr + 2] == "| attack | no defense | sign | n |"
    ig, lti = lines[psnr + 4], lines[psnr + 5]
    assert ig.startswith("| IG | **22.00** [")
    assert "(paper: 22.29) | 10.00 [" in ig
    assert lti.startswith("| LTI | 21.00 [")
    assert "| **18.00** [" in lti
    assert lti.endswith("(paper: 18.99) | 8 |")
    # The lower MSE is the better one.
    mse = lines.index("**MSE**, lower is better")
    assert lines[mse + 4].startswith("| IG | **0.0")
    # Equal at the digits shown: both bold.
    ssim = lines.index("**SSIM**, higher is better")
    assert all("**0.500**" in line for line in lines[ssim + 4 : ssim + 6])
    assert "11 x 11 Gaussian window (sigma 1.5)" in text
    assert "95% percentile bootstrap interval" in text


def test_markdown_copes_with_gaps_variants_and_batches():
    summary = summarise(
        [
            metric_rows(20, defense="none", attack="ig", n=4, batch_size=4),
            metric_rows(18, variant="lti", batch_size=4),
            metric_rows(19, variant="wide", batch_size=4),
        ],
        attacks=["ig", "lti"],
        resamples=50,
    )
    lines = markdown_table(summary).splitlines()
    assert lines[0] == "### CIFAR10, LeNet, B = 4"
    assert lines[6] == "| IG | **20.00** |  | 4 |"  # one batch: no interval
    assert lines[7].startswith("| LTI |  | 18.00 [")
    assert lines[8].startswith("| LTI (wide) |  | **19.00** [")
    assert any("whole batches" in line for line in lines)


# --- figures


def _size(path) -> tuple[int, int]:
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)


def _rows(truth: np.ndarray) -> list[PictureRow]:
    found = (truth / 255).astype(np.float32)
    return [
        PictureRow(defense=d, attack=a, images=found[:n], psnr=17.94)
        for d in ("none", "sign")
        for a, n in (("IG", 16), ("LTI", 20))
    ]


def test_picture_has_whole_pixels_and_fixed_bytes(truth, tmp_path):
    import matplotlib.image

    shown = plot_reconstructions(tmp_path / "a.png", truth, _rows(truth), count=5)
    plot_reconstructions(tmp_path / "b.png", truth, _rows(truth), count=5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert shown == sorted(set(shown))
    assert max(shown) < 16  # what every row covers
    width, height = _size(tmp_path / "a.png")
    # Margins, five rows of 96 pixels, a wide gap per defense, a narrow one inside each.
    assert height == 12 + 5 * 96 + 2 * 24 + 2 * 6 + 12
    picture = np.rint(matplotlib.image.imread(tmp_path / "a.png")[..., :3] * 255)
    # Nearest neighbour, to the pixel: the last column of every row is the last victim shown.
    expected = truth[shown[-1]].transpose(1, 2, 0).repeat(3, axis=0).repeat(3, axis=1)
    left = width - 12 - 96
    for top in (12, 12 + 96 + 24, height - 12 - 96):
        np.testing.assert_array_equal(picture[top : top + 96, left : left + 96], expected)
    assert (picture[:, left - 6 : left] == 255).all()
    # Labels stay inside.
    assert (picture[:, :6] == 255).all()
    assert (picture[:, 6:150] < 255).any()


def test_positions_can_be_given_and_are_checked(truth, tmp_path):
    path = tmp_path / "a.png"
    assert plot_reconstructions(path, truth, _rows(truth), positions=[3, 1]) == [3, 1]
    with pytest.raises(LTIError, match="only the first 16"):
        plot_reconstructions(path, truth, _rows(truth), positions=[16])
    with pytest.raises(LTIError, match="at least one row"):
        plot_reconstructions(path, truth, [])


def test_positions_are_drawn_by_the_seed():
    assert choose_positions(100, 10, seed=0) == choose_positions(100, 10, seed=0)
    assert choose_positions(100, 10, seed=0) != choose_positions(100, 10, seed=1)
    assert choose_positions(3, 10, seed=0) == [0, 1, 2]


def test_picture_row_matches_and_averages_over_all_victims(truth):
    noise = np.random.default_rng(1).normal(0, 0.1, truth.shape)
    noisy = (truth / 255 + noise).clip(0, 1).astype(np.float32)
    batches = noisy.reshape(5, 4, 3, 32, 32)[:, ::-1]
    row = picture_row(
        {"image": truth}, {"reconstruction": batches}, defense="sign", attack="lti", variant="wide"
    )
    assert row.attack == "LTI (wide)"
    np.testing.assert_array_equal(row.images, noisy)
    assert row.psnr == pytest.approx(PSNR()(truth / 255, noisy).mean(), abs=1e-4)


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_chart_is_written_with_fixed_bytes(summary, tmp_path, suffix):
    for name in "ab":
        plot_summary(tmp_path / f"{name}{suffix}", summary)
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert b"CreationDate" not in first
    if suffix == ".png":
        assert _size(tmp_path / "a.png") == (2240, 720)


def test_picture_as_pdf(truth, tmp_path):
    plot_reconstructions(tmp_path / "a.pdf", truth, _rows(truth))
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_figures_refuse_what_they_cannot_draw(summary, truth, tmp_path):
    with pytest.raises(LTIError, match=r"written as \.png or \.pdf"):
        plot_summary(tmp_path / "a.jpg", summary)
    with pytest.raises(LTIError, match=r"written as \.png or \.pdf"):
        plot_reconstructions(tmp_path / "a", truth, _rows(truth))
    with pytest.raises(LTIError, match="asked for lpips, the summary has mse, psnr, ssim"):
        plot_summary(tmp_path / "a.png", summary, metrics=["lpips"])
    assert list(tmp_path.iterdir()) == []
