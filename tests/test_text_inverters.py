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
from lti.fl_models import FL_MODELS, FLTask, attacked
from lti.fl_models.token_inputs import TokenInputs
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import per_sample_gradient_function
from lti.gradients.store import StoreSettings, write_store
from lti.inverters import INVERTERS
from lti.inverters.auxiliary_data import AuxiliaryData
from lti.inverters.base import Task, TrainingSample
from lti.inverters.encoder import encoder_statistics
from lti.inverters.position_parts import PositionParts, part_statistics
from lti.inverters.span_decoder import SpanDecoder
from lti.inverters.span_encoder import SpanEncoder, span_places
from lti.inverters.text_decoder import TokenLayers
from lti.inverters.train import train_inverter
from lti.inverters.trained import TrainedInverter
from lti.progress import Progress
from lti.projections import PROJECTIONS, FitSample

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


# What the first layers' gradients span

WINDOW, WORDS = 6, 150
SMALL_BERT = {
    "use": "bert",
    "pretrained": "never",
    "layers": 2,
    "width": 48,
    "heads": 4,
    "intermediate": 64,
}


@pytest.fixture(scope="module", params=["transformer3", "bert"])
def attacked_model(request):
    """An FL model for tokens, its network and tokens with their gradients."""
    settings = SMALL_BERT if request.param == "bert" else {"use": request.param}
    model = FL_MODELS.parse(settings)
    network = model.build(FLTask(2, WORDS, WINDOW, 0)).requires_grad_(False)
    token = torch.randint(WORDS, (260, WINDOW), generator=stream(4))
    label = token if model.label_is_sample else token[:, 0] % 2
    gradients = per_sample_gradient_function(model, network)(token, label)
    return model, network, token, gradients


@pytest.fixture(scope="module")
def language_model():
    model = FL_MODELS.parse({"use": "transformer3"})
    network = model.build(FLTask(2, WORDS, WINDOW, 0)).requires_grad_(False)
    token = torch.randint(WORDS, (260, WINDOW), generator=stream(4))
    return model, network, token, per_sample_gradient_function(model, network)(token, token)


def test_inputs_of_the_first_layers_are_what_the_network_makes_of_tokens(attacked_model):
    model, network, token, gradients = attacked_model
    inputs = TokenInputs.of(network, WORDS, WINDOW)
    layout = ParameterLayout.of(attacked(model, network))
    seen = []
    layer = network.get_submodule(inputs.weights[0].removesuffix(".weight"))
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    network(token[:5])
    hook.remove()
    expected = inputs.token[token[:5]] + inputs.position
    if inputs.normalisation is not None:
        gain, shift, eps = inputs.normalisation
        expected = functional.layer_norm(expected, (len(gain),), gain, shift, float(eps))
    torch.testing.assert_close(seen[0], expected, rtol=1e-3, atol=1e-4)
    assert (inputs.normalisation is not None) == (model.name == "bert")
    # The sample's own inputs lie in the span of the gradient's rows, which has one dimension a
    # token, and no others do.
    weight = gradients[0, layout.slices[inputs.weights[0]]].view(-1, expected.shape[-1])
    assert int(torch.linalg.matrix_rank(weight, rtol=1e-4)) <= WINDOW
    basis = torch.linalg.svd(weight)[2][:WINDOW]
    inside = (expected[0] @ basis.T).square().sum(1) / expected[0].square().sum(1)
    assert float(inside.min()) > 0.999


def test_networks_that_mix_tokens_at_once_have_no_such_layers():
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.linear = nn.Linear(4, 4)

        def forward(self, token):
            return self.linear(self.embedding(token).cumsum(1).flip(1))

    assert TokenInputs.of(Mixing(), 9, 3) is None


def attacked_data(attacked_model, folder, guard, projection, *, batch_size=1):
    """The first 200 samples as auxiliary data, and all projected gradients."""
    model, network, token, gradients = attacked_model
    layout = ParameterLayout.of(attacked(model, network))
    rows = projection.project(guard.deterministic(gradients), layout=layout)
    store = write_store(
        folder / "g",
        n_rows=200,
        dim=rows.shape[1],
        encoding="scaled-float16",
        compress=guard.compress,
        compute=lambda start, stop: rows[start:stop],
        manifest=folder / "g.json",
        settings=StoreSettings(chunk_mib=1, shard_mib=4),
    )
    data = AuxiliaryData(
        store=store,
        value=token[:200].int(),
        label=torch.zeros(200, dtype=torch.int64),
        classes=2,
        views=1,
        defense=guard,
        layout=layout,
        projection=projection,
        batch_size=batch_size,
        network=network,
        vocabulary=WORDS,
    )
    return data, rows


def trained_for_text(data, folder, **settings):
    preset = INVERTERS["tuned-text"](**{"batch_size": 8, "hidden": 16, "others": 40} | settings)
    checkpoint = Checkpoint(folder / "c.safetensors", {"inverter": preset.canonical()})
    return train_inverter(
        preset, data, compute=CPU, checkpoint=checkpoint, progress=Progress("test")
    )


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("defense", ["none", "sign"])
def test_tokens_are_read_off_the_span(attacked_model, tmp_path, defense, batch_size):
    model, network, token, _ = attacked_model
    inputs = TokenInputs.of(network, WORDS, WINDOW)
    projection = PROJECTIONS.parse({"use": "select", "parameters": list(inputs.weights)})
    data, rows = attacked_data(
        attacked_model, tmp_path, DEFENSES[defense](), projection, batch_size=batch_size
    )
    trained, history = trained_for_text(data, tmp_path, epochs=8)
    mean = rows[200:].unflatten(0, (-1, batch_size)).mean(dim=1)
    found = trained.invert(mean)
    truth = token[200:].unflatten(0, (-1, batch_size))
    # Samples of a batch share a span, which does not tell them apart. Chance is 1 of 150; signs
    # of 48 inputs a layer blur the span of a small BERT.
    there = (found[:, :, None] == truth[:, None]).any(dim=2).float().mean()
    blurred = model.name == "bert" and defense == "sign"
    assert float(there) > (0.25 if blurred else 0.9 if batch_size == 1 else 0.7)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    trained.save(tmp_path / "i")
    loaded = TrainedInverter.load(tmp_path / "i", compute=CPU)
    assert torch.equal(loaded.invert(mean), found)


def test_the_spans_own_weights_need_be_no_features(attacked_model, tmp_path):
    model, network, token, _ = attacked_model
    weights = TokenInputs.of(network, WORDS, WINDOW).weights
    biases = "*Norm.bias" if model.name == "bert" else "*norm?.bias"
    projection = PROJECTIONS.parse({"use": "select", "parameters": [*weights, biases]})
    data, rows = attacked_data(attacked_model, tmp_path, DEFENSES["none"](), projection)
    trained, _ = trained_for_text(data, tmp_path, epochs=4, features="others")
    kept = trained.task.layout
    expected = kept.total - sum(
        kept.slices[name].stop - kept.slices[name].start for name in weights
    )
    assert 0 < trained.network.encoder.features.shared_width <= expected
    assert (trained.invert(rows[200:])[:, 0] == token[200:]).float().mean() > 0.9
    alone = PROJECTIONS.parse({"use": "select", "parameters": list(weights)})
    data, _ = attacked_data(attacked_model, tmp_path / "alone", DEFENSES["none"](), alone)
    with pytest.raises(LTIError, match="none is left for the network's features"):
        trained_for_text(data, tmp_path, epochs=1, features="others")


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "defense", [{"use": "prune", "rate": 0.99}, {"use": "gauss", "sigma": 0.01}]
)
def test_parts_of_positions_tell_tokens_where_the_span_is_hidden(
    tmp_path, language_model, defense, batch_size
):
    model, network, token, _ = language_model
    guard = DEFENSES.parse(defense)
    weights = list(TokenInputs.of(network, WORDS, WINDOW).weights)
    layout = ParameterLayout.of(attacked(model, network))
    projection = PROJECTIONS.parse(
        {
            "use": "layer-inputs",
            "parameters": [*weights, "*linear2.*", "*norm?.*"],
            "whole": weights,
            "directions": 16,
        }
    )
    sample = FitSample(token[:200], network, layout, lambda: None)
    fitted = projection.fitted(projection.fit(sample))
    data, rows = attacked_data(language_model, tmp_path, guard, fitted, batch_size=batch_size)
    received = data.observe(rows[200:], stream(9))
    truth = token[200:].unflatten(0, (-1, batch_size))

    def share(found):
        return float((found[:, :, None] == truth[:, None]).any(dim=2).float().mean())

    options = {"epochs": 20, "certainty": 1.0, "dropout": 0.0, "hidden": 128}
    trained, _ = trained_for_text(data, tmp_path, **options)
    found = trained.invert(received)
    assert share(found) > (0.5 if batch_size == 1 else 0.3)  # chance is 1 of 150
    trained.save(tmp_path / "i")
    assert torch.equal(TrainedInverter.load(tmp_path / "i", compute=CPU).invert(received), found)


def test_what_pruning_leaves_of_the_span_can_be_encoded(language_model):
    # A handful of entries of each gradient, many of them alone in row and column: the
    # decomposition must converge.
    model, network, _, gradients = language_model
    layout = ParameterLayout.of(attacked(model, network))
    pruned = DEFENSES.parse({"use": "prune", "rate": 0.99}).deterministic(gradients)
    weight = TokenInputs.of(network, WORDS, WINDOW).weights[0]
    rows = pruned[:, layout.slices[weight]]
    assert 1 < float((rows != 0).sum(dim=1).float().mean()) < 300
    alone = ParameterLayout((weight,), ((rows.shape[1] // 96, 96),))
    statistics = encoder_statistics(alone, lambda: iter([rows]), power=0.0)
    places = torch.tensor([[0, rows.shape[1]]])
    encoder = SpanEncoder(alone, places, inputs=96, rank=WINDOW, statistics=statistics)
    _, spectrum, basis, parts = encoder(rows).split(encoder.widths, dim=1)
    assert not parts.shape[1]
    assert spectrum.isfinite().all()
    product = basis.unflatten(1, (WINDOW, 96)) @ basis.unflatten(1, (WINDOW, 96)).transpose(1, 2)
    torch.testing.assert_close(product, torch.eye(WINDOW).expand_as(product), rtol=0, atol=1e-4)


def test_parts_of_positions_are_the_factors_of_a_layers_gradient():
    draw = stream(5)
    mean, outputs = torch.randn(4, 6, generator=draw), torch.randn(9, 4, 8, generator=draw)
    inputs = mean + 0.01 * torch.randn(9, 4, 6, generator=draw)
    weight = outputs.transpose(1, 2) @ inputs
    gradient = torch.cat([torch.randn(9, 3, generator=draw), weight.flatten(1)], dim=1)
    layout = ParameterLayout(("bias", "weight"), ((3,), (8, 6)))
    statistics = part_statistics(layout, {"weight": mean}, lambda: iter([gradient]))
    parts = PositionParts(statistics)
    got = parts(gradient) / statistics["scale"] + statistics["mean"]
    torch.testing.assert_close(got[..., :8], outputs, rtol=0, atol=0.2)
    # With the outputs at hand, the inputs by hand: ridge regression.
    square = got[..., :8] @ got[..., :8].transpose(1, 2)
    ridge = 0.1 * square.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(4)
    expected = torch.linalg.inv(square + ridge) @ got[..., :8] @ weight
    torch.testing.assert_close(got[..., 8:], expected, rtol=1e-3, atol=1e-3)
    # Standardised over the sample.
    scaled = parts(gradient)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(4, 14), rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled.square().mean(0), torch.ones(4, 14), rtol=1e-2, atol=0)


def test_logits_of_some_tokens_are_those_of_all(attacked_model):
    _, network, _, _ = attacked_model
    inputs = TokenInputs.of(network, WORDS, WINDOW)
    width = inputs.token.shape[1]
    decoder = SpanDecoder(
        (2, WINDOW, WORDS),
        widths=(5, 3, 3 * width, 0),
        inputs=inputs,
        frequency=torch.full((WORDS,), 1 / WORDS),
        hidden=8,
        dropout=0.0,
        others=4,
        certainty=60.0,
    )
    basis = torch.linalg.qr(torch.randn(4, width, 3, generator=stream()))[0].transpose(1, 2)
    given = torch.cat([torch.randn(4, 5), -torch.rand(4, 3), basis.flatten(1)], dim=1)
    whole, some = decoder(given), torch.tensor([3, 77, 149])
    torch.testing.assert_close(decoder(given, some), whole[..., some], rtol=1e-4, atol=1e-4)
    # The share of an input inside the span, by hand: at the start all three directions, fewer
    # than tokens, count alike.
    with torch.no_grad():
        decoder.last.weight.zero_()
        decoder.bias.zero_()
        fit = decoder(given)[:, 0] / decoder.factor.exp()
    position = torch.arange(WINDOW)[:, None].expand(WINDOW, WORDS)
    table = inputs.token + inputs.position[position]
    if inputs.normalisation is not None:
        gain, shift, eps = inputs.normalisation
        table = functional.layer_norm(table, (width,), gain, shift, float(eps))
    along = torch.einsum("bkd,tvd->btvk", basis, table)
    expected = torch.tensor(4.0).sigmoid() * along.square().sum(-1) / table.square().sum(-1)
    torch.testing.assert_close(fit, expected, rtol=1e-3, atol=1e-4)


def test_a_projection_without_these_layers_is_refused(attacked_model):
    network = attacked_model[1]
    inputs = TokenInputs.of(network, WORDS, WINDOW)
    with pytest.raises(LTIError, match=r"the projected gradient lacks .*Use projection identity"):
        span_places(ParameterLayout(("hashed",), ((100,),)), inputs.weights)
