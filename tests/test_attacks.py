"""Matching objectives by hand, and gradient matching on a few victims."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lti.attacks import ATTACKS, Observations, Reconstruction
from lti.attacks.images import total_variation
from lti.attacks.matching import (
    cosine_distance,
    matching_objective,
    nonzero_cosine_distance,
    sign_hinge,
)
from lti.attacks.minimise import evenly_spaced, minimise, tenfold_decay
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import FL_MODELS, FLModel, FLTask, network_digest
from lti.generators import GENERATORS
from lti.generators.trained import TrainedGenerator
from lti.gradients.per_sample import group_gradient_function, per_sample_gradient_function
from lti.progress import Progress
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator

CPU = Compute(torch.device("cpu"), torch.float32)
IDENTITY = PROJECTIONS["identity"]()
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

    @property
    def complete(self) -> bool:
        return self._done == self.total > 0


def observe(
    lenet, images, defense: str = "none", count: int = 3, size: int = 1, at: str = "sample"
) -> Observations:
    """What a server receives of ``count`` batches of ``size`` samples."""
    settings = DEFENSES[defense](**SETTINGS[defense], defense_at=at)
    x, label = images[0][: count * size], images[1][: count * size]
    rows = per_sample_gradient_function(*lenet)(x, label)
    draw = torch_generator(0, "test")
    if at == "sample":
        rows = settings.defend(rows, generator=draw).view(count, size, -1).mean(dim=1)
    else:
        rows = settings.defend(rows.view(count, size, -1).mean(dim=1), generator=draw)
    return observed(rows, label.view(count, size), *lenet, settings)


def observed(gradient, label, model, network, defense, projection=IDENTITY) -> Observations:
    """What was received, as an attack is given it."""
    size = label.shape[1]
    return Observations(
        gradient, label, size, model, network, defense, (3, 32, 32), projection=projection
    )


def reconstruct(
    attack,
    observations,
    folder: Path,
    steps: Steps | None = None,
    seed: int = 0,
    knowledge: TrainedGenerator | None = None,
) -> Reconstruction:
    return attack.reconstruct(
        observations,
        compute=CPU,
        seed=seed,
        progress=steps or Steps(),
        checkpoints=folder,
        knowledge=knowledge,
    )


# Distances


def test_cosine_distance_by_hand():
    dummy = torch.tensor([[3.0, 4.0, 0.0], [1.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 2.0, 0.0]])
    observed = torch.tensor([[4.0, 3.0, 0.0], [0.0, 5.0, 0.0], [-2.0, -4.0, -4.0], [0.0, 9.0, 0.0]])
    expected = torch.tensor([1 - 24 / 25, 1.0, 2.0, 0.0])
    torch.testing.assert_close(cosine_distance(dummy, observed), expected, rtol=1e-6, atol=1e-6)


def test_sign_hinge_by_hand():
    dummy = torch.tensor([[0.5, -2.0, 3.0, -1.0], [0.5, -2.0, 3.0, -1.0]])
    observed = torch.tensor([[1.0, 1.0, -1.0, 0.0], [1.0, -1.0, 1.0, -1.0]])
    assert sign_hinge(dummy, observed).tolist() == [4.0 + 9.0, 0.0]


def test_nonzero_cosine_distance_by_hand():
    dummy = torch.tensor([[3.0, 7.0, 4.0, -9.0], [1.0, 8.0, 0.0, 0.0]])
    observed = torch.tensor([[4.0, 0.0, 3.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    expected = torch.tensor([1 - 24 / 25, 1.0])
    distance = nonzero_cosine_distance(dummy, observed)
    torch.testing.assert_close(distance, expected, rtol=1e-6, atol=1e-6)
    other = dummy + torch.tensor([[0.0, 100.0, 0.0, -50.0], [0.0, -3.0, 2.0, 0.0]])
    assert torch.equal(nonzero_cosine_distance(other, observed), distance)


# Objectives of samples


class Products(FLModel):
    """Loss x . w with w in R^2: a sample's gradient is the sample itself."""

    def architecture(self, task: FLTask) -> nn.Module:
        return nn.Linear(2, 1, bias=False)

    def initialise(self, network: nn.Module) -> dict:
        return {}

    def loss(self, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return output.mean()


def value(defense: str, dummy: list, observed: list, at: str = "sample") -> float:
    """Return the objective of one batch whose samples are their own gradients."""
    model = Products()
    x = torch.tensor([dummy])
    objective = matching_objective(
        model,
        model.build(FLTask(1)),
        defense=DEFENSES[defense](defense_at=at),
        batch_size=len(dummy),
    )
    label = torch.zeros(1, len(dummy), dtype=torch.int64)
    return objective(x, label, torch.tensor([observed])).item()


def test_signs_of_single_samples_are_compared_by_the_hinge():
    assert value("sign", [[3.0, -2.0]], [1.0, 1.0]) == 4.0
    assert value("sign", [[3.0, -2.0]], [-1.0, 1.0], at="batch") == 13.0


def test_averaged_signs_are_compared_with_the_mean_of_each_samples_tanh():
    """tanh(ln 2) = 3/5, so the dummy's mean is ((3/5 + 0) / 2, (-3/5 + 3/5) / 2)."""
    log2 = math.log(2)
    dummy = [[log2, -log2], [0.0, log2]]
    assert math.isclose(value("sign", dummy, [0.5, 0.5]), 1 - 1 / math.sqrt(2), rel_tol=1e-5)
    # The mean gradient, by contrast, is (log 2, 0) / 2 in any case: tanh must come first.
    loud = [[100.0, -log2], [0.0, -log2]]
    mean = (0.5, -0.6)
    cosine = (mean[0] * 1.0 + mean[1] * -0.5) / (math.hypot(*mean) * math.hypot(1.0, 0.5))
    assert math.isclose(value("sign", loud, [1.0, -0.5]), 1 - cosine, rel_tol=1e-5)


def test_signs_of_the_mean_gradient_are_compared_by_the_hinge():
    dummy = [[4.0, -6.0], [-2.0, 2.0]]  # mean (1, -2)
    assert value("sign", dummy, [1.0, 1.0], at="batch") == 4.0
    assert value("sign", dummy, [1.0, -1.0], at="batch") == 0.0


@pytest.mark.parametrize("at", ["sample", "batch"])
def test_pruned_gradients_are_compared_where_they_are_not_zero(at):
    dummy = [[4.0, -6.0], [-2.0, 2.0]]  # mean (1, -2)
    assert abs(value("prune", dummy, [5.0, 0.0], at=at)) < 1e-6
    assert math.isclose(value("prune", dummy, [0.0, 3.0], at=at), 2.0, rel_tol=1e-6)


@pytest.mark.parametrize("defense", ["none", "gauss"])
def test_other_gradients_are_compared_by_the_cosine_of_the_mean(defense):
    dummy = [[4.0, 8.0], [2.0, 0.0]]  # mean (3, 4)
    assert math.isclose(value(defense, dummy, [4.0, 3.0]), 1 - 24 / 25, rel_tol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_a_groups_gradient_is_the_mean_of_its_samples(name, images):
    model = FL_MODELS[name](seed=0)
    network = model.build(FLTask(10)).requires_grad_(False)
    x, label = images[0].view(2, 3, 3, 32, 32), images[1].view(2, 3)
    groups = group_gradient_function(model, network)(x, label)
    each = per_sample_gradient_function(model, network)(*images).view(2, 3, -1)
    expected = each.mean(dim=1)
    scale = expected.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(groups / scale, expected / scale, rtol=1e-4, atol=1e-5)


def test_matching_refuses_a_network_in_training_mode(lenet):
    network = lenet.model.build(FLTask(10)).train()
    with pytest.raises(LTIError, match="training mode"):
        group_gradient_function(lenet.model, network)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(
    ("defense", "at"), [("none", "sample"), ("sign", "batch"), ("prune", "batch")]
)
def test_the_victims_themselves_are_at_distance_zero(lenet, images, defense, at, size):
    """Wu et al. 2023, supplement A: the distance must vanish at the truth, whatever hides it."""
    observations = observe(lenet, images, defense, size=size, at=at)
    objective = matching_objective(*lenet, defense=observations.defense, batch_size=size)
    truth, label = images[0][: 3 * size].view(3, size, 3, 32, 32), observations.label
    zero = objective(truth, label, observations.gradient)
    # Gradients of a group and of its samples differ by rounding, and so may tiny signs.
    torch.testing.assert_close(zero, torch.zeros(3), rtol=0, atol=1e-6)
    others = objective(truth, label, observations.gradient.roll(1, dims=0))
    assert bool((others > 1e-2 * (1 if defense != "sign" else 1e-3)).all())


def test_single_samples_signs_are_at_distance_zero_exactly(lenet, images):
    """Wu et al. 2023, supplement A: same signs, no loss, however large the gradients are."""
    truth = per_sample_gradient_function(*lenet)(images[0][:3], images[1][:3])
    louder = truth * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    assert sign_hinge(truth, truth.sign()).tolist() == [0.0] * 3
    assert sign_hinge(louder, truth.sign()).tolist() == [0.0] * 3
    # Averaged signs: where tanh is saturated, the truth's signs are what was received.
    assert abs(value("sign", [[30.0, -40.0], [-50.0, -60.0]], [0.0, -1.0])) < 1e-6


def test_total_variation_by_hand():
    image = torch.zeros(2, 1, 3, 3)
    image[0, 0, 1, 1] = 1.0  # four of the six vertical and of the six horizontal pairs: 2 + 2
    image[1, 0] = torch.arange(3.0)  # columns 0, 1, 2: no vertical steps, horizontal ones of 1
    torch.testing.assert_close(total_variation(image), torch.tensor([2 / 6 + 2 / 6, 1.0]))


# The loop


def descend(start: torch.Tensor, checkpoint: Checkpoint, steps: Steps, **settings):
    """Minimise (x - 0.25)^2 for each row."""

    def evaluate(variables):
        (x,) = variables
        return (x - 0.25).square().sum(dim=1), x

    defaults = {"iterations": 30, "record": evenly_spaced(30)}
    defaults["schedule"] = tenfold_decay(0.1, iterations=30)
    return minimise(
        evaluate, [start], checkpoint=checkpoint, progress=steps, **(defaults | settings)
    )


def test_the_iterate_of_lowest_objective_is_kept_and_the_objective_recorded(tmp_path):
    start = torch.tensor([[0.25], [5.0], [-1.0]])
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=1e9)
    result = descend(start, checkpoint, steps := Steps(), record=torch.tensor([0, 7, 29]))
    objectives = torch.stack(steps.objectives, dim=1)
    assert objectives.shape == (3, 30)
    assert torch.equal(result.objective, objectives[:, [0, 7, 29]])
    assert torch.equal(result.lowest, objectives.amin(dim=1))
    # The first row starts at its minimum; that Adam leaves it would be a loss.
    assert float(result.kept[0]) == 0.25 and float(result.lowest[0]) == 0.0
    assert torch.equal((result.kept - 0.25).square()[:, 0], result.lowest)
    assert torch.equal(start, torch.tensor([[0.25], [5.0], [-1.0]]))


def test_a_boxed_search_leaves_the_start_and_stays_inside(tmp_path):
    start = torch.tensor([[0.25], [5.0], [-1.0]])
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=1e9)
    result = descend(start, checkpoint, steps := Steps(), boxed=True)
    assert torch.equal(result.lowest, torch.stack(steps.objectives[1:], dim=1).amin(dim=1))
    assert bool(((result.kept >= 0) & (result.kept <= 1)).all())


@pytest.mark.parametrize("boxed", [False, True])
def test_the_layout_of_a_gradient_does_not_matter(tmp_path, boxed):
    target = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    kept = []
    for turned in (False, True):

        def evaluate(variables, turned=turned):
            (x,) = variables
            # With its strides swapped, the gradient of x has them swapped too.
            apart = (x.mT.contiguous() - target.mT).mT if turned else x - target
            return apart.square().sum(dim=(1, 2)), x

        minimum = minimise(
            evaluate,
            [torch.zeros(2, 3, 4)],
            iterations=20,
            schedule=tenfold_decay(0.1, iterations=20),
            record=evenly_spaced(20),
            checkpoint=Checkpoint(tmp_path / str(turned), {}, every_seconds=1e9),
            progress=Steps(),
            boxed=boxed,
        )
        kept.append(minimum.kept)
    torch.testing.assert_close(kept[0], kept[1])


def test_recorded_steps_are_evenly_spaced_and_hold_the_last():
    assert evenly_spaced(3).tolist() == [0, 1, 2]
    steps = evenly_spaced(6000)
    assert len(steps) == 100 and (steps[0], steps[-1]) == (0, 5999)
    assert set(steps.diff().tolist()) == {60, 61}


def test_a_problem_without_a_finite_objective_does_not_spoil_others(lenet, images, tmp_path):
    observations = observe(lenet, images)
    broken = observations.gradient.clone()
    broken[1] = torch.nan
    with pytest.raises(LTIError, match="the objective of 1 victim batches was never a finite"):
        reconstruct(ATTACKS["ig"](iterations=3), replace(observations, gradient=broken), tmp_path)


# IG


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("defense", ["none", "sign", "prune", "gauss"])
def test_ig_lowers_the_objective_and_keeps_the_best_iterate(lenet, images, tmp_path, defense, size):
    observations = observe(lenet, images, defense, size=size)
    attack = ATTACKS["ig"](iterations=25, tv=1e-3)
    steps = Steps()
    result = reconstruct(attack, observations, tmp_path, steps)
    assert result.sample.shape == (3, size, 3, 32, 32) and result.sample.dtype == torch.float32
    assert float(result.sample.min()) >= 0 and float(result.sample.max()) <= 1
    objectives = torch.stack(steps.objectives, dim=1)
    assert objectives.shape == (3, 25) and steps.complete
    assert result.step.tolist() == list(range(25))
    assert torch.equal(result.objective, objectives)
    lowest = objectives[:, 1:].amin(dim=1)  # the start is outside the box: it is another image
    assert bool((lowest < 0.9 * objectives[:, 0]).all())
    objective = matching_objective(*lenet, defense=observations.defense, batch_size=size)
    distance = objective(result.sample, observations.label, observations.gradient)
    smooth = total_variation(result.sample.flatten(0, 1)).view(3, size).mean(dim=1)
    torch.testing.assert_close(distance + 1e-3 * smooth, lowest, rtol=1e-4, atol=1e-5)


def test_a_longer_attack_comes_closer_to_the_victim(lenet, images, tmp_path):
    smooth = torch.nn.functional.interpolate(images[0][:2, :, :3, :3], 32, mode="bicubic")
    victims = (smooth.clamp(0, 1), images[1])
    observations = observe(lenet, victims, count=2)

    def error(iterations: int) -> torch.Tensor:
        result = reconstruct(
            ATTACKS["ig"](iterations=iterations), observations, tmp_path / str(iterations)
        )
        return (result.sample[:, 0] - victims[0]).square().mean(dim=(1, 2, 3))

    assert bool((error(100) < 0.8 * error(2)).all())


@pytest.mark.parametrize("size", [1, 2])
def test_victim_batches_are_independent_problems(lenet, images, tmp_path, monkeypatch, size):
    observations = observe(lenet, images, size=size)
    whole = reconstruct(ATTACKS["ig"](iterations=4), observations, tmp_path / "a")
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 0)  # one at a time
    alone = reconstruct(ATTACKS["ig"](iterations=4), observations, tmp_path)
    # A sign may turn where a derivative is zero to rounding; such pixels are few.
    assert float(((whole.sample - alone.sample).abs() < 1e-5).float().mean()) > 0.999


def test_the_victims_at_once_follow_from_the_model_and_the_batch_size(
    lenet, images, tmp_path, monkeypatch
):
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 400 * 15_826 / 2**20)
    observations = observe(lenet, images, size=2)  # 24 x 2 gradients each: two fit
    reconstruct(ATTACKS["ig"](iterations=2), observations, tmp_path, steps := Steps())
    assert [len(objective) for objective in steps.objectives] == [2, 2, 1, 1]


def test_the_seed_decides_the_start(lenet, images, tmp_path):
    observations = observe(lenet, images, count=1)
    attack = ATTACKS["ig"](iterations=2)
    first = reconstruct(attack, observations, tmp_path / "a").sample
    assert torch.equal(reconstruct(attack, observations, tmp_path / "b").sample, first)
    assert not torch.equal(reconstruct(attack, observations, tmp_path / "c", seed=1).sample, first)


def equal(one: Reconstruction, other: Reconstruction) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("sample", "objective", "step")
    )


def test_an_interrupted_attack_resumes_to_the_identical_result(
    lenet, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    observations = observe(lenet, images, count=2)
    attack = ATTACKS["ig"](iterations=16)
    expected = reconstruct(attack, observations, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(attack, observations, tmp_path / "cut", Steps(stop_after=7))
    steps = Steps()
    result = reconstruct(attack, observations, tmp_path / "cut", steps)
    # Killed inside the seventh step: six were saved.
    assert (len(steps.objectives), steps.skipped) == (10, 12)
    assert steps.complete and equal(result, expected)
    # Nothing is left to do in a third run.
    assert equal(reconstruct(attack, observations, tmp_path / "cut", done := Steps()), result)
    assert done.objectives == [] and done.complete


def test_a_finished_part_is_not_computed_again(lenet, images, tmp_path, monkeypatch):
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 0)
    observations = observe(lenet, images)
    attack = ATTACKS["ig"](iterations=3)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(attack, observations, tmp_path, Steps(stop_after=5))
    reconstruct(attack, observations, tmp_path, steps := Steps())
    assert (len(steps.objectives), steps.skipped) == (6, 3)


def test_a_checkpoint_of_other_settings_is_refused(lenet, images, tmp_path, monkeypatch):
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    observations = observe(lenet, images, count=1)
    attack = ATTACKS["ig"](iterations=3)
    reconstruct(attack, observations, tmp_path)
    other = ATTACKS["ig"](iterations=3, tv=0.5)
    with pytest.raises(LTIError, match=r'other settings(.|\n)*"tv":0\.0001(.|\n)*"tv":0\.5'):
        reconstruct(other, observations, tmp_path)


# GI-GIP


@pytest.fixture(scope="module")
def prior() -> TrainedGenerator:
    """A generator of noise: trained or not, the search works alike."""
    settings = GENERATORS["dcgan"](width=2, latent=8)
    torch.manual_seed(1)
    network = settings.generator((3, 32, 32))
    for parameter in network.parameters():
        parameter.data.mul_(8)  # out of the flat, grey start
    return TrainedGenerator(settings, (3, 32, 32), network=network, compute=CPU)


def gi_gip(**settings):
    defaults = {"generator": "dcgan", "iterations_latent": 8, "iterations_weights": 12}
    defaults |= {"restarts": 2, "learning_rate_weights": 1e-2}
    return ATTACKS["gi-gip"](**(defaults | settings))


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("defense", ["none", "sign", "prune", "gauss"])
def test_gi_gip_lowers_the_objective_in_both_stages(lenet, images, prior, tmp_path, defense, size):
    observations = observe(lenet, images, defense, size=size)
    attack = gi_gip()
    steps = Steps()
    result = reconstruct(attack, observations, tmp_path, steps, knowledge=prior)
    assert result.sample.shape == (3, size, 3, 32, 32)
    assert float(result.sample.min()) >= 0 and float(result.sample.max()) <= 1
    assert result.step.tolist() == list(range(20)) and steps.complete
    assert [len(objective) for objective in steps.objectives] == [6] * 8 + [3] * 12
    latents = torch.stack(steps.objectives[:8]).view(8, 3, 2)
    weights = torch.stack(steps.objectives[8:], dim=1)
    # Of the restarts, the one that came lowest goes on, from where it was lowest.
    lowest = latents.amin(dim=(0, 2))
    torch.testing.assert_close(weights[:, 0], lowest, rtol=1e-3, atol=1e-6)
    chosen = latents.amin(dim=0).argmin(dim=1)
    assert torch.equal(result.objective[:, :8], latents[:, torch.arange(3), chosen].T)
    assert torch.equal(result.objective[:, 8:], weights)
    assert bool((weights.amin(dim=1) < lowest).all())
    objective = matching_objective(*lenet, defense=observations.defense, batch_size=size)
    distance = objective(result.sample, observations.label, observations.gradient)
    smooth = total_variation(result.sample.flatten(0, 1)).view(3, size).mean(dim=1)
    expected = weights.amin(dim=1)
    torch.testing.assert_close(distance + 1e-6 * smooth, expected, rtol=1e-4, atol=1e-5)


def test_gi_gip_leaves_the_generator_and_other_victims_alone(
    lenet, images, prior, tmp_path, monkeypatch
):
    observations = observe(lenet, images)
    before = network_digest(prior.network)
    whole = reconstruct(gi_gip(), observations, tmp_path / "a", knowledge=prior)
    assert network_digest(prior.network) == before == prior.digest
    monkeypatch.setattr("lti.attacks.optimise.MEMORY_MIB", 0)
    alone = reconstruct(gi_gip(), observations, tmp_path / "b", knowledge=prior)
    torch.testing.assert_close(whole.sample, alone.sample, rtol=0, atol=0.02)


@pytest.mark.parametrize("stop_after", [5, 8, 13])
def test_an_interrupted_gi_gip_resumes_to_the_identical_result(
    lenet, images, prior, tmp_path, monkeypatch, stop_after
):
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    observations = observe(lenet, images, count=2)
    attack = gi_gip()
    expected = reconstruct(attack, observations, tmp_path / "whole", knowledge=prior)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(
            attack, observations, tmp_path / "cut", Steps(stop_after=stop_after), knowledge=prior
        )
    result = reconstruct(attack, observations, tmp_path / "cut", steps := Steps(), knowledge=prior)
    assert len(steps.objectives) == 20 - stop_after + 1
    assert steps.complete and equal(result, expected)


def test_gi_gip_refuses_another_generators_checkpoint(lenet, images, prior, tmp_path, monkeypatch):
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    observations = observe(lenet, images, count=1)
    reconstruct(gi_gip(), observations, tmp_path, knowledge=prior)
    network = prior.settings.generator((3, 32, 32))
    other = TrainedGenerator(prior.settings, (3, 32, 32), network=network, compute=CPU)
    with pytest.raises(LTIError, match="other settings"):
        reconstruct(gi_gip(), observations, tmp_path, knowledge=other)


def test_gi_gip_reads_the_generator_of_its_own_sample_shape(lenet, images, prior, tmp_path):
    prior.save(tmp_path / "generator.safetensors")
    loaded = gi_gip().load({"generator": tmp_path / "generator.safetensors"}, compute=CPU)
    assert loaded.digest == prior.digest
    grey = GENERATORS["dcgan"](width=2, latent=8).generator((1, 32, 32))
    other = TrainedGenerator(prior.settings, (1, 32, 32), network=grey, compute=CPU)
    with pytest.raises(LTIError, match=r"shape \(1, 32, 32\); expected \(3, 32, 32\)"):
        reconstruct(gi_gip(), observe(lenet, images), tmp_path, knowledge=other)


@pytest.mark.parametrize("attack", [ATTACKS["ig"](iterations=2), gi_gip()], ids=["ig", "gi-gip"])
def test_gradient_matching_needs_labels(lenet, images, prior, tmp_path, attack):
    observations = replace(observe(lenet, images), label=None)
    with pytest.raises(LTIError, match="got unknown labels; expected known ones"):
        reconstruct(attack, observations, tmp_path, knowledge=prior)


@pytest.mark.parametrize("attack", [ATTACKS["ig"](iterations=2), gi_gip()], ids=["ig", "gi-gip"])
def test_gradient_matching_needs_whole_gradients(lenet, images, prior, tmp_path, attack):
    whole = observe(lenet, images)
    half = PROJECTIONS["hash"]()
    hashed = half.project(whole.gradient, layout=whole.layout)
    observations = replace(whole, gradient=hashed, projection=half)
    with pytest.raises(LTIError, match=r"under {.*'hash'}; expected whole gradients"):
        reconstruct(attack, observations, tmp_path, knowledge=prior)


def test_observations_of_another_model_or_batch_size_are_refused(lenet, images):
    observations = observe(lenet, images)
    with pytest.raises(LTIError, match=r"shape \(3, 99\); expected \(n, 15826\) for lenet"):
        replace(observations, gradient=observations.gradient[:, :99])
    half = PROJECTIONS["hash"]()
    with pytest.raises(LTIError, match=r"\(n, 7913\) for lenet under {.*'hash'}"):
        replace(observations, projection=half)
    hashed = half.project(observations.gradient, layout=observations.layout)
    assert replace(observations, gradient=hashed, projection=half).gradient.shape == (3, 7913)
    with pytest.raises(LTIError, match=r"labels have shape \(3, 1\); expected \(3, 2\)"):
        replace(observations, batch_size=2)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lti_is_one_pass_of_the_inverter(lenet, tmp_path, monkeypatch, batch_size):
    sizes: list[int] = []

    class Fake:
        defense = DEFENSES["none"]()
        fl_model_digest = network_digest(lenet[1])
        projection = IDENTITY
        projection_digest = None

        def __init__(self) -> None:
            self.batch_size = batch_size

        def invert(self, rows, label):
            sizes.append(len(rows))
            value = rows[:, :1] / 2 + label / 100  # a number of each victim's own
            return value[:, :, None, None, None].expand(-1, batch_size, 3, 32, 32)

    rows = torch.linspace(0, 1, 600)[:, None].expand(600, 15_826)
    labels = torch.arange(600)[:, None] % 10 + torch.arange(batch_size)
    observations = observed(rows, labels, *lenet, DEFENSES["none"]())
    attack = ATTACKS["lti"](inverter="tuned")
    assert attack.needs == ("inverter",) and ATTACKS["ig"].needs == ()

    def run(inverter):
        return attack.reconstruct(
            observations,
            compute=CPU,
            seed=0,
            progress=Progress("test"),
            checkpoints=tmp_path,
            knowledge=inverter,
        ).sample

    result = run(Fake())
    assert sizes == [512, 88]
    monkeypatch.setattr("lti.attacks.lti.BLOCK_BYTES", 250 * 4 * 15_826 + 4)
    assert torch.equal(run(Fake()), result)
    assert sizes[2:] == [250, 250, 100]
    expected = rows[:, :1] / 2 + labels / 100
    assert result.shape == (600, batch_size, 3, 32, 32)
    torch.testing.assert_close(result[:, :, 0, 0, 0], expected)
    for key, value in (
        ("defense", DEFENSES["sign"]()),
        ("fl_model_digest", "0" * 16),
        ("batch_size", 2),
        ("projection", PROJECTIONS["hash"]()),
        ("projection_digest", "0" * 16),
    ):
        impostor = Fake()
        setattr(impostor, key, value)
        with pytest.raises(LTIError, match="the inverter was trained against"):
            run(impostor)


def test_overrides_apply_to_their_cells_and_later_ones_win():
    attack = ATTACKS["ig"](
        iterations=100,
        victims=8,
        overrides=[
            {"when": {"fl_model": ["a", "b"]}, "iterations": 50},
            {"when": {"batch_size": 4, "defense": "sign"}, "iterations": 25, "tv": 0.5},
        ],
    )

    def on(fl_model, batch_size, defense):
        cell = attack.on(fl_model=fl_model, batch_size=batch_size, defense=defense)
        assert cell.overrides == [] and cell.victims == 8
        return cell.iterations, cell.tv

    assert on("c", 4, "none") == (100, attack.tv)
    assert on("b", 4, "none") == (50, attack.tv)
    assert on("c", 4, "sign") == (25, 0.5)
    assert on("a", 4, "sign") == (25, 0.5)
    assert on("a", 1, "sign") == (50, attack.tv)
