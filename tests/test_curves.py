"""Curves over the auxiliary set's size or beta: means, bands, figure."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from lti.errors import LTIError
from lti.metrics.curves import CURVE_COLUMNS, curves, two_way_interval
from lti.metrics.measure import write_metrics
from lti.seeding import numpy_generator
from lti.stages.draw_curves import draw_curves


def run(size: int, seed: int, values: np.ndarray, **changes: object) -> pd.DataFrame:
    """Metric rows of one run on as many victims as there are values."""
    columns = {
        "dataset": "cifar10",
        "fl_model": "lenet",
        "batch_size": 1,
        "defense": "sign",
        "attack": "lti",
        "variant": "lti",
        "auxiliary": f"cifar10-n{size}-s{seed}",
        "aux_size": size,
        "aux_seed": seed,
        "beta": 1.0,
        "seed": 0,
        "victim": np.arange(len(values)),
        "index": np.arange(len(values)),
        "label": 0,
        "psnr": values,
        "mse": 10 ** (-values / 10),
        "paper_defense": "",
    }
    return pd.DataFrame(columns | changes)


def test_interval_covers_the_mean_as_often_as_it_says():
    """Effects of seeds and of victims: resampling victims alone would cover half as often."""
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        seeds = generator.normal(size=(8, 1)) * 0.3
        victims = generator.normal(size=(1, 40))
        values = seeds + victims + 0.1 * generator.normal(size=(8, 40))
        low, high = two_way_interval(values, numpy_generator(trial, "test"), resamples=400)
        covered += low <= 0 <= high
    assert 0.87 <= covered / 200 <= 0.99


def test_interval_of_one_seed_is_that_of_its_victims():
    values = np.random.default_rng(1).normal(size=(1, 300))
    low, high = two_way_interval(values, numpy_generator(0, "test"))
    half = 1.96 * values.std() / np.sqrt(300)
    np.testing.assert_allclose((high - low) / 2, half, rtol=0.05)
    assert np.isnan(two_way_interval(values[:, :1], numpy_generator(0, "test"))).all()


def test_points_are_means_over_seeds_and_victims_in_order():
    generator = np.random.default_rng(2)
    values = {key: generator.normal(18, 2, size=12) for key in ((64, 0), (16, 0), (16, 1))}
    frames = [run(*key, array) for key, array in values.items()]
    frames += [run(*key, array + 1, defense="none") for key, array in values.items()]
    points = curves(frames, over="aux_size", names=["psnr", "mse"])
    assert list(points) == list(CURVE_COLUMNS)
    assert points["metric"].tolist() == ["psnr"] * 4 + ["mse"] * 4
    assert points["x"].tolist() == [16, 64] * 4
    assert points["defense"].tolist() == ["sign", "sign", "none", "none"] * 2
    first = points.iloc[0]
    np.testing.assert_allclose(first["mean"], (values[16, 0].mean() + values[16, 1].mean()) / 2)
    assert (first["n"], first["seeds"]) == (12, 2)
    assert first["low"] < first["mean"] < first["high"]
    assert points.iloc[1]["seeds"] == 1


def test_batches_are_whole_and_what_was_not_measured_stays_empty():
    values = np.repeat(np.random.default_rng(3).normal(size=5), 4)
    frame = run(16, 0, values, batch_size=4, mse=np.nan)
    psnr, mse = (curves([frame], over="beta", names=[name]).iloc[0] for name in ("psnr", "mse"))
    few = curves([run(16, 0, values[::4])], over="beta", names=["psnr"]).iloc[0]
    assert psnr["n"] == 20 and psnr["x"] == 1.0
    np.testing.assert_allclose(psnr["high"] - psnr["low"], few["high"] - few["low"], rtol=0.1)
    assert np.isnan([mse["mean"], mse["low"], mse["high"]]).all()


def test_what_cannot_be_a_curve_is_refused():
    values = np.arange(4.0)
    with pytest.raises(LTIError, match="no curve to compute"):
        curves([], over="beta", names=["psnr"])
    with pytest.raises(LTIError, match="no aux_size; expected attacks that use"):
        curves([run(16, 0, values, aux_size="")], over="aux_size", names=["psnr"])
    with pytest.raises(LTIError, match="missing for some victims of some seeds"):
        curves([run(16, 0, values), run(16, 1, values[:3])], over="aux_size", names=["psnr"])
    with pytest.raises(LTIError, match="no metric ssim"):
        curves([run(16, 0, values)], over="aux_size", names=["ssim"])


def test_stage_draws_fixed_bytes_and_writes_the_points(tmp_path):
    generator = np.random.default_rng(4)
    paths = []
    for size in (16, 64, 256):
        for seed in (0, 1):
            paths.append(tmp_path / f"{size}-{seed}.csv")
            write_metrics(paths[-1], run(size, seed, generator.normal(15, 1, size=10)))
    for name in "ab":
        draw_curves(
            metrics=paths,
            metric=["mse", "psnr"],
            over="aux_size",
            note="Trained for 10 steps.",
            output=tmp_path / f"{name}.png",
            pdf=tmp_path / f"{name}.pdf",
            data=tmp_path / f"{name}.data.csv",
        )
    for suffix in ("png", "pdf", "data.csv"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    points = pd.read_csv(tmp_path / "a.data.csv")
    assert points["x"].tolist() == [16, 64, 256] * 2
    image = matplotlib.image.imread(tmp_path / "a.png")[..., :3]
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20  # bands, not an empty panel
    with pytest.raises(LTIError, match="--over: got 'seed'; expected one of aux_size, beta"):
        draw_curves(
            metrics=paths,
            metric=["psnr"],
            over="seed",
            output=tmp_path / "c.png",
            pdf=tmp_path / "c.pdf",
            data=tmp_path / "c.csv",
        )
