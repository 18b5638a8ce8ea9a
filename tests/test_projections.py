"""Feature hashing against a dense matrix product, and in the chain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lti.compute import Compute
from lti.gradients.layout import ParameterLayout
from lti.inverters import INVERTERS
from lti.inverters.encoder import GradientEncoder, encoder_statistics
from lti.inverters.trained import TrainedInverter
from lti.projections import PROJECTIONS

LAYOUT = ParameterLayout(("linear.weight", "linear.bias", "scale"), ((4, 6), (4,), (12,)))


def matrix(bins: torch.Tensor, size: int) -> torch.Tensor:
    """The 0/1 matrix that hashing multiplies by, written out entry by entry."""
    dense = torch.zeros(len(bins), size, dtype=torch.float64)
    for coordinate, bin_ in enumerate(bins.tolist()):
        dense[coordinate, bin_] = 1
    return dense


@settings(deadline=None, max_examples=40)
@given(
    parameters=st.integers(1, 60),
    ratio=st.floats(0.01, 1.0),
    seed=st.integers(0, 5),
    rows=st.integers(1, 4),
)
def test_hashing_is_a_product_with_a_dense_matrix(parameters, ratio, seed, rows):
    hashing = PROJECTIONS["hash"](ratio=ratio, seed=seed)
    gradient = torch.randn(rows, parameters, generator=torch.Generator().manual_seed(seed))
    dense = matrix(hashing.bins(parameters), hashing.size(parameters))
    expected = gradient.double() @ dense
    torch.testing.assert_close(hashing.project(gradient).double(), expected, rtol=1e-5, atol=1e-5)
    counts = hashing.counts(parameters)
    assert counts.tolist() == dense.sum(dim=0).tolist()


def test_bins_are_of_the_seed_and_are_spread():
    first, again = (PROJECTIONS["hash"](ratio=0.5, seed=3).bins(10_000) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, PROJECTIONS["hash"](ratio=0.5, seed=4).bins(10_000))
    # 10,000 coordinates in 5,000 bins: a bin stays empty with probability exp(-2).
    empty = 1 - len(first.unique()) / 5_000
    assert empty == pytest.approx(torch.exp(torch.tensor(-2.0)).item(), abs=0.02)


def test_identity_keeps_all():
    identity = PROJECTIONS["identity"]()
    gradient = torch.randn(3, LAYOUT.total)
    assert identity.project(gradient) is gradient
    assert identity.layout(LAYOUT) == LAYOUT
    assert identity.counts(LAYOUT.total) is None


def test_noise_after_hashing_has_the_variance_of_noise_before_it():
    from lti.defenses import DEFENSES

    hashing, gauss = PROJECTIONS["hash"](ratio=0.3), DEFENSES["gauss"](sigma=0.2)
    zeros = torch.zeros(40_000, 20)
    before = hashing.project(
        gauss.randomise(zeros, generator=torch.Generator().manual_seed(0))
    ).var(dim=0)
    after = gauss.randomise(
        hashing.project(zeros),
        generator=torch.Generator().manual_seed(1),
        counts=hashing.counts(20),
    ).var(dim=0)
    torch.testing.assert_close(after, before, rtol=0.05, atol=1e-6)


def test_an_inverter_takes_whole_gradients_and_hashes_them_itself(tmp_path):
    hashing = PROJECTIONS["hash"](ratio=0.5)
    gradient = torch.randn(64, LAYOUT.total)
    hashed = hashing.project(gradient)
    layout = hashing.layout(LAYOUT)
    assert layout.total == 20 == hashed.shape[1]
    statistics = encoder_statistics(layout, lambda: iter([hashed]), power=0.5)
    assert GradientEncoder(layout, statistics)(hashed).isfinite().all()

    preset = INVERTERS["paper"](hidden=8)
    compute = Compute(torch.device("cpu"), torch.float32)
    from lti.defenses import DEFENSES

    trained = TrainedInverter(
        preset,
        LAYOUT,
        (3, 32, 32),
        network=preset.network(layout, (3, 32, 32), {}),
        defense=DEFENSES["none"](),
        projection=hashing,
        fl_model_digest="0" * 16,
        compute=compute,
    )
    trained.save(tmp_path / "inverter.safetensors")
    loaded = TrainedInverter.load(tmp_path / "inverter.safetensors", compute=compute)
    assert torch.equal(loaded.invert(gradient), trained.invert(gradient))
    assert loaded.projection == hashing and loaded.fl_model_digest == "0" * 16
