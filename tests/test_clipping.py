"""Clipping and DP-SGD, as sent and as attackers see them, and what privacy the noise gives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq
from scipy.stats import norm

from lti.attacks.likelihood import Gaussian, likelihood_of
from lti.attacks.refinement import Client
from lti.data import Samples, write_selection
from lti.defenses import DEFENSES
from lti.defenses.privacy import epsilon
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FLTask, attacked, save_fl_model
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import GradientStore, write_store
from lti.inverters.auxiliary_data import AuxiliaryData
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator
from lti.stages.gradients import observe

rows = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 30)),
    elements=st.floats(-1e3, 1e3, width=32),
)


@settings(deadline=None, max_examples=60)
@given(rows, st.floats(0.01, 100.0))
def test_clipping_scales_down_to_the_norm_and_no_further(gradient, limit):
    sent = DEFENSES["clip"](norm=limit).deterministic(torch.from_numpy(gradient)).numpy()
    length = np.sqrt((gradient.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
    expected = gradient / np.maximum(1.0, length / limit)
    np.testing.assert_allclose(sent, expected, rtol=1e-5, atol=1e-6)
    assert (np.linalg.norm(sent.astype(np.float64), axis=1) <= limit * (1 + 1e-5)).all()


def test_a_gradient_of_zero_stays_zero():
    assert torch.equal(DEFENSES["clip"]().deterministic(torch.zeros(2, 5)), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("at", "averaged", "deviation"), [("sample", 4, 3 * 0.5 / 4), ("batch", 1, 3 * 0.5)]
)
def test_dp_sgd_adds_noise_to_the_sum_of_clipped_gradients(at, averaged, deviation):
    """Of four, so that the mean has a fourth of z C, and not the half of independent noises."""
    defense = DEFENSES["dp-sgd"](norm=0.5, noise_multiplier=3.0, defense_at=at)
    gradient = torch.randn(1, 4, 20_000, generator=torch_generator(0, "gradient"))
    client = Client(None, None, defense, 4)  # type: ignore[arg-type]
    received = client.receive(gradient, torch_generator(0, "noise"))
    each = gradient.double().numpy()[0]
    if at == "batch":
        each = each.mean(axis=0, keepdims=True)
    each /= np.maximum(1.0, np.linalg.norm(each, axis=1, keepdims=True) / 0.5)
    noise = received.double().numpy()[0] - each.mean(axis=0)
    # Five standard errors of 20,000 draws.
    assert noise.std() == pytest.approx(deviation, rel=5 / (2 * 20_000) ** 0.5)
    assert abs(noise.mean()) < 5 * deviation / 20_000**0.5
    assert defense.deviation(averaged) == pytest.approx(deviation)


@pytest.fixture
def victims(lenet, tmp_path) -> tuple[Path, Samples]:
    random = np.random.default_rng(0)
    samples = Samples(
        random.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8),
        random.integers(0, 10, 8),
        np.arange(8),
    )
    facts = {"dataset": "x", "part": "victims", "seed": 0, "class_names": ["a"], "size": 8}
    write_selection(tmp_path / "v", samples, metadata=facts)
    save_fl_model(tmp_path / "m", tmp_path / "m.json", lenet.model, FLTask(10))
    return tmp_path, samples


def test_observed_batches_get_the_noise_of_one_sum(lenet, victims):
    folder, samples = victims
    observe(
        victims=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json({"use": "dp-sgd", "norm": 2.0, "noise_multiplier": 0.6}),
        batch_size=4,
        output=folder / "o",
        manifest=folder / "o.json",
    )
    each = per_sample_gradient_function(*lenet)(
        torch.from_numpy(samples.value) / 255, torch.from_numpy(samples.label)
    ).numpy()
    each = each / np.maximum(1.0, np.linalg.norm(each, axis=1, keepdims=True) / 2.0)
    received = GradientStore.open(folder / "o", folder / "o.json").rows(0, 2).numpy()
    noise = received - each.reshape(2, 4, -1).mean(axis=1)
    assert noise.std() == pytest.approx(0.6 * 2.0 / 4, rel=5 / (2 * noise.size) ** 0.5)
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / noise.shape[1] ** 0.5


@pytest.mark.parametrize("hashed", [False, True])
def test_training_batches_get_the_noise_of_one_sum(lenet, tmp_path, hashed):
    """Rows of zeros, so that a training batch is nothing but its noise."""
    defense = DEFENSES["dp-sgd"](norm=2.0, noise_multiplier=0.6)
    layout = ParameterLayout.of(attacked(*lenet))
    projection = PROJECTIONS.parse({"use": "hash", "ratio": 0.5} if hashed else {"use": "identity"})
    width = projection.layout(layout).total
    store = write_store(
        tmp_path / "s",
        n_rows=8,
        dim=width,
        encoding="float32",
        compute=lambda start, stop: torch.zeros(stop - start, width),
        manifest=tmp_path / "s.json",
    )
    data = AuxiliaryData(
        store=store,
        value=torch.zeros(8, 3, 32, 32, dtype=torch.uint8),
        label=torch.zeros(8, dtype=torch.int64),
        classes=10,
        views=1,
        defense=defense,
        layout=layout,
        projection=projection,
        batch_size=4,
    )
    noise = data.observe(store.rows(0, 8), torch_generator(0, "noise")).double()
    counts = projection.counts(layout)
    spread = noise if counts is None else noise[:, counts > 0] / counts[counts > 0].sqrt()
    assert float(spread.std()) == pytest.approx(0.3, rel=5 / (2 * spread.numel()) ** 0.5)


@pytest.mark.parametrize("at", ["sample", "batch"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("use", ["clip", "dp-sgd"])
def test_likelihoods_predict_what_is_sent_but_for_noise(lenet, images, use, size, at):
    further = {"noise_multiplier": 0.5} if use == "dp-sgd" else {}
    defense = DEFENSES[use](norm=0.7, defense_at=at, **further)
    client = Client(*lenet, defense, size)
    x, label = images[0][:size][None], images[1][:size][None]
    gradient = client.gradients(x, label)
    assert float(gradient.norm(dim=2).min()) > 0.7  # so that clipping does something
    width = torch.full((gradient.shape[2],), 1e-3)
    likelihood = likelihood_of(defense, batch_size=size, width=width)
    assert isinstance(likelihood, Gaussian)
    predicted = client.predict(likelihood, x, label)
    quiet = DEFENSES["clip"](norm=0.7, defense_at=at)
    sent = Client(*lenet, quiet, size).receive(gradient, torch.Generator())
    torch.testing.assert_close(predicted, sent, rtol=1e-4, atol=1e-6)
    if use == "dp-sgd":
        averaged = size if at == "sample" else 1
        std = torch.hypot(torch.tensor(0.5 * 0.7 / averaged), width)
        torch.testing.assert_close(likelihood.std, std)
    else:
        assert torch.equal(likelihood.std, width)


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 50)])
def test_epsilon_without_sampling_is_that_of_gaussian_noise(noise, rounds):
    """Balle and Wang 2018, theorem 8: the Gaussian mechanism, exactly; rounds add up to one."""
    mu = rounds**0.5 / noise

    def delta(eps: float) -> float:
        return norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)

    exact = brentq(lambda eps: delta(eps) - 1e-5, 0.0, 50.0)
    setting = {"noise_multiplier": noise, "sampling_rate": 1.0, "rounds": rounds, "delta": 1e-5}
    assert exact <= epsilon(**setting) <= exact + 0.02
    assert exact <= epsilon(**setting, accountant="rdp") <= 1.15 * exact


def test_epsilon_with_sampling_is_that_of_renyi_privacy():
    """Mironov, Talwar and Zhang 2019, section 3.3: integer orders, summed by hand."""
    z, q, rounds, delta = 1.1, 256 / 60_000, 14_062, 1e-5
    best = math.inf
    for order in range(2, 36):
        terms = [
            math.comb(order, k)
            * (1 - q) ** (order - k)
            * q**k
            * math.exp((k * k - k) / (2 * z * z))
            for k in range(order + 1)
        ]
        divergence = rounds * math.log(math.fsum(terms)) / (order - 1)
        # Canonne, Kamath and Steinke 2020, proposition 12.
        more = math.log1p(-1 / order) - math.log(delta * order) / (order - 1)
        best = min(best, divergence + more)
    setting = {"noise_multiplier": z, "sampling_rate": q, "rounds": rounds, "delta": delta}
    found = epsilon(**setting, accountant="rdp")
    assert 0.99 * best < found <= best + 1e-9
    assert 0.8 * found < epsilon(**setting) < found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier: got 0.0; expected above 0"),
        ({"sampling_rate": 1.5}, "sampling_rate: got 1.5"),
        ({"rounds": 0}, "rounds: got 0; expected 1 or more"),
        ({"delta": 1.0}, "delta: got 1.0"),
        ({"accountant": "gdp"}, "accountant: got 'gdp'"),
    ],
)
def test_epsilon_of_settings_out_of_range_is_refused(change, message):
    setting = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "rounds": 1, "delta": 1e-5}
    with pytest.raises(LTIError, match=message):
        epsilon(**{**setting, **change})
