"""Accuracy beside leakage: the frontier, the table, the chart, and the workflow to it."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from workflow_runner import AUXILIARY, CONFIG, VICTIMS, Checkout

from lti.config import parse_config
from lti.errors import LTIError
from lti.files import read_json, write_card
from lti.metrics.utility import (
    UTILITY_COLUMNS,
    pareto_frontier,
    read_training,
    utility_table,
)
from lti.plan import Plan
from lti.report.table import write_summary
from lti.report.utility import plot_utility
from lti.stages.utility import draw_utility
from lti.utility_plan import leakage_metric, training_id, trainings


def test_the_frontier_of_points_drawn_by_hand():
    # Fine; leaks more and is no better; leaks less but is worse; both as the first; worst.
    accuracy = np.array([0.8, 0.8, 0.5, 0.8, 0.4])
    leakage = np.array([20.0, 21.0, 10.0, 20.0, 30.0])
    assert pareto_frontier(accuracy, leakage).tolist() == [True, False, True, True, False]
    assert pareto_frontier(accuracy[4:], leakage[4:]).tolist() == [True]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_dominates(points):
    accuracy, leakage = np.array(points, dtype=float).T
    expected = [
        not any(a >= y and x <= z and (a, x) != (y, z) for a, x in points) for y, z in points
    ]
    assert pareto_frontier(accuracy, leakage).tolist() == expected


def summary(metric: str = "psnr", **changes) -> pd.DataFrame:
    """Two attacks on three defenses."""
    means = {"none": (30.0, 40.0), "sign": (19.0, 15.0), "gauss": (19.5, 8.0)}
    rows = [
        {
            "dataset": "cifar10",
            "fl_model": "lenet",
            "batch_size": 1,
            "defense": defense,
            "attack": attack,
            "metric": metric,
            "mean": mean,
            "low": mean - 1,
            "high": mean + 2,
            "n": 50,
            "paper": np.nan,
            **changes,
        }
        for defense, both in means.items()
        for attack, mean in zip(("lti", "ig"), both, strict=True)
    ]
    return pd.DataFrame(rows)


def trained(**accuracy: float) -> dict:
    facts = {"test_samples": 900, "rounds": 40, "client_batch": 8, "learning_rate": 0.01}
    return {
        ("lenet", defense): {"accuracy": a, "low": a - 0.1, "high": a + 0.1, **facts}
        for defense, a in accuracy.items()
    }


ACCURACY = {"none": 0.6, "sign": 0.5, "gauss": 0.4}


def test_the_table_has_the_attack_that_leaks_most():
    table = utility_table(summary(), trained(**ACCURACY), metric="psnr")
    assert tuple(table) == UTILITY_COLUMNS and table["defense"].tolist() == list(ACCURACY)
    assert table["attack"].tolist() == ["ig", "lti", "lti"]
    assert table["leakage"].tolist() == [40.0, 19.0, 19.5]
    assert table["leakage_low"].tolist() == [39.0, 18.0, 18.5]
    assert table["leakage_high"].tolist() == [42.0, 21.0, 21.5]
    assert table["accuracy"].tolist() == [0.6, 0.5, 0.4]
    assert table["frontier"].tolist() == [True, True, False]


def test_of_an_error_the_lowest_leaks_most():
    table = utility_table(summary("mse"), trained(**ACCURACY), metric="mse")
    assert table["attack"].tolist() == ["lti", "ig", "ig"]
    # Now the last is the most private one, and the first the least.
    changed = summary("mse").assign(mean=[0.01, 0.02, 0.2, 0.1, 0.4, 0.3])
    table = utility_table(changed, trained(**ACCURACY), metric="mse")
    assert table["leakage"].tolist() == [0.01, 0.1, 0.3] and table["frontier"].all()


def test_all_victims_count_and_variants_are_told_apart():
    novel = summary().assign(victims="novel", mean=99.0)
    both = pd.concat([summary().assign(victims="all"), novel])
    both["variant"] = both["attack"] + "-tuned"
    table = utility_table(both, trained(**ACCURACY), metric="psnr")
    assert table["leakage"].tolist() == [40.0, 19.0, 19.5]
    assert table["attack"].tolist() == ["ig-tuned", "lti-tuned", "lti-tuned"]


def test_what_is_missing_is_refused():
    with pytest.raises(LTIError, match="no training of lenet under gauss; expected one"):
        utility_table(summary(), trained(none=0.6, sign=0.5), metric="psnr")
    with pytest.raises(LTIError, match=r"no metric ssim; got psnr\. Choose"):
        utility_table(summary(), trained(**ACCURACY), metric="ssim")
    with pytest.raises(LTIError, match=r"psnr was not measured on .*'none'"):
        utility_table(summary(mean=np.nan), trained(**ACCURACY), metric="psnr")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A summary, and a training with its card."""
    write_summary(tmp_path / "summary.csv", summary())
    evaluation = {"round": 40, "accuracy": 0.6, "low": 0.5, "high": 0.7, "n": 900}
    card = {"training": {"batch_size": 8}, "learning_rate": 0.01, "evaluation": evaluation}
    write_card(tmp_path / "t.json", card)
    return tmp_path


def test_a_training_is_read_by_its_card(files):
    found = read_training(files / "t.json")
    assert found == {
        **{"accuracy": 0.6, "low": 0.5, "high": 0.7, "test_samples": 900},
        **{"rounds": 40, "client_batch": 8, "learning_rate": 0.01},
    }
    write_card(files / "t.json", {})
    with pytest.raises(LTIError, match=r"t\.json: cannot be read as a training.*'evaluation'"):
        read_training(files / "t.json")
    (files / "t.json").write_text((files / "t.json").read_text().replace("{", "{ ", 1) + "]")
    with pytest.raises(LTIError, match=r"t\.json: cannot be read as JSON"):
        read_training(files / "t.json")


def test_the_stage_writes_table_and_chart(files):
    entries = [
        {
            "fl_model": "lenet",
            "defense": defense,
            "card": str(files / "t.json"),
        }
        for defense in ACCURACY
    ]
    draw_utility(
        summary=files / "summary.csv",
        trainings=json.dumps(entries),
        metric="psnr",
        output=files / "utility.csv",
        chart=files / "utility.png",
    )
    table = pd.read_csv(files / "utility.csv", keep_default_na=False)
    assert tuple(table) == UTILITY_COLUMNS and table["accuracy"].tolist() == [0.6] * 3
    assert table["frontier"].tolist() == [False, True, False]
    picture = matplotlib.image.imread(files / "utility.png")
    assert picture.shape[0] > 300 and picture[..., :3].std() > 0.05
    with pytest.raises(LTIError, match="figures are written as"):
        plot_utility(files / "utility.gif", table)


@pytest.mark.parametrize("points", ["apart", "close"])
def test_labels_cover_neither_points_nor_one_another(points, tmp_path, monkeypatch):
    placed = []
    monkeypatch.setattr(
        "lti.report.utility.save_figure", lambda figure, path: placed.append(figure)
    )
    defenses = list(ACCURACY)
    accuracy = ACCURACY if points == "apart" else {"none": 0.6, "sign": 0.58, "gauss": 0.57}
    table = utility_table(summary(), trained(**accuracy), metric="psnr")
    plot_utility(tmp_path / "u.png", table)
    (figure,) = placed
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert [text.get_text().split("\n")[0] for text in axes.texts] == ["no defense", *defenses[1:]]
    points = axes.transData.transform(table[["leakage", "accuracy"]].to_numpy())
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
        assert not any(box.contains(*point) for point in points)
        assert axes.get_window_extent(renderer).containsx(box.x0)


UTILITY = {
    "rounds": 4,
    "clients": 4,
    "clients_per_round": 2,
    "batch_size": 4,
    "learning_rates": [0.003, 0.01],
    "pilot_rounds": 2,
    "evaluations": 2,
}


def configured(**changes) -> dict:
    config = deepcopy(CONFIG)
    config["experiments"]["tiny"] |= {"utility": UTILITY, **changes}
    return config


def test_experiments_with_the_same_training_share_it():
    config = configured()
    config["experiments"]["other"] = {
        **config["experiments"]["tiny"],
        "utility": UTILITY | {"metric": "mse"},
    }
    plan = Plan(parse_config(config))
    assert training_id(plan, "tiny") == training_id(plan, "other") is not None
    assert training_id(plan, "pairs") is None and len(trainings(plan)) == 1
    assert (leakage_metric(plan, "tiny"), leakage_metric(plan, "other")) == ("psnr", "mse")
    config["experiments"]["other"]["utility"] = UTILITY | {"rounds": 9}
    plan = Plan(parse_config(config))
    assert training_id(plan, "tiny") != training_id(plan, "other")
    assert trainings(plan)[training_id(plan, "other")].rounds == 9
    only = configured(metrics=["ssim", "mse"])
    assert leakage_metric(Plan(parse_config(only)), "tiny") == "ssim"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"utility": {"rounds": 0}}, r"experiments\.tiny\.utility\.rounds: got 0"),
        ({"utility": {"clients_per_round": 101}}, "clients_per_round: got 101; allowed: 1 to"),
        ({"utility": {"metric": "lpips"}}, r"utility\.metric: .*lpips.*mse, psnr, ssim"),
        ({"variations": [{"size": [32, 64]}]}, "utility: got a training beside `variations`"),
        (
            {"auxiliary": {"size": 60, "shift": "classes", "beta": 0.5}},
            "utility: got a training on an auxiliary set with the shift 'classes'",
        ),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused(changes, message):
    config = configured(**changes)
    config["shifts"] = {"classes": {"classes": [0], "shifted": [{"classes": [1]}]}}
    with pytest.raises(LTIError, match=message):
        parse_config(config)


def test_the_workflow_sets_accuracy_beside_leakage(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    experiment = {**CONFIG["experiments"]["tiny"], "attacks": ["ig"], "metrics": ["psnr"]}
    checkout.configure({"experiments": {"tiny": {**experiment, "utility": UTILITY}}})
    output = checkout.run("tiny")
    folder = checkout.results / "experiments" / "tiny"
    assert "results/experiments/tiny/utility.png" in output
    table = pd.read_csv(folder / "utility.csv", keep_default_na=False)
    assert table["defense"].tolist() == ["sign", "gauss"] and (table["client_batch"] == 4).all()
    means = pd.read_csv(folder / "summary.csv")
    assert table["leakage"].tolist() == means["mean"].tolist()
    (sign,) = (checkout.results / f"federated/{AUXILIARY}/lenet/sign/{VICTIMS}").glob("*.json")
    card = read_json(sign)
    history = pd.read_csv(sign.with_suffix(".csv"))
    assert history["round"].tolist() == [0, 2, 4]
    # All of the data set's other part but the eight victims.
    whole = read_json(checkout.results / "data/photos/victims.json")["size"]
    assert card["test_samples"] == whole - 8 == table["test_samples"][0]
    assert sum(card["samples_of_clients"]) == 144  # of 160, a tenth of them held out
    assert checkout.planned("tiny") == []
    # Another learning rate trains again, and attacks nothing again.
    fewer = UTILITY | {"learning_rates": [0.003]}
    checkout.configure({"experiments": {"tiny": {**experiment, "utility": fewer}}})
    planned = checkout.planned("tiny")
    assert planned == ["draw_utility tiny", "train_federated gauss", "train_federated sign"]
