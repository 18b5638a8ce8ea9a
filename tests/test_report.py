"""The paper's values, tables and figures."""

from __future__ import annotations

import re

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from lti.checksums import write_checked
from lti.errors import LTIError
from lti.files import write_arrays, write_card
from lti.metrics.image import PSNR
from lti.metrics.measure import write_metrics
from lti.metrics.summary import summarise
from lti.report.chart import plot_summary
from lti.report.grid import grids, metric_cells, signed, write_cells
from lti.report.grid_latex import escape, grid_latex
from lti.report.grid_markdown import grid_markdown
from lti.report.paper import paper_defense, paper_value
from lti.report.picture import (
    PictureBlock,
    PictureRow,
    choose_positions,
    picture_row,
    plot_reconstructions,
)
from lti.report.table import markdown_table, read_summary, write_markdown, write_summary
from lti.stages.combine import combine_summaries
from lti.stages.draw import draw_reconstructions
from lti.stages.summarise import summarise_experiment
from lti.stages.tabulate import tabulate

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
            metric_rows(15, defense="none", paper_defense="none", aux_size=50_000),
            metric_rows(14, defense="prune", paper_defense="prune", aux_size=5000),
        ],
        resamples=50,
    )
    paper = summary[summary["paper"].notna()]
    assert paper[["dataset", "defense", "metric", "paper"]].values.tolist() == [
        ["cifar10", "sign", "psnr", 18.986],
        ["cifar10", "sign", "ssim", 0.599],
        ["cifar10", "none", "psnr", 24.837],
        ["cifar10", "none", "ssim", 0.845],
    ]


def test_paper_value_only_for_gradients_defended_by_sample():
    sign, prune = {"use": "sign"}, {"use": "prune", "rate": 0.99}
    assert paper_defense(sign) == paper_defense({**sign, "defense_at": "sample"}) == "sign"
    assert paper_defense({**prune, "defense_at": "sample"}, batch_size=4) == "prune"
    assert paper_defense({**prune, "defense_at": "batch"}, batch_size=4) == ""
    assert paper_defense({**prune, "defense_at": "batch"}) == ""
    assert paper_defense({**prune, "defense_at": "batch"}, batch_size=1) == "prune"
    assert paper_defense({"use": "prune", "rate": 0.9}, batch_size=1) == ""


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
    write_checked(tmp_path / "x.csv", "a,b\n1,2\n")
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


# --- the table of one metric


def _size(path) -> tuple[int, int]:
    header = path.read_bytes()[16:24]
    return int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")


@pytest.fixture(scope="module")
def vision() -> pd.DataFrame:
    """Two FL models, two batch sizes, three defenses, four attacks of unlike reach."""
    level = {"lti": 18.0, "ig": 10.0, "gi-gip": 17.996, "nearest": 12.0}
    reach = {"lti": 40, "nearest": 40, "ig": 8, "gi-gip": 8}  # victims, or batches for the last two
    cells = [
        metric_rows(
            psnr - batch_size / 2,
            n=reach[attack] * (batch_size if attack in ("ig", "gi-gip") else 1),
            fl_model=fl_model,
            batch_size=batch_size,
            defense=defense,
            attack=attack,
            paper_defense=defense if defense != "gauss" else "",
        ).assign(lpips_paper=float("nan"))
        for fl_model in ("lenet", "resnet20")
        for batch_size in (1, 4)
        for defense in ("none", "sign", "gauss")
        for attack, psnr in level.items()
    ]
    return summarise(cells, resamples=50)


def test_cells_have_differences_and_the_best_at_the_digits_shown(vision):
    cells = metric_cells(vision, "psnr")
    assert len(cells) == 2 * 2 * 3 * 4
    # 18.00 and 17.996 look the same.
    assert set(cells.loc[cells["best"], "attack"]) == {"lti", "gi-gip"}
    row = cells.query("fl_model == 'resnet20' and batch_size == 4 and defense == 'sign'").iloc[0]
    assert row["difference"] == pytest.approx(16.0 - 12.290)
    assert cells.query("attack == 'nearest' or defense == 'gauss'")["difference"].isna().all()
    # For an error the least is the best.
    errors = metric_cells(vision, "mse")
    assert set(errors.loc[errors["best"], "attack"]) == {"lti", "gi-gip"}


def test_a_metric_that_was_not_measured_has_cells_without_values(vision, tmp_path):
    for some in (vision, vision[vision["metric"] != "lpips_paper"]):
        cells = metric_cells(some, "lpips_paper")
        assert len(cells) == 48
        assert cells[["mean", "low", "high", "n", "difference"]].isna().all(axis=None)
        assert not cells["best"].any()
    write_cells(tmp_path / "a.csv", [cells])
    first = (tmp_path / "a.csv").read_text().splitlines()[1]
    assert first == "lpips_paper,cifar10,lenet,1,none,lti,,,,,,,False"


def test_grids_share_columns_by_batch_size(vision):
    first, second = grids(metric_cells(vision, "psnr"))
    assert (first.label, second.label) == ("CIFAR10, LeNet", "CIFAR10, ResNet20")
    assert first.columns == second.columns
    assert first.batches == {1: ["none", "sign", "gauss"], 4: ["none", "sign", "gauss"]}
    assert first.attacks == ["LTI", "IG", "GI-GIP", "nearest"]


def test_signs_of_differences():
    shown = [signed(value, PSNR) for value in (1.234, -0.5, 0.004, -0.004)]
    assert shown == ["+1.23", "-0.50", "0.00", "0.00"]


def test_markdown_groups_columns_and_sets_the_paper_below(vision):
    lines = grid_markdown([metric_cells(vision, "psnr")], title="Vision").splitlines()
    assert lines[:5] == [
        "## Vision",
        "",
        "### PSNR (dB), higher is better",
        "",
        "**CIFAR10, LeNet**",
    ]
    header = lines[6].split(" | ")
    assert header[1] == "B = 1 <br> no defense" and header[4] == "B = 4 <br> no defense"
    assert header[-1] == "n at B = 1 / B = 4 |"
    assert lines[8].startswith("| LTI | **17.50** <br> [")
    assert lines[9].startswith("| IG | 9.50 <br> [") and lines[9].endswith(" | 8 / 32 |")
    assert lines[10].startswith("| GI-GIP | **17.50** <br> [")
    below = lines[lines.index("### PSNR (dB), ours - the paper's (the paper's)") :]
    # Neither a baseline nor a defense that the paper lacks.
    assert below[4] == (
        "| attack | B = 1 <br> no defense | B = 1 <br> sign | B = 4 <br> no defense "
        "| B = 4 <br> sign |"
    )
    assert below[6] == "| LTI | -7.34 (24.84) | -1.49 (18.99) | -3.49 (19.49) | -0.99 (16.99) |"
    assert not any("nearest" in line for line in below)


def test_tables_without_papers_values_have_no_second_part(vision):
    cells = [metric_cells(vision, "mse")]
    assert "the paper" not in grid_markdown(cells, title="Vision")
    assert grid_latex(cells, title="Vision").count(r"\begin{table*}") == 1


def _unescaped(text: str, character: str) -> int:
    return len(re.findall(rf"(?<!\\){re.escape(character)}", text))


def test_latex_is_well_formed(vision):
    text = grid_latex([metric_cells(vision, name) for name in ("psnr", "ssim")], title="100 % a_b")
    assert text.startswith(r"% Needs \usepackage{booktabs}.")
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert _unescaped(body, "{") == _unescaped(body, "}")
    assert not any(_unescaped(body, character) for character in "%_#~")
    assert _unescaped(body, "$") % 2 == 0
    begun = re.findall(r"\\begin\{([a-z*]+)\}", body)
    assert begun == ["table*", "tabular"] * 4
    assert sorted(re.findall(r"\\end\{([a-z*]+)\}", body)) == sorted(begun)
    for tabular in re.findall(r"\\begin\{tabular\}\{(l?c+)\}\n(.*?)\\end\{tabular\}", body, re.S):
        columns, rows = len(tabular[0]), re.findall(r"^(.*) \\\\$", tabular[1], re.M)
        for row in rows:
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", row)]
            assert _unescaped(row, "&") + 1 + sum(spans) - len(spans) == columns
            # It would read as the option of the line break before it.
            assert not row.startswith("[")
    assert len(set(re.findall(r"\\label\{(.*?)\}", body))) == 4
    assert r"\caption{100 \% a\_b: PSNR (dB), higher is better.}" in body
    assert r" & \multicolumn{3}{c}{$B = 1$} & \multicolumn{3}{c}{$B = 4$} \\" in body
    assert r"\cmidrule(lr){2-4}\cmidrule(lr){5-7}" in body
    assert r"LTI & \textbf{17.50} & \textbf{17.50}" in body
    assert r"{\scriptsize $n$ = 8 / 32} & {\scriptsize [" in body
    assert "LTI & $-7.34$ & $-1.49$ & $-3.49$ & $-0.99$" in body


def test_latex_escapes():
    assert escape("a_b & 5% {x} #1 $ ~ ^") == (
        r"a\_b \& 5\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{}"
    )
    assert escape("B > 1\n\\") == r"B $>$ 1 \textbackslash{}"


REASON = "the weights cannot be had (<urlopen error>)"


@pytest.fixture
def card(tmp_path):
    write_card(tmp_path / "vgg16.json", {"backbone": "vgg16", "reason": REASON})
    return tmp_path / "vgg16.json"


def test_stage_writes_fixed_bytes_and_the_reason_for_what_is_missing(vision, card, tmp_path):
    write_summary(tmp_path / "summary.csv", vision)
    for name in "ab":
        tabulate(
            summary=tmp_path / "summary.csv",
            metric=["ssim", "lpips_paper"],
            title="Vision",
            backbone_card=[card],
            output=tmp_path / f"{name}.csv",
            markdown=tmp_path / f"{name}.md",
            latex=tmp_path / f"{name}.tex",
        )
    for suffix in (".csv", ".md", ".tex"):
        first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
        assert first == second
    table = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    assert list(table) == [
        *("metric", "dataset", "fl_model", "batch_size", "defense", "attack"),
        *("mean", "low", "high", "n", "paper", "difference", "best"),
    ]
    assert len(table) == 2 * 48
    markdown = (tmp_path / "a.md").read_text()
    assert "| LTI |" + " \u2013 |" * 7 in markdown
    shown = REASON.replace("<", "&lt;")
    assert f"- LPIPS (as the paper): not measured: {shown}." in markdown
    latex = (tmp_path / "a.tex").read_text()
    assert "LTI" + " & --" * 6 in latex
    shown = REASON.replace("<", "$<$").replace(">", "$>$")
    assert f"LPIPS (as the paper): not measured: {shown}." in latex


def test_joined_summaries_keep_rows_tables_and_order(vision, tmp_path):
    halves = [vision[vision["batch_size"] == size] for size in (4, 1)]
    for name, half in zip("ab", halves, strict=True):
        write_summary(tmp_path / f"{name}.csv", half)
        write_markdown(tmp_path / f"{name}.md", half, title=f"Half {name}")
    combine_summaries(
        title="Both",
        summary=[tmp_path / "a.csv", tmp_path / "b.csv"],
        tables=[tmp_path / "a.md", tmp_path / "b.md"],
        output=tmp_path / "both.csv",
        table=tmp_path / "both.md",
        chart=tmp_path / "both.png",
    )
    write_summary(tmp_path / "expected.csv", pd.concat(halves))
    assert (tmp_path / "both.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    markdown = (tmp_path / "both.md").read_text()
    assert markdown.startswith("# Both\n\n## Half a\n")
    assert [(tmp_path / f"{name}.md").read_text() in markdown for name in "ab"] == [True, True]
    assert matplotlib.image.imread(tmp_path / "both.png").ndim == 3


def test_summary_says_why_a_metric_is_missing(card, tmp_path):
    for attack in ("lti", "ig"):
        frame = metric_rows(18.0, paper_defense="sign", attack=attack)
        frame = frame.assign(index=0, label=0, lpips_paper=float("nan"))
        write_metrics(tmp_path / f"{attack}.csv", frame)
    for metrics in (["psnr", "lpips_paper"], ["lpips_paper"]):
        summarise_experiment(
            title="Vision",
            metrics=[tmp_path / "lti.csv", tmp_path / "ig.csv"],
            metric=metrics,
            backbone_card=[card],
            output=tmp_path / "summary.csv",
            table=tmp_path / "summary.md",
            chart=tmp_path / "summary.png",
        )
        lines = (tmp_path / "summary.md").read_text().splitlines()
        start = lines.index("**LPIPS (as the paper)**, lower is better")
        assert lines[start + 4] == "| LTI | \u2013 (paper: 0.396) | \u2013 |"
        shown = REASON.replace("<", "&lt;")
        assert f"- LPIPS (as the paper): not measured: {shown}." in lines
        # One panel: that of PSNR, or one that says that there is nothing to draw.
        assert _size(tmp_path / "summary.png") == (880, 720)


# --- figures


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)


def _blocks(truth: np.ndarray, titles=("B = 1",)) -> list[PictureBlock]:
    rows = [
        PictureRow(defense=d, attack=a, images=truth, psnr=17.94)
        for d in ("none", "sign")
        for a in ("IG", "LTI")
    ]
    return [PictureBlock(title, rows) for title in titles]


def _pixels(path) -> np.ndarray:
    import matplotlib.image

    return np.rint(matplotlib.image.imread(path)[..., :3] * 255)


def _enlarged(image: np.ndarray) -> np.ndarray:
    return np.rint(image * 255).transpose(1, 2, 0).repeat(3, axis=0).repeat(3, axis=1)


def test_picture_has_whole_pixels_and_fixed_bytes(truth, tmp_path):
    truth = truth[:5] / 255
    plot_reconstructions(tmp_path / "a.png", truth, _blocks(truth))
    plot_reconstructions(tmp_path / "b.png", truth, _blocks(truth))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    width, height = _size(tmp_path / "a.png")
    # Margins, five rows of 96 pixels, a wide gap per defense, a narrow one inside each.
    assert height == 12 + 5 * 96 + 2 * 24 + 2 * 6 + 12
    picture = _pixels(tmp_path / "a.png")
    # Nearest neighbour, to the pixel: the last column of every row is the last victim.
    left = width - 12 - 96
    for top in (12, 12 + 96 + 24, height - 12 - 96):
        np.testing.assert_array_equal(
            picture[top : top + 96, left : left + 96], _enlarged(truth[-1])
        )
    assert (picture[:, left - 6 : left] == 255).all()
    # Labels stay inside.
    assert (picture[:, :6] == 255).all()
    assert (picture[:, 6:150] < 255).any()


def test_every_block_has_a_title_and_the_victims(truth, tmp_path):
    truth = truth[:2] / 255
    plot_reconstructions(tmp_path / "a.png", truth, _blocks(truth, ["B = 1", "B = 4"]))
    width, height = _size(tmp_path / "a.png")
    block = 48 + 5 * 96 + 2 * 24 + 2 * 6
    assert height == 12 + 2 * block + 48 + 12
    picture = _pixels(tmp_path / "a.png")
    left = width - 12 - 96
    for top in (12, 12 + block + 48):
        assert (picture[top : top + 48] < 255).any()
        victim = picture[top + 48 : top + 48 + 96, left : left + 96]
        np.testing.assert_array_equal(victim, _enlarged(truth[-1]))


def test_positions_are_drawn_by_the_seed():
    assert choose_positions(100, 10, seed=0) == choose_positions(100, 10, seed=0)
    assert choose_positions(100, 10, seed=0) != choose_positions(100, 10, seed=1)
    assert choose_positions(3, 10, seed=0) == [0, 1, 2]


def test_picture_row_matches_and_averages_over_all_victims(truth):
    noise = np.random.default_rng(1).normal(0, 0.1, truth.shape)
    noisy = (truth / 255 + noise).clip(0, 1).astype(np.float32)
    run = {"reconstruction": noisy.reshape(5, 4, 3, 32, 32)[:, ::-1]}
    names = {"defense": "sign", "attack": "lti", "variant": "wide"}
    row = picture_row({"image": truth}, run, positions=[1, 6, 19], **names)
    assert row.attack == "LTI (wide)"
    np.testing.assert_array_equal(row.images, noisy[[1, 6, 19]])
    assert row.psnr == pytest.approx(PSNR()(truth / 255, noisy).mean(), abs=1e-4)
    with pytest.raises(LTIError, match="victim 20 cannot be drawn: lti on sign covers only the"):
        picture_row({"image": truth}, run, positions=[3, 20], **names)


def test_stage_draws_the_same_victims_in_every_row_and_block(truth, tmp_path):
    """Attacks cover different numbers of victims, and return batches in an order of their own."""
    victims = tmp_path / "victims.safetensors"
    write_arrays(victims, {"image": truth})
    perfect = (truth / 255).astype(np.float32)
    paths = []
    for batch_size, attack, n_batches in ((1, "lti", 20), (1, "ig", 12), (4, "lti", 5)):
        found = perfect[: batch_size * n_batches].reshape(-1, batch_size, 3, 32, 32)[:, ::-1]
        names = {"dataset": "cifar10", "fl_model": "lenet", "defense": "sign", "variant": attack}
        path = tmp_path / f"{attack}-{batch_size}.safetensors"
        run = {"attack": attack, "batch_size": batch_size, **names}
        write_arrays(path, {"reconstruction": found}, run)
        paths.append(path)
    output = tmp_path / "a.png"
    draw_reconstructions(victims=victims, reconstructions=paths, count=4, seed=3, output=output)
    shown = choose_positions(12, 4, seed=3)
    picture, (width, height) = _pixels(output), _size(output)
    assert height == 12 + 48 + 3 * 96 + 24 + 6 + 48 + 48 + 2 * 96 + 24 + 12
    left = width - 12 - 4 * 96 - 3 * 6
    second = 12 + 48 + 3 * 96 + 24 + 6 + 48 + 48
    for top in (60, 60 + 96 + 24, 60 + 2 * 96 + 30, second, second + 96 + 24):
        for column, position in enumerate(shown):
            x = left + column * 102
            np.testing.assert_array_equal(
                picture[top : top + 96, x : x + 96], _enlarged(truth[position] / 255)
            )


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
    truth = truth[:3] / 255
    plot_reconstructions(tmp_path / "a.pdf", truth, _blocks(truth))
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_figures_refuse_what_they_cannot_draw(summary, truth, tmp_path):
    with pytest.raises(LTIError, match=r"written as \.png or \.pdf"):
        plot_summary(tmp_path / "a.jpg", summary)
    with pytest.raises(LTIError, match=r"written as \.png or \.pdf"):
        plot_reconstructions(tmp_path / "a", truth / 255, _blocks(truth / 255))
    with pytest.raises(LTIError, match="at least one row"):
        plot_reconstructions(tmp_path / "a.png", truth / 255, [PictureBlock("B = 1", [])])
    with pytest.raises(LTIError, match=r"no defense / IG has images of shape \(20, 3, 32, 32\)"):
        plot_reconstructions(tmp_path / "a.png", truth[:5] / 255, _blocks(truth / 255))
    with pytest.raises(LTIError, match="asked for lpips, the summary has mse, psnr, ssim"):
        plot_summary(tmp_path / "a.png", summary, metrics=["lpips"])
    assert list(tmp_path.iterdir()) == []
