"""FL models for text: against torch's and the library's own layers, and gradients of tokens."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from lti.data import Samples, write_selection
from lti.defenses import DEFENSES
from lti.errors import LTIError
from lti.files import canonical_json, read_json, write_card
from lti.fl_models import (
    FL_MODELS,
    FLTask,
    attacked,
    load_fl_model,
    network_digest,
    save_fl_model,
)
from lti.fl_models.transformer import Transformer
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import group_gradient_function, per_sample_gradient_function
from lti.gradients.store import GradientStore
from lti.projections import PROJECTIONS
from lti.stages.fl_model import draw_fl_model
from lti.stages.gradients import compute_gradients, observe

VOCABULARY, LENGTH, PADDING = 40, 7, 3
TASK = FLTask(classes=2, vocabulary=VOCABULARY, length=LENGTH, padding=PADDING)
METADATA = {"dataset": "x", "part": "auxiliary", "seed": 0, "size": 5, "class_names": ["a", "b"]}
TINY = {"layers": 2, "width": 16, "heads": 4, "intermediate": 24, "pretrained": "never"}


class Model:
    """An FL model with a small network, in float64 where derivatives are compared."""

    def __init__(self, name: str, **settings) -> None:
        self.model = FL_MODELS[name](**(TINY if name == "bert" else {}), **settings)
        if name == "bert":
            self.network = self.model.build(TASK)
        else:
            self.network = Transformer(
                VOCABULARY,
                width=16,
                feed_forward=24,
                heads=4,
                layers=2,
                positions=9,
                causal=self.model.causal,
            ).eval()
            self.network.initialise(torch.Generator().manual_seed(0))
        self.network = self.network.double().requires_grad_(False)

    @property
    def pair(self):
        return self.model, self.network

    def labels(self, token: torch.Tensor) -> torch.Tensor:
        return token if self.model.label_is_sample else torch.arange(len(token)) % 2


@pytest.fixture(
    params=[("transformer3", {}), ("transformer3", {"causal": True}), ("bert", {})],
    ids=["transformer3", "causal", "bert"],
    scope="module",
)
def tiny(request) -> Model:
    name, settings = request.param
    return Model(name, **settings)


@pytest.fixture(scope="module")
def token() -> torch.Tensor:
    """Int64 (5, 7), some of them with padding."""
    drawn = torch.randint(4, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(1))
    drawn[1, 5:], drawn[4, 2:] = PADDING, PADDING
    return drawn


def count(parameters) -> int:
    return sum(value.numel() for value in parameters)


# Sizes and weights


@pytest.mark.parametrize(
    ("settings", "task", "everything", "seen"),
    [
        # The paper's facts, with GPT-2's vocabulary.
        ({"use": "transformer3"}, FLTask(1, 50_257, 16), 10_800_433, 1_100_832),
        # bert-base-uncased; all but 30,522 x 768 word embeddings.
        ({"use": "bert"}, FLTask(2, 30_522, 16, 0), 109_483_778, 109_483_778 - 30_522 * 768),
        (
            {"use": "bert", "layers": 4, "width": 256, "heads": 4, "intermediate": 1024},
            FLTask(2, 30_522, 16, 0),
            11_171_074,
            11_171_074 - 30_522 * 256,
        ),
    ],
)
def test_parameters_in_all_and_those_that_are_attacked(settings, task, everything, seen):
    model = FL_MODELS.parse(settings)
    with torch.device("meta"):  # shapes without numbers
        network = model.architecture(task)
    assert count(network.parameters()) == everything
    assert count(attacked(model, network).values()) == seen
    all_of_them = model.model_copy(update={"attacked_parameters": ("*",)})
    assert list(attacked(all_of_them, network)) == [n for n, _ in network.named_parameters()]


def test_the_attacker_sees_the_parameters_that_match_in_the_networks_order():
    model = FL_MODELS["transformer3"](attacked_parameters=["decoder.bias", "layers.?.norm1.*"])
    network = model.build(TASK)
    names = [f"layers.{layer}.norm1.{kind}" for layer in range(3) for kind in ("weight", "bias")]
    assert list(attacked(model, network)) == [*names, "decoder.bias"]
    assert attacked(model, network)["decoder.bias"] is network.decoder.bias


def test_a_pattern_that_matches_nothing_is_an_error_before_anything_is_written(tmp_path):
    model = FL_MODELS["transformer3"](attacked_parameters=["layers.*", "embedding.*"])
    message = (
        r"transformer3\.attacked_parameters: got 'embedding\.\*', which matches no parameter; "
        r"there are position\.weight, layers\.0\.attention\.qkv\.weight, "
    )
    with pytest.raises(LTIError, match=message):
        save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, TASK)
    assert not list(tmp_path.iterdir())
    with pytest.raises(LTIError, match=message):
        per_sample_gradient_function(model, model.build(TASK))


def test_weights_of_the_transformer_are_those_of_the_public_code():
    model = FL_MODELS["transformer3"](seed=4)
    network = model.build(TASK)
    assert isinstance(network, Transformer) and not network.training
    spread = network.position.weight.detach()
    assert spread.shape == (1024, 96)
    assert float(spread.mean()) == pytest.approx(0, abs=5 / spread.numel() ** 0.5)
    assert float(spread.var()) == pytest.approx(1, abs=5 * (2 / spread.numel()) ** 0.5)
    first = network.layers[0]
    bounds = {
        network.token.weight: 0.1,
        network.decoder.bias: 96**-0.5,
        first.attention.qkv.weight: (6 / (96 + 288)) ** 0.5,
        first.attention.output.weight: 96**-0.5,
        first.linear1.weight: 96**-0.5,
        first.linear1.bias: 96**-0.5,
        first.linear2.weight: 1536**-0.5,
        first.linear2.bias: 1536**-0.5,
    }
    for value, bound in bounds.items():
        share = value.detach().flatten() / bound
        assert float(share.abs().max()) <= 1 + 1e-6
        # Mean and variance of U(-1, 1), five standard errors either way.
        assert float(share.mean()) == pytest.approx(0, abs=5 * (1 / 3 / len(share)) ** 0.5)
        assert float(share.var()) == pytest.approx(1 / 3, abs=5 * (4 / 45 / len(share)) ** 0.5)
    assert torch.equal(network.decoder.weight, network.token.weight)
    assert network.decoder.weight is not network.token.weight
    for bias in (first.attention.qkv.bias, first.attention.output.bias):
        assert not bias.any()
    for layer in network.layers[1:]:
        for value, expected in zip(layer.parameters(), first.parameters(), strict=True):
            assert torch.equal(value, expected) and value is not expected
    assert network_digest(model.build(TASK)) == network_digest(network)
    assert network_digest(FL_MODELS["transformer3"](seed=5).build(TASK)) != network_digest(network)


def test_weights_of_bert_are_those_of_its_configuration():
    network = FL_MODELS["bert"](**TINY, seed=4).build(TASK)
    words = network.token_embedding
    assert not words[PADDING].any() and words[PADDING - 1].all()
    matrices = [value for value in network.parameters() if value.ndim == 2]
    drawn = torch.cat([value.detach().flatten() for value in matrices])
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.03)
    for name, value in network.named_parameters():
        if value.ndim == 1:
            expected = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            assert torch.equal(value, torch.full_like(value, expected))
    assert network_digest(FL_MODELS["bert"](**TINY, seed=4).build(TASK)) == network_digest(network)
    assert network_digest(FL_MODELS["bert"](**TINY, seed=5).build(TASK)) != network_digest(network)


# Forward passes


@pytest.mark.parametrize("causal", [False, True])
def test_the_transformer_computes_what_torchs_layers_compute(token, causal):
    network = Model("transformer3", causal=causal).network
    generator = torch.Generator().manual_seed(2)
    for value in network.parameters():  # no two layers alike
        value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.1)
    x = network.token(token) * math.sqrt(16) + network.position.weight[:LENGTH]
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=x.dtype)
    for ours in network.layers:
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True).double()
        state = {
            "self_attn.in_proj_weight": ours.attention.qkv.weight,
            "self_attn.in_proj_bias": ours.attention.qkv.bias,
            "self_attn.out_proj.weight": ours.attention.output.weight,
            "self_attn.out_proj.bias": ours.attention.output.bias,
        }
        for part in ("linear1", "linear2", "norm1", "norm2"):
            for kind in ("weight", "bias"):
                state[f"{part}.{kind}"] = getattr(getattr(ours, part), kind)
        layer.load_state_dict(state)
        x = layer.eval()(x, src_mask=mask if causal else None)
    expected = x @ network.decoder.weight.T + network.decoder.bias
    torch.testing.assert_close(network(token), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_bert_computes_what_the_librarys_classifier_computes(token, mask_padding):
    network = Model("bert", mask_padding=mask_padding).network
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        hidden_act="relu",
        num_labels=2,
        pad_token_id=PADDING,
    )
    library = BertForSequenceClassification(config).double().eval()
    assert list(library.state_dict()) == list(network.state_dict())
    library.load_state_dict(network.state_dict())
    mask = (token != PADDING).long() if mask_padding else torch.ones_like(token)
    expected = library(input_ids=token, attention_mask=mask).logits
    torch.testing.assert_close(network(token), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(network(token[:1]), expected[:1], rtol=1e-9, atol=1e-12)


def test_masked_padding_is_as_if_it_were_not_there(token):
    short = network_output = None
    for mask_padding in (False, True):
        network = Model("bert", mask_padding=mask_padding).network
        short, network_output = network(token[1:2, :5]), network(token[1:2])
        close = torch.allclose(short, network_output, rtol=1e-9, atol=1e-12)
        assert close == mask_padding
    # Embeddings say nothing of padding.
    assert not torch.allclose(network(network.token_embedding[token[1:2]]), short)


def test_a_language_models_loss_is_that_of_the_next_tokens(token):
    model, network = Model("transformer3").pair
    output = network(token)
    expected = 0.0
    for row, logits in zip(token.tolist(), output, strict=True):
        for here in range(LENGTH - 1):
            expected -= float(logits[here].log_softmax(dim=0)[row[here + 1]])
    expected /= len(token) * (LENGTH - 1)
    assert float(model.loss(output, token)) == pytest.approx(expected, rel=1e-12)
    sure = nn.functional.one_hot(token, VOCABULARY).double()
    assert float(model.loss(output, sure)) == pytest.approx(expected, rel=1e-12)
    # The first token is no one's next one, the last output says nothing.
    other = token.clone()
    other[:, 0] = 9
    assert float(model.loss(output, other)) == pytest.approx(expected, rel=1e-12)
    output[:, -1] = 0
    assert float(model.loss(output, token)) == pytest.approx(expected, rel=1e-12)


# Gradients


def test_per_sample_gradients_are_those_of_single_backward_passes(tiny, token):
    model, network = tiny.pair
    label = tiny.labels(token)
    rows = per_sample_gradient_function(model, network)(token, label)
    alone = copy.deepcopy(network)
    seen = [value.requires_grad_() for value in attacked(model, alone).values()]
    assert 0 < len(seen) < len(list(network.parameters()))
    for row, x, y in zip(rows, token, label, strict=True):
        loss = model.loss(alone(x[None]), y[None])
        parts = torch.autograd.grad(loss, seen)
        expected = torch.cat([part.flatten() for part in parts])
        assert row.any()
        torch.testing.assert_close(row, expected, rtol=1e-9, atol=1e-12)
    pairs = token[:4].unflatten(0, (2, 2)), label[:4].unflatten(0, (2, 2))
    groups = group_gradient_function(model, network)(*pairs)
    torch.testing.assert_close(groups, rows[:4].unflatten(0, (2, 2)).mean(dim=1))


def test_gradients_of_embeddings_are_those_of_the_tokens(tiny, token):
    model, network = tiny.pair
    gradients = per_sample_gradient_function(model, network)
    embedding = model.token_embedding(network)
    assert embedding.shape == (VOCABULARY, 16)
    label = tiny.labels(token)
    rows, expected = gradients(embedding[token], label), gradients(token, label)
    torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-14)
    assert not torch.allclose(gradients(1.1 * embedding[token], label), expected)


def test_gradients_are_differentiable_in_the_embeddings(tiny, token):
    model, network = tiny.pair
    gradients = per_sample_gradient_function(model, network)
    label = tiny.labels(token)[:2]
    x = model.token_embedding(network)[token[:2]]
    generator = torch.Generator().manual_seed(3)
    # ReLUs at rest would hide wrong second derivatives of what follows them.
    x = x + 0.05 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    size = gradients(x, label).shape[1]
    direction = torch.randn(2, size, generator=generator, dtype=x.dtype)
    x.requires_grad_()
    value = (gradients(x, label) * direction).sum()
    (derivative,) = torch.autograd.grad(value, [x])
    x = x.detach()
    step = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    ahead, behind = (gradients(x + sign * 1e-6 * step, label) for sign in (1, -1))
    difference = ((ahead - behind) * direction).sum(dim=1) / 2e-6
    along = (derivative * step).sum(dim=(1, 2))
    assert bool((along.abs() > 1e-4).all())
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-7)


def test_gradients_are_differentiable_in_probabilities_of_labels(tiny, token):
    model, network = tiny.pair
    gradients = per_sample_gradient_function(model, network)
    classes = VOCABULARY if model.label_is_sample else 2
    sure = nn.functional.one_hot(tiny.labels(token), classes).double()
    rows = gradients(token, sure)
    torch.testing.assert_close(rows, gradients(token, tiny.labels(token)), rtol=1e-9, atol=1e-12)
    label = sure[:1].clone().requires_grad_()
    (derivative,) = torch.autograd.grad(gradients(token[:1], label).square().sum(), [label])
    step = torch.randn(sure[:1].shape, generator=torch.Generator().manual_seed(0), dtype=sure.dtype)
    ahead, behind = (
        gradients(token[:1], sure[:1] + sign * 1e-6 * step).square().sum() for sign in (1, -1)
    )
    along, difference = (derivative * step).sum(), (ahead - behind) / 2e-6
    torch.testing.assert_close(along, difference, rtol=1e-5, atol=1e-9)


def test_images_have_no_token_embedding(lenet):
    with pytest.raises(LTIError, match="lenet has no token embedding"):
        lenet.model.token_embedding(lenet.network)


# Tasks and files


def test_a_task_is_read_from_a_data_sets_card():
    text = {"length": 16, "vocabulary": 50_257, "padding": None, "special": [50_256]}
    assert FLTask.of({"class_names": ["text"], "text": text}) == FLTask(1, 50_257, 16, None)
    assert FLTask.of({"class_names": ["a", "b"]}) == FLTask(2)
    assert (FLTask(2).modality, FLTask(1, 50_257, 16).modality) == ("image", "text")


@pytest.mark.parametrize("name", ["transformer3", "bert"])
def test_a_stored_model_comes_back(tmp_path, name):
    settings = {"use": name, "seed": 3, **(TINY if name == "bert" else {})}
    text = {"length": LENGTH, "vocabulary": VOCABULARY, "padding": PADDING, "special": [PADDING]}
    card_path = tmp_path / "data.json"
    write_card(card_path, {"class_names": ["no", "yes"], "text": text})
    draw_fl_model(
        fl_model=canonical_json(settings),
        dataset_card=card_path,
        output=tmp_path / "m.safetensors",
        card=tmp_path / "m.json",
    )
    model, network = load_fl_model(tmp_path / "m.safetensors")
    expected = FL_MODELS.parse(settings)
    assert model == expected and not network.training
    built = expected.build(TASK)
    assert list(network.state_dict()) == list(built.state_dict())
    for value, other in zip(network.parameters(), built.parameters(), strict=True):
        assert torch.equal(value, other) and not value.requires_grad
    card = read_json(tmp_path / "m.json")
    assert card["task"] == {"classes": 2, "vocabulary": VOCABULARY, "length": 7, "padding": 3}
    assert card["parameters"] == count(built.parameters())
    assert card["attacked"] == count(attacked(expected, built).values()) < card["parameters"]
    assert card["pretrained"] is False and card["digest"] == network_digest(built)
    if name == "bert":
        assert card["note"] == "not pretrained: as the settings say"


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ({"use": "transformer3"}, FLTask(10), "transformer3 got a data set of modality image"),
        ({"use": "lenet"}, TASK, "lenet got a data set of modality text; expected image"),
        ({"use": "transformer3"}, FLTask(1, 40, 1025), "got samples of 1025 tokens; expected 2 to"),
        ({"use": "transformer3"}, FLTask(1, 40, 1), "got samples of 1 tokens; expected 2 to 1024"),
        ({"use": "bert"}, FLTask(2, 40, 513), "bert got samples of 513 tokens and 2 classes; exp"),
        ({"use": "bert"}, FLTask(1, 40, 16), "16 tokens and 1 classes; .*at least 2 classes"),
        ({"use": "bert", "mask_padding": True}, FLTask(2, 40, 16), "bert.mask_padding: got True"),
    ],
)
def test_a_task_that_does_not_fit_is_refused(tmp_path, settings, task, message):
    model = FL_MODELS.parse(settings)
    with pytest.raises(LTIError, match=message):
        save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, task)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100}, r"fl_models\.b\.heads: got 12; allowed: divisors of the width, 100"),
        ({"layers": 4, "pretrained": "required"}, r"fl_models\.b\.pretrained: got 'required'; all"),
        ({"pretrained": False}, r"fl_models\.b\.pretrained: got False; input should be 'if-avail"),
        ({"attacked_parameters": []}, r"fl_models\.b\.attacked_parameters: got \[\]"),
    ],
)
def test_settings_are_checked_before_anything_is_built(settings, message):
    with pytest.raises(LTIError, match=message):
        FL_MODELS.parse({"use": "bert", **settings}, where="fl_models.b")


# Gradients of tokens, in the stages


@pytest.fixture(params=["transformer3", "bert"])
def files(request, tmp_path, token):
    """A model and token samples as files, and their gradients by the loop above."""
    settings = TINY if request.param == "bert" else {"attacked_parameters": ["layers.1.*"]}
    model = FL_MODELS[request.param](**settings)
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, TASK)
    _, network = load_fl_model(tmp_path / "m.safetensors")
    samples = Samples(
        token.numpy().astype(np.int32), np.array([0, 1, 1, 0, 1]), np.arange(5, dtype=np.int64)
    )
    write_selection(tmp_path / "s.safetensors", samples, metadata=METADATA)
    label = torch.from_numpy(model.labels(samples))
    assert label.dtype == torch.int64
    assert torch.equal(label, token if model.label_is_sample else torch.tensor([0, 1, 1, 0, 1]))
    return tmp_path, model, network, per_sample_gradient_function(model, network)(token, label)


@pytest.mark.parametrize("defense", ["none", "sign", "prune"])
@pytest.mark.parametrize("projection", [{"use": "identity"}, {"use": "hash", "ratio": 0.1}])
def test_gradients_of_tokens_are_defended_projected_and_stored(files, defense, projection):
    folder, model, network, rows = files
    compute_gradients(
        auxiliary=folder / "s.safetensors",
        fl_model=folder / "m.safetensors",
        defense=canonical_json({"use": defense}),
        projection=canonical_json(projection),
        output=folder / "g.zarr",
        manifest=folder / "g.json",
        threads=1,
    )
    store = GradientStore.open(folder / "g.zarr", folder / "g.json")
    layout = ParameterLayout.of(attacked(model, network))
    assert ParameterLayout.from_json(store.attributes["layout"]) == layout
    expected = DEFENSES[defense]().deterministic(rows)
    expected = PROJECTIONS.parse(projection).project(expected, layout=layout)
    error = (store.rows(0, 5) - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < 2e-3


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_is_observed_of_tokens_is_their_gradient(files, batch_size):
    folder, _, _, rows = files
    observe(
        victims=folder / "s.safetensors",
        fl_model=folder / "m.safetensors",
        defense='{"use": "none"}',
        batch_size=batch_size,
        output=folder / "o.zarr",
        manifest=folder / "o.json",
        threads=1,
    )
    store = GradientStore.open(folder / "o.zarr", folder / "o.json")
    batches = 5 // batch_size
    expected = rows[: batches * batch_size].unflatten(0, (batches, batch_size)).mean(dim=1)
    torch.testing.assert_close(store.rows(0, batches), expected, rtol=1e-4, atol=1e-7)
    # A language model's labels would be the victims themselves.
    classes = torch.tensor([0, 1, 1, 0, 1])[: batches * batch_size]
    assert store.attributes["label"] == classes.view(batches, batch_size).tolist()
    assert store.attributes["sample_shape"] == [LENGTH]
