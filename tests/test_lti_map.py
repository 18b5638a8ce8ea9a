"""LTI-MAP: likelihoods, priors, Gauss-Newton, and reconstructions that explain the gradient."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, special
from torch.nn import functional

from lti.attacks import ATTACKS, Observations, Reconstruction
from lti.attacks.calibrate import HeldOut, calibrate, psnr
from lti.attacks.gauss_newton import Posterior, maximise
from lti.attacks.likelihood import (
    Gaussian,
    Likelihood,
    MeanOfPruned,
    MeanOfSigns,
    Pruned,
    Signs,
    Terms,
    likelihood_of,
)
from lti.attacks.lti_map import Known
from lti.attacks.parts import WHOLE, Part
from lti.attacks.prior import Covariance, dct_matrix
from lti.attacks.refinement import Client, Refinement
from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.defenses.base import Defense
from lti.errors import LTIError
from lti.files import write_tensors
from lti.fl_models import FL_MODELS, FLTask, attacked, network_digest
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
    "mean of signs": torch.tensor([[1, -1, 1, -1, 1], [-1, 3, 3, 1, -3]], dtype=torch.float64) / 3,
    "signs": torch.tensor([[1.0, -1, 1, 1, -1], [-1, 0, 1, -1, 1]], dtype=torch.float64),
    "pruned": torch.tensor([[0.0, 2.0, 0, -1.5, 0], [1.1, 0, 0, 0, 3]], dtype=torch.float64),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_scores_and_curvatures_are_derivatives(name):
    likelihood = LIKELIHOODS[name]
    observed = OBSERVED.get(name, draw(2, 5, seed=1))
    if name == "mean of signs":  # not convex: the square of the score stands in
        predicted, small = draw(2, 15, seed=2), 1e-5
        terms = likelihood.terms(predicted, observed)
        most = (1 / WIDTH.square()).repeat(3)
        torch.testing.assert_close(terms.curvature, torch.minimum(terms.score.square(), most))
        for place in range(15):
            step = small * torch.nn.functional.one_hot(torch.tensor(place), 15)
            up, down = (likelihood.terms(predicted + s * step, observed).value for s in (1, -1))
            torch.testing.assert_close(terms.score[:, place], (up - down) / (2 * small))
        return
    predicted = draw(2, 5, seed=2).requires_grad_()
    terms = likelihood.terms(predicted, observed)
    (score,) = torch.autograd.grad(terms.value.sum(), predicted, create_graph=True)
    torch.testing.assert_close(terms.score, score)
    # Coordinates are independent: row sums of the Hessian are its diagonal.
    (second,) = torch.autograd.grad(score.sum(), predicted)
    torch.testing.assert_close(terms.curvature, second)


@given(st.floats(-1e6, 1e6))
@settings(max_examples=200, deadline=None)
def test_the_probit_is_right_far_into_its_tails(margin):
    """Against scipy in double precision: d log Phi(m) / dm = phi(m) / Phi(m)."""
    width = torch.tensor(1.0)
    terms = Signs(width).terms(torch.tensor([[margin]]), torch.ones(1, 1))
    exact = float(torch.tensor(margin))  # as float32 has it
    logarithm = float(special.log_ndtr(exact))
    assert float(terms.value) == pytest.approx(-logarithm, rel=1e-4, abs=1e-7)
    expected = math.exp(-0.5 * exact**2 - 0.5 * math.log(2 * math.pi) - logarithm)
    if exact < -1e3:  # where that too has lost its digits
        expected = -exact
    assert float(-terms.score) == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert 0 <= float(terms.curvature) <= 1


def test_where_nothing_was_kept_pruning_says_nothing():
    terms = Pruned(torch.ones(3)).terms(torch.tensor([[1.0, -2.0, 5.0]]), torch.zeros(1, 3))
    assert all(float(part.abs().sum()) == 0 for part in terms)


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


@pytest.mark.parametrize("size", [1, 2, 5])
def test_numbers_of_positive_signs_have_the_probability_of_all_ways_to_get_them(size):
    likelihood = MeanOfSigns(WIDTH, size)
    gradient = draw(1, size, 5, seed=3)
    share = torch.special.ndtr(gradient / WIDTH)
    for positive in range(size + 1):
        expected = torch.zeros(5, dtype=torch.float64)
        for chosen in combinations(range(size), positive):
            ways = [share[0, i] if i in chosen else 1 - share[0, i] for i in range(size)]
            expected += torch.stack(ways).prod(dim=0)
        observed = torch.full((1, 5), 2 * positive / size - 1, dtype=torch.float64)
        value = likelihood.terms(likelihood.predict(gradient), observed).value
        assert float(value) == pytest.approx(float(-expected.log().sum()))


def test_a_sign_of_zero_says_nothing():
    terms = Signs(torch.ones(2)).terms(torch.tensor([[3.0, -2.0]]), torch.zeros(1, 2))
    assert all(float(part.abs().sum()) == 0 for part in terms)


def test_a_narrow_likelihood_predicts_what_pruning_sends(lenet, images):
    defense = DEFENSES["prune"](rate=0.9)
    client = Client(*lenet, defense, 3)
    gradient = client.gradients(images[0].unflatten(0, (2, 3)), images[1].unflatten(0, (2, 3)))
    narrow = torch.full((gradient.shape[2],), 1e-30)
    likelihood = likelihood_of(defense, batch_size=3, width=narrow)
    off = likelihood.predict(gradient) - client.receive(gradient, torch.Generator())
    # The coordinate at each threshold is on the edge.
    assert float((off.abs() > 1e-6).double().mean()) < 1e-3


def test_noise_of_a_mean_is_that_of_the_samples_over_the_root_of_their_number():
    width = torch.tensor([0.0, 0.3])  # of samples nearby, beside the noise
    for at, expected in (("sample", 0.1), ("batch", 0.2)):
        defense = DEFENSES["gauss"](sigma=0.2, defense_at=at)
        std = likelihood_of(defense, batch_size=4, width=width).std
        torch.testing.assert_close(std, torch.tensor([expected, math.hypot(expected, 0.3)]))
    for at, expected in (("sample", 0.1), ("batch", 0.4)):  # on a sum of four
        defense = DEFENSES["dp-sgd"](norm=0.2, noise_multiplier=2.0, defense_at=at)
        std = likelihood_of(defense, batch_size=4, width=width).std
        torch.testing.assert_close(std, torch.tensor([expected, math.hypot(expected, 0.3)]))


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


def linear_problem(weight: float = 0.5) -> tuple[Posterior, torch.Tensor]:
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
        weight,
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
        @ torch.linalg.inv(a @ prior @ a.T + noise**2 / weight * torch.eye(40, dtype=torch.float64))
    )
    residual = observed.double() - mean.flatten(1).double() @ a.T
    return posterior, mean.flatten(1).double() + residual @ gain.T


def test_a_linear_problem_has_its_closed_form():
    posterior, expected = linear_problem()
    start = torch.zeros(3, 2, posterior.covariance.dimension)
    found = maximise(posterior, start, iterations=8, inner=200)
    image = posterior.sample(found.z, torch.arange(3)).flatten(1).double()
    torch.testing.assert_close(image, expected, rtol=1e-2, atol=5e-3)
    assert found.converged.all() and not found.active.any()
    assert (found.objective.diff(dim=1) <= 0).all()


def test_a_step_that_does_not_descend_is_damped_and_then_given_up():
    """Derivatives that point the wrong way: no step along them helps."""
    posterior, _ = linear_problem()

    class Backwards(Gaussian):
        def terms(self, predicted: torch.Tensor, observed: torch.Tensor) -> Terms:
            terms = super().terms(predicted, observed)
            return Terms(terms.value, -100 * terms.score, terms.curvature)

    wrong = replace(posterior, likelihood=Backwards(torch.tensor(0.3)))
    start = torch.zeros(3, 2, posterior.covariance.dimension)
    found = maximise(wrong, start, iterations=12, inner=20)
    assert torch.equal(found.z, start)
    assert not found.converged.any() and not found.active.any()
    assert (found.damping > 100).all()
    assert (found.objective == found.objective[:, :1]).all()


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


def photographs(count: int) -> torch.Tensor:
    """Smooth images in [0, 1], ``(count, 3, 32, 32)``."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(6))
    return torch.nn.functional.interpolate(coarse, 32, mode="bilinear", align_corners=True)


class Case:
    """Batches of images, what is received of them, and blurred first reconstructions.

    Twelve batches are held out, six are the victims.
    """

    def __init__(
        self, lenet, defense: Defense, *, size: int = 1, ordered: bool = True, blur: float = 0.08
    ) -> None:
        count = 18
        self.client = Client(*lenet, defense, size)
        sample = photographs(count * size).unflatten(0, (count, size))
        # Two samples of a batch have the same label now and then.
        label = (torch.arange(count * size) * 7 // 3 % 10).unflatten(0, (count, size))
        gradient = self.client.gradients(sample, label)
        received = self.client.receive(gradient, torch.Generator().manual_seed(1))
        noise = draw(count * size, 3, 5, 5, seed=11).float()
        wide = torch.nn.functional.interpolate(noise, 32, mode="bilinear", align_corners=True)
        start = (sample + blur * wide.unflatten(0, (count, size))).clamp(0, 1)
        if not ordered:
            start = start.flip(1)
        self.held_out = HeldOut(sample[:12], label[:12], start[:12], ordered, received[:8])
        self.sample, self.label, self.start = sample[12:], label[12:], start[12:]
        self.observed = received[12:]
        self.layout = ParameterLayout.of(attacked(*lenet))

    def calibrated(self, checkpoint: Checkpoint | None = None, **settings_):
        with tempfile.TemporaryDirectory() as folder:
            return calibrate(
                attack(**settings_),
                self.client,
                self.held_out,
                photographs(40),
                layout=self.layout,
                checkpoint=checkpoint or Checkpoint(Path(folder) / "c.safetensors", {}),
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
            "attack": attack().tuned,
            "defense": self.client.defense.canonical(),
            "fl_model_digest": network_digest(self.client.network),
            "batch_size": self.client.batch_size,
            "ordered": self.held_out.ordered,
            "helps": True,
            "reason": "",
        }
        made_for = {
            "defense_settings": self.client.defense.canonical(),
            "fl_model_settings": self.client.model.canonical(),
            "seed": 0,
        }
        return Known(refinement, own | facts, self.start, made_for, "digest")


def attack(**settings_):
    given_ = {"start": "lti", "priors": ["errors"], "rank": 8, "iterations": 4, "inner": 12}
    return ATTACKS["lti-map"](**given_ | settings_)


def reconstruct(
    case: Case, known: Known, folder, progress: Progress = QUIET, part: Part = WHOLE, **settings_
):
    facts = {**known.facts, "attack": attack(**settings_).tuned}
    return attack(**settings_).reconstruct(
        case.observations(),
        compute=CPU,
        seed=0,
        progress=progress,
        checkpoints=folder,
        knowledge=replace(known, facts=facts),
        part=part,
    )


@pytest.mark.parametrize(
    ("settings_", "size", "least"),
    [
        ({"use": "none"}, 1, 8.0),
        ({"use": "none"}, 2, 5.0),
        ({"use": "gauss", "sigma": 0.02}, 1, 3.0),
        ({"use": "gauss", "sigma": 0.02}, 2, 1.0),
        ({"use": "clip", "norm": 1.0}, 2, 3.0),
        ({"use": "dp-sgd", "norm": 1.0, "noise_multiplier": 0.001}, 1, 3.0),
        ({"use": "sign"}, 1, 0.3),
        ({"use": "sign"}, 2, 0.3),
        ({"use": "sign", "defense_at": "batch"}, 2, 0.1),
        ({"use": "prune", "rate": 0.9}, 1, 0.3),
        ({"use": "prune", "rate": 0.9}, 2, 0.3),
        ({"use": "prune", "rate": 0.9, "defense_at": "batch"}, 2, 0.1),
    ],
)
def test_refining_brings_victims_closer(lenet, tmp_path, settings_, size, least):
    # Where signs of several samples are averaged, little is left that is not known already.
    case = Case(lenet, DEFENSES.parse(settings_), size=size, blur=0.2 if size == 2 else 0.08)
    steps = {"iterations": 12 if settings_["use"] == "sign" else 4}
    chosen = case.calibrated(**steps)
    assert chosen.helps, chosen.reason
    result = reconstruct(case, case.known(chosen.refinement), tmp_path, **steps)
    before, after = (psnr(output, case.sample).mean() for output in (case.start, result.sample))
    assert float(after - before) >= least
    assert result.diagnostics["refined"].any()
    assert (result.objective.diff(dim=1) <= 0).all()
    assert result.sample.amin() >= 0 and result.sample.amax() <= 1


def test_what_was_tried_is_not_tried_again(lenet, tmp_path, monkeypatch):
    case = Case(lenet, DEFENSES["none"]())
    settings_ = {"priors": ["identity", "errors"], "iterations": 2}
    whole = case.calibrated(**settings_)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {})
    refine, count = Refinement.refine, 0

    def killed(*arguments, **options):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return refine(*arguments, **options)

    monkeypatch.setattr(Refinement, "refine", killed)
    with pytest.raises(KeyboardInterrupt):
        case.calibrated(checkpoint, **settings_)
    assert checkpoint.load()[1] == 3
    resumed = case.calibrated(checkpoint, **settings_)
    assert resumed.tried == whole.tried
    assert resumed.refinement.digest == whole.refinement.digest
    assert count == 4 + len(whole.tried) - 3


@pytest.fixture(scope="module")
def resnet20():
    model = FL_MODELS["resnet20"]()
    return model, model.build(FLTask(classes=10)).requires_grad_(False)


@pytest.mark.parametrize("defense", [{"use": "gauss"}, {"use": "sign", "defense_at": "sample"}])
def test_a_softened_jacobian_goes_with_the_exact_value(resnet20, defense):
    """It is that of the network with its rectifiers replaced, which this does by hand."""
    client = Client(*resnet20, DEFENSES.parse(defense), 2)
    sample = photographs(4).unflatten(0, (2, 2))
    label = torch.tensor([[0, 1], [2, 3]])
    size = sum(value.numel() for value in attacked(*resnet20).values())
    likelihood = likelihood_of(client.defense, batch_size=2, width=torch.ones(size))
    assert client.has_rectifiers(sample, label)

    def pulled(softening: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = sample.clone().requires_grad_()
        predicted = client.predict(likelihood, x, label, softening=softening)
        along = draw(*predicted.shape, seed=2).float()
        return predicted.detach(), torch.autograd.grad(predicted, x, along)[0]

    exact, hard = pulled(0.0)
    value, soft = pulled(0.1)
    torch.testing.assert_close(value, exact)
    relu, functional.relu = functional.relu, by_hand
    try:
        _, expected = pulled(0.0)
    finally:
        functional.relu = relu
    torch.testing.assert_close(soft, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert float((soft - hard).norm() / hard.norm()) > 0.5


def by_hand(value: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    """Soften by a tenth of the root mean square, with the error function."""
    scale = 0.1 * (value.detach() ** 2).mean() ** 0.5
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False)
    z = value / scale
    return value * (1 + torch.erf(z / 2**0.5)) / 2 + scale * normal.log_prob(z).exp()


def test_without_rectifiers_nothing_is_softened(lenet):
    case = Case(lenet, DEFENSES["gauss"](sigma=0.02))
    assert not case.client.has_rectifiers(case.sample, case.label)
    assert {record["softening"] for record in case.calibrated().tried} == {0.0}


def test_the_softening_of_rectifiers_is_chosen(resnet20):
    case = Case(resnet20, DEFENSES["gauss"](sigma=0.02))
    chosen = case.calibrated(iterations=2, inner=6)
    *compared, _ = chosen.tried
    tried = {record["softening"] for record in compared}
    assert 0.01 in tried and len(tried) > 1
    best = max(record["psnr_after"] for record in compared)
    (taken,) = (
        record["psnr_after"]
        for record in compared
        if all(
            record[key] == getattr(chosen.refinement, key)
            for key in ("width", "weight", "softening")
        )
    )
    assert taken > best - 0.021


def test_all_priors_are_tried_and_the_best_is_taken(lenet):
    priors = ["flat", "identity", "images", "errors"]
    chosen = Case(lenet, DEFENSES["none"]()).calibrated(priors=priors)
    *compared, confirmed = chosen.tried
    assert {record["prior"] for record in compared} == set(priors)
    assert chosen.helps
    # Settings that are better by less than 0.02 dB are not worth a move.
    taken = (chosen.refinement.prior, chosen.refinement.width)
    (record,) = (r for r in compared if (r["prior"], r["width"]) == taken)
    assert record["psnr_after"] > max(r["psnr_after"] for r in compared) - 0.021
    assert (confirmed["prior"], confirmed["width"]) == taken
    assert confirmed["psnr_before"] != record["psnr_before"]  # of other batches
    assert chosen.refinement.farthest == pytest.approx(1.5 * record["farthest"])


def test_a_start_from_noise_is_drawn_from_the_seed(lenet, tmp_path):
    case = Case(lenet, DEFENSES["gauss"](sigma=0.02))
    settings_ = {"priors": ["images"], "from_noise": True}
    known = case.known(case.calibrated(**settings_).refinement)
    first, again = (reconstruct(case, known, tmp_path / name, **settings_).sample for name in "ab")
    assert torch.equal(first, again)
    straight = reconstruct(case, known, tmp_path / "c", priors=["images"]).sample
    assert not torch.equal(first, straight)
    assert float(psnr(first, case.sample).mean()) > 15


def test_where_refining_does_not_help_it_is_left_out(lenet, tmp_path):
    case = Case(lenet, DEFENSES["gauss"](sigma=100.0))
    chosen = case.calibrated(priors=["images"])  # of other images than what noise leaves
    assert not chosen.helps
    result = reconstruct(case, case.known(chosen.refinement, helps=False), tmp_path)
    assert torch.equal(result.sample, case.start)
    assert not result.diagnostics["refined"].any()


class Opaque(Defense):
    """A defense of which nothing but its name is known."""

    name = "opaque"


def test_a_defense_without_a_likelihood_gets_the_first_reconstructions(lenet):
    chosen = Case(lenet, Opaque()).calibrated()
    assert not chosen.helps
    assert chosen.reason == "defense opaque states no likelihood"


class Halved(Defense):
    """A defense of another package, which says what it does."""

    name = "halved"

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / 2

    def likelihood(self, *, batch_size: int, width: torch.Tensor) -> Likelihood:
        class Half(Gaussian):
            def predict(self, gradient: torch.Tensor) -> torch.Tensor:
                return gradient[:, 0] / 2

        return Half(0.01 * width)


def test_a_defense_may_state_its_own_likelihood(lenet):
    assert Case(lenet, Halved()).calibrated().helps


def test_an_implausible_result_is_refused(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"]())
    refinement = case.calibrated().refinement
    result = reconstruct(case, case.known(replace(refinement, farthest=0.0)), tmp_path)
    assert torch.equal(result.sample, case.start)
    assert not result.diagnostics["refined"].any()


@pytest.mark.parametrize("defense", [{"use": "none"}, {"use": "sign"}])
def test_samples_in_any_order_are_put_in_that_of_the_labels(lenet, tmp_path, defense):
    ordered, mixed = (
        Case(lenet, DEFENSES.parse(defense), size=3, ordered=ordered) for ordered in (True, False)
    )
    refinement = ordered.calibrated().refinement
    # Nothing is plausible: what comes back are the first reconstructions, in the order found.
    known = mixed.known(replace(refinement, farthest=0.0))
    found = reconstruct(mixed, known, tmp_path).sample
    # Where two labels of a batch are the same, so is the order of their samples.
    apart = torch.tensor([len(set(row.tolist())) == 3 for row in mixed.label])
    assert apart.any()
    assert torch.equal(found[apart], ordered.start[apart])


def test_victims_in_parts_and_an_interruption_change_nothing(lenet, tmp_path, monkeypatch):
    case = Case(lenet, DEFENSES["sign"]())
    known = case.known(case.calibrated().refinement)
    whole = reconstruct(case, known, tmp_path / "whole")
    monkeypatch.setattr(Client, "at_once", lambda self, device: 4)
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(case, known, tmp_path / "parts", Stops(6))  # in the second part
    parts = reconstruct(case, known, tmp_path / "parts")
    assert float((parts.sample - whole.sample).square().mean()) < 1e-5
    again = reconstruct(case, known, tmp_path / "again")
    assert torch.equal(parts.sample, again.sample)


@pytest.mark.parametrize(
    ("settings_", "helps"),
    [({}, True), ({"from_noise": True}, True), ({}, False)],
    ids=["start", "noise", "no-help"],
)
def test_parts_have_the_bytes_of_one_job(lenet, tmp_path, monkeypatch, settings_, helps):
    case = Case(lenet, DEFENSES["sign"]())
    known = case.known(case.calibrated(iterations=1).refinement, helps=helps)
    monkeypatch.setattr(Client, "at_once", lambda self, device: 4)  # of 6
    whole = reconstruct(case, known, tmp_path / "whole", **settings_)
    parts = [
        reconstruct(case, known, tmp_path / str(k), part=Part(k, 3), **settings_) for k in range(3)
    ]
    assert [len(part.sample) for part in parts] == [0, 4, 2]
    joined = Reconstruction.joined([part for part in parts if len(part.sample)]).tensors
    assert joined.keys() == whole.tensors.keys()
    assert all(torch.equal(joined[key], value) for key, value in whole.tensors.items())


def test_a_refinement_is_read_as_it_was_written(lenet, tmp_path):
    refinement = Case(lenet, DEFENSES["sign"]()).calibrated().refinement
    refinement.save(tmp_path / "prior.safetensors", {"helps": True})
    again, facts = Refinement.load(tmp_path / "prior.safetensors")
    assert facts["helps"] is True
    assert again.digest == refinement.digest
    changes = [{key: 9.0} for key in ("width", "weight", "softening", "farthest")]
    for change in (*changes, {"mean": again.mean + 1}):
        assert replace(again, **change).digest != refinement.digest
    (tmp_path / "other.safetensors").write_bytes(b"no tensors")
    with pytest.raises(LTIError, match=r"other\.safetensors"):
        Refinement.load(tmp_path / "other.safetensors")


def test_what_belongs_to_something_else_is_refused(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"]())
    known = case.known(case.calibrated().refinement)
    with pytest.raises(LTIError, match=r"the prior is of .*'batch_size': 2"):
        reconstruct(case, replace(known, facts={**known.facts, "batch_size": 2}), tmp_path)
    with pytest.raises(LTIError, match=r"shape \(3, 1, 3, 32, 32\); expected \(6, 1"):
        reconstruct(case, replace(known, start=case.start[:3]), tmp_path)
    other = {**known.start_facts, "seed": 1}
    with pytest.raises(LTIError, match=r"got reconstructions of .*'seed': 1"):
        reconstruct(case, replace(known, start_facts=other), tmp_path)
    given_ = {"compute": CPU, "seed": 0, "progress": QUIET, "checkpoints": tmp_path}
    with pytest.raises(LTIError, match=r"the prior is of .*'iterations': 4"):
        attack(iterations=5).reconstruct(case.observations(), knowledge=known, **given_)
    unlabelled = replace(case.observations(), label=None)
    with pytest.raises(LTIError, match="unknown labels"):
        attack().reconstruct(unlabelled, knowledge=known, **given_)


def test_files_of_something_else_are_refused(lenet, tmp_path):
    case = Case(lenet, DEFENSES["none"]())
    refinement = case.calibrated().refinement
    files = {"prior": tmp_path / "prior.safetensors", "start": tmp_path / "start.safetensors"}
    refinement.save(files["prior"], {"helps": True})
    write_tensors(files["start"], {"objective": torch.zeros(1)}, {})
    with pytest.raises(LTIError, match=r"not a prior of this version \(attack is missing\)"):
        attack().load(files, compute=CPU)
    refinement.save(files["prior"], case.known(refinement).facts)
    with pytest.raises(LTIError, match="got objective; expected reconstructions"):
        attack().load(files, compute=CPU)
