"""Reports of text experiments: victims apart by near copies, tables, chart, configuration."""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from text_samples import FACTS, save_tokenizer, text_victims

from lti.config import Config, parse_config
from lti.data.dataset import DATASETS, Dataset
from lti.errors import LTIError
from lti.files import write_arrays
from lti.metrics.base import DEFAULT_METRICS
from lti.metrics.near_copies import NearCopies, read_near_copies
from lti.metrics.summary import SUMMARY_COLUMNS, bootstrap_interval, summarise
from lti.plan import Plan
from lti.report.chart import plot_summary
from lti.report.grid import grids, metric_cells
from lti.report.grid_latex import grid_latex
from lti.report.table import markdown_table, read_summary
from lti.stages.measure import measure_attack
from lti.stages.summarise import summarise_experiment
from lti.stages.tabulate import tabulate

NAMES = DEFAULT_METRICS["text"]
CELL = {"dataset": "cola", "fl_model": "bert-small", "batch_size": 1, "defense": "none"}


def rows(values: list[float], **cell) -> pd.DataFrame:
    run = {**CELL, "attack": "lti", "variant": "", "auxiliary": "", "seed": 0, **cell}
    return pd.DataFrame({**run, "victim": range(len(values)), "exact": values})


def copies(*similarity: float, threshold: float = 0.7, definition: str = "") -> NearCopies:
    return NearCopies(np.array(similarity, dtype=np.float32), threshold, definition)


# --- who has a near copy


def test_a_victim_has_a_near_copy_from_the_threshold_on():
    # The nearest float32 to 0.7 is below the nearest float64.
    found = copies(0.0, 0.7, 0.69999, 1.0)
    assert found.novel.tolist() == [True, False, True, False]
    assert found.count == 2


def test_near_copies_are_read(tmp_path):
    path = tmp_path / "copies.safetensors"
    similarity = np.array([0.2, 0.9], dtype=np.float32)
    metadata = {"threshold": 0.5, "similarity": "of words"}
    write_arrays(path, {"similarity": similarity, "position": np.arange(2)}, metadata)
    read = read_near_copies(path)
    np.testing.assert_array_equal(read.similarity, similarity)
    assert (read.threshold, read.definition, read.count) == (0.5, "of words", 1)
    write_arrays(path, {"similarity": similarity}, {"threshold": 1})
    assert (read_near_copies(path).threshold, read_near_copies(path).definition) == (1.0, "")
    for arrays, threshold, message in (
        ({"position": np.arange(2)}, 0.5, r"expected an array 'similarity'.*got arrays \['pos"),
        ({"similarity": similarity[None]}, 0.5, "expected an array 'similarity' of finite floats"),
        ({"similarity": similarity * np.float32(np.nan)}, 0.5, "finite floats, one a victim"),
        ({"similarity": np.arange(2)}, 0.5, "finite floats, one a victim"),
        ({"similarity": similarity}, None, "threshold None; expected a number"),
        ({"similarity": similarity}, "0.5", "threshold '0.5'; expected a number"),
        ({"similarity": similarity}, True, "threshold True; expected a number"),
    ):
        write_arrays(path, arrays, {"threshold": threshold})
        with pytest.raises(LTIError, match=message):
            read_near_copies(path)


# --- the summary


def test_summary_has_the_means_over_all_and_over_novel_victims():
    """An attack may cover only the first few, and so may its novel victims."""
    cells = [rows([1, 0, 1, 1, 0, 0]), rows([0, 1, 1], attack="tag")]
    summary = summarise(cells, near_copies=copies(0.9, 0.1, 0.7, 0.2, 0.3, 0.8))
    expected_columns = [*SUMMARY_COLUMNS[:5], "victims", *SUMMARY_COLUMNS[5:]]
    assert list(summary) == expected_columns
    found = summary[["attack", "victims", "mean", "n"]].values.tolist()
    assert found == [
        ["lti", "all", 0.5, 6],
        ["lti", "novel", pytest.approx(1 / 3), 3],
        ["tag", "all", pytest.approx(2 / 3), 3],
        ["tag", "novel", 1.0, 1],
    ]
    assert np.isnan(summary["low"].iloc[-1])  # of one victim


def test_near_copies_move_no_number_of_all_victims():
    cell = rows(np.random.default_rng(0).random(40).tolist())
    alone = summarise(cell)
    both = summarise(cell, near_copies=copies(*np.linspace(0, 1, 40)))
    own = both[both["victims"] == "all"].drop(columns="victims").reset_index(drop=True)
    assert_frame_equal(own, alone, check_exact=True)
    novel = both[both["victims"] == "novel"].iloc[0]
    assert novel["low"] < novel["mean"] < novel["high"]


def test_where_no_victim_is_novel_there_is_no_mean():
    summary = summarise(rows([1, 0]), near_copies=copies(1, 1))
    novel = summary[summary["victims"] == "novel"].iloc[0]
    assert novel["n"] == 0
    assert np.isnan(novel[["mean", "low", "high"]].to_numpy(dtype=float)).all()
    cells = metric_cells(summary, "exact")
    assert cells["best"].tolist() == [True, False]
    assert "- \u2013: not measured, or no victim to measure." in markdown_table(summary)


def test_the_paper_is_compared_with_all_victims_alone():
    cell = rows([10.0, 12.0], dataset="cifar10", fl_model="lenet").rename(columns={"exact": "psnr"})
    cell["paper_defense"] = "none"
    summary = summarise(cell, near_copies=copies(0, 1))
    assert summary["paper"].notna().tolist() == [True, False]


def test_batches_weigh_as_much_as_they_have_novel_victims():
    # 100 batches with two victims found out, 100 with one that is not and one near copy.
    cell = rows([1.0, 1, 0, 0] * 100, batch_size=2)
    summary = summarise(cell, near_copies=copies(*[0, 0, 0, 1] * 100))
    novel = summary[summary["victims"] == "novel"].iloc[0]
    assert (novel["mean"], novel["n"]) == (pytest.approx(2 / 3), 300)
    # The mean of the batches' means is 1/2, as it is of all victims.
    assert 0.55 < novel["low"] < 2 / 3 < novel["high"] < 0.78
    every = summary[summary["victims"] == "all"].iloc[0]
    assert 0.38 < every["low"] < 1 / 2 < every["high"] < 0.62


def test_weighted_interval_agrees_with_averages_of_the_same_draws():
    values, weights = np.array([1.0, 5.0, 2.0, 9.0]), np.array([1, 3, 2, 1])
    low, high = bootstrap_interval(values, np.random.default_rng(0), weights=weights, resamples=500)
    draws = np.random.default_rng(0).integers(4, size=(500, 4))
    means = [np.average(values[draw], weights=weights[draw]) for draw in draws]
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    even = bootstrap_interval(values, np.random.default_rng(0), weights=np.full(4, 3))
    assert even == pytest.approx(bootstrap_interval(values, np.random.default_rng(0)))


def test_near_copies_of_other_victims_are_refused():
    with pytest.raises(LTIError, match="near copies of 2 victims, and metric rows of victim 2"):
        summarise(rows([1, 0, 1]), near_copies=copies(0, 1))


# --- tables and chart


@pytest.fixture
def summary() -> pd.DataFrame:
    """LTI is the best on all victims, TAG on the novel ones."""
    cells = [
        rows(values, attack=attack, defense=defense, fl_model=model)
        for model in ("bert-small", "bert")
        for defense in ("none", "sign")
        for attack, values in (("lti", [1.0, 1, 1, 0, 0]), ("tag", [0.0, 0, 0, 1, 0]))
    ]
    return summarise(cells, near_copies=copies(0.9, 0.8, 0.7, 0, 0), resamples=50)


def test_the_best_is_that_of_the_same_victims(summary):
    cells = metric_cells(summary, "exact")
    best = cells[cells["best"]]
    assert set(zip(best["attack"], best["victims"], strict=True)) == {
        ("lti", "all"),
        ("tag", "novel"),
    }
    labels = [grid.label for grid in grids(cells)]
    assert labels == [
        f"CoLA, {model}: {victims}"
        for model in ("small BERT", "BERT")
        for victims in ("all victims", "victims without a near copy")
    ]


def test_markdown_has_rows_for_either_and_says_what_a_near_copy_is(summary):
    found = copies(0.9, 0.8, 0.7, 0, 0, definition="share of common words")
    lines = markdown_table(summary, near_copies=found).splitlines()
    start = lines.index("**Exact sentences**, higher is better")
    assert lines[start + 2] == "| attack | victims | no defense | sign | n |"
    assert lines[start + 3] == "| :-- | :-- | --: | --: | --: |"
    for line, beginning in zip(
        lines[start + 4 :],
        (
            "| LTI | all victims | **0.600** [",
            "| TAG | all victims | 0.200 [",
            "| LTI | victims without a near copy | 0.000 [",
            "| TAG | victims without a near copy | **0.500** [",
        ),
        strict=False,
    ):
        assert line.startswith(beginning)
    assert lines[start + 7].endswith(" | 2 |")
    assert (
        "- Without a near copy: victims to whom no sample of the auxiliary set has a similarity "
        "(share of common words) of 0.7 or more. 3 of 5 victims have a near copy."
    ) in lines


def test_footnote_on_batches_says_how_texts_are_matched():
    text = markdown_table(summarise(rows([1, 0, 1, 1], batch_size=2)))
    assert "matched to victims so that the fewest tokens are wrong." in text
    assert "MSE" not in text


def test_latex_has_a_block_for_either(summary):
    text = grid_latex([metric_cells(summary, "exact")], title="T", near_copies=copies(1, 0))
    blocks = re.findall(r"\\textit\{(.*?)\}", text)
    assert blocks[:2] == [
        "CoLA, small BERT: all victims",
        "CoLA, small BERT: victims without a near copy",
    ]
    assert "of 0.7 or more. 1 of 2 victims have a near copy." in text
    assert r"TAG & \textbf{0.500} & \textbf{0.500}" in text
    assert r"\label{tab:exact}" in text


def _size(path) -> tuple[int, int]:
    data = path.read_bytes()
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_chart_of_many_metrics_is_no_wider_than_that_of_a_few(summary, tmp_path):
    own = summary[summary["fl_model"] == "bert"]
    many = pd.concat([own.assign(metric=name) for name in NAMES])
    sizes = []
    for metrics in (NAMES[:3], NAMES[:5], NAMES):
        plot_summary(tmp_path / "chart.png", many, metrics=metrics)
        sizes.append(_size(tmp_path / "chart.png"))
    assert sizes == [(2240, 720), (3600, 720), (2240, 1260)]


def test_chart_sets_novel_victims_apart(summary, tmp_path):
    summary = summary[summary["fl_model"] == "bert"]
    plot_summary(tmp_path / "both.png", summary, metrics=["exact"])
    alone = summary[summary["victims"] == "all"]
    plot_summary(tmp_path / "all.png", alone, metrics=["exact"])
    plot_summary(tmp_path / "plain.png", alone.drop(columns="victims"), metrics=["exact"])
    images = [(tmp_path / f"{name}.png").read_bytes() for name in ("both", "all", "plain")]
    assert len(set(images)) == 3


# --- the stages, from reconstructions to tables


@pytest.fixture
def experiment(tmp_path):
    """Two attacks on one defense: the first finds out all, the second half of the victims."""
    victims = text_victims(8)
    write_arrays(tmp_path / "victims.safetensors", victims, {"dataset": "cola", "text": FACTS})
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json")
    for attack in ("lti", "tag"):
        found = victims["token"].copy()
        if attack == "tag":
            found[4:] = 0  # padding alone
        metadata = {
            **CELL,
            "attack": attack,
            "variant": attack,
            "seed": 0,
            "defense_settings": {"use": "none"},
            "fl_model_settings": {"use": "bert-small"},
        }
        path = tmp_path / f"{attack}.safetensors"
        write_arrays(path, {"reconstruction": found[:, None]}, metadata)
        measure_attack(
            victims=tmp_path / "victims.safetensors",
            reconstructions=path,
            metric=list(NAMES),
            tokenizer=tokenizer,
            output=tmp_path / f"{attack}.csv",
        )
    similarity = np.array([0, 0, 0, 0.9, 0, 0, 0, 0.9], dtype=np.float32)
    write_arrays(tmp_path / "copies.safetensors", {"similarity": similarity}, {"threshold": 0.8})
    return tmp_path


def test_stages_report_a_text_experiment(experiment):
    summarise_experiment(
        title="Language",
        metrics=[experiment / "lti.csv", experiment / "tag.csv"],
        metric=list(NAMES),
        near_copies=experiment / "copies.safetensors",
        output=experiment / "summary.csv",
        table=experiment / "summary.md",
        chart=experiment / "summary.png",
    )
    summary = read_summary(experiment / "summary.csv")
    assert list(summary)[5:7] == ["victims", "metric"]
    means = summary.set_index(["attack", "victims", "metric"])
    assert set(means.loc["lti"]["mean"]) == {1.0}
    for victims, n in (("all", 8), ("novel", 6)):
        own = means.loc["tag", victims]
        assert set(own["n"]) == {n}
        padded = own["mean"].pop("token_accuracy_padded")
        assert 0.5 < padded < 1
        assert set(own["mean"].drop("token_accuracy_padded")) == {0.5}
    tabulate(
        summary=experiment / "summary.csv",
        metric=list(NAMES),
        title="Language",
        near_copies=experiment / "copies.safetensors",
        output=experiment / "table_text.csv",
        markdown=experiment / "table_text.md",
        latex=experiment / "table_text.tex",
    )
    table = pd.read_csv(experiment / "table_text.csv", keep_default_na=False)
    assert len(table) == 2 * 2 * len(NAMES)
    assert table["metric"].drop_duplicates().tolist() == list(NAMES)
    assert set(table.loc[table["best"], "attack"]) == {"lti"}
    markdown = (experiment / "table_text.md").read_text()
    assert re.findall(r"^### (.*), higher is better$", markdown, re.M) == [
        *("Token accuracy", "Token accuracy, padding included"),
        *("ROUGE-1", "ROUGE-2", "ROUGE-L", "Exact sentences"),
    ]
    assert markdown.count("**CoLA, small BERT: victims without a near copy**") == len(NAMES)
    latex = (experiment / "table_text.tex").read_text()
    assert latex.count(r"\begin{tabular}") == len(NAMES)
    for text in (markdown, latex, (experiment / "summary.md").read_text()):
        assert "of 0.8 or more. 2 of 8 victims have a near copy." in text


# --- the configuration


class Toy(Dataset):
    """Sentences."""

    name: ClassVar = "toy"
    modality: ClassVar = "text"
    class_names: ClassVar = ("a", "b")

    def load(self, part):
        raise NotImplementedError


@pytest.fixture
def values(monkeypatch) -> dict:
    monkeypatch.setitem(DATASETS._entries, "toy", Toy)
    experiment = {
        "title": "T",
        "fl_models": ["lenet"],
        "defenses": ["none"],
        "attacks": ["ig"],
        "auxiliary": {"size": 16},
        "victims": {"size": 12},
    }
    return {
        "datasets": {"toy": {"use": "toy"}, "photos": {"use": "photos"}},
        "fl_models": {"lenet": {"use": "lenet"}},
        "defenses": {"none": {"use": "none"}},
        "inverters": {},
        "attacks": {"ig": {"use": "ig"}},
        "experiments": {
            "words": {**experiment, "dataset": "toy"},
            "pictures": {**experiment, "dataset": "photos"},
        },
    }


def test_default_metrics_are_those_of_the_data_set(values):
    plan = Plan(Config.model_validate(values))
    assert plan.metrics_of_experiment("words") == list(NAMES)
    assert plan.metrics_of_experiment("pictures") == ["mse", "psnr", "ssim"]
    assert (plan.modality_of("words"), plan.modality_of("pictures")) == ("text", "image")
    (cell,) = plan.cells("words")
    assert plan.metrics_of(**vars(cell)) == list(NAMES)
    values["experiments"]["words"]["metrics"] = ["rougeL"]
    again = Plan(Config.model_validate(values))
    assert again.metrics_of_experiment("words") == ["rougeL"]
    assert again.auxiliary_of("words") == ["toy-n16-s0"]


@pytest.mark.parametrize(
    ("experiment", "metrics", "message"),
    [
        (
            "words",
            ["exact", "psnr"],
            r"words\.metrics: got 'psnr', a metric of modality image, where data set toy is of "
            r"modality text; allowed: exact, rouge1, rouge2, rougeL, token_accuracy, token_",
        ),
        (
            "pictures",
            ["rougeL"],
            r"pictures\.metrics: got 'rougeL', a metric of modality text, .* photos is of modality "
            r"image; allowed: lpips, lpips_alex, lpips_paper, mse, psnr, ssim$",
        ),
        ("words", [], r"words\.metrics: got \[\]; .*at least 1"),
        ("words", ["x"], r"words\.metrics: got 'x'; allowed: .*mse.*rougeL"),
    ],
)
def test_metrics_of_another_modality_are_refused_before_work_starts(
    values, experiment, metrics, message
):
    values["experiments"][experiment]["metrics"] = metrics
    with pytest.raises(LTIError) as caught:
        parse_config(values)
    assert re.search(message, str(caught.value), re.M), str(caught.value)
