"""Feature hashing against a dense matrix product, and in the chain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import digest_arrays, write_tensors
from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout
from lti.inverters import INVERTERS
from lti.inverters.base import Task
from lti.inverters.encoder import GradientEncoder, encoder_statistics
from lti.inverters.trained import TrainedInverter
from lti.projections import PROJECTIONS, FitSample, load_projection

LAYOUT = ParameterLayout(("linear.weight", "linear.bias", "scale"), ((4, 6), (4,), (12,)))


def flat(parameters: int) -> ParameterLayout:
    """A layout of one nameless parameter."""
    return ParameterLayout(("all",), ((parameters,),))


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
    layout = flat(parameters)
    size = max(1, round(parameters * ratio))
    dense = matrix(hashing.bins(layout), size)
    expected = gradient.double() @ dense
    hashed = hashing.project(gradient, layout=layout)
    torch.testing.assert_close(hashed.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(hashing.project(gradient, layout=layout), hashed)
    assert hashing.counts(layout).tolist() == dense.sum(dim=0).tolist()
    assert hashing.layout(layout) == ParameterLayout(("hashed",), ((size,),))


def test_a_row_is_hashed_alike_alone_and_among_others_on_any_number_of_threads():
    hashing = PROJECTIONS["hash"](ratio=0.06)
    gradient = torch.randn(9, 50_000, generator=torch.Generator().manual_seed(0))
    layout = flat(50_000)
    together = hashing.project(gradient, layout=layout)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(hashing.project(gradient, layout=layout), together)
    finally:
        torch.set_num_threads(threads)
    alone = torch.cat([hashing.project(row[None], layout=layout) for row in gradient])
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    ("names", "shapes", "weight", "bias", "rest"),
    [
        # Last in the network, and before a parameter that is no linear layer's.
        (
            ("first.weight", "first.bias", "last.weight", "last.bias"),
            ((5, 2), (5,), (3, 5), (3,)),
            slice(15, 30),
            slice(30, 33),
            list(range(15)),
        ),
        (
            ("last.bias", "scale", "last.weight", "conv.weight"),
            ((3,), (4,), (3, 5), (2, 2, 3)),
            slice(7, 22),
            slice(0, 3),
            [*range(3, 7), *range(22, 34)],
        ),
    ],
)
def test_the_last_linear_layer_can_be_kept_behind_the_bins(names, shapes, weight, bias, rest):
    layout = ParameterLayout(names, shapes)
    hashing = PROJECTIONS["hash"](ratio=0.4, seed=2, keep_head=True)
    bins = round(len(rest) * 0.4)
    projected = hashing.layout(layout)
    assert projected.names == ("hashed", "last.weight", "last.bias")
    assert projected.shapes == ((bins,), (3, 5), (3,))
    (block,) = projected.linear_blocks()
    gradient = torch.randn(4, layout.total, generator=torch.Generator().manual_seed(1))
    result = hashing.project(gradient, layout=layout)
    assert result.shape == (4, bins + 18)
    assert torch.equal(result[:, block.weight], gradient[:, weight])
    assert torch.equal(result[:, block.bias], gradient[:, bias])
    place = hashing.bins(layout)[rest]
    assert int(place.max()) < bins
    expected = gradient[:, rest].double() @ matrix(place, bins)
    torch.testing.assert_close(result[:, :bins].double(), expected, rtol=1e-5, atol=1e-5)
    counts = hashing.counts(layout)
    assert counts[:bins].sum() == len(rest) and counts[bins:].tolist() == [1] * 18


def test_a_network_without_a_head_cannot_keep_it():
    hashing = PROJECTIONS["hash"](keep_head=True)
    with pytest.raises(LTIError, match=r"no linear layer with a bias; its parameters are all\."):
        hashing.project(torch.zeros(1, 4), layout=flat(4))


def test_bins_are_of_the_seed_and_are_spread():
    first, again = (PROJECTIONS["hash"](ratio=0.5, seed=3).bins(flat(10_000)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, PROJECTIONS["hash"](ratio=0.5, seed=4).bins(flat(10_000)))
    # 10,000 coordinates in 5,000 bins: a bin stays empty with probability exp(-2).
    empty = 1 - len(first.unique()) / 5_000
    assert empty == pytest.approx(torch.exp(torch.tensor(-2.0)).item(), abs=0.02)


@pytest.mark.parametrize(
    ("parameters", "ratio", "seed", "first", "last", "digest"),
    [
        (15_826, 0.5, 0, [6810, 7613, 606], [4384, 6834, 6756], "1665f179b08045bf"),
        (269_722, 0.5, 0, [70546, 38288, 102804], [25113, 62890, 13659], "ecb04337141720ae"),
        (269_722, 0.01, 1, [1710, 1596, 1222], [1566, 1395, 28], "2b3d5a363590f0a5"),
    ],
)
def test_bins_are_those_that_stored_gradients_and_inverters_have(
    parameters, ratio, seed, first, last, digest
):
    bins = PROJECTIONS["hash"](ratio=ratio, seed=seed).bins(flat(parameters))
    assert bins.dtype == torch.int64
    assert bins[:3].tolist() == first and bins[-3:].tolist() == last
    assert digest_arrays({"bins": bins.numpy()}) == digest


def test_bins_beside_a_head_are_those_that_stored_gradients_have(lenet):
    layout = ParameterLayout.of(attacked(*lenet))
    bins = PROJECTIONS["hash"](ratio=0.5, seed=3, keep_head=True).bins(layout)
    assert bins[:3].tolist() == [888, 2098, 2984] and bins[-2:].tolist() == [11756, 11757]
    assert digest_arrays({"bins": bins.numpy()}) == "8890d0f331bc4875"


PARTS = ParameterLayout(
    ("embedding.weight", "norm.bias", "linear.weight", "linear.bias"), ((5, 3), (3,), (4, 3), (4,))
)


@pytest.mark.parametrize(
    "projection",
    [
        {"use": "identity"},
        {"use": "hash", "ratio": 0.3},
        {"use": "hash", "ratio": 0.3, "keep_head": True},
        {"use": "select", "parameters": ["linear.*", "e*"]},
    ],
)
@pytest.mark.parametrize("defense", ["none", "sign", "prune", "gauss"])
def test_parts_are_defended_and_projected_as_whole_rows_are(projection, defense):
    rows = torch.randn(3, PARTS.total, generator=torch.Generator().manual_seed(0))
    shapes = dict(zip(PARTS.names, PARTS.shapes, strict=True))
    parts = {name: part.unflatten(1, shapes[name]) for name, part in PARTS.split(rows).items()}
    assert torch.equal(PARTS.join(parts), rows)
    method, settings = DEFENSES[defense](), PROJECTIONS.parse(projection)
    expected = settings.project(method.deterministic(rows), layout=PARTS)
    defended = method.deterministic_parts(parts, layout=PARTS)
    assert torch.equal(settings.project_parts(defended, layout=PARTS), expected)
    assert torch.equal(PARTS.join(parts), rows)  # and nothing was written into them
    # The order in which parts come does not matter.
    backwards = dict(reversed(defended.items()))
    assert torch.equal(settings.project_parts(backwards, layout=PARTS), expected)


def test_an_entrywise_defense_never_sees_a_whole_gradient(monkeypatch):
    sign, seen = DEFENSES["sign"], []

    def spy(self, gradient):
        seen.append(gradient.shape[1])
        return gradient.sign()

    monkeypatch.setattr(sign, "deterministic", spy)
    parts = {name: torch.ones(2, *s) for name, s in zip(PARTS.names, PARTS.shapes, strict=True)}
    sign().deterministic_parts(parts, layout=PARTS)
    assert seen == [15, 3, 12, 4]


def test_identity_keeps_all():
    identity = PROJECTIONS["identity"]()
    gradient = torch.randn(3, LAYOUT.total)
    assert identity.project(gradient, layout=LAYOUT) is gradient
    assert identity.layout(LAYOUT) == LAYOUT
    assert identity.counts(LAYOUT) is None


def test_noise_after_hashing_has_the_variance_of_noise_before_it():
    hashing, gauss = PROJECTIONS["hash"](ratio=0.3), DEFENSES["gauss"](sigma=0.2)
    zeros = torch.zeros(40_000, 20)
    layout = flat(20)
    noisy = gauss.randomise(zeros, generator=torch.Generator().manual_seed(0))
    before = hashing.project(noisy, layout=layout).var(dim=0)
    after = gauss.randomise(
        hashing.project(zeros, layout=layout),
        generator=torch.Generator().manual_seed(1),
        counts=hashing.counts(layout),
    ).var(dim=0)
    torch.testing.assert_close(after, before, rtol=0.05, atol=1e-6)


def test_an_inverter_takes_gradients_under_its_projection_and_no_others(tmp_path):
    hashing = PROJECTIONS["hash"](ratio=0.5)
    gradient = torch.randn(64, LAYOUT.total)
    hashed = hashing.project(gradient, layout=LAYOUT)
    layout = hashing.layout(LAYOUT)
    assert layout.total == 20 == hashed.shape[1]
    statistics = encoder_statistics(layout, lambda: iter([hashed]), power=0.5)
    assert GradientEncoder(layout, statistics)(hashed).isfinite().all()

    preset = INVERTERS["paper"](hidden=8)
    task = Task(layout, (3, 32, 32), batch_size=1, classes=10)
    compute = Compute(torch.device("cpu"), torch.float32)
    trained = TrainedInverter(
        preset,
        task,
        LAYOUT,
        network=preset.network(task, {}),
        defense=DEFENSES["none"](),
        projection=hashing,
        projection_digest=None,
        fl_model_digest="0" * 16,
        compute=compute,
    )
    trained.save(tmp_path / "inverter.safetensors")
    loaded = TrainedInverter.load(tmp_path / "inverter.safetensors", compute=compute)
    assert torch.equal(loaded.invert(hashed), trained.invert(hashed))
    expected = loaded.network.decoder(loaded.network.encoder(hashed, None))
    assert torch.equal(loaded.invert(hashed), expected)
    with pytest.raises(LTIError, match=r"takes \(b, 20\): 40 coordinates under {.*'hash'}"):
        loaded.invert(gradient)
    assert loaded.projection == hashing and loaded.fl_model_digest == "0" * 16


def test_selection_keeps_the_matching_parameters_as_they_are():
    layout = ParameterLayout(
        ("conv.weight", "norm.weight", "block.norm.bias", "head.weight", "head.bias"),
        ((4,), (3,), (2,), (2, 3), (2,)),
    )
    selection = PROJECTIONS["select"](parameters=["*norm*", "head.*"])
    gradient = torch.arange(2 * 17.0).unflatten(0, (2, 17))
    kept = selection.project(gradient, layout=layout)
    assert torch.equal(kept, gradient[:, 4:])
    assert selection.layout(layout).names == layout.names[1:]
    assert selection.layout(layout).total == 13 and selection.counts(layout) is None
    # The head is still known for one.
    (block,) = selection.layout(layout).linear_blocks()
    assert torch.equal(kept[:, block.weight], gradient[:, 9:15])
    with pytest.raises(LTIError, match=r"'fc\.\*', which matches no parameter; there are conv\.w"):
        PROJECTIONS["select"](parameters=["fc.*"]).project(gradient, layout=layout)


def test_selection_keeps_a_share_of_the_coordinates_drawn_from_the_seed():
    layout = ParameterLayout(
        ("a.conv.weight", "b.conv.weight", "b.norm", "c.weight"), ((40,), (10, 10), (2,), (3,))
    )
    settings = {"parameters": ["a.*", "b.*"], "shares": {"b.conv*": 0.3, "*conv*": 0.5}}
    selection = PROJECTIONS["select"](**settings)
    gradient = torch.arange(145.0)[None]
    kept = selection.project(gradient, layout=layout)[0].int().tolist()
    assert selection.layout(layout).names == layout.names[:3]
    assert selection.layout(layout).shapes == ((20,), (30,), (2,))
    assert kept == sorted(set(kept)) and len(kept) == selection.layout(layout).total == 52
    assert [sum(place < 40 for place in kept), sum(40 <= place < 140 for place in kept)] == [20, 30]
    assert kept[-2:] == [140, 141]
    # The same draw every time, alone or beside others; another seed's is another.
    parts = layout.split(torch.cat([gradient, -gradient]))
    again = PROJECTIONS["select"](**settings).project_parts(parts, layout=layout)
    assert torch.equal(again[1], -torch.tensor(kept).float())
    other = PROJECTIONS["select"](**settings, seed=1).project(gradient, layout=layout)[0]
    assert other.int().tolist() != kept and len(other) == 52
    with pytest.raises(LTIError, match=r"select\.shares: got 'c\*', which matches no parameter; t"):
        PROJECTIONS["select"](parameters=["b.*"], shares={"c*": 0.5}).layout(layout)
    with pytest.raises(ValidationError):
        PROJECTIONS["select"](parameters=["b.*"], shares={"b*": 1.5})


def principal(**settings):
    return PROJECTIONS["principal"](**settings)


def having(gradient):
    """A sample that has these gradients."""
    layout = flat(gradient.shape[1])
    return FitSample(torch.zeros(len(gradient)), nn.Identity(), layout, gradient.clone)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), components=st.integers(1, 12), parameters=st.integers(2, 20))
def test_principal_components_are_those_of_the_covariance(seed, components, parameters):
    generator = torch.Generator().manual_seed(seed)
    gradient = torch.randn(40, parameters, generator=generator) * 2.0 ** -torch.arange(parameters)
    covariance = torch.cov(gradient.double().T)
    settings = principal(components=components)
    layout = flat(parameters)
    kept = min(components, parameters)
    assert settings.layout(layout).total == kept
    fitted = settings.fitted(settings.fit(having(gradient)))
    basis = fitted.tensors()["basis"].double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(kept).double(), rtol=0, atol=1e-5)
    # Of all subspaces of this size, the one with the most variance; its parts in falling order.
    got = (basis @ covariance @ basis.T).diagonal()
    best = torch.linalg.eigvalsh(covariance).flip(0)[:kept]
    torch.testing.assert_close(got, best, rtol=1e-3, atol=1e-9)
    # Projection is the product, whole or in parts.
    rows = torch.randn(3, parameters, generator=generator)
    expected = rows.double() @ basis.T
    torch.testing.assert_close(
        fitted.project(rows, layout=layout).double(), expected, rtol=1e-4, atol=1e-5
    )


def test_noise_keeps_its_variance_in_principal_components():
    gradient = torch.randn(60, 400, generator=torch.Generator().manual_seed(0))
    settings = principal(components=20)
    fitted = settings.fitted(settings.fit(having(gradient)))
    layout = flat(400)
    counts = fitted.counts(layout)
    noise = torch.randn(4000, 400, generator=torch.Generator().manual_seed(1))
    variance = fitted.project(noise, layout=layout).var(dim=0)
    torch.testing.assert_close(variance, counts, rtol=0.1, atol=0)


def test_a_projection_is_not_used_before_it_is_fitted_or_on_other_gradients():
    settings = principal(components=3)
    with pytest.raises(LTIError, match=r"principal is not fitted.*--fitted"):
        settings.project(torch.randn(2, 8), layout=flat(8))
    with pytest.raises(LTIError, match=r"3 gradients for 3 components.*more gradients"):
        settings.fit(having(torch.randn(3, 8)))
    fitted = settings.fitted(settings.fit(having(torch.randn(9, 8))))
    with pytest.raises(LTIError, match=r"gradients of 8 coordinates; got gradients of 9"):
        fitted.project(torch.randn(2, 9), layout=flat(9))
    other = settings.fitted(settings.fit(having(torch.randn(9, 8))))
    assert settings.digest is None
    assert fitted.digest != other.digest
    assert fitted.canonical() == settings.canonical()


def test_what_a_projection_is_made_of_must_be_of_these_gradients(tmp_path):
    settings = principal(components=3)
    facts = {"defense": {"use": "none"}, "fl_model_digest": "abc"}
    path = tmp_path / "fitted.safetensors"
    tensors = settings.fit(having(torch.randn(9, 8)))
    write_tensors(path, tensors, {"projection": settings.canonical(), **facts})

    def load(fitted, chosen=settings.canonical(), **changed):  # noqa: B008
        return load_projection(chosen, fitted, where="--projection", facts=facts | changed)

    assert load(path).digest == settings.fitted(tensors).digest
    assert load(None, {"use": "identity"}) == PROJECTIONS["identity"]()
    with pytest.raises(LTIError, match=r"principal needs the file"):
        load(None)
    with pytest.raises(LTIError, match=r"identity takes none"):
        load(path, {"use": "identity"})
    with pytest.raises(LTIError, match=r"made for fl_model_digest abc; expected def"):
        load(path, fl_model_digest="def")
    with pytest.raises(LTIError, match=r"made for projection .*expected .*4"):
        load(path, principal(components=4).canonical())


class Sequence(nn.Module):
    """Two linear layers on sequences of vectors, and one behind their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.last = nn.Linear(10, 3), nn.Linear(3, 4), nn.Linear(12, 2)

    def forward(self, x):
        y = self.narrow(self.wide(x).tanh())
        return self.last(torch.cat([y, y, y], dim=2).mean(dim=1))


def layer_inputs(**settings):
    return PROJECTIONS["layer-inputs"](**{"parameters": ["*"], "directions": 5} | settings)


def sequence_sample(length=4):
    torch.manual_seed(0)
    network = Sequence().eval()
    value = torch.randn(length, 10) + 0.3 * torch.randn(50, length, 10)
    layout = ParameterLayout.of(dict(network.named_parameters()))
    return FitSample(value, network, layout, gradients=lambda: None)


def test_layer_inputs_keeps_what_lies_along_the_inputs_of_a_layer():
    sample = sequence_sample()
    settings = layer_inputs()
    fitted = settings.fitted(settings.fit(sample))
    # Only the one layer that sees sequences of more than five numbers is cut down.
    tensors = fitted.tensors()
    assert sorted(tensors) == ["basis.wide.weight", "position.wide.weight"]
    basis = tensors["basis.wide.weight"]
    torch.testing.assert_close(basis @ basis.T, torch.eye(5), rtol=0, atol=1e-5)
    mean = sample.value.mean(dim=0)
    torch.testing.assert_close(mean @ basis.T, fitted.positions()["wide.weight"])
    torch.testing.assert_close(mean @ basis.T @ basis, mean, rtol=1e-4, atol=1e-4)
    # The fifth: of all directions outside of the means' span, that of the most energy.
    outside = torch.eye(10) - torch.linalg.pinv(mean) @ mean
    rows = sample.value.flatten(0, 1) @ outside
    most = torch.linalg.svd(rows, full_matrices=False)[1][0]
    torch.testing.assert_close((rows @ basis[4]).norm(), most, rtol=1e-3, atol=0)

    layout = fitted.layout(sample.layout)
    shape = dict(zip(layout.names, layout.shapes, strict=True))
    assert shape["wide.weight"] == (3, 5) and shape["narrow.weight"] == (4, 3)
    gradient = torch.randn(6, sample.layout.total)
    projected = layout.split(fitted.project(gradient, layout=sample.layout))
    whole = sample.layout.split(gradient)
    expected = whole["wide.weight"].unflatten(1, (3, 10)) @ basis.T
    torch.testing.assert_close(projected["wide.weight"], expected.flatten(1))
    assert torch.equal(projected["last.weight"], whole["last.weight"])
    assert torch.equal(fitted.counts(sample.layout), torch.ones(layout.total))


class Reader(nn.Module):
    """Two linear layers that see tokens, one that sees sequences, and one behind their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12)
        self.query, self.key = nn.Linear(12, 3), nn.Linear(12, 4)
        self.mixed, self.last = nn.Linear(7, 3), nn.Linear(3, 2)

    def forward(self, token):
        x = self.table(token)
        y = torch.cat([self.query(x), self.key(x)], dim=2).cumsum(dim=1).flip(1)
        return self.last(self.mixed(y).mean(dim=1))


def reader_sample():
    torch.manual_seed(0)
    network = Reader().eval()
    layout = ParameterLayout.of(dict(network.named_parameters()))
    return FitSample(torch.randint(20, (60, 4)), network, layout, gradients=lambda: None)


@pytest.mark.parametrize(
    ("coordinates", "whole"), [(0, []), (1, ["query"]), (83, ["query"]), (84, ["query", "key"])]
)
def test_layer_inputs_keeps_layers_of_tokens_whole_as_far_as_there_is_room(coordinates, whole):
    sample, settings = reader_sample(), layer_inputs(token_coordinates=coordinates)
    fitted = settings.fitted(settings.fit(sample))
    layout = fitted.layout(sample.layout)
    shape = dict(zip(layout.names, layout.shapes, strict=True))
    # The table of embeddings is no linear layer, and is left out.
    assert [name for name in sample.layout.names if name not in shape] == ["table.weight"]
    for name, outputs in (("query", 3), ("key", 4)):
        assert shape[f"{name}.weight"] == (outputs, 12 if name in whole else 5)
    assert shape["mixed.weight"] == (3, 5) and shape["last.weight"] == (2, 3)
    gradient = torch.randn(2, sample.layout.total)
    found = layout.split(fitted.project(gradient, layout=sample.layout))
    given = sample.layout.split(gradient)
    for name in [f"{name}.weight" for name in whole] + ["key.bias", "last.weight"]:
        assert torch.equal(found[name].flatten(1), given[name].flatten(1))


def test_layer_inputs_keeps_a_table_that_is_named():
    sample, settings = reader_sample(), layer_inputs(whole=["table.*"])
    layout = settings.fitted(settings.fit(sample)).layout(sample.layout)
    assert layout.shapes[layout.names.index("table.weight")] == (20, 12)


def test_layer_inputs_names_what_it_cannot_do():
    sample = sequence_sample()
    with pytest.raises(LTIError, match=r"got 5 directions for 6 positions.*Raise `directions`"):
        layer_inputs().fit(sequence_sample(length=6))
    for changed in ({"whole": ["wide.*"]}, {"parameters": ["last.*"]}, {"directions": 10}):
        with pytest.raises(LTIError, match=r"found no linear layer that sees sequences.*select"):
            layer_inputs(**changed).fit(sample)
    with pytest.raises(LTIError, match=r"whole: got 'fc', which matches no parameter"):
        layer_inputs(whole=["fc"]).fit(sample)
    with pytest.raises(LTIError, match="got token_coordinates for samples that are no tokens"):
        layer_inputs(token_coordinates=9).fit(sample)
    fitted = layer_inputs().fitted(layer_inputs().fit(sample))
    other = ParameterLayout(("wide.weight",), ((3, 11),))
    with pytest.raises(LTIError, match=r"layer wide.weight of 10 inputs; got \(3, 11\)"):
        fitted.layout(other)
    assert PROJECTIONS["identity"]().positions() == {}
