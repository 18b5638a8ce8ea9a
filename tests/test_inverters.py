"""Inverters: the encoder by itself, and training on a tiny real chain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data.photos import Photos
from lti.data.samples import Samples
from lti.data.selection import write_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import write_arrays
from lti.fl_models import FLTask, attacked, save_fl_model
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS
from lti.inverters import inputs as inputs_module
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.decoder import image_components
from lti.inverters.encoder import GradientEncoder, encoder_statistics, factor_features
from lti.inverters.inputs import TrainingInputs, statistics_sample
from lti.inverters.network import RawGradient
from lti.inverters.train import train_inverter
from lti.inverters.trained import TrainedInverter
from lti.progress import Progress
from lti.seeding import derive_seed, torch_generator
from lti.stages.gradients import compute_gradients
from lti.stages.train import train_inverter as train_stage

CPU = Compute(torch.device("cpu"), torch.float32)
SAMPLES, HELD = 72, 8

# A linear layer of 40 inputs and 6 outputs, and a convolution-like parameter of 35.
LAYOUT = ParameterLayout(("conv.weight", "linear.weight", "linear.bias"), ((35,), (6, 40), (6,)))


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# The encoder


def outer_products(count: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Gradients of the linear layer from known factors: ``u``, ``v >= 0.2``, gradients."""
    u = torch.randn(count, 6, generator=stream(seed))
    v = torch.rand(count, 40, generator=stream(seed + 1)) + 0.2
    rest = torch.randn(count, 35, generator=stream(seed + 2))
    weight = torch.einsum("bo,bi->boi", u, v).flatten(1)
    return u, v, torch.cat([rest, weight, u], dim=1)


@pytest.mark.parametrize("masked", [0.0, 0.6])
def test_the_factors_of_an_outer_product_are_recovered(masked):
    u, v, gradient = outer_products(20)
    mask = torch.rand(gradient.shape, generator=stream(9)) >= masked
    mask[:, :35] = True
    gradient = gradient * mask
    # What cannot be known: an entry whose whole row or column is masked.
    joined = torch.cat([mask[:, 35:275].reshape(20, 6, 40), mask[:, 275:, None]], dim=2)
    v_known, u_known = joined.any(dim=1), joined.any(dim=2)
    values, observed = factor_features(LAYOUT, gradient)
    assert values.shape == observed.shape == (20, 41 + 6 + 1 + 35)
    assert torch.equal(observed[:, :41], v_known) and torch.equal(observed[:, 41:47], u_known)
    assert bool(observed[:, 47].all())
    # The stated scale: v (with the bias's 1) has a mean of 1 over its seen entries.
    v_all = torch.cat([v, torch.ones(20, 1)], dim=1)
    scale = (v_all * v_known).sum(1, keepdim=True) / v_known.sum(1, keepdim=True)
    v_expected, u_expected = v_all / scale, u * scale * u_known
    size = u_expected.norm(dim=1, keepdim=True)
    # Alternating least squares is exact at once without a mask, and close after two rounds
    # with one.
    tolerance = 1e-4 if masked == 0 else 0.15
    v_error = ((values[:, :41] - v_expected) * v_known).norm(dim=1) / v_expected.norm(dim=1)
    u_error = (values[:, 41:47] - u_expected / size).norm(dim=1)
    assert float(v_error.max()) < tolerance and float(u_error.max()) < tolerance
    assert float((values[:, 47:48] - size.log()).abs().max()) < tolerance
    rest = gradient[:, :35] / values[:, 47:48].exp()
    torch.testing.assert_close(values[:, 48:], rest, rtol=1e-4, atol=1e-6)


def test_features_of_a_gradient_of_zeros_are_finite_and_unobserved():
    values, observed = factor_features(LAYOUT, torch.zeros(2, LAYOUT.total))
    assert bool(values.isfinite().all())
    assert not bool(observed[:, :47].any()) and not bool(observed[:, 48:].any())


def test_features_do_not_depend_on_the_losss_magnitude():
    *_, gradient = outer_products(5)
    values, observed = factor_features(LAYOUT, gradient)
    louder, _ = factor_features(LAYOUT, gradient * 7.5)
    keep = [number for number in range(values.shape[1]) if number != 47]
    torch.testing.assert_close(louder[:, keep], values[:, keep], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(louder[:, 47], values[:, 47] + torch.tensor(7.5).log())
    assert bool(observed.all())


def test_parameters_may_be_divided_by_their_own_size():
    *_, gradient = outer_products(5)
    values, observed = factor_features(LAYOUT, gradient, divide_by="parameter")
    torch.testing.assert_close(values[:, 48:].square().mean(dim=1), torch.ones(5))
    by_head, seen = factor_features(LAYOUT, gradient)
    assert torch.equal(values[:, :48], by_head[:, :48]) and torch.equal(observed, seen)
    ratio = by_head[:, 48:] / values[:, 48:]
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, 35))


def in_blocks(rows: torch.Tensor, size: int = 64):
    def blocks() -> Iterator[torch.Tensor]:
        yield from rows.split(size)

    return blocks


def test_standardised_inputs_have_no_mean_and_unit_variance():
    *_, gradient = outer_products(500)
    statistics = encoder_statistics(LAYOUT, in_blocks(gradient), power=0)
    encoder = GradientEncoder(LAYOUT, statistics)
    encoded = encoder(gradient)
    assert encoded.shape == (500, encoder.shared_width) == (500, 83)
    assert float(encoded.mean(dim=0).abs().max()) < 0.02  # not 0: beyond 8 they are clamped
    deviation = encoded.std(dim=0, unbiased=False)
    torch.testing.assert_close(deviation, torch.ones(83), rtol=0.03, atol=0)
    # How the sample is cut makes no difference.
    whole = encoder_statistics(LAYOUT, in_blocks(gradient, 500), power=0)
    for name, value in whole.items():
        torch.testing.assert_close(statistics[name], value, rtol=1e-5, atol=1e-6)


def test_coordinates_that_never_vary_or_are_never_seen_are_dropped():
    *_, gradient = outer_products(400)
    gradient[:, 3] = 0.0  # never seen
    # Constant once divided by |u|: parameter 7 is |u| itself. Seen in half of the samples: 11.
    size = factor_features(LAYOUT, gradient)[0][:, 47].exp()
    gradient[:, 7] = size
    gradient[::2, 11] = 0.0
    # Too rare to learn from: seen in one of 400 samples (RARE is 0.003).
    gradient[1:, 13] = 0.0
    statistics = encoder_statistics(LAYOUT, in_blocks(gradient), power=0)
    dropped = set(range(83)) - set(statistics["kept"].tolist())
    assert dropped == {48 + 3, 48 + 7, 48 + 13}
    assert statistics["hidden"].tolist() == [48 + 11]
    encoded = GradientEncoder(LAYOUT, statistics)(gradient)
    assert encoded.shape == (400, 81)
    # The last input says whether entry 11 was seen; where it was not, its own input is zero.
    place = statistics["kept"].tolist().index(48 + 11)
    torch.testing.assert_close(encoded[:4, -1], torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert bool((encoded[::2, place] == 0).all())
    assert float(encoded[:, place].std()) == pytest.approx(1, abs=0.05)


def test_whitening_brings_the_covariance_closer_to_the_identity():
    _, _, gradient = outer_products(1000)
    mixing = torch.eye(40) + 0.3 * torch.rand(40, 40, generator=stream(4))
    v = (torch.rand(1000, 40, generator=stream(1)) + 0.2) @ mixing
    u = gradient[:, 275:]
    gradient[:, 35:275] = torch.einsum("bo,bi->boi", u, v).flatten(1)

    def distance(power: float) -> float:
        statistics = encoder_statistics(LAYOUT, in_blocks(gradient), power=power)
        encoded = GradientEncoder(LAYOUT, statistics)(gradient)[:, :40]
        covariance = encoded.T @ encoded / len(encoded)
        assert float(covariance.diagonal().mean()) == pytest.approx(1, abs=0.05)
        return float((covariance - torch.eye(40)).norm())

    plain, half, full = distance(0.0), distance(0.5), distance(1.0)
    assert full < half < plain
    assert full < 0.25 * plain


@pytest.mark.parametrize("count", [30, 12])  # more, and fewer, than numbers of an image
def test_principal_components_are_those_of_the_singular_values(count):
    image = torch.rand(count, 2, 3, 3, generator=stream())
    mean, components = image_components(image, 4)
    flat = image.flatten(1)
    torch.testing.assert_close(mean, flat.mean(dim=0))
    _, _, expected = torch.linalg.svd(flat - mean, full_matrices=False)
    turned = (components @ expected[:4].T).abs()
    torch.testing.assert_close(turned, torch.eye(4), rtol=0, atol=1e-3)
    assert image_components(image[:5], 99)[1].shape == (5, 18)


# Training, on photographs


class Steps(Progress):
    """Keeps what it is told; stops after so many steps, as a killed run does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.count, self.skipped = stop_after, 0, 0
        super().__init__("test", every_seconds=1e9)

    def skip(self, count: int) -> None:
        self.skipped += count
        super().skip(count)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.count += 1
        if self.count == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def photos() -> tuple[torch.Tensor, torch.Tensor]:
    """Victim patches are few, and so quick to cut."""
    loaded = Photos().load("victims")
    chosen = torch.randperm(len(loaded), generator=stream())[:SAMPLES].numpy()
    return torch.from_numpy(loaded.value[chosen]), torch.from_numpy(loaded.label[chosen])


@pytest.fixture(scope="module")
def auxiliary(lenet, photos, tmp_path_factory):
    """A function that makes an auxiliary set: gradients of the photographs, both views."""
    image, label = photos
    x = image.float() / 255
    both = torch.stack([x, x.flip(3)], dim=1).flatten(0, 1)
    rows = per_sample_gradient_function(*lenet)(both, label.repeat_interleave(2))
    made: dict[str, AuxiliaryData] = {}

    def make(name: str = "none", **settings) -> AuxiliaryData:
        key = f"{name}{settings}"
        if key not in made:
            defense = DEFENSES[name](**settings)
            folder = tmp_path_factory.mktemp("store")
            defended = defense.deterministic(rows)
            store = write_store(
                folder / "g",
                n_rows=2 * SAMPLES,
                dim=15_826,
                encoding=defense.encoding,
                compress=defense.compress,
                compute=lambda start, stop: defended[start:stop],
                manifest=folder / "g.json",
                settings=StoreSettings(chunk_mib=0.25, shard_mib=2),
            )
            made[key] = AuxiliaryData(
                store=store,
                value=image,
                label=label,
                classes=10,
                views=2,
                defense=defense,
                layout=ParameterLayout.of(attacked(*lenet)),
            )
        return made[key]

    return make


def preset(name: str = "tuned", **changes):
    """A preset small enough for a test."""
    small = {
        "tuned": {"hidden": 24, "components": 20, "batch_size": 16, "epochs": 3, "whitening": 0},
        "paper": {"hidden": 8, "batch_size": 16, "epochs": 2},
    }
    return INVERTERS[name](**{**small[name], **changes})


def train(
    settings,
    data: AuxiliaryData,
    folder: Path,
    progress: Steps | None = None,
    *,
    every_seconds: float = 1e9,
    **options,
):
    checkpoint = Checkpoint(
        folder / "checkpoint.safetensors",
        {"inverter": settings.canonical(), "defense": data.defense.canonical()},
        every_seconds=every_seconds,
    )
    return train_inverter(
        settings,
        data,
        compute=CPU,
        checkpoint=checkpoint,
        progress=progress or Steps(),
        **options,
    )


def observed_rows(data: AuxiliaryData, count: int = 4) -> torch.Tensor:
    return data.store.rows(0, 2 * count)[::2]


@pytest.mark.parametrize("defense", ["none", "sign", "prune", "gauss"])
def test_the_loss_falls_and_the_best_epoch_is_kept(auxiliary, tmp_path, defense):
    data = auxiliary(defense)
    settings = preset(epochs=6, hidden=64, learning_rate=1e-2)
    trained, history = train(settings, data, tmp_path)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4, 5, 6]
    losses = [record["train_loss"] for record in history]
    assert losses[-1] < 0.9 * losses[0]
    # The kept weights reach the lowest held-out error again, computed here from the start.
    if defense != "gauss":
        held = data.store.rows(2 * (SAMPLES - HELD), 2 * SAMPLES)[::2]
        output = trained.invert(held)[:, 0].clamp(0, 1)
        error = (output - data.value[-HELD:].float() / 255).square().mean()
        best = min(record["held_out_loss"] for record in history)
        assert float(error) == pytest.approx(best, rel=1e-4)


def test_images_are_corrected_by_a_network_that_begins_as_no_correction(auxiliary, tmp_path):
    data, networks = auxiliary(), []
    for channels in (0, 8):
        settings = preset(channels=channels)
        torch.manual_seed(0)
        sample = statistics_sample(settings, data, SAMPLES - HELD)
        networks.append(settings.network(data.task, settings.statistics(data.task, sample)).eval())
    rows = observed_rows(data)
    encoded = networks[0].encoder(rows)
    plain, corrected = (network.decoder for network in networks)
    assert torch.equal(corrected(encoded), plain(encoded))
    trained, history = train(preset(channels=8, epochs=6, learning_rate=1e-2), data, tmp_path)
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    decoder = trained.network.decoder
    found = trained.invert(rows)
    refiner, decoder.refiner = decoder.refiner, None
    before = trained.invert(rows)
    assert 1e-3 < float((found - before).square().mean().sqrt()) < 1
    torch.testing.assert_close(found[:, 0], refiner(before[:, 0]), rtol=0, atol=1e-5)


def test_the_papers_inverter_is_three_linear_layers_on_the_raw_gradient(auxiliary, tmp_path):
    data = auxiliary()
    trained, history = train(preset("paper"), data, tmp_path)
    layers = [layer for layer in trained.network.decoder.layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(8, 15_826), (8, 8), (3072, 8)]
    rows = observed_rows(data)
    hidden = rows
    for layer in layers[:2]:
        hidden = (hidden @ layer.weight.T + layer.bias).clamp_min(0)
    expected = torch.sigmoid(hidden @ layers[2].weight.T + layers[2].bias)
    torch.testing.assert_close(trained.invert(rows).flatten(1), expected, rtol=1e-4, atol=1e-5)
    assert trained.invert(rows).shape == (4, 1, 3, 32, 32)
    assert len(history) == 2
    rates = [preset("paper").learning_rate_factor(share) for share in (0, 0.7499, 0.75, 0.99)]
    assert rates == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize(
    ("name", "defense", "changes", "parts"),
    [
        ("tuned", {"name": "prune", "rate": 0.9}, {}, (False, True)),
        ("tuned", {"name": "none"}, {"whitening": 0.5}, (True, False)),
        ("paper", {"name": "none"}, {}, (False, False)),
    ],
)
def test_a_saved_inverter_inverts_bit_for_bit_the_same(
    auxiliary, tmp_path, name, defense, changes, parts
):
    data = auxiliary(**defense)
    trained, _ = train(preset(name, **changes), data, tmp_path)
    buffers = dict(trained.network.encoder.named_buffers())
    assert ("whiten0" in buffers, len(buffers.get("hidden", ())) > 0) == parts
    trained.save(tmp_path / "inverter.safetensors")
    loaded = TrainedInverter.load(tmp_path / "inverter.safetensors", compute=CPU)
    assert loaded.settings == trained.settings and loaded.layout == trained.layout
    assert not loaded.network.training
    rows = observed_rows(data, 6)
    assert torch.equal(loaded.invert(rows), trained.invert(rows))


def test_a_file_that_is_no_inverter_is_refused(tmp_path):
    write_arrays(tmp_path / "x.safetensors", {"a": torch.zeros(2).numpy()}, {"what": "else"})
    with pytest.raises(LTIError, match="not an inverter of this version"):
        TrainedInverter.load(tmp_path / "x.safetensors", compute=CPU)


@pytest.mark.parametrize(
    ("name", "defense", "changes", "memory_mib"),
    [
        ("tuned", "none", {}, 64),
        ("tuned", "gauss", {"dropout": 0.2}, 64),
        ("tuned", "gauss", {"dropout": 0.2}, 0.5),  # streamed
        ("tuned", "sign", {"dropout": 0.3}, 64),
        ("paper", "gauss", {}, 64),
    ],
)
def test_a_resumed_training_ends_with_the_same_weights(
    auxiliary, tmp_path, name, defense, changes, memory_mib
):
    data = auxiliary(defense)
    settings = preset(name, epochs=3, **changes)
    expected, history = train(settings, data, tmp_path / "whole", memory_mib=memory_mib)
    with pytest.raises(KeyboardInterrupt):  # inside the second epoch
        train(
            settings,
            data,
            tmp_path / "cut",
            Steps(stop_after=6),
            every_seconds=0,
            memory_mib=memory_mib,
        )
    torch.rand(7)  # another process's global stream is elsewhere
    progress = Steps()
    resumed, again = train(settings, data, tmp_path / "cut", progress, memory_mib=memory_mib)
    assert (progress.skipped, progress.count) == (5 * (SAMPLES - HELD) // 4, 7)  # at the step
    state = resumed.network.state_dict()
    for key, value in expected.network.state_dict().items():
        assert torch.equal(state[key], value), key
    for before, after in zip(history, again, strict=True):
        for key in ("epoch", "train_loss", "held_out_loss", "learning_rate"):
            assert before[key] == after[key]


def test_steps_are_as_many_whatever_the_sizes_say(auxiliary, tmp_path):
    data = auxiliary()
    progress = Steps()
    trained, history = train(preset(steps=6, epochs=99), data, tmp_path / "six", progress)
    assert progress.count == 6 and len(history) == 2  # four are an epoch
    assert history[-1]["learning_rate"] == pytest.approx(
        trained.settings.learning_rate * trained.settings.learning_rate_factor(5 / 6)
    )
    whole, _ = train(preset(steps=8, epochs=99), data, tmp_path / "eight")
    same, _ = train(preset(epochs=2), data, tmp_path / "epochs")
    rows = observed_rows(data)
    assert torch.equal(whole.invert(rows), same.invert(rows))


def test_training_ends_where_it_no_longer_helps(auxiliary, tmp_path, monkeypatch):
    data = auxiliary()
    errors = iter([0.5, 0.4, 0.45, 0.41, 0.3])
    monkeypatch.setattr("lti.inverters.train.held_out_error", lambda *_, **__: next(errors))
    _, history = train(preset(epochs=5, patience=8), data, tmp_path)
    assert [record["held_out_loss"] for record in history] == [0.5, 0.4, 0.45, 0.41]


def test_a_checkpoint_of_other_settings_is_refused(auxiliary, tmp_path):
    data = auxiliary()
    train(preset(epochs=2), data, tmp_path, every_seconds=0)
    with pytest.raises(LTIError) as caught:
        train(preset(epochs=2, hidden=25), data, tmp_path)
    message = str(caught.value)
    assert "checkpoint is of other settings" in message
    assert '"hidden":24' in message and '"hidden":25' in message


def test_the_seed_decides_the_weights(auxiliary, tmp_path):
    data = auxiliary()
    first, _ = train(preset(epochs=1), data, tmp_path)
    torch.rand(5)
    second, _ = train(preset(epochs=1), data, tmp_path)
    other, _ = train(preset(epochs=1, seed=1), data, tmp_path)
    rows = observed_rows(data)
    assert torch.equal(second.invert(rows), first.invert(rows))
    assert not torch.equal(other.invert(rows), first.invert(rows))


@pytest.fixture
def drawn(monkeypatch):
    """The rows of every batch that training draws, as they are drawn."""
    seen: list[torch.Tensor] = []
    original = TrainingInputs.epoch

    def epoch(self, *args, **options):
        for index, batch in original(self, *args, **options):
            assert len(index) == len(batch)
            seen.append(index[:, 0].clone())
            yield index, batch

    monkeypatch.setattr(TrainingInputs, "epoch", epoch)
    return seen


# Encoded at once, rows in memory with noise, and rows streamed in two ways.
ROUTES = [("none", 4096.0), ("gauss", 4096.0), ("none", 0.6), ("gauss", 0.6)]


@pytest.mark.parametrize(("defense", "memory_mib"), ROUTES)
@pytest.mark.parametrize("mirrored", [True, False])
def test_every_sample_is_drawn_once_an_epoch_and_held_out_ones_never(
    auxiliary, tmp_path, drawn, monkeypatch, defense, memory_mib, mirrored
):
    placements = []
    original = inputs_module.TrainingRows

    def spy(*args, **options):
        rows = original(*args, **options)
        placements.append(rows.placement)
        return rows

    monkeypatch.setattr(inputs_module, "TrainingRows", spy)
    data = auxiliary(defense)
    settings = preset(epochs=4, use_mirrored=mirrored)
    # So wide an encoding does not fit into 0.6 MiB, nor do the rows.
    _, history = train(settings, data, tmp_path, memory_mib=memory_mib)
    if memory_mib < 1:
        assert placements == ["streamed"]
    else:
        assert placements == ([] if defense == "none" else ["cpu"])
    rows = torch.cat(drawn)
    assert len(rows) == 4 * (SAMPLES - HELD)
    for epoch in rows.split(SAMPLES - HELD):
        assert sorted((epoch // 2).tolist()) == list(range(SAMPLES - HELD))
    assert int(rows.max()) < 2 * (SAMPLES - HELD)
    views = (rows % 2).float().mean()
    assert 0.35 < float(views) < 0.65 if mirrored else float(views) == 0
    first, second = rows.split(SAMPLES - HELD)[:2]
    assert first.tolist() != second.tolist()
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize(("defense", "memory_mib"), ROUTES)
def test_inputs_and_targets_belong_together(auxiliary, lenet, defense, memory_mib):
    """The gradient of a batch's target is the row that the input was made of."""
    data = auxiliary(defense, **({"sigma": 1e-6} if defense == "gauss" else {}))
    rows = range(2 * (SAMPLES - HELD))
    inputs = TrainingInputs(
        data,
        rows,
        encoder=RawGradient(),
        compute=CPU,
        dtype=torch.float32,
        memory_mib=memory_mib,
    )
    gradients = per_sample_gradient_function(*lenet)
    labels = 0
    seed = derive_seed(0, "x")
    noise = torch_generator(seed, "noise")
    for index, batch in inputs.epoch(32, seed=seed, noise=noise, mirrored=True):
        target = targets(data.value, index, 2)[:, 0]
        # The store's own rows, and the gradients for whichever label fits best.
        stored = torch.cat([data.store.rows(i, i + 1) for i in index[:, 0].tolist()])
        torch.testing.assert_close(batch, stored, rtol=0, atol=1e-4)
        all_labels = torch.stack(
            [gradients(target, torch.full((len(target),), label)) for label in range(10)]
        )
        error = (all_labels - batch).norm(dim=2) / batch.norm(dim=1)
        assert float(error.amin(dim=0).max()) < 1e-2
        labels += len(index)
    assert labels == SAMPLES - HELD


def test_a_loss_that_is_not_finite_is_an_error(auxiliary, tmp_path):
    settings = preset(learning_rate=1e30, warm_up=0.0, epochs=2)
    with pytest.raises(
        LTIError, match=r"the loss of epoch 1 is .*Lower the learning rate \(1e\+30"
    ):
        train(settings, auxiliary(), tmp_path)


def test_a_held_out_error_that_is_not_finite_is_an_error_too(auxiliary, tmp_path):
    """One step an epoch: the training loss is taken before the weights are lost."""
    settings = preset(learning_rate=1e38, warm_up=0.0, epochs=1, batch_size=64)
    with pytest.raises(LTIError, match="Lower the learning rate"):
        train(settings, auxiliary(), tmp_path)


def test_a_store_of_another_auxiliary_set_is_refused(auxiliary, tmp_path):
    data = auxiliary()
    less = replace(data, value=data.value[:-1])
    with pytest.raises(LTIError, match=r"144 rows for 71 samples in 2 views; expected 142"):
        train(preset(), less, tmp_path)
    few = write_store(
        tmp_path / "g",
        n_rows=8,
        dim=15_826,
        encoding="float32",
        compute=lambda start, stop: torch.ones(stop - start, 15_826),
        manifest=tmp_path / "g.json",
    )
    few_data = replace(data, store=few, value=data.value[:8], views=1)
    with pytest.raises(LTIError, match="8 auxiliary samples; expected at least 9"):
        train(preset(), few_data, tmp_path)


def test_the_learning_rate_warms_up_and_falls_to_zero():
    factor = INVERTERS["tuned"](warm_up=0.1).learning_rate_factor
    assert factor(0.0) == 0 and factor(0.05) == pytest.approx(0.5, abs=0.01)
    shares = [0.1 + 0.09 * step for step in range(11)]
    factors = [factor(share) for share in shares]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0, abs=1e-6) and factor(0.5) == pytest.approx(0.5)


def test_another_size_of_a_shared_store_does_not_resume_what_was_cut_off(
    tmp_path, lenet, monkeypatch
):
    random = np.random.default_rng(0)
    samples = Samples(
        random.integers(0, 256, (64, 3, 32, 32), dtype=np.uint8), np.arange(64) % 10, np.arange(64)
    )
    names = [f"class {label}" for label in range(10)]
    facts = {"dataset": "x", "part": "auxiliary", "seed": 0, "class_names": names}
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", lenet.model, FLTask(10))
    sizes = {size: tmp_path / f"{size}.safetensors" for size in (24, 64)}
    for size, path in sizes.items():
        of = {"of": 64, "of_digest": samples.digest} if size < 64 else {}
        write_selection(path, samples.take(range(size)), metadata={**facts, "size": size, **of})
    given = {"fl_model": tmp_path / "m.safetensors", "defense": '{"use": "none"}', "threads": 1}
    store = {"manifest": tmp_path / "g.json"}
    compute_gradients(auxiliary=sizes[64], output=tmp_path / "g.zarr", **given, **store)
    settings = {"use": "tuned", "epochs": 3, "batch_size": 8, "hidden": 8, "use_mirrored": False}

    def train(size, name, folder):
        train_stage(
            auxiliary=sizes[size],
            gradients=tmp_path / "g.zarr",
            inverter=json.dumps(settings),
            checkpoints=tmp_path / folder,
            output=tmp_path / name,
            card=tmp_path / f"{name}.json",
            history=tmp_path / f"{name}.csv",
            **given,
            **store,
        )
        return (tmp_path / name).read_bytes()

    expected = train(64, "alone", "none")
    # As if the smaller one had been killed at its end.
    monkeypatch.setenv("LTI_CHECKPOINT_SECONDS", "0")
    with monkeypatch.context() as killed:
        killed.setattr(Checkpoint, "clear", lambda self: None)
        train(24, "smaller", "left")
    assert len(list((tmp_path / "left").iterdir())) == 1
    assert train(64, "larger", "left") == expected
