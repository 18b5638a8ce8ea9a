"""Federated training: one round exactly, what clients send, resuming, learning at all."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data import Samples
from lti.data.selection import write_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.federated import FederatedTraining
from lti.federated.evaluation import judge
from lti.federated.split import client_batches, hold_out, split_to_clients
from lti.federated.train import HISTORY, train_federated
from lti.files import read_json
from lti.fl_models import FL_MODELS, FLTask, attacked, network_digest, save_fl_model
from lti.fl_models.batch_norm import set_statistics
from lti.gradients.sent import sent_by_clients
from lti.gradients.store import GradientStore
from lti.progress import Progress
from lti.seeding import torch_generator
from lti.stages.federated import train_federated as stage
from lti.stages.gradients import observe

CPU = Compute(torch.device("cpu"), torch.float32)
SMALL = {
    "rounds": 6,
    "clients": 5,
    "clients_per_round": 3,
    "batch_size": 2,
    "learning_rates": [0.01, 0.003],
    "pilot_rounds": 4,
    "evaluations": 2,
}


def shades(n: int, *, seed: int = 0) -> Samples:
    """Dark images of class 0 and bright ones of class 1, with noise."""
    draw = np.random.default_rng(seed)
    label = draw.integers(2, size=n)
    image = draw.integers(100, size=(n, 3, 32, 32)) + 155 * label[:, None, None, None]
    return Samples(image.astype(np.uint8), label.astype(np.int64), np.arange(n))


def train(
    checkpoint: Checkpoint,
    *,
    defense: dict | None = None,
    progress: Progress | None = None,
    fl_model: str = "lenet",
    samples: Samples | None = None,
    test: Samples | None = None,
    **changes,
):
    model = FL_MODELS.parse({"use": fl_model})
    network = model.build(FLTask(2)).requires_grad_(False)
    trained = train_federated(
        FederatedTraining(**(SMALL | changes)),
        model,
        network,
        shades(60) if samples is None else samples,
        shades(40, seed=1) if test is None else test,
        defense=DEFENSES.parse(defense or {"use": "none"}),
        compute=CPU,
        checkpoint=checkpoint,
        progress=progress or Progress("test", every_seconds=1e9),
    )
    return trained, network


def unused(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "unused.safetensors", {}, every_seconds=1e9)


@pytest.mark.parametrize("at", ["sample", "batch"])
@pytest.mark.parametrize("use", ["none", "sign"])
def test_a_round_steps_along_the_mean_of_what_clients_send(use, at, tmp_path):
    samples, rate = shades(60), 0.05
    changes = {"rounds": 1, "evaluations": 1, "optimiser": "sgd", "learning_rates": [rate]}
    defense = {"use": use, "defense_at": at}
    _, network = train(unused(tmp_path), samples=samples, defense=defense, **changes)

    chosen = FederatedTraining(**(SMALL | changes))
    learned, _ = hold_out(60, chosen)
    parts = [learned[part] for part in split_to_clients(samples.label[learned], chosen)]
    model = FL_MODELS.parse({"use": "lenet"})
    expected = model.build(FLTask(2))
    weights = list(expected.parameters())

    def gradient(rows: list[int]) -> list[torch.Tensor]:
        x, y = torch.from_numpy(samples.value[rows]) / 255, torch.from_numpy(samples.label[rows])
        return list(torch.autograd.grad(functional.cross_entropy(expected(x), y), weights))

    def defended(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        return [g.sign() if use == "sign" else g for g in gradients]

    sent = []
    for batch in client_batches(parts, chosen, 1).tolist():
        if at == "batch":
            sent.append(defended(gradient(batch)))
            continue
        each = [defended(gradient([row])) for row in batch]
        sent.append([torch.stack(own).mean(0) for own in zip(*each, strict=True)])
    assert len(sent) == 3
    for weight, *own in zip(weights, *sent, strict=True):
        weight.data -= rate * torch.stack(own).mean(0)
    moved = dict(expected.named_parameters())
    for name, parameter in network.named_parameters():
        # A sign turns where a coordinate is nought but for rounding.
        off = (parameter - moved[name]).abs() > 1e-5
        assert off.float().mean() < (0.002 if use == "sign" else 1e-9), name


@pytest.mark.parametrize("at", ["sample", "batch"])
@pytest.mark.parametrize("defense", list(DEFENSES))
def test_clients_send_what_an_attacker_observes(defense, at, tmp_path):
    samples = shades(12)
    facts = {"dataset": "t", "part": "victims", "seed": 0, "size": 12, "class_names": ["a", "b"]}
    write_selection(tmp_path / "v.safetensors", samples, metadata=facts)
    model = FL_MODELS.parse({"use": "lenet"})
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, FLTask(2))
    required = {"sequence": {"of": [{"use": "clip"}, {"use": "sign"}]}}
    try:
        settings = DEFENSES.parse({"use": defense, "defense_at": at, **required.get(defense, {})})
    except LTIError as refused:
        assert at == "batch" and "no gradient is defended" in str(refused)
        return
    observe(
        victims=tmp_path / "v.safetensors",
        fl_model=tmp_path / "m.safetensors",
        defense=json.dumps(settings.canonical()),
        batch_size=3,
        seed=7,
        output=tmp_path / "o.zarr",
        manifest=tmp_path / "o.manifest.json",
    )
    observed = GradientStore.open(tmp_path / "o.zarr", tmp_path / "o.manifest.json").rows(0, 4)
    blocks = sent_by_clients(
        settings,
        model,
        model.build(FLTask(2)).requires_grad_(False),
        (torch.from_numpy(samples.value) / 255).unflatten(0, (4, 3)),
        torch.from_numpy(samples.label).unflatten(0, (4, 3)),
        generators=[torch_generator(7, "observe", settings.name, batch) for batch in range(4)],
    )
    assert torch.equal(torch.cat(list(blocks)), observed)


def test_large_gradients_are_sent_the_same(monkeypatch, lenet, images):
    """One client of several blocks, where several clients made up one."""
    x, label = images[0].unflatten(0, (2, 3)), images[1].unflatten(0, (2, 3))
    none = DEFENSES.parse({"use": "none"})

    def sent() -> torch.Tensor:
        generators = [torch_generator(client) for client in range(2)]
        return torch.cat(list(sent_by_clients(none, *lenet, x, label, generators=generators)))

    whole = sent()
    monkeypatch.setattr("lti.gradients.sent.block_rows", lambda parameters: 2)
    torch.testing.assert_close(sent(), whole, rtol=1e-4, atol=1e-5)


class Killed(Progress):
    """Stops after some rounds, as a killed run does."""

    def __init__(self, after: int) -> None:
        self.left = after
        super().__init__("test", every_seconds=1e9)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_seed_decides_everything(optimiser, tmp_path):
    gauss = {"use": "gauss"}
    runs = [
        train(unused(tmp_path), optimiser=optimiser, defense=gauss, seed=seed) for seed in (0, 0, 1)
    ]
    assert runs[0][0] == runs[1][0] and runs[0][0] != runs[2][0]
    digests = [network_digest(network) for _, network in runs]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("after", [2, 5, 9, 11])  # pilots have 4 rounds each; then come 6
def test_an_interrupted_training_resumes_to_the_identical_numbers(after, optimiser, tmp_path):
    changes = {"optimiser": optimiser, "defense": {"use": "gauss"}}
    expected, whole = train(unused(tmp_path), **changes)
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, progress=Killed(after), **changes)
    assert checkpoint.load()[1] == after - 1
    progress = Progress("test", every_seconds=1e9)
    trained, network = train(checkpoint, progress=progress, **changes)
    assert progress._skipped == after - 1 and progress._done == progress.total == 14
    assert trained == expected
    assert [list(map(type, row.values())) for row in trained.history] == [
        list(map(type, row.values())) for row in expected.history
    ]
    assert network_digest(network) == network_digest(whole)


EASY = {
    "rounds": 40,
    "clients": 4,
    "clients_per_round": 4,
    "batch_size": 4,
    "learning_rates": [0.003, 0.01, 0.03],
    "pilot_rounds": 20,
}


def test_accuracy_rises_where_that_is_easy_and_not_under_absurd_noise(tmp_path):
    trained, _ = train(unused(tmp_path), **EASY)
    first, last = trained.history[0], trained.history[-1]
    assert first["accuracy"] < 0.8 and last["accuracy"] > 0.95
    assert last["train_loss"] < first["train_loss"] and last["test_loss"] < first["test_loss"]
    drowned, _ = train(unused(tmp_path), defense={"use": "gauss", "sigma": 1e4}, **EASY)
    assert drowned.history[-1]["low"] < 0.65


def test_a_record_an_evaluation(tmp_path):
    trained, network = train(unused(tmp_path))
    assert [tuple(record) for record in trained.history] == [HISTORY] * 3
    assert [record["round"] for record in trained.history] == [0, 3, 6]
    assert [record["samples"] for record in trained.history] == [0, 18, 36]
    last, test = trained.history[-1], shades(40, seed=1)
    with torch.no_grad():
        output = network(torch.from_numpy(test.value) / 255)
    label = torch.from_numpy(test.label)
    right = int((output.argmax(1) == label).sum())
    assert last["accuracy"] == right / 40 and last["n"] == 40
    # Wilson 1927: the roots of (p - a)^2 = z^2 p (1 - p) / n.
    z, a = 1.959963985, right / 40
    for p in (last["low"], last["high"]):
        assert (p - a) ** 2 == pytest.approx(z**2 * p * (1 - p) / 40, abs=1e-9)
    assert last["test_loss"] == pytest.approx(float(functional.cross_entropy(output, label)))


def test_the_learning_rate_is_chosen_on_held_out_training_samples(tmp_path):
    changes = EASY | {"learning_rates": [1e-9, 0.01, 30.0], "rounds": 20}
    trained, _ = train(unused(tmp_path), **changes)
    assert trained.learning_rate == 0.01
    losses = {pilot["learning_rate"]: pilot["loss"] for pilot in trained.pilots}
    assert min(losses, key=losses.get) == 0.01 and len(losses) == 3
    # Whatever the test samples are.
    test = shades(30, seed=5)
    other = Samples(test.value, 1 - test.label, test.index)
    against, _ = train(unused(tmp_path), test=other, **changes)
    assert against.pilots == trained.pilots
    assert against.history[-1]["accuracy"] < 0.2
    # The training begins anew, and ends as one at that rate alone.
    alone, _ = train(unused(tmp_path), **changes | {"learning_rates": [0.01]})
    assert alone.history == trained.history and alone.pilots == []


def test_no_client_has_a_held_out_sample():
    chosen = FederatedTraining(**SMALL)
    learned, kept = hold_out(60, chosen)
    assert len(kept) == 6
    assert sorted([*learned, *kept]) == list(range(60))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=24, max_size=90),
    st.sampled_from([None, 1e-3, 0.1, 1.0, 1e3]),
    st.integers(0, 5),
)
def test_clients_share_the_samples(labels, alpha, seed):
    label = np.array(labels)
    chosen = FederatedTraining(**{**SMALL, "dirichlet": alpha, "clients": 12, "seed": seed})
    if alpha is not None and len(set(labels)) == 1:
        with pytest.raises(LTIError, match="all training samples are of class"):
            split_to_clients(label, chosen)
        return
    parts = split_to_clients(label, chosen)
    assert len(parts) == 12 and {len(part) for part in parts} == {len(label) // 12}
    together = np.concatenate(parts)
    assert len(set(together)) == len(together) and set(together) <= set(range(len(label)))
    batches = client_batches(parts, chosen, 3)
    assert batches.shape == (3, 2)
    owners = [[k for k, part in enumerate(parts) if set(row) <= set(part)] for row in batches]
    assert all(len(own) == 1 for own in owners) and len({own[0] for own in owners}) == 3
    assert all(len(set(row)) == 2 for row in batches)


def test_the_shares_of_clients_spread_as_a_dirichlet_distribution_does():
    label = np.repeat(np.arange(5), 20_000)
    for alpha in (1.0, 9.0, 99.0):
        changes = {"dirichlet": alpha, "clients": 100, "clients_per_round": 1}
        parts = split_to_clients(label, FederatedTraining(**{**SMALL, **changes}))
        # Before a class runs out.
        shares = np.stack([np.bincount(label[part], minlength=5) / 1000 for part in parts[:60]])
        expected = np.sqrt(0.2 * 0.8 / (alpha + 1))
        assert np.sqrt(((shares - 0.2) ** 2).mean()) == pytest.approx(expected, rel=0.2)
    shares = split_to_clients(label, FederatedTraining(**{**SMALL, "clients": 100}))
    shares = np.stack([np.bincount(label[part], minlength=5) / 1000 for part in shares])
    assert np.sqrt(((shares - 0.2) ** 2).mean()) == pytest.approx(np.sqrt(0.16 / 1000), rel=0.2)


def test_batch_statistics_are_those_of_the_samples():
    model = FL_MODELS.parse({"use": "resnet20"})
    network = model.build(FLTask(2)).requires_grad_(False)
    before = copy.deepcopy(network)
    value = torch.from_numpy(shades(50).value)
    set_statistics(network, value / 255)
    x = network.conv(value / 255)
    torch.testing.assert_close(network.norm.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(network.norm.running_var, x.var(dim=(0, 2, 3)))
    # Also behind others: the batch then looks as it does in training mode.
    training = before.train()(value / 255)
    torch.testing.assert_close(network(value / 255), training, rtol=1e-3, atol=1e-3)
    assert not network.training and not any(part.training for part in network.modules())
    assert network.norm.momentum == 0.1


def test_a_network_with_batch_norm_learns(tmp_path):
    changes = {"rounds": 12, "evaluations": 1, "learning_rates": [0.01], "clients_per_round": 4}
    samples = shades(60)
    trained, network = train(
        unused(tmp_path), fl_model="resnet20", samples=samples, batch_size=4, **changes
    )
    first, last = trained.history
    assert last["train_loss"] < first["train_loss"] and last["accuracy"] > 0.9
    assert float(network.norm.running_mean.abs().max()) > 0


class NextToken(nn.Module):
    """Says that the token after t is t + 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, token: torch.Tensor) -> torch.Tensor:
        return 5.0 * functional.one_hot(token + 1, 10).float() + self.weight


def test_a_language_model_is_judged_by_its_next_tokens():
    token = torch.tensor([[1, 2, 3, 0], [4, 5, 7, 8], [0, 0, 0, 0]], dtype=torch.int32)
    model = FL_MODELS.parse({"use": "transformer3"})
    judged = judge(model, NextToken(), token, token.long(), special=[0])
    assert judged.right.tolist() == [2, 2, 0] and judged.asked.tolist() == [2, 3, 0]
    assert judged.accuracy == 4 / 5
    low, high = judged.interval()
    # Of the two texts that have a token: both may be the first, or both the second.
    assert (low, high) == (pytest.approx(2 / 3), 1.0)


def test_a_language_model_trains_what_its_clients_send(tmp_path):
    draw = np.random.default_rng(0)
    start = draw.integers(1, 5, size=(60, 1))
    token = ((start + np.arange(6)) % 9 + 1).astype(np.int32)  # each follows from the one before
    samples = Samples(token, np.zeros(60, np.int64), np.arange(60))
    model = FL_MODELS.parse({"use": "transformer3", "causal": True})
    network = model.build(FLTask(1, vocabulary=10, length=6)).requires_grad_(False)
    before = {name: value.clone() for name, value in network.named_parameters()}
    changes = {"rounds": 30, "learning_rates": [0.003], "clients_per_round": 5}
    trained = train_federated(
        FederatedTraining(**(SMALL | changes)),
        model,
        network,
        samples,
        samples,
        defense=DEFENSES.parse({"use": "sign"}),
        compute=CPU,
        checkpoint=unused(tmp_path),
        progress=Progress("test", every_seconds=1e9),
    )
    assert trained.history[-1]["accuracy"] > 0.9 > trained.history[0]["accuracy"] + 0.3
    now = dict(network.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(now[name], value)}
    assert moved == set(attacked(model, network)) and "token.weight" in set(before) - moved


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "training.rounds: got 0; .*greater than or equal to 1"),
        ({"learning_rates": [0.1, 0.1]}, "learning_rates: got 0.1 more than once; allowed: once"),
        ({"learning_rates": []}, r"learning_rates: got \[\]"),
        ({"clients_per_round": 9}, "clients_per_round: got 9; allowed: 1 to `clients`, 5"),
        ({"evaluations": 7}, "evaluations: got 7; allowed: 1 to `rounds`, 6"),
        ({"pilot_rounds": 7}, "pilot_rounds: got 7; allowed: 1 to `rounds`, 6"),
        ({"dirichlet": 0}, "dirichlet: got 0"),
        (
            {"learning_rates": [2e3]},
            r"learning_rates\[0\]: got 2000.0; .*equal to 1000",
        ),
        ({"optimiser": "lamb"}, "optimiser: got 'lamb'"),
        ({"round": 3}, "training.round: unknown key .*allowed: .*rounds"),
        ({"clients": 60}, "54 training samples for 60 clients; expected at least 2"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message, files):
    with pytest.raises(LTIError, match=message):
        run_stage(files, **changes)
    assert {path.name for path in files.iterdir()} == BEFORE


BEFORE = {"train.safetensors", "test.safetensors", "victims.safetensors", "m.safetensors", "m.json"}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Training samples, test samples with ten victims among them, and a LeNet."""
    facts = {"dataset": "t", "part": "auxiliary", "seed": 0, "class_names": ["dark", "bright"]}
    test = shades(40, seed=1)
    for name, samples in (
        ("train", shades(60)),
        ("test", test),
        ("victims", test.take(range(5, 15))),
    ):
        path = tmp_path / f"{name}.safetensors"
        write_selection(path, samples, metadata={**facts, "size": len(samples)})
    model = FL_MODELS.parse({"use": "lenet"})
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, FLTask(2))
    return tmp_path


NOISE = {"use": "gauss", "sigma": 0.01}


def options(folder: Path, *, defense: dict = NOISE, **changes) -> dict[str, object]:
    return {
        "fl_model": folder / "m.safetensors",
        "samples": folder / "train.safetensors",
        "test": folder / "test.safetensors",
        "apart_from": folder / "victims.safetensors",
        "defense": json.dumps(defense),
        "training": json.dumps(SMALL | changes),
        "checkpoints": folder / "checkpoints",
        "output": folder / "out.csv",
        "card": folder / "out.json",
        "threads": 1,
    }


def run_stage(folder: Path, **changes: Any) -> None:
    stage(**options(folder, **changes))


def test_the_stage_writes_history_and_card(files):
    run_stage(files)
    history = pd.read_csv(files / "out.csv")
    assert tuple(history) == HISTORY and history["n"].tolist() == [30] * 3
    card = read_json(files / "out.json")
    kept = np.r_[0:5, 15:40]
    assert card["test_digest"] == shades(40, seed=1).take(kept).digest
    assert card["training_digest"] == shades(60).digest
    assert card["training"] == FederatedTraining(**SMALL).model_dump(mode="json")
    assert card["defense"] == NOISE | {"defense_at": "sample"}
    assert card["learning_rate"] in SMALL["learning_rates"] and card["learning_rate_at_edge"]
    assert [pilot["learning_rate"] for pilot in card["pilots"]] == SMALL["learning_rates"]
    assert card["samples_of_clients"] == [10] * 5
    drawn = read_json(files / "m.json")
    assert card["trained_parameters"] == drawn["attacked"]
    assert card["digest"] != card["fl_model_digest"] == drawn["digest"]


def test_the_stage_refuses_samples_that_do_not_go_together(files):
    with pytest.raises(LTIError, match=r"no sample is left beside those of .*; expected some"):
        stage(**options(files) | {"apart_from": files / "test.safetensors"})
    with pytest.raises(LTIError, match="expected no image in both"):
        stage(**options(files) | {"test": files / "train.safetensors", "apart_from": None})
    token = Samples(np.ones((4, 6), np.int32), np.zeros(4, np.int64), np.arange(4))
    facts = {"dataset": "t", "part": "auxiliary", "seed": 0, "size": 4, "class_names": []}
    write_selection(files / "text.safetensors", token, metadata=facts)
    with pytest.raises(LTIError, match="lenet got training samples of modality text"):
        stage(**options(files) | {"samples": files / "text.safetensors"})
    assert not (files / "out.csv").exists() and not (files / "out.json").exists()


def test_a_training_without_a_finite_loss_is_refused(files):
    drowned = {"use": "gauss", "sigma": 1e38}
    changes = {"optimiser": "sgd", "learning_rates": [100, 1000]}
    with pytest.raises(LTIError, match="no learning rate of 100, 1000 leads to a finite loss"):
        run_stage(files, defense=drowned, **changes)
    with pytest.raises(LTIError, match="the loss after round 3 is not a finite number"):
        run_stage(files, defense=drowned, **changes | {"learning_rates": [100]})
    assert not (files / "out.csv").exists()


def test_a_signal_saves_and_the_same_command_goes_on(files):
    run_stage(files, rounds=60)
    expected = (files / "out.csv").read_bytes()
    for name in ("out.csv", "out.json"):
        (files / name).unlink()
    command = [sys.executable, "-m", "lti", "train-federated"]
    for key, value in options(files, rounds=60).items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    command += ["--log", str(files / "log.txt")]
    environment = {**os.environ, "LTI_CHECKPOINT_SECONDS": "0"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list((files / "checkpoints").glob("[!.]*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, error
    assert "SIGUSR1: stopped; the same command goes on from what was saved." in error
    assert not (files / "out.csv").exists()
    stage(**options(files, rounds=60))
    assert (files / "out.csv").read_bytes() == expected
    assert not list((files / "checkpoints").iterdir())
