"""Federated averaging and Soteria: what a client sends is not made of the gradient alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lti.attacks.likelihood import likelihood_of
from lti.attacks.matching import matching_objective
from lti.data import Samples, write_selection
from lti.data.selection import read_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json
from lti.fl_models import FL_MODELS, FLTask, attacked, save_fl_model
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import group_gradient_function, per_sample_gradient_function
from lti.gradients.store import GradientStore
from lti.gradients.updates import client_update_function, sample_update_function
from lti.stages.gradients import compute_gradients, observe

COUNT = 6


@pytest.fixture
def folder(lenet, tmp_path) -> Path:
    random = np.random.default_rng(0)
    samples = Samples(
        random.integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8),
        random.integers(0, 10, COUNT),
        np.arange(COUNT),
    )
    facts = {"dataset": "x", "part": "auxiliary", "seed": 5, "class_names": ["a"], "size": COUNT}
    write_selection(tmp_path / "v", samples, metadata=facts)
    save_fl_model(tmp_path / "m", tmp_path / "m.json", lenet.model, FLTask(10))
    return tmp_path


def tensors(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    samples = read_selection(folder / "v").samples
    return torch.from_numpy(samples.value).float() / 255, torch.from_numpy(samples.label)


def stored(folder: Path, defense: dict) -> torch.Tensor:
    compute_gradients(
        auxiliary=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json(defense),
        output=folder / "g",
        manifest=folder / "g.json",
        threads=1,
    )
    return GradientStore.open(folder / "g", folder / "g.json").rows(0, COUNT)


def observed(folder: Path, defense: dict, batch_size: int) -> torch.Tensor:
    observe(
        victims=folder / "v",
        fl_model=folder / "m",
        defense=canonical_json(defense),
        batch_size=batch_size,
        output=folder / "o",
        manifest=folder / "o.json",
        threads=1,
    )
    store = GradientStore.open(folder / "o", folder / "o.json")
    return store.rows(0, COUNT // batch_size)


def trained(x: torch.Tensor, label: torch.Tensor, *, steps: int, rate: float) -> torch.Tensor:
    """Train a LeNet by torch's own optimiser and return the update, as a pseudo-gradient."""
    network = FL_MODELS["lenet"](seed=0).build(FLTask(10))
    before = torch.cat([p.detach().clone().flatten() for p in network.parameters()])
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), label).backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in network.parameters()])
    return (before - after) / (steps * rate)


def test_federated_averaging_is_observed_on_the_clients_whole_batch(folder):
    settings = {"use": "fedavg", "steps": 4, "rate": 0.5}
    x, label = tensors(folder)
    rows = observed(folder, settings, 3)
    for number, row in enumerate(rows):
        part = slice(3 * number, 3 * number + 3)
        expected = trained(x[part], label[part], steps=4, rate=0.5)
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=2e-5)
    each = stored(folder, settings)
    for number, row in enumerate(each):
        part = slice(number, number + 1)
        expected = trained(x[part], label[part], steps=4, rate=0.5)
        assert float((row - expected).norm() / expected.norm()) < 1e-3
    # Which is not the mean of clients with one sample each.
    apart = each.unflatten(0, (2, 3)).mean(dim=1) - rows
    assert float(apart.norm() / rows.norm()) > 0.02


def test_one_local_step_is_the_gradient(folder, lenet):
    x, label = tensors(folder)
    defense = DEFENSES["fedavg"](steps=1, rate=0.3)
    grouped = x.unflatten(0, (2, 3)), label.unflatten(0, (2, 3))
    found = client_update_function(defense, *lenet)(*grouped)
    torch.testing.assert_close(found, group_gradient_function(*lenet)(*grouped))


def test_matching_simulates_the_local_steps(folder, lenet):
    x, label = tensors(folder)
    grouped = x.unflatten(0, (2, 3)), label.unflatten(0, (2, 3))
    defense = DEFENSES["fedavg"](steps=3, rate=1.0)
    received = client_update_function(defense, *lenet)(*grouped)
    distance = matching_objective(*lenet, defense=defense, batch_size=3)
    sample = grouped[0].clone().requires_grad_()
    value = distance(sample, grouped[1], received)
    assert float(value.detach().abs().max()) < 1e-5
    plain = matching_objective(*lenet, defense=DEFENSES["none"](), batch_size=3)
    assert float(plain(*grouped, received).min()) > 1e-3
    (slope,) = torch.autograd.grad(
        distance(sample.flip(1) * 0.9, grouped[1], received).sum(), sample
    )
    assert bool(slope.isfinite().all()) and float(slope.norm()) > 0


def test_an_update_of_its_own_needs_a_store_of_its_own():
    for use in ("fedavg", "soteria"):
        defense = DEFENSES[use]()
        assert not defense.is_deterministic_identity
        assert not defense.waits_for_mean(4) and not defense.is_random
        assert likelihood_of(defense, batch_size=1, width=torch.ones(3)) is None
        with pytest.raises(LTIError, match="defense_at: got 'batch', where no gradient is"):
            DEFENSES.parse({"use": use, "defense_at": "batch"})
        with pytest.raises(LTIError, match=rf"of\[0\]: got '{use}', which defends no gradient"):
            DEFENSES.parse({"use": "sequence", "of": [{"use": use}]})
    assert DEFENSES["fedavg"]().averages(4) is False and DEFENSES["soteria"]().averages(4)


def test_soteria_zeroes_the_columns_of_what_tells_most_of_the_sample(folder, lenet):
    x, label = tensors(folder)
    rate = 0.75
    found = sample_update_function(DEFENSES["soteria"](rate=rate), *lenet)(x, label)
    plain = per_sample_gradient_function(*lenet)(x, label)
    layout = ParameterLayout.of(attacked(*lenet))
    before_layer = nn.Sequential(*list(lenet.network.children())[:-1])  # all but `linear`
    for number in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda one: before_layer(one[None])[0], x[number]
        ).flatten(1)
        score = before_layer(x[number][None])[0].abs() / jacobian.norm(dim=1)
        gone = set(score.argsort(descending=True)[: round(rate * 768)].tolist())
        weight = found[number, layout.slices["linear.weight"]].view(10, 768)
        assert set((weight == 0).all(dim=0).nonzero()[:, 0].tolist()) == gone
        kept = sorted(set(range(768)) - gone)
        expected = plain[number, layout.slices["linear.weight"]].view(10, 768)
        torch.testing.assert_close(weight[:, kept], expected[:, kept])
        for name, place in layout.slices.items():
            if name != "linear.weight":
                torch.testing.assert_close(found[number, place], plain[number, place])


def test_soteria_is_observed_as_the_mean_of_the_samples(folder):
    settings = {"use": "soteria", "rate": 0.9}
    each = stored(folder, settings)
    rows = observed(folder, settings, 3)
    expected = each.unflatten(0, (2, 3)).mean(dim=1)
    assert float((rows - expected).norm() / expected.norm()) < 1e-3


def test_layers_that_are_not_there_are_refused(lenet):
    with pytest.raises(LTIError, match=r"layer: got 'conv1'; expected an attacked linear .*linear"):
        sample_update_function(DEFENSES["soteria"](layer="conv1"), *lenet)
    text = FL_MODELS.parse({"use": "transformer3"})
    with pytest.raises(LTIError, match=r"transformer3 takes text; expected images"):
        sample_update_function(DEFENSES["soteria"](), text, lenet.network)
