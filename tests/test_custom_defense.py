"""Defenses of the user's own: any class with a method `defend`, and packages with entry points."""

from __future__ import annotations

import json
import random
import sys

import numpy as np
import pytest
import torch
from workflow_runner import AUXILIARY, VICTIMS, Checkout

from lti.attacks.likelihood import Gaussian, likelihood_of
from lti.attacks.stated_likelihood import StatedLikelihood
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json
from lti.gradients.store import GradientStore
from lti.modules import source_files
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator

MODULE = """\
import random

import numpy as np
import torch
from lti.defenses import Defense


class Dropping:
    source = "A drawer"
    matching = "nonzero-cosine"

    def __init__(self, keep=0.5, scale=1.0):
        if not 0 < keep <= 1:
            raise ValueError(f"keep is {keep}")
        self.keep, self.scale = keep, scale

    def defend(self, gradient):
        return gradient * (torch.rand(gradient.shape) < self.keep) * self.scale


class Drawing:
    def defend(self, gradient):
        drawn = [random.random(), np.random.rand(), float(torch.rand(()))]
        return torch.tensor(drawn + [0.0] * (len(gradient) - 3))


class Likely:
    def defend(self, gradient):
        return gradient + 0.1 * torch.randn(gradient.shape)

    def log_likelihood(self, observation, gradient):
        return -((observation - gradient) ** 2).sum() / (2 * 0.1**2)


class Wordy(Likely):
    def log_likelihood(self, observation, gradient):
        return 0.0


class Halving(Defense):
    factor: float = 0.5

    def deterministic(self, gradient):
        return gradient * self.factor


class Wrong:
    def __init__(self, how):
        self.how = how

    def defend(self, gradient):
        if self.how == "raises":
            raise KeyError("lost")
        return {
            "shape": gradient[:-1],
            "type": gradient.tolist(),
            "nan": gradient / 0,
            "double": gradient.double(),
        }[self.how]


class Odd:
    matching = "best"
    defend = None


class Unmatched:
    matching = "best"

    def defend(self, gradient):
        return gradient


def function():
    pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module in the working folder, which is not on Python's path."""
    name = f"users_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(DEFENSES, "_entries", dict(DEFENSES._entries))
    yield name
    sys.modules.pop(name, None)


def test_any_class_with_a_method_defend_is_a_defense(module):
    defense = DEFENSES.parse({"use": f"{module}:Dropping", "keep": 0.25, "scale": 2.0})
    assert defense.canonical() == {
        "use": f"{module}:Dropping",
        "defense_at": "sample",
        "keep": 0.25,
        "scale": 2.0,
    }
    again = DEFENSES.parse(json.loads(canonical_json(defense.canonical())))
    assert again == defense and again.canonical() == defense.canonical()
    assert defense != DEFENSES.parse({"use": f"{module}:Dropping", "keep": 0.5})
    assert (defense.source, defense.matching) == ("A drawer", "nonzero-cosine")
    assert defense.encoding == "scaled-float16"
    assert defense.is_stochastic and not defense.is_random and defense.waits_for_mean(2) is False

    rows = torch.randn(3, 4_000, generator=torch_generator(0, "rows"))
    before = rows.clone()
    sent = defense.before_projection(rows, seeds=[1, 2, 1])
    assert torch.equal(rows, before)
    for row, got, seed in zip(rows, sent, (1, 2, 1), strict=True):
        kept = torch.rand(4_000, generator=torch.Generator().manual_seed(seed)) < 0.25
        assert torch.equal(got, torch.where(kept, 2 * row, 0.0))


def test_what_a_class_draws_is_decided_by_the_seed_and_disturbs_nothing(module):
    defense = DEFENSES.parse({"use": f"{module}:Drawing"})
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = [random.random(), np.random.rand(), float(torch.rand(()))]
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    first = defense.before_projection(torch.zeros(2, 5), seeds=[11, 12])
    assert [random.random(), np.random.rand(), float(torch.rand(()))] == expected
    again = defense.before_projection(torch.zeros(2, 5), seeds=[11, 13])
    assert torch.equal(first[0], again[0])
    assert bool((first[1, :3] != again[1, :3]).all() and (first[0, :3] != first[1, :3]).all())


def test_a_subclass_of_defense_needs_no_package(module):
    defense = DEFENSES.parse({"use": f"{module}:Halving", "factor": 0.25})
    assert defense.canonical() == {
        "use": f"{module}:Halving",
        "defense_at": "sample",
        "factor": 0.25,
    }
    assert torch.equal(defense.deterministic(torch.ones(1, 2)), torch.full((1, 2), 0.25))
    assert not defense.is_stochastic and not defense.is_deterministic_identity
    with pytest.raises(LTIError, match=r"x\.fctor: unknown key .*; allowed: defense_at, factor"):
        DEFENSES.parse({"use": f"{module}:Halving", "fctor": 1}, where="x")


def test_the_users_module_is_one_of_the_stages_files(module, tmp_path):
    files = source_files("gradients", (DEFENSES, f"{module}:Dropping"))
    assert f"{module}.py" in files
    assert any(file.endswith("lti/defenses/custom.py") for file in files)
    sequence = DEFENSES.parse({"use": "sequence", "of": [{"use": f"{module}:Dropping"}]})
    assert f"{module}.py" in source_files("train", (DEFENSES, sequence.registered_names()))


def test_a_stated_log_likelihood_is_used(module, lenet):
    defense = DEFENSES.parse({"use": f"{module}:Likely"})
    found = likelihood_of(defense, batch_size=1, width=torch.ones(7))
    assert isinstance(found, StatedLikelihood)
    predicted, observed = torch.randn(2, 3, 7, generator=torch_generator(0, "x"))
    terms = found.terms(predicted, observed)
    expected = Gaussian(torch.tensor(0.1)).terms(predicted, observed)
    for got, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(got, wanted)
    # Of a mean of several it says nothing, and nothing is made up.
    assert likelihood_of(defense, batch_size=2, width=torch.ones(7)) is None
    at_batch = DEFENSES.parse({"use": f"{module}:Likely", "defense_at": "batch"})
    assert likelihood_of(at_batch, batch_size=2, width=torch.ones(7)) is not None
    assert likelihood_of(DEFENSES["qsgd"](), batch_size=1, width=torch.ones(7)) is None
    wordy = DEFENSES.parse({"use": f"{module}:Wordy"})
    with pytest.raises(LTIError, match=r"log_likelihood of .* returned 0\.0; expected a scalar"):
        likelihood_of(wordy, batch_size=1, width=torch.ones(7)).terms(predicted, observed)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shape", r"returned a tensor of shape \(3,\); expected a tensor .*, \(4,\)"),
        ("type", r"returned list; expected a tensor"),
        ("nan", r"returned 4 NaN or infinite entries of 4"),
        ("raises", r"failed on a gradient of shape \(4,\): KeyError: 'lost'"),
    ],
)
def test_wrong_results_are_refused(module, how, message):
    defense = DEFENSES.parse({"use": f"{module}:Wrong", "how": how})
    with pytest.raises(LTIError, match=f"defense {module}:Wrong {message}"):
        defense.before_projection(torch.ones(1, 4), seeds=[0])


def test_a_result_of_another_precision_is_float32(module):
    defense = DEFENSES.parse({"use": f"{module}:Wrong", "how": "double"})
    assert defense.before_projection(torch.ones(1, 4), seeds=[0]).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"use": "no_such_module:A"},
            r"x\.use: .*no module 'no_such_module'; searched .*Put",
        ),
        ({"use": "{}:Missing"}, r"x\.use: .*has no 'Missing'; it has .*Drawing, Drop"),
        ({"use": "{}:function"}, r"x\.use: .*which is function; expected a class"),
        ({"use": "{}:Odd"}, r"x\.use: .*:Odd has no method defend; expected defend\(self"),
        ({"use": "{}:Unmatched"}, r"x\.use: .*Unmatched\.matching is 'best'; expected one of cos"),
        ({"use": "{}:Dropping", "kep": 1}, r"x\.use: .*got the settings kep; .*'kep'"),
        ({"use": "{}:Wrong"}, r"x\.use: .*got the settings none; .*missing.*'how'"),
        ({"use": "{}:Dropping", "keep": 2}, r"x\.use: .*refuses its settings: ValueError: keep is"),
        ({"use": "{}:Dropping", "defense_at": "y"}, r"x\.defense_at: got 'y'"),
        ({"use": "{}:a:b"}, r"x\.use: .*got '.*'; expected package\.module:name"),
        ({"use": "../evil:A"}, r"x\.use: .*got '\.\./evil:A'; expected package\.module:name"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(module, settings, message):
    settings = {**settings, "use": settings["use"].format(module)}
    with pytest.raises(LTIError, match=f"^{message}"):
        DEFENSES.parse(settings, where="x")


def test_a_module_that_fails_is_said_with_its_error(module, tmp_path):
    (tmp_path / "broken_one.py").write_text("1 / 0\n")
    (tmp_path / "broken_two.py").write_text("import no_such_dependency\n")
    with pytest.raises(LTIError, match="importing 'broken_one' failed with ZeroDivisionError"):
        DEFENSES["broken_one:A"]
    with pytest.raises(LTIError, match=r"importing 'broken_two' failed.*no_such_dependency"):
        DEFENSES["broken_two:A"]


def test_every_axis_takes_a_class_and_only_defenses_a_plain_one(module, tmp_path):
    (tmp_path / f"{module}_more.py").write_text(
        "from lti.projections.identity import Identity\n\n\nclass Mine(Identity):\n    pass\n"
    )
    name = f"{module}_more:Mine"
    try:
        assert PROJECTIONS[name].name == name
        with pytest.raises(LTIError, match="expected a subclass of the base of all projections"):
            PROJECTIONS[f"{module}:Dropping"]
    finally:
        PROJECTIONS._entries.pop(name, None)
        sys.modules.pop(f"{module}_more", None)


PLUGIN = """\
import torch
from lti.attacks import Attack, Reconstruction
from lti.defenses import Defense


class Shrinking(Defense):
    source = "A package"
    factor: float = 0.5

    def deterministic(self, gradient):
        return gradient * self.factor


class Grey(Attack):
    source = "A package"
    shade: float = 0.5

    def reconstruct(self, observations, *, compute, seed, progress, checkpoints, knowledge=None):
        shape = (len(observations.gradient), observations.batch_size, *observations.sample_shape)
        return Reconstruction(torch.full(shape, self.shade))
"""
POINTS = """\
[lti.defenses]
shrink = lti_grey:Shrinking

[lti.attacks]
grey = lti_grey:Grey
"""
MINE = """\
import torch


class Mine:
    def __init__(self, keep):
        self.keep = keep

    def defend(self, gradient):
        return gradient * (torch.rand(gradient.shape) < self.keep)
"""


def test_a_package_and_a_users_class_run_through_the_workflow(tmp_path):
    """As installed: a folder on the path with the package's module and its metadata."""
    site = tmp_path / "site"
    info = site / "lti_grey-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "lti_grey.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lti-grey\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(POINTS)
    checkout = Checkout.fresh(tmp_path / "checkout")
    (checkout.folder / "mine.py").write_text(MINE)
    experiment = {
        "title": "Own",
        "dataset": "photos",
        "fl_models": ["lenet"],
        "defenses": ["shrink", "mine"],
        "attacks": ["lti", "grey"],
        "auxiliary": {"size": 160},
        "victims": {"size": 8},
        "metrics": ["mse"],
        "pictured": 4,
    }
    checkout.configure(
        {
            "defenses": {
                "shrink": {"use": "shrink", "factor": 0.25},
                "mine": {"use": "mine:Mine", "keep": 0.5},
            },
            "attacks.grey": {"use": "grey", "shade": 0.25},
            "experiments": {"own": experiment},
        }
    )
    cells = ["shrink/grey.csv", f"mine/lti@{AUXILIARY}.csv"]
    targets = [f"results/metrics/{VICTIMS}/lenet/b1/{cell}" for cell in cells]
    path = {"PYTHONPATH": f"{checkout.folder}:{site}"}
    checkout.run("--", *targets, **path)
    observed = f"results/observations/{VICTIMS}/lenet/b1/identity"
    stores = {
        name: GradientStore.open(
            checkout.folder / f"{observed}/{name}.zarr",
            checkout.folder / f"{observed}/{name}.manifest.json",
        )
        for name in ("shrink", "mine")
    }
    assert stores["shrink"].attributes["defense"]["factor"] == 0.25
    shrunk, sparse = (stores[name].rows(0, 8) for name in ("shrink", "mine"))
    kept = sparse != 0
    torch.testing.assert_close(sparse[kept], 4 * shrunk[kept], rtol=1e-4, atol=1e-6)
    assert 0.48 < float(kept[shrunk != 0].float().mean()) < 0.52
    assert float((kept[0] == kept[1]).float().mean()) < 0.55  # each victim its own draws
    lines = (checkout.folder / targets[0]).read_text().splitlines()
    assert len(lines) == 9 and "grey" in lines[1]
    # An edited class runs again, and with it what depends on it alone.
    (checkout.folder / "mine.py").write_text(MINE.replace("< self", "<= self"))
    plan = checkout.run("--dry-run", "--quiet", "host", "--", *targets, **path)
    jobs = {line.split()[1][:-1] for line in plan.splitlines() if line.startswith("rule ")}
    assert jobs == {
        "compute_gradients",
        "observe",
        "train_inverter",
        "run_attack",
        "measure_attack",
    }
