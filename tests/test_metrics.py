"""Metrics, matching, the metric stage and the summary."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from lti.errors import LTIError
from lti.metrics import METRICS
from lti.metrics.image import MSE, PSNR, SSIM
from lti.metrics.matching import match_batches
from lti.metrics.measure import measure, read_metrics, write_metrics
from lti.metrics.summary import SUMMARY_COLUMNS, bootstrap_interval, summarise

RUN = {
    "dataset": "cifar10",
    "fl_model": "lenet",
    "batch_size": 1,
    "defense": "sign",
    "attack": "lti",
    "variant": "lti",
    "auxiliary": "train",
    "aux_size": 64,
    "aux_seed": 0,
    "beta": 1.0,
    "seed": 0,
}


def images(n: int, *, seed: int = 0, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    """Smooth float images in [0, 1], so that SSIM is neither 0 nor 1."""
    coarse = np.random.default_rng(seed).random((n, 3, 4, 4))
    rows, columns = (np.linspace(0, 3.99, side).astype(int) for side in size)
    return coarse[:, :, rows][:, :, :, columns]


def victims(n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    return {
        "image": np.rint(images(n, seed=seed) * 255).astype(np.uint8),
        "label": np.arange(n, dtype=np.int64) % 10,
        "index": np.arange(n, dtype=np.int64) * 7,
    }


def attack(data: dict[str, np.ndarray], batch_size: int, *, noise: float, seed: int = 1):
    rng = np.random.default_rng(seed)
    truth = data["image"] / np.float32(255)
    found = (truth + rng.normal(0, noise, truth.shape)).clip(0, 1).astype(np.float32)
    found = found.reshape(-1, batch_size, *truth.shape[1:])
    return {"reconstruction": found[:, rng.permutation(batch_size)]}


def rows(*, n: int = 12, noise: float = 0.1, draw: int = 1, **run) -> pd.DataFrame:
    run = {**RUN, **run}
    data = victims(n)
    return measure(data, attack(data, run["batch_size"], noise=noise, seed=draw), run)


# --- the metrics


def test_registry_states_label_unit_and_direction():
    stated = {name: (METRICS[name].direction, METRICS[name].unit) for name in METRICS}
    assert stated["mse"] == ("lower", "")
    assert stated["psnr"] == ("higher", "dB")
    assert stated["ssim"] == ("higher", "")
    assert METRICS["psnr"].label == "PSNR (dB)"
    assert {METRICS[name].direction for name in METRICS if "lpips" in name} == {"lower"}


def test_values_known_by_hand():
    truth = np.zeros((2, 3, 32, 32), np.float32)
    found = np.stack([truth[0] + 0.1, truth[0] + 0.5]).astype(np.float32)
    assert MSE()(truth, found) == pytest.approx([0.01, 0.25])
    assert PSNR()(truth, found) == pytest.approx([20.0, 10 * np.log10(4)])


def test_values_outside_the_box_are_clamped():
    truth = np.ones((1, 3, 32, 32), np.float32)
    assert MSE()(truth, truth * 7) == [0]
    assert SSIM()(truth, truth * 7) == pytest.approx([1])


def test_an_exact_reconstruction_counts_as_100_db():
    truth = images(3)
    assert PSNR()(truth, truth) == pytest.approx([100.0] * 3)
    assert SSIM()(truth, truth) == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("size", [(32, 32), (11, 20)])
def test_metrics_agree_with_scikit_image(size):
    from skimage.metrics import (
        mean_squared_error,
        peak_signal_noise_ratio,
        structural_similarity,
    )

    truth = images(520, size=size)[::40]  # more than one chunk is tested below
    found = (truth + np.random.default_rng(3).normal(0, 0.15, truth.shape)).clip(0, 1)
    pairs = list(zip(truth, found, strict=True))
    assert MSE()(truth, found) == pytest.approx([mean_squared_error(x, y) for x, y in pairs])
    assert PSNR()(truth, found) == pytest.approx(
        [peak_signal_noise_ratio(x, y, data_range=1.0) for x, y in pairs]
    )
    expected = [
        structural_similarity(
            x,
            y,
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for x, y in pairs
    ]
    assert 0.05 < np.mean(expected) < 0.95
    np.testing.assert_allclose(SSIM()(truth, found), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["mse", "psnr", "ssim"])
def test_a_value_depends_on_its_own_image_only(name):
    truth, found = images(1030), images(1030, seed=1)
    metric = METRICS[name]()
    values = metric(truth, found)
    for i in (0, 511, 512, 1029):
        assert values[i] == pytest.approx(metric(truth[i : i + 1], found[i : i + 1])[0])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(LTIError, match=r"cannot be compared"):
        MSE()(images(2), images(3))
    with pytest.raises(LTIError, match=r"at least 11"):
        SSIM()(images(1, size=(8, 8)), images(1, size=(8, 8)))


# --- matching


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), batch_size=st.integers(1, 7))
def test_matching_undoes_any_permutation(seed, batch_size):
    rng = np.random.default_rng(seed)
    truth = rng.random((3, batch_size, 3, 4, 4))
    orders = np.stack([rng.permutation(batch_size) for _ in range(3)])
    noisy = truth + rng.normal(0, 0.01, truth.shape)
    shuffled = np.stack([noisy[k][orders[k]] for k in range(3)])
    found = match_batches(truth, shuffled)
    for k in range(3):
        np.testing.assert_array_equal(shuffled[k][found[k]], noisy[k])


def test_matching_minimises_the_total_not_each_in_turn():
    # Greedy would give 0.5 to its nearest 0.4 and leave 0.0 with 1.0 (total 1.01).
    truth = np.array([0.5, 0.0]).reshape(1, 2, 1, 1, 1)
    found = np.array([0.4, 1.0]).reshape(1, 2, 1, 1, 1)
    assert match_batches(truth, found).tolist() == [[1, 0]]


# --- the metric stage


def test_measure_gives_one_tidy_row_per_covered_victim(tmp_path):
    data = victims(12)
    found = attack(data, 4, noise=0.1)["reconstruction"][:2]
    frame = measure(data, {"reconstruction": found}, {**RUN, "batch_size": 4})
    assert list(frame) == [*RUN, "victim", "index", "label", "mse", "psnr", "ssim"]
    assert frame["victim"].tolist() == list(range(8))
    assert frame["index"].tolist() == data["index"][:8].tolist()
    assert frame["psnr"].between(18, 30).all()  # would be about 8 dB if left unmatched
    write_metrics(tmp_path / "metrics.csv", frame)
    assert_frame_equal(read_metrics(tmp_path / "metrics.csv"), frame, rtol=1e-8, check_dtype=False)


def test_names_that_pandas_takes_for_missing_survive(tmp_path):
    frame = rows(defense="none", auxiliary="", variant="null")
    write_metrics(tmp_path / "metrics.csv", frame)
    again = read_metrics(tmp_path / "metrics.csv")
    assert set(again["defense"]) == {"none"}
    assert set(again["variant"]) == {"null"}
    assert set(again["auxiliary"]) == {""}


def test_a_metric_that_cannot_be_had_survives_as_an_empty_column(tmp_path):
    frame = rows(n=4).assign(lpips=np.nan)
    write_metrics(tmp_path / "metrics.csv", frame)
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].endswith(",")
    again = read_metrics(tmp_path / "metrics.csv")
    assert again["lpips"].dtype == float
    assert again["lpips"].isna().all()
    write_metrics(tmp_path / "again.csv", again)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "metrics.csv").read_bytes()


def _broken(data, found, run, what):
    if what == "nan":
        found["reconstruction"][1, 0, 0, 0, 0] = np.nan
    elif what == "too many":
        found["reconstruction"] = np.repeat(found["reconstruction"], 2, axis=0)
    elif what == "shape":
        found["reconstruction"] = found["reconstruction"][..., :16]
    elif what == "batch size":
        run["batch_size"] = 4
    elif what == "metadata":
        del run["attack"]
    elif what == "type":
        data["image"] = data["image"].astype(np.float32)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "hold NaN or infinity .the first is batch 1"),
        ("too many", "24 batches of 1 reconstructions but only 12 victims"),
        ("shape", r"expected .n_batches, B, 3, 32, 32"),
        ("batch size", "metadata says batch size 4"),
        ("metadata", "lacks attack"),
        ("type", "expected uint8"),
    ],
)
def test_measure_refuses_what_it_cannot_compare(what, message):
    data, run = victims(12), dict(RUN)
    found = attack(data, 1, noise=0.1)
    _broken(data, found, run, what)
    with pytest.raises(LTIError, match=message):
        measure(data, found, run)


# --- the interval and the summary


def test_bootstrap_interval_agrees_with_scipy_and_theory():
    from scipy.stats import bootstrap

    values = np.random.default_rng(0).gamma(2.0, size=150)
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    other = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    error = values.std() / np.sqrt(len(values))
    assert low == pytest.approx(other.confidence_interval.low, abs=0.08 * error)
    assert high == pytest.approx(other.confidence_interval.high, abs=0.08 * error)
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.04)


def test_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(3.0, size=40), rng, resamples=400)
        covered += low <= 3.0 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_one_value_has_no_interval():
    assert np.isnan(bootstrap_interval(np.ones(1), np.random.default_rng(0))).all()


def test_summary_has_exactly_the_agreed_columns_and_values():
    frame = rows()
    summary = summarise(frame)
    assert tuple(summary) == SUMMARY_COLUMNS
    assert ",".join(SUMMARY_COLUMNS) == (
        "dataset,fl_model,batch_size,defense,attack,metric,mean,low,high,n,paper"
    )
    assert summary["metric"].tolist() == ["mse", "psnr", "ssim"]
    for _, row in summary.iterrows():
        assert row["mean"] == pytest.approx(frame[row["metric"]].mean())
        assert row["low"] < row["mean"] < row["high"]
        assert row["n"] == 12
    assert summary["paper"].isna().all()


def test_a_cell_does_not_depend_on_the_others_nor_on_the_order_of_rows():
    one, two = rows(), rows(attack="ig", variant="ig", auxiliary="").assign(beta=0.5)
    alone = summarise(one)
    among = summarise([two, one.sample(frac=1, random_state=0)])
    among = among[among["attack"] == "lti"].reset_index(drop=True)
    assert_frame_equal(alone, among, check_exact=True)


def test_columns_that_only_other_runs_have_do_not_change_a_number():
    sized = rows().assign(size=5000)
    alone = summarise(sized)
    among = summarise([rows(defense="none"), sized])
    among = among[among["defense"] == "sign"].reset_index(drop=True)
    assert_frame_equal(alone, among, check_exact=True)


def test_a_metric_that_cannot_be_had_has_empty_rows_where_it_was_asked_for():
    asked, other = rows().assign(lpips=np.nan), rows(attack="ig", variant="ig", auxiliary="")
    summary = summarise([asked, other])
    (row,) = summary[summary["metric"] == "lpips"].to_dict("records")
    assert row["attack"] == "lti"
    assert row["n"] == 12
    assert np.isnan([row["mean"], row["low"], row["high"]]).all()
    alone = summarise(rows())
    kept = summary[(summary["metric"] != "lpips") & (summary["attack"] == "lti")]
    assert_frame_equal(kept.reset_index(drop=True), alone, check_exact=True)


def test_batches_are_resampled_whole():
    # Victims of a batch agree entirely: 4 batches of 25 hold 4 independent values, not 100.
    frame = pd.DataFrame({**RUN, "batch_size": 25, "victim": range(100)})
    frame["psnr"] = np.repeat([10.0, 12.0, 14.0, 20.0], 25)
    (row,) = summarise(frame).to_dict("records")
    low, high = bootstrap_interval(np.array([10.0, 12, 14, 20]), np.random.default_rng(0))
    assert row["n"] == 100
    assert row["low"] == pytest.approx(low, abs=0.3)
    assert row["high"] == pytest.approx(high, abs=0.3)


def test_order_is_the_order_given():
    cells = [rows(defense=d, attack=a) for a in ("lti", "ig") for d in ("gauss", "none", "x")]
    summary = summarise(cells, defenses=["none", "sign", "gauss"], attacks=["ig", "lti"])
    order = list(dict.fromkeys(zip(summary["defense"], summary["attack"], strict=True)))
    expected = [(d, a) for d in ("none", "gauss", "x") for a in ("ig", "lti")]
    assert order == expected


def test_variant_and_other_columns_appear_only_where_they_tell_rows_apart():
    assert "variant" not in summarise([rows(), rows(attack="ig", variant="ig", auxiliary="")])
    two = summarise([rows(), rows(variant="wide")])
    assert list(two)[:6] == ["dataset", "fl_model", "batch_size", "defense", "attack", "variant"]
    assert two["variant"].unique().tolist() == ["lti", "wide"]
    sizes = summarise([rows(auxiliary="5000"), rows(auxiliary="50000")])
    assert list(sizes)[5:7] == ["auxiliary", "metric"]
    seeds = summarise([rows(seed=0), rows(seed=1)])
    assert list(seeds)[5:7] == ["seed", "metric"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: pd.concat([f, f]), "victim 0 occurs twice"),
        (lambda f: f.iloc[:-1], "only in part"),
        (lambda f: f.assign(psnr=f["psnr"].where(f["victim"] != 3)), "psnr is missing for 1 of 12"),
        (lambda f: f.iloc[:0], "no metric rows"),
        (lambda f: f.drop(columns="seed"), "lack the columns seed"),
        (lambda f: f.assign(paper_defense=["sign"] + [""] * 11), "expected one"),
    ],
)
def test_summary_refuses_rows_that_would_mislead(change, message):
    with pytest.raises(LTIError, match=message):
        summarise(change(rows(batch_size=4)))
