"""Inverters of text: losses, parts, training on gradients that give the tokens away."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data.samples import as_input
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.gradients.layout import ParameterLayout
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS
from lti.inverters.base import Task, TrainingSample
from lti.inverters.inputs import AuxiliaryData
from lti.inverters.text_decoder import TokenLayers
from lti.inverters.train import train_inverter
from lti.inverters.trained import TrainedInverter
from lti.progress import Progress

CPU = Compute(torch.device("cpu"), torch.float32)
SAMPLES, LENGTH, VOCABULARY, COORDINATES = 600, 3, 6, 60


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients_of(token: torch.Tensor) -> torch.Tensor:
    """Stand-ins for gradients, linear in where each token stands: ``(n, p)``."""
    table = torch.randn(LENGTH, VOCABULARY, COORDINATES, generator=stream(1))
    return table[torch.arange(LENGTH), token.long()].sum(dim=1)


@pytest.fixture
def auxiliary(tmp_path):
    """A function that makes an auxiliary set for client batches of a size."""

    def make(batch_size: int = 1) -> AuxiliaryData:
        token = torch.randint(VOCABULARY, (SAMPLES, LENGTH), generator=stream(2)).int()
        rows = gradients_of(token)
        store = write_store(
            tmp_path / "g",
            n_rows=SAMPLES,
            dim=COORDINATES,
            encoding="float32",
            compress=False,
            compute=lambda start, stop: rows[start:stop],
            manifest=tmp_path / "g.json",
            settings=StoreSettings(chunk_mib=0.02, shard_mib=1),
        )
        return AuxiliaryData(
            store=store,
            value=token,
            label=torch.zeros(SAMPLES, dtype=torch.int64),
            classes=1,
            views=1,
            defense=DEFENSES["none"](),
            layout=ParameterLayout(("layer",), ((COORDINATES,),)),
            batch_size=batch_size,
            vocabulary=VOCABULARY,
        )

    return make


def trained_on(data: AuxiliaryData, folder, **settings):
    preset = INVERTERS["paper-text"](**{"hidden": 48, "position_width": 24, **settings})
    checkpoint = Checkpoint(folder / "c.safetensors", {"inverter": preset.canonical()})
    return train_inverter(
        preset, data, compute=CPU, checkpoint=checkpoint, progress=Progress("test")
    )


def test_tokens_that_the_gradient_gives_away_are_found(auxiliary, tmp_path):
    data = auxiliary()
    trained, history = trained_on(data, tmp_path, epochs=25, learning_rate=1e-2)
    new = torch.randint(VOCABULARY, (200, LENGTH), generator=stream(3))
    found = trained.invert(gradients_of(new))
    assert found.shape == (200, 1, LENGTH) and found.dtype == torch.int32
    assert float((found[:, 0] == new).float().mean()) > 0.95
    # Chance is log 6 = 1.8 nats; the kept epoch is the best, and it is the held-out one's.
    best = min(record["held_out_loss"] for record in history)
    held = slice(SAMPLES - 12, SAMPLES)
    with torch.no_grad():
        logits = trained.network.decoder(data.store.rows(held.start, held.stop))
    expected = functional.cross_entropy(logits.flatten(0, 2), as_input(data.value[held]).flatten())
    assert best == pytest.approx(float(expected), rel=1e-4)
    assert best < 0.5
    trained.save(tmp_path / "i")
    loaded = TrainedInverter.load(tmp_path / "i", compute=CPU)
    assert torch.equal(loaded.invert(gradients_of(new)), found)


def test_both_samples_of_a_batch_are_found_in_some_order(auxiliary, tmp_path):
    trained, history = trained_on(auxiliary(2), tmp_path, epochs=30, learning_rate=5e-3)
    new = torch.randint(VOCABULARY, (200, 2, LENGTH), generator=stream(3))
    mean = gradients_of(new.flatten(0, 1)).unflatten(0, (200, 2)).mean(dim=1)
    found = trained.invert(mean)
    assert found.shape == (200, 2, LENGTH)
    right = torch.stack([(found == order).sum((1, 2)) for order in (new, new.flip(1))]).amax(0)
    # By chance about 1.6 of 6 in the better order.
    assert float(right.float().mean()) > 3
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_results_do_not_depend_on_the_parts(monkeypatch):
    layers = nn.Linear(5, 2 * 3 * 4)
    decoder = TokenLayers((2, 3, 7), layers, width=4)
    inputs = torch.randn(9, 5, generator=stream())
    target = torch.randint(7, (9, 2, 3), generator=stream())
    whole = decoder.error(inputs, target), decoder.reconstruct(inputs)
    assert torch.equal(whole[1], decoder(inputs).argmax(-1).int())
    monkeypatch.setattr("lti.inverters.text_decoder.LOGITS", 2 * 2 * 3 * 7)
    torch.testing.assert_close(decoder.error(inputs, target), whole[0])
    assert torch.equal(decoder.reconstruct(inputs), whole[1])


def test_the_papers_text_inverter_has_its_layers_and_rates():
    settings = INVERTERS["paper-text"]()
    task = Task(ParameterLayout(("hashed",), ((110_083,),)), (16,), 1, 1, 50_257)
    with torch.device("meta"):
        network = settings.network(task, {})
    shapes = [tuple(p.shape) for p in network.decoder.parameters() if p.ndim == 2]
    assert sorted(shapes) == sorted([(600, 110_083), (16_000, 600), (50_257, 1000)])
    assert [settings.learning_rate_factor(share) for share in (0, 0.49, 0.5)] == [1, 1, 0.1]
    sample = TrainingSample(lambda: iter(()), torch.zeros(1), None)
    assert settings.statistics(task, sample) == {}


def test_images_are_refused():
    task = Task(ParameterLayout(("layer",), ((9,),)), (3, 32, 32), 1, 10)
    with pytest.raises(LTIError, match=r"paper-text got samples of shape \(3, 32, 32\)"):
        INVERTERS["paper-text"]().network(task, {})
