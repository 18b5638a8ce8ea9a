"""ResNet20: its forward pass by plain calls, its per-sample gradients by single ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from lti.files import read_json
from lti.fl_models import (
    FL_MODELS,
    FLTask,
    attacked,
    load_fl_model,
    network_digest,
    save_fl_model,
)
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function

BLOCKS = [(group, number) for group in (1, 2, 3) for number in (1, 2, 3)]


@pytest.fixture(scope="module")
def model():
    return FL_MODELS["resnet20"](seed=0)


@pytest.fixture(scope="module")
def network(model):
    return model.build(FLTask(10)).requires_grad_(False)


def by_hand(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network without a single module; BatchNorm as a scale and a shift."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = state[f"{name}.weight"] / (1 + 1e-5) ** 0.5
        return x * scale[:, None, None] + state[f"{name}.bias"][:, None, None]

    x = functional.conv2d(x, state["conv.weight"], padding=1)
    x = functional.relu(norm(x, "norm"))
    for group, number in BLOCKS:
        block = f"block{group}{number}"
        stride = 2 if group > 1 and number == 1 else 1
        y = functional.conv2d(x, state[f"{block}.conv1.weight"], stride=stride, padding=1)
        y = functional.relu(norm(y, f"{block}.norm1"))
        y = norm(functional.conv2d(y, state[f"{block}.conv2.weight"], padding=1), f"{block}.norm2")
        if stride == 2:
            half = x[:, :, ::2, ::2]
            x = torch.zeros_like(y)
            quarter = x.shape[1] // 4
            x[:, quarter : 3 * quarter] = half
        x = functional.relu(x + y)
    return x.mean(dim=(2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def single_gradient(state, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """One sample's gradient by one backward pass through :func:`by_hand`."""
    weights = {
        name: value.detach().clone().requires_grad_()
        for name, value in state.items()
        if name.rpartition(".")[2] in ("weight", "bias")
    }
    logits = by_hand(weights, x[None])[0]
    loss = torch.logsumexp(logits, dim=0) - logits[label]
    parts = torch.autograd.grad(loss, list(weights.values()), create_graph=x.requires_grad)
    return torch.cat([part.flatten() for part in parts])


def test_resnet20_has_the_papers_size(model, network):
    layout = ParameterLayout.of(attacked(model, network))
    assert layout.total == 269_722
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    convolutions = [name for name, shape in shapes.items() if len(shape) == 4]
    assert len(convolutions) == 19 and not any("conv" in n and "bias" in n for n in shapes)
    (head,) = layout.linear_blocks()
    assert (head.outputs, head.inputs, head.bias.stop) == (10, 64, 269_722)
    assert ParameterLayout.of(attacked(model, model.build(FLTask(100)))).total == 269_722 + 90 * 65


def test_all_weights_are_uniform_and_decided_by_the_seed(model, network):
    weights = torch.cat([value.flatten() for value in network.parameters()])
    assert -0.5 <= float(weights.min()) < -0.4999 and 0.4999 < float(weights.max()) <= 0.5
    # Mean and variance of U(-1/2, 1/2), five standard errors either way.
    n = len(weights)
    assert abs(float(weights.mean())) < 5 * (1 / 12 / n) ** 0.5
    assert float(weights.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180 / n) ** 0.5)
    norms = torch.cat([v for n, v in network.named_parameters() if "norm" in n])
    assert len(norms) == 2 * (16 + 6 * (16 + 32 + 64))
    assert float(norms.var()) == pytest.approx(1 / 12, abs=5 * (1 / 180 / len(norms)) ** 0.5)
    torch.rand(100)  # the global stream has no part in it
    assert network_digest(model.build(FLTask(10))) == network_digest(network)
    assert network_digest(FL_MODELS["resnet20"](seed=1).build(FLTask(10))) != network_digest(
        network
    )


def test_the_forward_pass_is_the_one_written_by_hand(model, network, images):
    exact = copy.deepcopy(network).double()
    x = images[0].double()
    expected = by_hand(exact.state_dict(), x)
    torch.testing.assert_close(exact(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(network(images[0]).double(), expected, rtol=1e-3, atol=1e-3)
    loss = -torch.log_softmax(expected, dim=1)[torch.arange(len(x)), images[1]].mean()
    torch.testing.assert_close(model.loss(exact(x), images[1]), loss)


def test_per_sample_gradients_are_those_of_single_backward_passes(model, network, images):
    exact = copy.deepcopy(network).double()
    before = network_digest(exact)
    x, label = images[0][:3].double(), images[1][:3]
    gradients = per_sample_gradient_function(model, exact)
    rows = gradients(x, label)
    expected = torch.stack(
        [single_gradient(exact.state_dict(), a, b) for a, b in zip(x, label, strict=True)]
    )
    torch.testing.assert_close(rows, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))
    assert network_digest(exact) == before  # BatchNorm saw nothing
    # The other samples of a batch have no part in a row.
    torch.testing.assert_close(gradients(x[1:2], label[1:2])[0], rows[1], rtol=1e-9, atol=1e-9)
    other = torch.stack([x[0], 1 - x[1], x[2]])
    changed = gradients(other, label)
    torch.testing.assert_close(changed[[0, 2]], rows[[0, 2]], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(changed[1], rows[1])


def test_per_sample_gradients_are_differentiable_in_the_samples(model, network, images):
    exact = copy.deepcopy(network).double()
    x, label = images[0][:2].double().requires_grad_(), images[1][:2]
    direction = torch.randn(2, 269_722, dtype=torch.float64, generator=torch.manual_seed(0))
    value = (per_sample_gradient_function(model, exact)(x, label) * direction).sum()
    (derivative,) = torch.autograd.grad(value, [x])
    assert float(derivative.abs().max()) > 0
    for number in range(2):
        single = x[number].detach().clone().requires_grad_()
        along = single_gradient(exact.state_dict(), single, label[number]) @ direction[number]
        (expected,) = torch.autograd.grad(along, [single])
        tolerance = 1e-8 * float(expected.abs().max())
        torch.testing.assert_close(derivative[number], expected, rtol=1e-8, atol=tolerance)


def test_a_saved_model_comes_back_with_its_buffers(tmp_path, model, network):
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, FLTask(10))
    loaded_model, loaded = load_fl_model(tmp_path / "m.safetensors")
    assert loaded_model == model and not loaded.training
    assert not any(value.requires_grad for value in loaded.parameters())
    state, expected = loaded.state_dict(), network.state_dict()
    assert list(state) == list(expected)
    for name, value in state.items():
        assert value.dtype == expected[name].dtype and value.shape == expected[name].shape
        assert torch.equal(value, expected[name])
    counted = state["block11.norm1.num_batches_tracked"]
    assert counted.dtype == torch.int64 and counted.shape == ()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, torch.full_like(value, float(name.endswith("var"))))
    card = read_json(tmp_path / "m.json")
    assert (
        card["fl_model"] == {"use": "resnet20", "seed": 0, "attacked_parameters": ["*"]}
        and card["parameters"] == 269_722
    )
    assert card["digest"] == network_digest(loaded)
