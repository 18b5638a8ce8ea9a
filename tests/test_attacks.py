"""Matching distances by hand, and gradient matching on a few victims."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lti.attacks import ATTACKS, Observations
from lti.attacks.ig import total_variation
from lti.attacks.matching import matching_distance
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import network_digest
from lti.gradients.per_sample import per_sample_gradient_function
from lti.progress import Progress
from lti.seeding import torch_generator

CPU = Compute(torch.device("cpu"), torch.float32)
SETTINGS = {"none": {}, "sign": {}, "prune": {"rate": 0.9}, "gauss": {"sigma": 0.01}}


class Steps(Progress):
    """Records the objectives of every step; stops where told, as a killed run does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.objectives: list[torch.Tensor] = []
        self.stop_after = stop_after
        self.skipped = 0
        super().__init__("test", every_seconds=1e9)

    def skip(self, count: int) -> None:
        self.skipped += count
        super().skip(count)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.objectives.append(values["objective"].clone())
        if len(self.objectives) == self.stop_after:
            raise KeyboardInterrupt


def observe(lenet, images, defense: str = "none", count: int = 3) -> Observations:
    settings = DEFENSES[defense](**SETTINGS[defense])
    x, label = images[0][:count], images[1][:count]
    rows = per_sample_gradient_function(*lenet)(x, label)
    rows = settings.defend(rows, generator=torch_generator(0, "test"))
    return Observations(rows, label[:, None], 1, *lenet, settings, (3, 32, 32))


def reconstruct(attack, observations, folder: Path, steps: Steps | None = None, seed: int = 0):
    return attack.reconstruct(
        observations,
        compute=CPU,
        seed=seed,
        progress=steps or Steps(),
        checkpoints=folder,
    )


def test_cosine_distance_by_hand():
    distance = matching_distance("cosine")
    dummy = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 2.0, 0.0]])
    observed = torch.tensor([[4.0, 3.0, 0.0], [0.0, 5.0, 0.0], [-2.0, -4.0, -4.0], [0.0, 9.0, 0.0]])
    expected = torch.tensor([1 - 24 / 25, 1.0, 2.0, 0.0])
    torch.testing.assert_close(distance(dummy, observed), expected, rtol=1e-6, atol=1e-6)


def test_sign_hinge_by_hand():
    distance = matching_distance("sign")
    dummy = torch.tensor([[0.5, -2.0, 3.0, -1.0], [0.5, -2.0, 3.0, -1.0]])
    observed = torch.tensor([[1.0, 1.0, -1.0, 0.0], [1.0, -1.0, 1.0, -1.0]])
    assert distance(dummy, observed).tolist() == [4.0 + 9.0, 0.0]


def test_nonzero_cosine_distance_by_hand():
    distance = matching_distance("nonzero-cosine")
    dummy = torch.tensor([[3.0, 7.0, 4.0, -9.0], [1.0, 8.0, 0.0, 0.0]])
    observed = torch.tensor([[4.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    expected = torch.tensor([1 - 24 / 25, 1.0])
    torch.testing.assert_close(distance(dummy, observed), expected, rtol=1e-6, atol=1e-6)
    other = dummy + torch.tensor([[0.0, 100.0, 0.0, -50.0], [0.0, -3.0, 2.0, 0.0]])
    assert torch.equal(distance(other, observed), distance(dummy, observed))


@pytest.mark.parametrize("defense", ["none", "sign", "prune"])
def test_the_victims_own_gradient_is_at_distance_zero(lenet, images, defense):
    """Wu et al. 2023, supplement A: the distance must vanish at the truth, whatever hides it."""
    observations = observe(lenet, images, defense)
    truth = per_sample_gradient_function(*lenet)(images[0][:3], images[1][:3])
    distance = matching_distance(observations.defense.matching)
    zero = distance(truth, observations.gradient)
    torch.testing.assert_close(zero, torch.zeros(3), rtol=0, atol=1e-6)
    if defense == "sign":
        assert zero.tolist() == [0.0] * 3
        louder = truth * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
        assert distance(louder, observations.gradient).tolist() == [0.0] * 3
    others = distance(truth.roll(1, dims=0), observations.gradient)
    assert bool((others > 1e-2 * (1 if defense != "sign" else 1e-3)).all())


def test_total_variation_by_hand():
    image = torch.zeros(2, 1, 3, 3)
    image[0, 0, 1, 1] = 1.0  # four of the six vertical and of the six horizontal pairs: 2 + 2
    image[1, 0] = torch.arange(3.0)  # columns 0, 1, 2: no vertical steps, horizontal ones of 1
    torch.testing.assert_close(total_variation(image), torch.tensor([2 / 6 + 2 / 6, 1.0]))


@pytest.mark.parametrize("defense", ["none", "sign", "prune", "gauss"])
def test_ig_lowers_the_objective_and_keeps_the_best_iterate(lenet, images, tmp_path, defense):
    observations = observe(lenet, images, defense)
    attack = ATTACKS["ig"](iterations=25, tv=1e-3)
    steps = Steps()
    result = reconstruct(attack, observations, tmp_path, steps)
    assert result.shape == (3, 1, 3, 32, 32) and result.dtype == torch.float32
    assert float(result.min()) >= 0 and float(result.max()) <= 1
    objectives = torch.stack(steps.objectives)
    assert objectives.shape == (25, 3)
    lowest = objectives[1:].amin(dim=0)  # the start is outside the box: it is another image
    assert bool((lowest < 0.9 * objectives[0]).all())
    x = result[:, 0]
    gradient = per_sample_gradient_function(*lenet)(x, images[1][:3])
    distance = matching_distance(observations.defense.matching)(gradient, observations.gradient)
    torch.testing.assert_close(distance + 1e-3 * total_variation(x), lowest, rtol=1e-4, atol=1e-5)


def test_a_longer_attack_comes_closer_to_the_victim(lenet, images, tmp_path):
    smooth = torch.nn.functional.interpolate(images[0][:2, :, :3, :3], 32, mode="bicubic")
    victims = (smooth.clamp(0, 1), images[1])
    observations = observe(lenet, victims, count=2)

    def error(iterations: int) -> torch.Tensor:
        result = reconstruct(ATTACKS["ig"](iterations=iterations), observations, tmp_path / "c")
        return (result[:, 0] - victims[0]).square().mean(dim=(1, 2, 3))

    assert bool((error(100) < 0.8 * error(2)).all())


def test_victims_in_one_batch_are_independent_problems(lenet, images, tmp_path):
    observations = observe(lenet, images)
    attack = ATTACKS["ig"](iterations=4)
    start = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(5))

    def solve(rows: slice) -> torch.Tensor:
        checkpoint = Checkpoint(tmp_path / f"{rows.start}", {}, every_seconds=1e9)
        return attack._solve(
            observations,
            rows,
            start[rows],
            compute=CPU,
            progress=Steps(),
            checkpoint=checkpoint,
        )

    together = solve(slice(0, 3))
    alone = torch.cat([solve(slice(number, number + 1)) for number in range(3)])
    # A sign may turn where a derivative is zero to rounding; such pixels are few.
    assert float(((together - alone).abs() < 1e-5).float().mean()) > 0.999


def test_victims_at_once_only_bounds_memory(lenet, images, tmp_path):
    observations = observe(lenet, images)
    whole = reconstruct(ATTACKS["ig"](iterations=3), observations, tmp_path / "a")
    parts = reconstruct(ATTACKS["ig"](iterations=3, victims_at_once=2), observations, tmp_path)
    assert float(((whole - parts).abs() < 1e-5).float().mean()) > 0.999


def test_the_seed_decides_the_start(lenet, images, tmp_path):
    observations = observe(lenet, images, count=1)
    attack = ATTACKS["ig"](iterations=2)
    first = reconstruct(attack, observations, tmp_path / "a")
    assert torch.equal(reconstruct(attack, observations, tmp_path / "b"), first)
    assert not torch.equal(reconstruct(attack, observations, tmp_path / "c", seed=1), first)


def test_an_interrupted_attack_resumes_to_the_identical_result(lenet, images, tmp_path):
    observations = observe(lenet, images, count=2)
    attack = ATTACKS["ig"](iterations=16, checkpoint_seconds=0)
    expected = reconstruct(attack, observations, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(attack, observations, tmp_path / "cut", Steps(stop_after=7))
    steps = Steps()
    result = reconstruct(attack, observations, tmp_path / "cut", steps)
    # Killed inside the seventh step: six were saved.
    assert (len(steps.objectives), steps.skipped) == (10, 12)
    assert torch.equal(result, expected)
    # Nothing is left to do in a third run.
    assert torch.equal(reconstruct(attack, observations, tmp_path / "cut", done := Steps()), result)
    assert done.objectives == []


def test_a_checkpoint_of_other_settings_is_refused(lenet, images, tmp_path):
    observations = observe(lenet, images, count=1)
    attack = ATTACKS["ig"](iterations=3, checkpoint_seconds=0)
    reconstruct(attack, observations, tmp_path)
    other = ATTACKS["ig"](iterations=3, checkpoint_seconds=0, tv=0.5)
    with pytest.raises(LTIError, match=r'other settings(.|\n)*"tv":0\.0001(.|\n)*"tv":0\.5'):
        reconstruct(other, observations, tmp_path)


def test_ig_needs_labels_and_single_samples(lenet, images, tmp_path):
    observations = observe(lenet, images)
    attack = ATTACKS["ig"](iterations=2)
    with pytest.raises(LTIError, match="labels unknown; expected batch size 1 and known labels"):
        reconstruct(attack, replace(observations, label=None), tmp_path)
    pairs = replace(observations, label=torch.zeros(3, 2, dtype=torch.int64), batch_size=2)
    with pytest.raises(LTIError, match="batch size 2 and labels known; expected batch size 1"):
        reconstruct(attack, pairs, tmp_path)


def test_observations_of_another_model_or_batch_size_are_refused(lenet, images):
    observations = observe(lenet, images)
    with pytest.raises(LTIError, match=r"shape \(3, 99\); expected \(n, 15826\) for lenet"):
        replace(observations, gradient=observations.gradient[:, :99])
    with pytest.raises(LTIError, match=r"labels have shape \(3, 1\); expected \(3, 2\)"):
        replace(observations, batch_size=2)


def test_lti_is_one_pass_of_the_inverter(lenet, images, tmp_path):
    class Fake:
        sizes: list[int] = []  # noqa: RUF012
        defense = DEFENSES["none"]()
        fl_model_digest = network_digest(lenet[1])

        def invert(self, rows):
            self.sizes.append(len(rows))
            # Beyond the box on both sides, and a number of each victim's own.
            return rows[:, :1, None, None, None].expand(-1, 1, 3, 32, 32) * 3 - 1

    rows = torch.linspace(0, 1, 600)[:, None].expand(600, 15_826)
    labels = torch.zeros(600, 1, dtype=torch.int64)
    observations = Observations(rows, labels, 1, *lenet, DEFENSES["none"](), (3, 32, 32))
    attack = ATTACKS["lti"](inverter="tuned")
    assert attack.needs_inverter and not ATTACKS["ig"].needs_inverter
    result = attack.reconstruct(
        observations,
        compute=CPU,
        seed=0,
        progress=Progress("test"),
        checkpoints=tmp_path,
        inverter=Fake(),
    )
    assert sum(Fake.sizes) == 600
    expected = (torch.linspace(0, 1, 600) * 3 - 1).clamp(0, 1)
    assert result.shape == (600, 1, 3, 32, 32)
    torch.testing.assert_close(result[:, 0, 0, 0, 0], expected)
    assert math.isclose(float(result.max()), 1) and float(result.min()) == 0
    for impostor in ({"defense": DEFENSES["sign"]()}, {"fl_model_digest": "0" * 16}):
        with pytest.raises(LTIError, match="the inverter was trained against"):
            attack.reconstruct(
                observations,
                compute=CPU,
                seed=0,
                progress=Progress("test"),
                checkpoints=tmp_path,
                inverter=type("Impostor", (Fake,), impostor)(),
            )
