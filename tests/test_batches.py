"""Batches of several samples: orderings, telling samples apart, grouping, training."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.batch_encoder import BatchEncoder, batch_encoder_statistics
from lti.inverters.head import ClassifierHead
from lti.inverters.inputs import TrainingInputs, statistics_sample
from lti.inverters.network import RawGradient
from lti.inverters.ordering import best_order, matched_cross_entropy, matched_mse
from lti.inverters.separate import label_features, separate
from lti.inverters.train import train_inverter
from lti.inverters.trained import TrainedInverter
from lti.progress import Progress
from lti.projections import PROJECTIONS
from lti.seeding import torch_generator

CPU = Compute(torch.device("cpu"), torch.float32)
SAMPLES, HELD, BATCH = 90, 8, 4


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Orderings


def by_hand(output, target, label=None) -> float:
    """The least mean squared error over the allowed orderings, by trying them all."""
    errors = []
    for order in permutations(range(len(output))):
        if label is None or all(label[i] == label[j] for i, j in enumerate(order)):
            errors.append(float((output - target[list(order)]).square().mean()))
    return min(errors)


@settings(deadline=None, max_examples=40)
@given(batch=st.integers(1, 6), seed=st.integers(0, 10**6), labelled=st.booleans())
def test_the_loss_is_the_least_over_the_orderings(batch, seed, labelled):
    draw = stream(seed)
    output, target = (torch.rand(3, batch, 2, 5, generator=draw) for _ in range(2))
    label = torch.randint(2, (3, batch), generator=draw) if labelled else None
    loss = matched_mse(output, target, label)
    for k in range(3):
        expected = by_hand(output[k], target[k], None if label is None else label[k].tolist())
        assert float(loss[k]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch", [4, 7])
def test_shuffled_targets_are_put_in_order_again(batch):
    output = torch.rand(5, batch, 3, 4, 4, generator=stream())
    order = torch.stack([torch.randperm(batch, generator=stream(k)) for k in range(5)])
    target = torch.stack([output[k][order[k].argsort()] for k in range(5)])
    # output[i] is target[order[i]]
    cost = (output[:, :, None] - target[:, None]).square().flatten(3).sum(dim=3)
    assert torch.equal(best_order(cost), order)
    assert float(matched_mse(output, target).max()) == 0.0


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(1, 3), seed=st.integers(0, 10**6))
def test_the_cross_entropy_is_the_least_over_the_orderings(batch, seed):
    draw = stream(seed)
    logits = torch.randn(2, batch, 4, 7, generator=draw)
    target = torch.randint(7, (2, batch, 4), generator=draw)
    loss = matched_cross_entropy(logits, target)
    for k in range(2):
        expected = min(
            functional.cross_entropy(logits[k].flatten(0, 1), target[k, list(order)].flatten())
            for order in permutations(range(batch))
        )
        assert float(loss[k]) == pytest.approx(float(expected), rel=1e-5)


def test_the_gradient_of_the_loss_is_that_of_the_best_ordering():
    output = torch.rand(2, 3, 4, generator=stream()).requires_grad_()
    target = output.detach()[:, [2, 0, 1]] + 0.01
    matched_mse(output, target).sum().backward()
    torch.testing.assert_close(output.grad, torch.full_like(output, 2 * -0.01 / 12))


# Telling samples apart


class Head(torch.nn.Module):
    """A linear layer behind a squashed input, as in a network."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(30, 6)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.5, 0.5, generator=stream(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.sigmoid(x.flatten(1)))


def head_gradients(label: torch.Tensor) -> tuple[Head, torch.Tensor, torch.Tensor]:
    """A head, inputs ``v (b, B, 30)``, and the mean gradients of batches with these labels."""
    network = Head()
    x = 0.3 * torch.randn(*label.shape, 30, generator=stream(1))
    gradients = []
    for one, own in zip(x, label, strict=True):
        loss = functional.cross_entropy(network(one), own)
        found = torch.autograd.grad(loss, list(network.parameters()))
        gradients.append(torch.cat([part.flatten() for part in found]))
    return network, torch.sigmoid(x), torch.stack(gradients)


def test_the_inputs_of_distinct_labels_are_found():
    label = torch.stack([torch.randperm(6, generator=stream(k))[:3] for k in range(20)])
    network, v, gradient = head_gradients(label)
    sample = 0.3 * torch.randn(500, 30, generator=stream(2))
    head = ClassifierHead.of(network, sample, 6)
    assert head is not None
    layout = ParameterLayout.of(dict(network.named_parameters()))
    (block,) = layout.linear_blocks()
    values, seen = separate(gradient, label, block=block, head=head, ridge=1e-6)
    assert values.shape == (20, 3, 2 * 30 + 6 + 2) and seen.shape == (20, 3, 30)
    deviation = v - head.mean
    error = (values[:, :, :30] - deviation).norm() / deviation.norm()
    assert float(error) < 0.05
    probability = network.linear(v).softmax(dim=2).detach()
    assert float((values[:, :, 30:36] - probability).abs().max()) < 0.02
    # The row of the own class, over its mean, and the bias gradient, as they stand.
    rows = gradient[:, block.weight].unflatten(1, (6, 30))
    row = torch.stack([rows[k, label[k]] for k in range(20)])
    torch.testing.assert_close(values[:, :, 36:66] * values[:, :, 66:67], row)
    bias = torch.stack([gradient[k, block.bias][label[k]] for k in range(20)])
    torch.testing.assert_close(values[:, :, 67], bias)
    assert bool(seen.all())


def test_samples_of_one_label_get_their_mean():
    label = torch.tensor([[2, 2, 5]])
    network, v, gradient = head_gradients(label)
    head = ClassifierHead.of(network, 0.3 * torch.randn(500, 30, generator=stream(2)), 6)
    (block,) = ParameterLayout.of(dict(network.named_parameters())).linear_blocks()
    values, _ = separate(gradient, label, block=block, head=head, ridge=1e-4)
    torch.testing.assert_close(values[0, 0], values[0, 1], rtol=1e-3, atol=1e-4)
    expected = v[0, :2].mean(dim=0) - head.mean
    assert float((values[0, 0, :30] - expected).norm() / expected.norm()) < 0.1


def test_a_head_is_found_only_where_the_network_ends_with_it(lenet):
    sample = torch.rand(20, 3, 32, 32, generator=stream())
    head = ClassifierHead.of(lenet.network, sample, 10)
    assert head is not None
    assert torch.equal(head.weight, lenet.network.linear.weight)
    output = lenet.network(sample)
    torch.testing.assert_close(head.probability, output.softmax(dim=1).mean(dim=0))
    assert bool(((head.low <= head.mean) & (head.mean <= head.high)).all())
    again = ClassifierHead.from_tensors(head.tensors())
    assert again is not None and torch.equal(again.high, head.high)
    assert ClassifierHead.from_tensors({}) is None
    assert ClassifierHead.of(lenet.network, sample, 7) is None
    followed = torch.nn.Sequential(lenet.network, torch.nn.Softmax(dim=1))
    assert ClassifierHead.of(followed, sample, 10) is None


def test_labels_become_label_counts_and_rank():
    features = label_features(torch.tensor([[1, 0, 1, 1]]), 3)
    assert features.shape == (1, 4, 3 + 3 + 4)
    assert features[0, :, :3].tolist() == [[0, 3, 0], [3, 0, 0], [0, 3, 0], [0, 3, 0]]
    counts = torch.tensor([1, 3, 0]) - 4 / 3
    torch.testing.assert_close(features[0, :, 3:6], counts.expand(4, 3))
    assert features[0, :, 6:].argmax(dim=1).tolist() == [0, 0, 1, 2]


# Training, on LeNet's gradients of a few photographs


@pytest.fixture(scope="module")
def auxiliary(lenet, images, tmp_path_factory):
    """A function that makes auxiliary data for batches of four."""
    draw = stream(3)
    image = torch.randint(256, (SAMPLES, 3, 32, 32), generator=draw, dtype=torch.uint8)
    label = torch.randint(10, (SAMPLES,), generator=draw)
    rows = per_sample_gradient_function(*lenet)(image.float() / 255, label)

    def make(name: str = "none", **options) -> AuxiliaryData:
        defense = DEFENSES[name](**options)
        stored = defense.deterministic(rows)
        encoding = defense.encoding
        if defense.waits_for_mean(BATCH):
            stored, encoding = rows, "scaled-float16"
        folder = tmp_path_factory.mktemp("store")
        store = write_store(
            folder / "g",
            n_rows=SAMPLES,
            dim=15_826,
            encoding=encoding,
            compute=lambda start, stop: stored[start:stop],
            manifest=folder / "g.json",
            settings=StoreSettings(chunk_mib=0.25, shard_mib=2),
        )
        return AuxiliaryData(
            store=store,
            value=image,
            label=label,
            classes=10,
            views=1,
            defense=defense,
            layout=ParameterLayout.of(attacked(*lenet)),
            batch_size=BATCH,
            network=lenet.network,
        )

    return make


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("none", {}),
        ("sign", {}),
        ("sign", {"defense_at": "batch"}),
        ("prune", {"rate": 0.9, "defense_at": "batch"}),
        ("gauss", {"sigma": 0.3}),
        ("gauss", {"sigma": 0.3, "defense_at": "batch"}),
    ],
)
def test_a_training_batch_is_what_a_server_receives(auxiliary, name, options):
    data = auxiliary(name, **options)
    rows = data.store.rows(0, 2 * BATCH)
    observed = data.observe(rows, torch_generator(0, "x"))
    defense = data.defense
    groups = rows.unflatten(0, (2, BATCH))
    if options.get("defense_at") == "batch":
        expected = defense.defend(groups.mean(dim=1), generator=torch_generator(0, "x"))
    else:  # the store's rows went through the deterministic part
        expected = defense.randomise(rows, generator=torch_generator(0, "x"))
        expected = expected.unflatten(0, (2, BATCH)).mean(dim=1)
    torch.testing.assert_close(observed, expected)
    if name == "gauss":  # averaging the defended samples halves sigma
        noise = (observed - groups.mean(dim=1)).std()
        assert float(noise) == pytest.approx(0.3 if options.get("defense_at") else 0.15, rel=0.02)
    if name == "sign":
        levels = {-1.0, 0.0, 1.0} if options else {-1.0, -0.5, 0.0, 0.5, 1.0}
        assert set(observed.unique().tolist()) <= levels


def test_a_defense_of_the_mean_comes_before_the_projection(auxiliary):
    projection = PROJECTIONS["hash"](ratio=0.01)
    data = replace(auxiliary("sign", defense_at="batch"), projection=projection)
    rows = data.store.rows(0, BATCH)
    expected = projection.project(rows.mean(dim=0, keepdim=True).sign(), layout=data.layout)
    observed = data.observe(rows, torch_generator(0, "x"))
    torch.testing.assert_close(observed, expected)
    assert observed.shape == (1, projection.layout(data.layout).total)


def test_batches_are_filled_across_blocks_of_the_store(auxiliary, monkeypatch):
    """However few samples a block has, only those at the very end are left out."""
    data = replace(auxiliary(), batch_size=7)
    monkeypatch.setattr("lti.inverters.inputs.ENCODE_ROWS", 1)  # blocks of one chunk
    assert data.store.geometry.chunk_rows % 7 and data.store.geometry.chunk_rows * 2 < SAMPLES
    settings = INVERTERS["tuned"](batch_size=8, components=4)
    sample = statistics_sample(settings, data, SAMPLES - HELD)
    parts = list(sample.blocks())
    assert sum(len(gradient) for gradient, _ in parts) == (SAMPLES - HELD) // 7
    labels = torch.cat([label for _, label in parts])
    assert torch.equal(labels.flatten(), data.label[: labels.numel()])
    gradient = torch.cat([gradient for gradient, _ in parts])
    expected = data.store.rows(0, labels.numel()).unflatten(0, (-1, 7)).mean(dim=1)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("memory_mib", [4096.0, 0.6])
def test_samples_are_grouped_anew_every_epoch(auxiliary, memory_mib):
    data = auxiliary()
    rows = range(SAMPLES - HELD)  # 82: two are left over
    inputs = TrainingInputs(
        data,
        rows,
        encoder=RawGradient(),
        compute=CPU,
        dtype=torch.float32,
        memory_mib=memory_mib,
    )
    groups = []
    for seed in (1, 2, 1):
        drawn = []
        noise = torch_generator(seed, "noise")
        for index, batch in inputs.epoch(3, seed=seed, noise=noise, mirrored=False):
            assert index.shape == (len(batch), BATCH) and len(batch) <= 3
            stored = torch.cat([data.store.rows(i, i + 1) for i in index.flatten().tolist()])
            torch.testing.assert_close(batch, stored.unflatten(0, index.shape).mean(dim=1))
            drawn += index.tolist()
        flat = [row for group in drawn for row in group]
        assert len(flat) == len(set(flat)) == 80 and set(flat) <= set(rows)
        groups.append({frozenset(group) for group in drawn})
    assert groups[0] == groups[2]
    assert len(groups[0] & groups[1]) < 3


def test_the_encoder_standardises_and_ends_with_the_labels(auxiliary, lenet):
    data = auxiliary("gauss", sigma=0.01)
    index = torch.randperm(SAMPLES, generator=stream())[:80].unflatten(0, (20, BATCH))
    gradient = torch.stack(
        [torch.cat([data.store.rows(i, i + 1) for i in group]).mean(dim=0) for group in index]
    )
    label = data.labels(index)
    statistics = batch_encoder_statistics(
        data.layout,
        lambda: iter([(gradient[:10], label[:10]), (gradient[10:], label[10:])]),
        head=ClassifierHead.of(lenet.network, data.value.float() / 255, 10),
        power=0.0,
        ridge=1e-3,
    )
    encoder = BatchEncoder(
        data.layout, batch_size=BATCH, classes=10, ridge=1e-3, statistics=statistics
    )
    encoded = encoder(gradient, label)
    assert encoded.shape == (20, encoder.shared_width + BATCH * encoder.own_width)
    assert encoder.shared_width == 15_826 - 7_680
    shared, own = encoded.split([encoder.shared_width, BATCH * encoder.own_width], dim=1)
    assert float(shared.mean(dim=0).abs().max()) < 1e-3
    torch.testing.assert_close(shared.std(dim=0, unbiased=False).mean(), torch.tensor(1.0))
    own = own.unflatten(1, (BATCH, -1))
    torch.testing.assert_close(own[:, :, -24:], label_features(label, 10))
    # Exchanging two samples exchanges their own inputs (all but the rank) and nothing else.
    exchanged = encoder(gradient, label[:, [1, 0, 2, 3]])
    again, theirs = exchanged.split([encoder.shared_width, BATCH * encoder.own_width], dim=1)
    assert torch.equal(again, shared)
    theirs = theirs.unflatten(1, (BATCH, -1))[:, [1, 0, 2, 3]]
    torch.testing.assert_close(theirs[:, :, :-4], own[:, :, :-4], rtol=1e-2, atol=1e-2)


def train(data: AuxiliaryData, folder, stop_after: int | None = None, **changes):
    class Steps(Progress):
        count = 0

        def advance(self, count: int, **values) -> None:
            self.count += 1
            if self.count == stop_after:
                raise KeyboardInterrupt

    name = changes.pop("name", "tuned")
    small = {"hidden": 32, "batch_size": 8, "epochs": 5}
    if name == "tuned":
        small |= {"components": 20}
    settings = INVERTERS[name](**{**small, **changes})
    checkpoint = Checkpoint(folder / "c.safetensors", {"x": changes}, every_seconds=0)
    return train_inverter(
        settings,
        data,
        compute=CPU,
        checkpoint=checkpoint,
        progress=Steps("test", every_seconds=1e9),
    )


@pytest.mark.parametrize(
    ("defense", "options", "name"),
    [
        ("none", {}, "tuned"),
        ("sign", {}, "tuned"),
        ("prune", {"rate": 0.9}, "tuned"),
        ("prune", {"rate": 0.9, "defense_at": "batch"}, "tuned"),
        ("gauss", {}, "tuned"),
        ("none", {}, "paper"),
    ],
)
def test_training_and_inverting_batches(auxiliary, tmp_path, defense, options, name):
    data = auxiliary(defense, **options)
    trained, history = train(data, tmp_path, name=name, learning_rate=3e-3)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    index = torch.arange(SAMPLES - HELD, SAMPLES).unflatten(0, (-1, BATCH))
    # As a client sends it: defended in full, never projected.
    rows = data.store.rows(SAMPLES - HELD, SAMPLES)
    gradient = data.observe(rows, torch_generator(0, "held-out"))
    label = data.labels(index)
    output = trained.invert(gradient, label)
    assert output.shape == (2, BATCH, 3, 32, 32)
    if defense != "gauss":
        best = min(record["held_out_loss"] for record in history)
        image = targets(data.value, index, 1)
        found = float(matched_mse(output.clamp(0, 1), image).mean())
        assert found == pytest.approx(best, rel=1e-3)
    trained.save(tmp_path / "inverter.safetensors")
    loaded = TrainedInverter.load(tmp_path / "inverter.safetensors", compute=CPU)
    assert loaded.batch_size == BATCH
    assert torch.equal(loaded.invert(gradient, label), output)
    if name == "tuned":
        with pytest.raises(LTIError, match="labels: got none; inverter tuned takes them as given"):
            loaded.invert(gradient)
        with pytest.raises(LTIError, match=r"labels: got shape \(2, 3\)"):
            loaded.invert(gradient, label[:, :3])
    else:
        assert torch.equal(loaded.invert(gradient), output)


def test_a_resumed_training_of_batches_ends_with_the_same_weights(auxiliary, tmp_path):
    data = auxiliary("gauss")
    expected, _ = train(data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", stop_after=7)
    resumed, _ = train(data, tmp_path / "cut")
    state = resumed.network.state_dict()
    for key, value in expected.network.state_dict().items():
        assert torch.equal(state[key], value), key


def test_the_papers_inverter_for_resnets_has_no_sigmoid_and_decays_earlier():
    settings = INVERTERS["paper"](sigmoid=False, decay_at=0.5)
    assert [settings.learning_rate_factor(share) for share in (0.49, 0.5)] == [1.0, 0.1]
