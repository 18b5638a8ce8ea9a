"""Generators: the networks by themselves, and training on a few images."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn import functional

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data import Samples
from lti.data.photos import Photos
from lti.data.selection import write_selection
from lti.errors import LTIError
from lti.files import digest_arrays, read_json
from lti.generators import GENERATORS
from lti.generators.dcgan_networks import _upsample
from lti.generators.network import GeneratorNetwork
from lti.generators.train import HISTORY, train_generator
from lti.generators.trained import TrainedGenerator
from lti.progress import Progress
from lti.stages.generator import train_generator as stage

CPU = Compute(torch.device("cpu"), torch.float32)
SHAPE = (3, 32, 32)
SMALL = {"width": 4, "latent": 6, "epochs": 3, "batch_size": 16}


@pytest.fixture(scope="module")
def photos() -> torch.Tensor:
    """uint8 (40, 3, 32, 32)."""
    return torch.from_numpy(Photos().load("auxiliary").value[:40])


def train(image, checkpoint: Checkpoint, progress: Progress | None = None, **changes):
    return train_generator(
        GENERATORS["dcgan"](**(SMALL | changes)),
        image,
        compute=CPU,
        checkpoint=checkpoint,
        progress=progress or Progress("test", every_seconds=1e9),
    )


def unused(folder: Path) -> Checkpoint:
    return Checkpoint(folder / "unused.safetensors", {}, every_seconds=1e9)


def test_a_dcgan_has_the_stated_size_and_makes_images():
    gan = GENERATORS["dcgan"]()
    network = gan.generator(SHAPE)
    assert sum(p.numel() for p in network.parameters()) == 1_068_931
    made = network(torch.randn(5, 100))
    assert made.shape == (5, *SHAPE) and bool(((made > 0) & (made < 1)).all())
    assert gan.discriminator(SHAPE)(made).shape == (5,)


def test_a_dcgan_makes_images_of_its_own_size_only():
    with pytest.raises(LTIError, match=r"shape \(3, 64, 64\); expected \(channels, 32, 32\)"):
        GENERATORS["dcgan"]().generator((3, 64, 64))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 9)
)
def test_upsampling_is_a_transposed_convolution_of_each_group(n, b, inputs, outputs, seed):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, b, inputs, 3, 5, generator=draw)
    kernel = torch.randn(n, inputs, outputs, 4, 4, generator=draw)
    pairs = zip(x, kernel, strict=True)
    expected = [functional.conv_transpose2d(part, k, stride=2, padding=1) for part, k in pairs]
    torch.testing.assert_close(_upsample(x, kernel), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_generators_of_several_weights_are_as_many_generators(batch):
    network = GENERATORS["dcgan"](**SMALL).generator(SHAPE)
    network(torch.randn(32, 6))  # statistics other than 0 and 1
    network.eval()
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: p.detach() + 0.1 * torch.randn(2, *p.shape, generator=draw)
        for name, p in network.named_parameters()
    }
    latent = torch.randn(2, batch, 6, generator=draw)
    own = [{name: value[k] for name, value in weights.items()} for k in range(2)]
    expected = torch.stack([functional_call(network, own[k], (latent[k],)) for k in range(2)])
    torch.testing.assert_close(network.forward_each(weights, latent), expected)
    # What a generator of another package does by default.
    torch.testing.assert_close(GeneratorNetwork.forward_each(network, weights, latent), expected)


def test_training_changes_the_samples_towards_the_data(photos, tmp_path):
    trained, history = train(photos, unused(tmp_path), epochs=25, learning_rate=2e-3)
    assert [record["epoch"] for record in history] == list(range(1, 26))
    assert all(tuple(record) == HISTORY for record in history)
    # Two batches of 16 an epoch: the last, smaller one is left out.
    assert all(
        math.isclose(r["samples_per_second"] * r["seconds"], 32, rel_tol=1e-6) for r in history
    )
    untrained = GENERATORS["dcgan"](**SMALL).generator(SHAPE).eval()
    latent = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    spread = (photos.float() / 255).std()
    with torch.no_grad():
        before, after = untrained(latent).std(), trained.network(latent).std()
    assert abs(after - spread) < 0.7 * abs(before - spread)
    assert not trained.network.training
    assert not any(p.requires_grad for p in trained.network.parameters())


def test_the_seed_decides_the_weights(photos, tmp_path):
    digests = [train(photos, unused(tmp_path), epochs=1, seed=seed)[0].digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


class Killed(Progress):
    """Stops after some steps, as a killed run does."""

    def __init__(self, after: int) -> None:
        self.left = after
        super().__init__("test", every_seconds=1e9)

    def advance(self, count: int, **values) -> None:
        super().advance(count, **values)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_an_interrupted_training_resumes_to_the_identical_generator(photos, tmp_path):
    expected, whole = train(photos, unused(tmp_path))
    checkpoint = Checkpoint(tmp_path / "c.safetensors", {}, every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        train(photos, checkpoint, Killed(after=6))  # in the third of three epochs of two steps
    assert checkpoint.load()[1] == 5
    trained, history = train(photos, checkpoint, progress := Progress("test", every_seconds=1e9))
    assert trained.digest == expected.digest
    assert progress._skipped == 80 and progress._done == progress.total == 96
    for key in ("epoch", "generator_loss", "discriminator_loss"):
        assert [record[key] for record in history] == [record[key] for record in whole]


def test_too_few_samples_are_refused(photos, tmp_path):
    with pytest.raises(LTIError, match="15 auxiliary samples; expected at least a batch of 16"):
        train(photos[:15], unused(tmp_path))


def test_a_diverging_training_is_refused(photos, tmp_path):
    with pytest.raises(LTIError, match=r"losses of epoch \d+ are .*Lower the learning rate"):
        train(photos, unused(tmp_path), epochs=30, learning_rate=1e30)


@pytest.mark.parametrize("change", [{"latent": 0}, {"betas": (0.5, 1.0)}, {"depth": 3}])
def test_settings_out_of_range_are_refused(change):
    with pytest.raises(LTIError, match=f"generators.{next(iter(change))}"):
        GENERATORS.parse({"use": "dcgan", **change})


def test_a_saved_generator_is_read_back(photos, tmp_path):
    trained, _ = train(photos, unused(tmp_path), epochs=1)
    trained.save(tmp_path / "g.safetensors")
    loaded = TrainedGenerator.load(tmp_path / "g.safetensors", compute=CPU)
    assert loaded.digest == trained.digest and loaded.settings == trained.settings
    latent = torch.randn(3, 6)
    assert torch.equal(loaded.network(latent), trained.network(latent))
    loaded.check_shape(SHAPE)
    with pytest.raises(LTIError, match=r"\(3, 32, 32\); expected \(3, 28, 28\)"):
        loaded.check_shape((3, 28, 28))


def test_what_is_not_a_generator_is_refused(photos, tmp_path):
    images = Samples(photos.numpy(), np.zeros(40, np.int64), np.arange(40))
    metadata = {"dataset": "photos", "part": "auxiliary", "seed": 0, "size": 40, "class_names": []}
    write_selection(tmp_path / "a.safetensors", images, metadata=metadata)
    with pytest.raises(LTIError, match="not a generator of this version"):
        TrainedGenerator.load(tmp_path / "a.safetensors", compute=CPU)


def test_the_stage_writes_generator_card_and_history(photos, tmp_path):
    images = Samples(photos.numpy(), np.zeros(40, np.int64), np.arange(40))
    metadata = {"dataset": "photos", "part": "auxiliary", "seed": 0, "size": 40, "class_names": []}
    write_selection(tmp_path / "a.safetensors", images, metadata=metadata)
    stage(
        auxiliary=tmp_path / "a.safetensors",
        generator='{"use": "dcgan", "width": 4, "latent": 6, "epochs": 2, "batch_size": 16}',
        checkpoints=tmp_path / "checkpoints",
        output=tmp_path / "g.safetensors",
        card=tmp_path / "g.json",
        history=tmp_path / "g.history.csv",
        threads=1,
    )
    trained = TrainedGenerator.load(tmp_path / "g.safetensors", compute=CPU)
    card = read_json(tmp_path / "g.json")
    assert card["digest"] == trained.digest
    assert card["generator"] == trained.settings.canonical()
    assert card["auxiliary"] == digest_arrays({"image": images.value, "label": images.label})
    lines = (tmp_path / "g.history.csv").read_text().splitlines()
    assert lines[0] == ",".join(HISTORY) and len(lines) == 3
