"""BERT's public weights: a small fake of the published file, and where it is looked for."""

from __future__ import annotations

import re
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining

from lti.errors import LTIError
from lti.files import read_json
from lti.fl_models import FL_MODELS, FLTask, load_fl_model, save_fl_model
from lti.fl_models import bert as bert_module

SIZES = {"layers": 2, "width": 8, "heads": 2, "intermediate": 12}
TASK = FLTask(classes=2, vocabulary=30, length=6, padding=0)


@pytest.fixture(autouse=True)
def small_base(monkeypatch, tmp_path):
    """The published network is a small one, no mirror is set, and the hub does not answer."""
    monkeypatch.setattr(bert_module, "BASE", SIZES)
    monkeypatch.setattr(bert_module, "BASE_VOCABULARY", 30)
    monkeypatch.delenv("LTI_DATA_MIRROR", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def bert(**settings):
    return FL_MODELS["bert"](**SIZES, **settings)


@pytest.fixture
def published(tmp_path):
    """The file as it is published: with heads, and TensorFlow's names of normalisations."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
    )
    torch.manual_seed(0)
    library = BertForPreTraining(config)
    tensors = {}
    for name, value in library.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        tensors[name.replace("LayerNorm.bias", "LayerNorm.beta")] = torch.randn(value.shape)
    path = tmp_path / "published.safetensors"
    save_file(tensors, path)
    return path


def in_mirror(tmp_path, monkeypatch, published):
    folder = tmp_path / "mirror/models/bert-base-uncased"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(published.read_bytes())
    monkeypatch.setenv("LTI_DATA_MIRROR", str(tmp_path / "mirror"))
    return folder / "model.safetensors"


def in_cache(tmp_path, monkeypatch, published):
    folder = tmp_path / "cache/models--google-bert--bert-base-uncased"
    for name, content in (
        ("refs/main", b"0123456789"),
        ("snapshots/0123456789/model.safetensors", published.read_bytes()),
    ):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", [in_mirror, in_cache])
@pytest.mark.parametrize("pretrained", ["if-available", "required"])
def test_public_weights_are_loaded(tmp_path, monkeypatch, published, place, pretrained):
    place(tmp_path, monkeypatch, published)
    model = bert(pretrained=pretrained, seed=3)
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, TASK)
    card = read_json(tmp_path / "m.json")
    assert card["pretrained"] is True and card["weights"] == "google-bert/bert-base-uncased"
    assert "note" not in card
    for folder in ("mirror", "cache"):  # what is stored needs the published file no more
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    state = load_fl_model(tmp_path / "m.safetensors")[1].state_dict()
    tensors = load_file(published)
    used = set()
    for name, value in state.items():
        if name.startswith("bert."):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            old = old.replace("LayerNorm.bias", "LayerNorm.beta")
            assert torch.equal(value, tensors[old])
            used.add(old)
    assert used == {name for name in tensors if name.startswith("bert.")}
    # The last layer is drawn.
    drawn = bert(pretrained="never", seed=3).build(TASK)
    assert torch.equal(state["classifier.weight"], drawn.classifier.weight)
    assert not torch.equal(drawn.token_embedding, state["bert.embeddings.word_embeddings.weight"])


def test_where_they_cannot_be_had_weights_are_drawn_and_the_card_says_so(tmp_path):
    model = bert(seed=3)
    save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, TASK)
    card = read_json(tmp_path / "m.json")
    assert card["pretrained"] is False
    assert card["note"] == (
        "not pretrained: model.safetensors of google-bert/bert-base-uncased is neither in "
        "$LTI_DATA_MIRROR/models/bert-base-uncased nor in the Hugging Face cache, and the hub does "
        "not answer"
    )
    _, network = load_fl_model(tmp_path / "m.safetensors")
    drawn = bert(pretrained="never", seed=3).build(TASK)
    for value, expected in zip(network.parameters(), drawn.parameters(), strict=True):
        assert torch.equal(value, expected)


def test_required_weights_that_cannot_be_had_are_an_error(tmp_path):
    message = (
        r"bert\.pretrained: got 'required', but model\.safetensors of google-bert/bert-base-uncas"
        r"ed is neither in \$LTI_DATA_MIRROR/models/.*set pretrained to 'never'"
    )
    model = bert(pretrained="required")
    with pytest.raises(LTIError, match=message):
        save_fl_model(tmp_path / "m.safetensors", tmp_path / "m.json", model, TASK)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "task", "reason"),
    [
        ({}, FLTask(2, 31, 6, 0), "the public weights are for 30 tokens, the data set has 31"),
        ({"layers": 1}, TASK, "there are no public weights of this size"),
        ({"pretrained": "never"}, TASK, "as the settings say"),
    ],
)
def test_other_networks_do_not_get_public_weights(
    tmp_path, monkeypatch, published, settings, task, reason
):
    in_mirror(tmp_path, monkeypatch, published)
    model = FL_MODELS["bert"](**{**SIZES, **settings})
    facts = model.initialise(model.architecture(task))
    assert facts == {"pretrained": False, "note": f"not pretrained: {reason}"}


def test_a_damaged_file_and_one_of_another_network_are_refused(tmp_path, monkeypatch, published):
    path = in_mirror(tmp_path, monkeypatch, published)
    model = bert()
    tensors = load_file(published)
    name = "bert.encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path)
    message = f"{path}: got shape (8, 11) for {name}; expected shape (8, 12). Get it from google"
    with pytest.raises(LTIError, match=re.escape(message)):
        model.build(TASK)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(LTIError, match=re.escape(f"got nothing for {name}; expected shape")):
        model.build(TASK)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LTIError, match=re.escape(f"{path}: cannot be read (")):
        model.build(TASK)
