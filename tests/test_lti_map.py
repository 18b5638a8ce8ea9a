"""LTI-MAP: likelihoods, priors, Gauss-Newton, and reconstructions that explain the gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from lti.attacks import ATTACKS, Observations
from lti.attacks.calibrate import HeldOut, calibrate, psnr
from lti.attacks.gauss_newton import Posterior, maximise
from lti.attacks.likelihood import (
    Gaussian,
    Likelihood,
    MeanOfPruned,
    MeanOfSigns,
    Pruned,
    Signs,
    likelihood_of,
)
from lti.attacks.lti_map import Known
from lti.attacks.prior import Covariance, dct_matrix
from lti.attacks.refinement import Client, Refinement
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.defenses.base import Defense
from lti.errors import LTIError
from lti.fl_models import attacked, network_digest
from lti.gradients.layout import ParameterLayout
from lti.progress import Progress
from lti.projections import PROJECTIONS

CPU = Compute(torch.device("cpu"), torch.float32)
QUIET = Progress("test", every_seconds=1e9)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


WIDTH = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.3], dtype=torch.float64)
LIKELIHOODS: dict[str, Likelihood] = {
    "gaussian": Gaussian(WIDTH),
    "signs": Signs(WIDTH),
    "mean of signs": MeanOfSigns(WIDTH, 3),
    "pruned": Pruned(WIDTH),
    "mean of pruned": MeanOfPruned(WIDTH, 2, 3),
}
OBSERVED = {
    "signs": torch.tensor([[1.0, -1, 1, 1, -1], [-1, 0, 1, -1, 1]], dtype=torch.float64),
    "pruned": torch.tensor([[0.0, 2.0, 0, -1.5, 0], [1.1, 0, 0, 0, 3]], dtype=torch.float64),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_scores_and_curvatures_are_derivatives(name):
    likelihood = LIKELIHOODS[name]
    observed = OBSERVED.get(name, draw(2, 5, seed=1))
    predicted = draw(2, 5, seed=2).requires_grad_()
    terms = likelihood.terms(predicted, observed)
    (score,) = torch.autograd.grad(terms.value.sum(), predicted, create_graph=True)
    torch.testing.assert_close(terms.score, score)
    # Coordinates are independent: row sums of the Hessian are its diagonal.
    (second,) = torch.autograd.grad(score.sum(), predicted)
    torch.testing.assert_close(terms.curvature, second)


@given(st.floats(-40, 40), st.floats(0.01, 10))
@settings(max_examples=50, deadline=None)
def test_far_from_what_was_observed_terms_stay_finite_and_convex(margin, width):
    predicted = torch.tensor([[margin, margin]])
    for likelihood, observed in (
        (Signs(torch.tensor(width)), torch.tensor([[1.0, -1.0]])),
        (Pruned(torch.tensor(width)), torch.tensor([[0.0, 0.5]])),
    ):
        terms = likelihood.terms(predicted, observed)
        for part in terms:
            assert part.isfinite().all()
        assert (terms.curvature >= 0).all()


def test_a_sign_of_zero_says_nothing():
    terms = Signs(torch.ones(2)).terms(torch.tensor([[3.0, -2.0]]), torch.zeros(1, 2))
    assert all(float(part.abs().sum()) == 0 for part in terms)


def test_narrow_likelihoods_predict_what_the_defense_sends(lenet, images):
    gradient = Client(*lenet, DEFENSES["none"](), 3).gradients(
        images[0].unflatten(0, (2, 3)), images[1].unflatten(0, (2, 3))
    )
    narrow = torch.full((gradient.shape[2],), 1e-30)
    for settings_, tolerance in (({"use": "sign"}, 1e-3), ({"use": "prune", "rate": 0.9}, 1e-6)):
        defense = DEFENSES.parse(settings_)
        likelihood = likelihood_of(defense, batch_size=3, width=narrow)
        received = Client(*lenet, defense, 3).receive(gradient, torch.Generator())
        off = (likelihood.predict(gradient) - received).abs()
        # Gradients of exactly 0, and the one at the threshold, are on the edge.
        assert float((off > tolerance).double().mean()) < 1e-3
        assert not likelihood.of_mean


def test_noise_of_a_mean_is_that_of_the_samples_over_the_root_of_their_number():
    width = torch.ones(4)
    for at, expected in (("sample", 0.1), ("batch", 0.2)):
        defense = DEFENSES["gauss"](sigma=0.2, defense_at=at)
        assert float(likelihood_of(defense, batch_size=4, width=width).std) == pytest.approx(
            expected
        )


# Priors.


def deviations(count: int = 200) -> torch.Tensor:
    """Smooth images about 0, of two channels that go together."""
    base = draw(count, 1, 6, 5, seed=4)
    smooth = base + base.roll(1, 2) + base.roll(1, 3)
    return torch.cat([smooth, 0.5 * smooth + 0.1 * draw(count, 1, 6, 5, seed=5)], dim=1).float()


def dense(covariance: Covariance) -> torch.Tensor:
    eye = torch.eye(covariance.dimension)
    root = covariance.to_image(eye).flatten(1)
    return root.T @ root


def test_the_transform_is_scipys_cosine_transform():
    image = draw(7, 7).float()
    ours = dct_matrix(7) @ image @ dct_matrix(7).T
    torch.testing.assert_close(ours, torch.from_numpy(fft.dctn(image.numpy(), norm="ortho")))


def test_a_covariance_has_the_variances_of_its_sample():
    sample = deviations(2000)
    covariance = Covariance.fit(sample, rank=40)
    spectrum = covariance.analyse(sample).flatten(1)
    variance = covariance.std.flatten().square() + covariance.low_rank.square().sum(dim=0)
    torch.testing.assert_close(variance, spectrum.square().mean(dim=0), rtol=1e-3, atol=1e-5)
    # And is close to the sample covariance where that is well known.
    expected = sample.flatten(1).T @ sample.flatten(1) / len(sample)
    assert float((dense(covariance) - expected).norm() / expected.norm()) < 0.25


def test_maps_are_adjoint_and_whitening_inverts():
    covariance = Covariance.fit(deviations(), rank=9)
    z, image = draw(3, covariance.dimension).float(), draw(3, 2, 6, 5, seed=1).float()
    left = (covariance.to_image(z) * image).sum()
    torch.testing.assert_close(left, (z * covariance.to_coordinates(image)).sum())
    white = covariance.whiten(image)
    torch.testing.assert_close(covariance.to_image(white), image, rtol=1e-3, atol=1e-3)
    # The shortest coordinates: their length is Mahalanobis'.
    flat = image.flatten(1).double()
    squares = (flat @ torch.linalg.inv(dense(covariance).double()) * flat).sum(dim=1)
    torch.testing.assert_close(white.square().sum(dim=1).double(), squares, rtol=1e-2, atol=1e-2)


def test_the_density_is_that_of_a_gaussian():
    covariance = Covariance.fit(deviations(), rank=9)
    sample = deviations(40)
    expected = torch.distributions.MultivariateNormal(
        torch.zeros(60, dtype=torch.float64), dense(covariance).double()
    ).log_prob(sample.flatten(1).double())
    got = covariance._log_density(covariance.analyse(sample)) - 30 * math.log(2 * math.pi)
    assert got == pytest.approx(float(expected.mean()), rel=1e-4)


# Gauss-Newton.


def linear_problem(evidence: float = 0.5) -> tuple[Posterior, torch.Tensor]:
    """Observations that are linear in the images, and the posterior's mean in closed form."""
    covariance = Covariance.fit(deviations(), rank=6)
    matrix, noise = draw(40, 120, seed=7).float(), 0.3
    mean = draw(3, 2, 2, 6, 5, seed=8).float()
    observed = draw(3, 40, seed=9).float()

    def predict(sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return sample.flatten(1) @ matrix.T

    posterior = Posterior(
        predict,
        Gaussian(torch.tensor(noise)),
        evidence,
        covariance,
        mean,
        observed,
        torch.zeros(3, 2, dtype=torch.int64),
    )
    prior = torch.block_diag(dense(covariance), dense(covariance)).double()
    a = matrix.double()
    gain = (
        prior
        @ a.T
        @ torch.linalg.inv(
            a @ prior @ a.T + noise**2 / evidence * torch.eye(40, dtype=torch.float64)
        )
    )
    residual = observed.double() - mean.flatten(1).double() @ a.T
    return posterior, mean.flatten(1).double() + residual @ gain.T


def test_a_linear_problem_has_its_closed_form():
    posterior, expected = linear_problem()
    start = torch.zeros(3, 2, posterior.covariance.dimension)
    found = maximise(posterior, start, iterations=8, inner=200)
    image = posterior.sample(found.z, torch.arange(3)).flatten(1).double()
    torch.testing.assert_close(image, expected, rtol=1e-2, atol=5e-3)
    assert not found.active.any()
    assert (found.objective.diff(dim=1) <= 0).all()
    assert (found.slope < 0.1 * found.objective[:, 0]).all()


class Stops(Progress):
    """Stops after so many steps, as a killed run does."""

    def __init__(self, after: int) -> None:
        super().__init__("test", every_seconds=1e9)
        self.left = after

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_search_resumes_to_the_same_result(tmp_path):
    posterior, _ = linear_problem()
    start = torch.zeros(3, 2, posterior.covariance.dimension)

    def search(progress: Progress) -> torch.Tensor:
        checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=0)
        return maximise(
            posterior, start, iterations=5, inner=4, checkpoint=checkpoint, progress=progress
        ).z

    whole = maximise(posterior, start, iterations=5, inner=4).z
    with pytest.raises(KeyboardInterrupt):
        search(Stops(3))
    assert torch.equal(search(QUIET), whole)


# The attack.


def layout_of(lenet) -> ParameterLayout:
    return ParameterLayout.of(attacked(*lenet))


def photographs(count: int) -> torch.Tensor:
    """Smooth images in [0, 1], ``(count, 3, 32, 32)``."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(6))
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear", align_corners=True)


class Case:
    """Batches of images, what was received of them, and blurred first reconstructions."""

    def __init__(self, lenet, defense: Defense, *, batches: int = 12, size: int = 1) -> None:
        self.client = Client(*lenet, defense, size)
        self.sample = photographs(batches * size).unflatten(0, (batches, size))
        label = torch.arange(batches * size) % 10
        self.label = label.unflatten(0, (batches, size))
        self.observed = self.client.receive(
            self.client.gradients(self.sample, self.label), torch.Generator().manual_seed(1)
        )
        noise = draw(batches * size, 3, 5, 5, seed=11).float()
        wide = torch.nn.functional.interpolate(noise, 32, mode="bilinear", align_corners=True)
        self.start = (self.sample + 0.08 * wide.unflatten(0, (batches, size))).clamp(0, 1)
        self.layout = layout_of(lenet)

    def held_out(self, few: int) -> HeldOut:
        return HeldOut(self.sample, self.label, self.start, self.observed[:few])

    def calibrated(self, few: int = 4, priors=("errors",)):
        return calibrate(
            self.client,
            self.held_out(few),
            photographs(40),
            layout=self.layout,
            priors=priors,
            rank=8,
            iterations=4,
            inner=12,
            progress=QUIET,
        )

    def observations(self) -> Observations:
        return Observations(
            self.observed,
            self.label,
            self.client.batch_size,
            self.client.model,
            self.client.network,
            self.client.defense,
            (3, 32, 32),
            PROJECTIONS["identity"](),
        )

    def known(self, refinement: Refinement, **facts) -> Known:
        own = {
            "defense": self.client.defense.canonical(),
            "fl_model_digest": network_digest(self.client.network),
            "batch_size": self.client.batch_size,
            "ordered": True,
            "helps": True,
            "reason": "",
        }
        made_for = {"defense_settings": self.client.defense.canonical()}
        return Known(refinement, own | facts, self.start, made_for, "digest")


def reconstruct(case: Case, known: Known, tmp_path, **settings_):
    attack = ATTACKS["lti-map"](start="lti", iterations=4, inner=12, **settings_)
    return attack.reconstruct(
        case.observations(),
        compute=CPU,
        seed=0,
        progress=QUIET,
        checkpoints=tmp_path,
        knowledge=known,
    )


@pytest.mark.parametrize(
    ("settings_", "size", "least"),
    [
        ({"use": "none"}, 1, 8.0),
        ({"use": "none"}, 2, 5.0),
        ({"use": "gauss", "sigma": 0.02}, 1, 3.0),
        ({"use": "sign"}, 1, 0.3),
        ({"use": "sign"}, 2, 0.0),
        ({"use": "prune", "rate": 0.9}, 1, 0.3),
        ({"use": "prune", "rate": 0.9}, 2, 0.0),
    ],
)
def test_refining_explains_the_gradient_and_is_never_worse(lenet, tmp_path, settings_, size, least):
    case = Case(lenet, DEFENSES.parse(settings_), size=size)
    chosen = case.calibrated()
    known = case.known(chosen.refinement, helps=chosen.helps)
    result = reconstruct(case, known, tmp_path)
    before, after = (
        psnr(output, case.sample, case.label).mean() for output in (case.start, result.sample)
    )
    assert float(after - before) >= least
    if chosen.helps:
        assert result.diagnostics["refined"].any()
        assert (result.objective.diff(dim=1) <= 0).all()
        assert result.sample.amin() >= 0 and result.sample.amax() <= 1


def test_all_priors_are_tried_and_the_best_is_taken(lenet):
    priors = ("flat", "identity", "images", "errors")
    chosen = Case(lenet, DEFENSES["none"]()).calibrated(priors=priors)
    assert {record["prior"] for record in chosen.tried} == set(priors)
    best = max(chosen.tried, key=lambda record: record["psnr_after"])
    assert chosen.helps
    # Settings that are better by less than 0.02 dB are not worth a move.
    taken = chosen.refinement
    (record,) = (
        record
        for record in chosen.tried
        if (record["prior"], record["width"]) == (taken.prior, taken.width)
    )
    assert record["psnr_after"] > best["psnr_after"] - 0.021


def test_a_start_from_noise_is_drawn_from_the_seed(lenet, tmp_path):
    case = Case(lenet, DEFENSES["gauss"](sigma=0.02))
    known = case.known(case.calibrated(priors=("images",)).refinement)
    first, again = (
        reconstruct(case, known, tmp_path / name, from_noise=True).sample for name in "ab"
    )
    assert torch.equal(first, again)
    straight = reconstruct(case, known, tmp_path / "c").sample
    assert not torch.equal(first, straight)
    assert float(psnr(first, case.sample, case.label).mean()) > 15


def test_where_refining_does_not_help_it_is_left_out(lenet, tmp_path):
    case = Case(lenet, DEFENSES["gauss"](sigma=100.0))
    chosen = case.calibrated(priors=("images",))  # of other images than what noise leaves
    assert not chosen.helps
    result = reconstruct(case, case.known(chosen.refinement, helps=False), tmp_path)
    assert torch.equal(result.sample, case.start)


class Opaque(Defense):
    """A defense of which nothing but its name is known."""

    name = "opaque"


def test_a_defense_without_a_likelihood_gets_the_first_reconstructions(lenet):
    chosen = Case(lenet, Opaque()).calibrated()
    assert not chosen.helps
    assert chosen.reason == "defense opaque states no likelihood"


def test_an_implausible_result_is_refused(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"]())
    refinement = case.calibrated().refinement
    result = reconstruct(case, case.known(replace(refinement, farthest=0.0)), tmp_path)
    assert torch.equal(result.sample, case.start)
    assert not result.diagnostics["refined"].any()


def test_samples_in_any_order_are_put_in_that_of_the_labels(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"](), batches=4, size=3)
    refinement = case.calibrated(few=2).refinement
    ordered = reconstruct(case, case.known(refinement), tmp_path / "a")
    case.start = case.start[:, [2, 0, 1]]
    mixed = reconstruct(case, case.known(refinement, ordered=False), tmp_path / "b")
    torch.testing.assert_close(mixed.sample, ordered.sample)


def test_a_refinement_is_read_as_it_was_written(lenet, tmp_path):
    refinement = Case(lenet, DEFENSES["sign"]()).calibrated().refinement
    refinement.save(tmp_path / "prior.safetensors", {"helps": True})
    again, facts = Refinement.load(tmp_path / "prior.safetensors")
    assert facts["helps"] is True
    assert (again.prior, again.width, again.evidence, again.farthest) == (
        *(refinement.prior, refinement.width, refinement.evidence),
        refinement.farthest,
    )
    assert torch.equal(again.covariance.low_rank, refinement.covariance.low_rank)
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LTIError, match=r"other\.safetensors"):
        Refinement.load(tmp_path / "other.safetensors")


def test_what_belongs_to_something_else_is_refused(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"]())
    refinement = case.calibrated().refinement
    with pytest.raises(LTIError, match=r"the prior is of .*'batch_size': 2"):
        reconstruct(case, case.known(refinement, batch_size=2), tmp_path)
    fewer = replace(case.known(refinement), start=case.start[:3])
    with pytest.raises(LTIError, match=r"shape \(3, 1, 3, 32, 32\); expected \(12, 1"):
        reconstruct(case, fewer, tmp_path)
    other = replace(case.known(refinement), start_facts={"defense_settings": {"use": "sign"}})
    with pytest.raises(LTIError, match="reconstructions under"):
        reconstruct(case, other, tmp_path)
    unlabelled = replace(case.observations(), label=None)
    with pytest.raises(LTIError, match="unknown labels"):
        ATTACKS["lti-map"](start="lti").reconstruct(
            unlabelled,
            compute=CPU,
            seed=0,
            progress=QUIET,
            checkpoints=tmp_path,
            knowledge=case.known(refinement),
        )
