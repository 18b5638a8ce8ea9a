"""TAG: its distances and schedule by hand, the read-out, and a small language model attacked."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lti.attacks import ATTACKS, Observations, Reconstruction
from lti.attacks.matching import matching_objective
from lti.attacks.minimise import evenly_spaced, minimise, warm_up
from lti.attacks.parts import Part
from lti.attacks.tag import nearest_tokens
from lti.attacks.tag_distance import layer_weights, tag_distances
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS, FLModel, FLTask
from lti.fl_models.head import decoder_cross_entropy
from lti.fl_models.transformer import Transformer
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import group_gradient_function
from lti.progress import Progress
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator

CPU = Compute(torch.device("cpu"), torch.float32)
IDENTITY = PROJECTIONS["identity"]()
VOCABULARY, LENGTH = 30, 5


class Steps(Progress):
    """Counts steps; stops where told, as a killed run does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.count, self.stop_after = 0, stop_after
        super().__init__("test", every_seconds=1e9)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.count += 1
        if self.count == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def language_model() -> tuple[FLModel, nn.Module]:
    """A transformer of one layer over 30 tokens."""
    network = Transformer(
        VOCABULARY, width=16, feed_forward=32, heads=2, layers=1, positions=LENGTH, causal=False
    )
    network.initialise(torch.Generator().manual_seed(0))
    return FL_MODELS["transformer3"](), network.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def classifier() -> tuple[FLModel, nn.Module]:
    """A BERT of one layer over 30 tokens."""
    model = FL_MODELS["bert"](layers=1, width=16, heads=2, intermediate=24, pretrained="never")
    network = model.build(FLTask(2, VOCABULARY, LENGTH, 0))
    return model, network.requires_grad_(False)


def observe(pair, defense: str = "none", count: int = 3, size: int = 1, **settings) -> Observations:
    """What a server receives of ``count`` batches of ``size`` random texts."""
    model, network = pair
    method = DEFENSES[defense](**settings)
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(VOCABULARY, (count, size, LENGTH), generator=draw)
    label = torch.arange(count * size).view(count, size) % 2
    target = tokens if model.label_is_sample else label
    each = group_gradient_function(model, network)(
        tokens.flatten(0, 1)[:, None], target.flatten(0, 1)[:, None]
    )
    rows = method.defend(each, generator=torch_generator(0, "test"))
    return Observations(
        rows.view(count, size, -1).mean(dim=1),
        label if not model.label_is_sample else torch.zeros_like(label),
        size,
        model,
        network,
        method,
        (LENGTH,),
        projection=IDENTITY,
        tokens=tokens if model.label_is_sample else None,
    )


def attack(observations, folder: Path, steps: Progress | None = None, **settings) -> Reconstruction:
    return ATTACKS["tag"](**settings).reconstruct(
        observations, compute=CPU, seed=0, progress=steps or Steps(), checkpoints=folder
    )


# Distances

LAYOUT = ParameterLayout(("a", "b", "c"), ((2, 1), (1,), (1,)))


def test_weights_of_layers_fall_linearly_from_one():
    expected = torch.tensor([1.0, 1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(layer_weights(LAYOUT), expected)


def test_distances_by_hand():
    g = torch.tensor([[3.0, -2.0, 0.5, 1.0]])
    distances = tag_distances(0.1 * layer_weights(LAYOUT))

    def value(kind: str, *observed: float) -> float:
        return distances[kind](g, torch.tensor([observed])).item()

    # Differences 2, -2, 0.5, 4.
    l1 = 0.1 * (4 + 2 / 3 * 0.5 + 1 / 3 * 4)
    expected = 0.5 * (4 + 4 + 0.25 + 16 + l1)
    assert math.isclose(value("cosine", 1.0, 0.0, 0.0, -3.0), expected, rel_tol=1e-6)
    # Without the second and third.
    expected = 0.5 * (4 + 16 + 0.1 * (2 + 1 / 3 * 4))
    assert math.isclose(value("nonzero-cosine", 1.0, 0.0, 0.0, -3.0), expected, rel_tol=1e-6)
    # l = 3, 0, 0, 1.
    expected = 0.5 * (9 + 1 + 0.1 * (3 + 1 / 3))
    assert math.isclose(value("sign", -1.0, -1.0, 1.0, -1.0), expected, rel_tol=1e-6)


def test_same_signs_are_at_distance_zero_however_large_gradients_are():
    """Wu et al. 2023, supplement A."""
    g = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * 100
    distances = tag_distances(0.1 * layer_weights(LAYOUT))
    assert distances["sign"](g, g.sign()).tolist() == [0.0, 0.0]
    flipped = g.sign()
    flipped[1, 2] *= -1
    assert distances["sign"](g, flipped)[1] > 0


@pytest.mark.parametrize("kind", ["cosine", "sign", "nonzero-cosine"])
def test_derivatives_of_distances_are_those_of_plain_arithmetic(kind):
    draw = torch.Generator().manual_seed(1)
    g = torch.randn(3, 4, generator=draw, dtype=torch.float64, requires_grad=True)
    s = torch.randn(3, 4, generator=draw, dtype=torch.float64).round()
    v = layer_weights(LAYOUT).double()
    r = {
        "cosine": g - s,
        "sign": (-g * s).clamp_min(0),
        "nonzero-cosine": (g - s) * (s != 0),
    }[kind]
    plain = 0.5 * (r.square() + v * r.abs()).sum(dim=1)
    scale = torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64)
    distance = tag_distances(v)[kind](g, s)
    torch.testing.assert_close(distance, plain)
    (expected,) = torch.autograd.grad((plain * scale).sum(), g)
    torch.testing.assert_close(torch.autograd.grad((distance * scale).sum(), g)[0], expected)


class Products(FLModel):
    """Loss x . w with w in R^2: a sample's gradient is the sample itself."""

    def architecture(self, task: FLTask) -> nn.Module:
        return nn.Linear(2, 1, bias=False)

    def initialise(self, network: nn.Module) -> dict:
        return {}

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return output.mean()


@pytest.mark.parametrize(
    ("defense", "at", "residual"),
    [
        # Mean gradient (2, -1), observed (1, 0).
        ("none", "sample", (1.0, 1.0)),
        ("gauss", "sample", (1.0, 1.0)),
        ("prune", "sample", (1.0, 0.0)),
        ("sign", "batch", (0.0, 0.0)),
        # tanh(ln 2) = 3/5, tanh(ln 3) = 4/5: mean (4/5 + 4/5, -3/5 + 3/5) / 2.
        ("sign", "sample", (-0.2, 0.0)),
    ],
)
def test_objectives_of_batches(defense, at, residual):
    log2, log3 = math.log(2), math.log(3)
    dummy = [[4.0, -6.0], [0.0, 4.0]] if at == "batch" else [[4.0, -4.0], [0.0, 2.0]]
    if (defense, at) == ("sign", "sample"):
        dummy = [[log3, -log2], [log3, log2]]
    model = Products()
    objective = matching_objective(
        model,
        model.build(FLTask(1)),
        defense=DEFENSES[defense](defense_at=at),
        batch_size=2,
        distances=tag_distances(torch.tensor([0.1, 0.1])),
    )
    label = torch.zeros(1, 2, dtype=torch.int64)
    value = objective(torch.tensor([dummy]), label, torch.tensor([[1.0, 0.0]])).item()
    expected = 0.5 * sum(r**2 + 0.1 * abs(r) for r in residual)
    assert math.isclose(value, expected, rel_tol=1e-5, abs_tol=1e-7)


# Descent


def test_the_learning_rate_rises_and_falls_linearly():
    rate = warm_up(0.5, steps=4, iterations=14)
    rise = [0.5 * part for part in (0.25, 0.5, 0.75, 1.0)]
    fall = [0.5 * (14 - step) / 10 for step in range(4, 14)]
    assert [rate(step) for step in range(14)] == pytest.approx([*rise, *fall])
    assert rate(3) == rate(4) == 0.5
    # Shorter than the warm-up, and without one.
    assert [warm_up(1.0, steps=4, iterations=2)(step) for step in range(2)] == [0.25, 0.5]
    assert [warm_up(1.0, steps=0, iterations=2)(step) for step in range(2)] == [1.0, 0.5]


def test_gradients_are_clipped_problem_by_problem(tmp_path):
    """Steps of plain descent are as long as the gradients, and at most 1."""
    slope = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])

    def evaluate(variables):
        x, y = variables
        return (slope * torch.stack([x[:, 0], y[:, 0]], dim=1)).sum(dim=1), torch.cat([x, y], dim=1)

    result = minimise(
        evaluate,
        [torch.zeros(3, 1), torch.zeros(3, 1)],
        iterations=2,
        schedule=lambda step: 1.0,
        record=evenly_spaced(2),
        checkpoint=Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=1e9),
        progress=Steps(),
        optimiser=torch.optim.SGD,
        clip=1.0,
    )
    expected = torch.tensor([[-0.6, -0.8], [-0.3, -0.4], [0.0, 0.0]])
    torch.testing.assert_close(result.kept, expected)


def test_one_step_is_that_of_adamw(language_model, tmp_path):
    """Its first step is -lr sign(gradient) after the decay, up to epsilon."""
    observations = observe(language_model, count=1)
    settings = {"iterations": 2, "warmup": 1, "learning_rate": 0.25, "weight_decay": 0.5}
    draw = torch.randn(1, 1, LENGTH, 16, generator=torch_generator(0, "tag", "start"))
    start = (0.1 * draw).clamp(-0.1, 0.1)
    objective = matching_objective(
        *language_model,
        defense=observations.defense,
        batch_size=1,
        distances=ATTACKS["tag"]().distances(observations),
    )
    x = start.clone().requires_grad_()
    value = objective(x, observations.tokens, observations.gradient)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    gradient = gradient * min(1.0, 1 / float(gradient.norm()))
    after = start * (1 - 0.25 * 0.5) - 0.25 * gradient / (gradient.abs() + 1e-6)
    stepped = objective(after, observations.tokens, observations.gradient)
    result = attack(observations, tmp_path, **settings)
    torch.testing.assert_close(
        result.objective, torch.stack([value.detach(), stepped.detach()], dim=1)
    )


# The read-out


def test_the_nearest_token_is_that_of_the_greatest_cosine(monkeypatch):
    table = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.1, 0.1], [-2.0, 1.0], [-4.0, 2.0]])
    embedding = torch.tensor([[[5.0, 4.0], [0.3, 0.0]], [[-1.0, 0.5], [-0.1, -1.0]]])
    # By the product the first would be token 1; the last is closest to a token of zeros.
    expected = torch.tensor([[2, 1], [3, 0]], dtype=torch.int32)
    assert torch.equal(nearest_tokens(embedding, table), expected)
    monkeypatch.setattr("lti.attacks.tag.READ_OUT_BYTES", 1)
    assert torch.equal(nearest_tokens(embedding, table), expected)


# Attacks


def test_tag_recovers_most_tokens_of_a_small_language_model(language_model, tmp_path):
    observations = observe(language_model, count=4)
    result = attack(observations, tmp_path, iterations=200)
    assert result.sample.shape == (4, 1, LENGTH) and result.sample.dtype == torch.int32
    right = (result.sample == observations.tokens).float().mean()
    assert right > 0.8


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("defense", "settings"),
    [("none", {}), ("sign", {}), ("prune", {"rate": 0.9}), ("gauss", {"sigma": 0.01})],
)
@pytest.mark.parametrize("name", ["language_model", "classifier"])
def test_tag_lowers_the_objective_and_keeps_the_best_iterate(
    request, tmp_path, name, defense, settings, size
):
    pair = request.getfixturevalue(name)
    observations = observe(pair, defense, size=size, **settings)
    result = attack(observations, tmp_path, iterations=30, warmup=5)
    assert result.sample.shape == (3, size, LENGTH)
    assert int(result.sample.min()) >= 0 and int(result.sample.max()) < VOCABULARY
    assert result.objective.shape == (3, 30)
    assert bool((result.objective.amin(dim=1) < result.objective[:, 0]).all())


def test_victim_batches_are_independent_problems(language_model, tmp_path, monkeypatch):
    observations = observe(language_model, size=2)
    whole = attack(observations, tmp_path / "a", iterations=6, warmup=2)
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 0)  # one at a time
    steps = Steps()
    alone = attack(observations, tmp_path / "b", steps, iterations=6, warmup=2)
    assert steps.count == 18
    torch.testing.assert_close(whole.objective, alone.objective, rtol=1e-4, atol=1e-6)
    assert torch.equal(whole.sample, alone.sample)


def test_parts_have_the_bytes_of_one_job(language_model, tmp_path, monkeypatch):
    observations = observe(language_model, size=2)
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 0)
    method = ATTACKS["tag"](iterations=6, warmup=2)
    options = {"compute": CPU, "seed": 0, "progress": Steps(), "checkpoints": tmp_path}
    whole = method.reconstruct(observations, **options)
    parts = [method.reconstruct(observations, **options, part=Part(k, 2)) for k in range(2)]
    assert [len(part.sample) for part in parts] == [1, 2]
    joined = Reconstruction.joined(parts).tensors
    assert joined.keys() == whole.tensors.keys()
    assert all(torch.equal(joined[key], value) for key, value in whole.tensors.items())


def test_an_interrupted_attack_resumes_to_the_identical_result(
    language_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    observations = observe(language_model)
    expected = attack(observations, tmp_path / "whole", iterations=12, warmup=4)
    with pytest.raises(KeyboardInterrupt):
        attack(observations, tmp_path / "cut", Steps(stop_after=7), iterations=12, warmup=4)
    steps = Steps()
    result = attack(observations, tmp_path / "cut", steps, iterations=12, warmup=4)
    assert steps.count == 6  # killed inside the seventh step: six were saved
    assert torch.equal(result.sample, expected.sample)
    assert torch.equal(result.objective, expected.objective)


def test_the_memory_of_a_language_model_counts_its_logits(language_model, classifier):
    tag = ATTACKS["tag"]()
    for pair, logits in ((language_model, LENGTH * VOCABULARY), (classifier, 0)):
        one, two = (observe(pair, size=size) for size in (1, 2))
        per_sample = tag.floats_per_problem(one, None)
        assert tag.floats_per_problem(two, None) == 2 * per_sample
        other = per_sample - one.gradient.shape[1] * tag.floats_per_coordinate
        assert other >= 2 * logits and (logits or other == 0)


def test_tag_needs_text_and_labels(lenet, images, language_model, tmp_path):
    x, label = images[0][:2, None], images[1][:2, None]
    gradient = group_gradient_function(*lenet)(x, label)
    defense = DEFENSES["none"]()
    observations = Observations(
        gradient, label, 1, *lenet, defense, (3, 32, 32), projection=IDENTITY
    )
    with pytest.raises(LTIError, match="got observations of FL model lenet; expected one for text"):
        attack(observations, tmp_path)
    unknown = replace(observe(language_model), label=None, tokens=None)
    with pytest.raises(LTIError, match="got unknown labels"):
        attack(unknown, tmp_path)


# The loss of a fixed decoder


def test_a_fixed_decoders_cross_entropy_and_two_derivatives():
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(5000, 3, generator=draw, dtype=torch.float64)  # three blocks
    bias = torch.randn(5000, generator=draw, dtype=torch.float64)
    hidden = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    label = torch.randint(5000, (2, 4), generator=draw)
    up = torch.randn(2, 4, 3, generator=draw, dtype=torch.float64)
    results = []
    for fast in (True, False):
        if fast:
            loss = decoder_cross_entropy(hidden, weight, bias, label)
        else:
            logit = hidden @ weight.T + bias
            loss = nn.functional.cross_entropy(logit.mT, label, reduction="none")
        (first,) = torch.autograd.grad(loss.square().sum(), hidden, create_graph=True)
        (second,) = torch.autograd.grad((first * up).sum(), hidden)
        results.append((loss, first, second))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_an_improbable_tokens_cross_entropy_is_exact():
    weight = torch.tensor([[1.0], [-1.0]])
    label = torch.tensor([1])
    loss = decoder_cross_entropy(torch.tensor([[200.0]]), weight, torch.zeros(2), label)
    assert loss.tolist() == [400.0]


@pytest.mark.parametrize("patterns", [("layers.*",), ("layers.*", "decoder.*")])
def test_gradients_do_not_depend_on_which_loss_is_used(language_model, patterns, monkeypatch):
    model = FL_MODELS["transformer3"](attacked_parameters=patterns)
    network = language_model[1]
    token = torch.randint(VOCABULARY, (3, 2, LENGTH), generator=torch.Generator().manual_seed(0))
    fast = group_gradient_function(model, network)(token, token)
    monkeypatch.setattr(type(model), "loss_at", FLModel.loss_at)
    torch.testing.assert_close(fast, group_gradient_function(model, network)(token, token))
