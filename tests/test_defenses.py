"""Defenses against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.seeding import torch_generator

SIGN, NONE = DEFENSES["sign"](), DEFENSES["none"]()


def stream(name: str = "noise") -> torch.Generator:
    return torch_generator(0, name)


gradients = arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 60)),
    elements=st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]),
).map(torch.from_numpy)


def test_no_defense_changes_nothing():
    rows = torch.tensor([[1.5, -2.0, 0.0]])
    assert torch.equal(NONE.defend(rows.clone(), generator=stream()), rows)
    assert NONE.is_deterministic_identity and not NONE.is_random


def test_sign_sends_minus_one_zero_or_one():
    rows = torch.tensor([[0.3, -2.0, 0.0, -0.0, 1e-30], [-1e-30, 7.0, -7.0, 0.0, 1.0]])
    expected = torch.tensor([[1.0, -1.0, 0.0, 0.0, 1.0], [-1.0, 1.0, -1.0, 0.0, 1.0]])
    assert torch.equal(SIGN.defend(rows, generator=stream()), expected)


def test_pruning_keeps_the_largest_magnitudes_of_the_whole_gradient():
    rows = torch.tensor([[0.1, -3.0, 0.2, 2.0, -0.3], [5.0, 0.4, -0.5, 0.1, -6.0]])
    expected = torch.tensor([[0.0, -3.0, 0.0, 2.0, 0.0], [5.0, 0.0, 0.0, 0.0, -6.0]])
    assert torch.equal(DEFENSES["prune"](rate=0.6).defend(rows, generator=stream()), expected)


@pytest.mark.parametrize(
    ("parameters", "rate", "kept"),
    [(15_826, 0.99, 158), (15_826, 0.5, 7913), (10, 0.9, 1), (10, 0.99, 1), (1, 0.5, 1)],
)
def test_pruning_keeps_the_rounded_share(parameters, rate, kept):
    defense = DEFENSES["prune"](rate=rate)
    assert defense.kept(parameters) == kept
    row = torch.randn(1, parameters, generator=torch.Generator().manual_seed(0))
    pruned = defense.deterministic(row)
    assert int((pruned != 0).sum()) == kept
    # Independently: a threshold between the k-th and the next magnitude.
    order = row.abs().flatten().sort(descending=True).values
    expected = torch.where(row.abs() >= order[kept - 1], row, 0.0)
    assert torch.equal(pruned, expected)


def test_ties_do_not_change_how_many_are_kept():
    rows = torch.tensor([[1.0, -1.0] * 50, [2.0] * 3 + [1.0] * 97])
    pruned = DEFENSES["prune"](rate=0.9).deterministic(rows)
    assert (pruned != 0).sum(dim=1).tolist() == [10, 10]
    assert pruned[1, :3].tolist() == [2.0] * 3


@settings(deadline=None, max_examples=60)
@given(gradients, st.floats(0.05, 0.95))
def test_pruning_is_idempotent_and_never_changes_a_value(rows, rate):
    defense = DEFENSES["prune"](rate=rate)
    pruned = defense.deterministic(rows)
    assert torch.equal(defense.deterministic(pruned), pruned)
    assert bool(((pruned == 0) | (pruned == rows)).all())
    kept = defense.kept(rows.shape[1])
    assert bool(((pruned != 0).sum(dim=1) == (rows != 0).sum(dim=1).clamp_max(kept)).all())
    dropped = torch.where(pruned == 0, rows, 0.0).abs().amax(dim=1)
    smallest = torch.where(pruned == 0, torch.inf, pruned).abs().amin(dim=1)
    assert bool((dropped <= smallest).all())


@settings(deadline=None, max_examples=60)
@given(gradients, st.sampled_from([2.0, 3.0, 2.0**20]))
def test_signs_do_not_depend_on_the_scale(rows, factor):
    signs = SIGN.deterministic(rows)
    assert torch.equal(SIGN.deterministic(rows * factor), signs)
    assert torch.equal(SIGN.deterministic(-rows), -signs)
    assert torch.equal(SIGN.deterministic(signs), signs)


def test_noise_has_the_stated_deviation_and_is_decided_by_the_generator():
    defense = DEFENSES["gauss"](sigma=0.1)
    rows = torch.linspace(-1, 1, 200_000).reshape(4, 50_000)
    noisy = defense.defend(rows.clone(), generator=stream())
    assert torch.equal(defense.defend(rows.clone(), generator=stream()), noisy)
    assert not torch.equal(defense.defend(rows.clone(), generator=stream("other")), noisy)
    noise = ((noisy - rows) / 0.1).double().numpy()
    # Five standard errors of 200,000 standard normal draws.
    assert abs(noise.mean()) < 5 / 200_000**0.5
    assert noise.var() == pytest.approx(1, abs=5 * (2 / 200_000) ** 0.5)
    assert (noise**4).mean() == pytest.approx(3, abs=5 * (96 / 200_000) ** 0.5)
    correlation = np.corrcoef(noise)
    assert np.abs(correlation - np.eye(4)).max() < 5 / 50_000**0.5
    expected = rows + 0.1 * torch.randn(rows.shape, generator=stream())
    torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-6)
    assert torch.equal(defense.deterministic(rows), rows)


def test_noise_after_summing_is_distributed_as_noise_before_it():
    """An explicit 0/1 matrix: entry j of a hashed row sums up the coordinates of bin j."""
    defense = DEFENSES["gauss"](sigma=0.3)
    bins = torch.tensor([0] + [1] * 2 + [2] * 5 + [3] * 12)  # counts 1, 2, 5, 12
    matrix = torch.zeros(20, 4).scatter_(1, bins[:, None], 1.0)
    counts = matrix.sum(dim=0)
    draws = 40_000
    gradient = torch.randn(20, generator=torch.Generator().manual_seed(1))
    rows = gradient.expand(draws, 20)
    before = defense.randomise(rows.clone(), generator=stream()) @ matrix
    after = defense.randomise(rows @ matrix, generator=stream("after"), counts=counts)
    spread = 0.3 * counts.sqrt()
    for hashed in (before, after):
        mean, deviation = hashed.double().mean(dim=0), hashed.double().std(dim=0)
        assert bool(((mean - gradient @ matrix).abs() < 5 * spread / draws**0.5).all())
        torch.testing.assert_close(deviation, spread.double(), rtol=5 / (2 * draws) ** 0.5, atol=0)
        correlation = torch.corrcoef(hashed.T) - torch.eye(4)
        assert float(correlation.abs().max()) < 5 / draws**0.5
    # The whole distribution, not only two moments: the largest gap of the two empirical ones.
    for column in range(4):
        both = torch.cat([before[:, column], after[:, column]])
        steps = torch.cat([torch.full((draws,), 1.0), torch.full((draws,), -1.0)])
        gap = steps[both.argsort()].cumsum(0).abs().max() / draws
        assert float(gap) < 2 * (2 / draws) ** 0.5  # p < 0.001 by Kolmogorov and Smirnov


def test_counts_of_one_change_nothing():
    defense = DEFENSES["gauss"](sigma=0.2)
    rows = torch.zeros(3, 7)
    plain = defense.randomise(rows.clone(), generator=stream())
    ones = defense.randomise(rows.clone(), generator=stream(), counts=torch.ones(7))
    assert torch.equal(plain, ones)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use": "prune", "rate": 1.0}, r"defenses\.rate: got 1\.0; .*less than 1"),
        ({"use": "prune", "rate": 0}, r"defenses\.rate: got 0; .*greater than 0"),
        ({"use": "gauss", "sigma": -0.1}, r"defenses\.sigma: got -0\.1; .*greater than 0"),
        (
            {"use": "sign", "sigma": 1},
            r"defenses\.sigma: unknown key \(value 1\); allowed: defense_at",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(LTIError, match=message):
        DEFENSES.parse(settings)
