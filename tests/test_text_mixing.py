"""Auxiliary sets of two texts: one tokenizer for both, topics apart, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from workflow_runner import CONFIG, Checkout

from lti.config import parse_config
from lti.data import DATASETS, read_selection
from lti.data.python_docs import PythonDocs
from lti.data.text import TextDataset, as_samples, text_length, token_stream, windows
from lti.data.tokenizer import read_tokenizer
from lti.errors import LTIError
from lti.plan import Plan
from lti.stages.selection import select_auxiliary

MIRROR = Path(os.environ.get("LTI_DATA_MIRROR") or "/nonexistent")
needs_mirror = pytest.mark.skipif(
    not ((MIRROR / "glue-cola").is_dir() and (MIRROR / "wikitext-2").is_dir()),
    reason="needs CoLA and WikiText: LTI_DATA_MIRROR is unset or lacks glue-cola or wikitext-2",
)
STRINGS, TYPES = ["string-methods", "strings", "formatstrings"], ["types", "specialnames"]


def template(single: str, *special: str) -> Tokenizer:
    """Return a tokenizer of one-letter words that puts special tokens around a text."""
    vocabulary = {word: k for k, word in enumerate(("[PAD]", *special, *"abcdef"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", *special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(word, vocabulary[word]) for word in special]
    )
    return tokenizer


@pytest.mark.parametrize("length", [None, 3, 20])
@pytest.mark.parametrize(
    ("single", "special"),
    [("$A", ()), ("[X] $A", ("[X]",)), ("$A [Y]", ("[Y]",)), ("[X] [X] $A [Y]", ("[X]", "[Y]"))],
)
def test_windows_get_what_the_tokenizer_adds_to_a_text(single, special, length):
    tokenizer = template(single, *special)
    text = "b c d e f a b c"
    expected = tokenizer.encode(text).ids
    added = len(expected) - 8
    if length is not None:  # of samples, whose tokenizer pads and cuts
        tokenizer.enable_padding(length=length + added)
        tokenizer.enable_truncation(length + added)
    before = tokenizer.to_str()
    assert text_length(tokenizer, length=8 + added) == 8
    value = windows(token_stream(tokenizer, [text]), length=8, stride=8)
    assert as_samples(value, tokenizer).tolist() == [expected]
    assert as_samples(value, tokenizer).dtype == np.int32
    assert tokenizer.to_str() == before


def test_a_sample_has_to_have_a_place_for_text():
    tokenizer = template("[X] [X] $A [Y]", "[X]", "[Y]")
    with pytest.raises(LTIError, match="length: got 3, where the tokenizer adds 3 tokens of its"):
        text_length(tokenizer, length=3)


# --- topics ---


def test_chosen_topics_are_the_windows_that_all_topics_have_of_them():
    whole = PythonDocs()
    tokenizer = whole.own_tokenizer()
    strings = PythonDocs(topics=tuple(STRINGS), tokenizer="python-docs")
    types = PythonDocs(topics=tuple(TYPES), tokenizer="python-docs")
    everything = {row.tobytes() for row in whole.load("auxiliary", tokenizer).value}
    held = []
    for some in (strings, types):
        rows = some.load("auxiliary", tokenizer).value
        held.append({row.tobytes() for row in rows})
        assert held[-1] <= everything and len(rows) > 100
    assert not held[0] & held[1]
    victims = {row.tobytes() for row in whole.load("victims", tokenizer).value}
    some = strings.load("victims", tokenizer)
    assert {row.tobytes() for row in some.value} < victims and len(some) > 50
    assert "conversion" in tokenizer.decode(some.value.flatten().tolist())
    with pytest.raises(LTIError, match="none of which is of the part victims; expected one or mo"):
        types.load("victims", tokenizer)
    with pytest.raises(LTIError, match="topics: got 'string'; expected topics of this Python's do"):
        PythonDocs(topics=("string",)).own_tokenizer()
    with pytest.raises(LTIError, match="got no tokenizer; expected that of the data set python-do"):
        strings.load("auxiliary")


def mixed(**changes) -> dict:
    """Return a configuration of string topics and of types, mixed."""
    datasets = {
        "docs": {"use": "python-docs"},
        "strings": {"use": "python-docs", "topics": STRINGS, "tokenizer": "docs"},
        "types": {"use": "python-docs", "topics": TYPES, "tokenizer": "docs"},
    }
    for key, settings in changes.items():
        datasets[key] = {**datasets.get(key, {}), **settings}
    return {
        "datasets": {**CONFIG["datasets"], **datasets},
        "fl_models": {**CONFIG["fl_models"], "transformer3": {"use": "transformer3"}},
        "inverters": {**CONFIG["inverters"], "text": {"use": "tuned-text"}},
        "attacks": {**CONFIG["attacks"], "lti-text": {"use": "lti", "inverter": "text"}},
        "shifts": {"topics": {"shifted": [{"dataset": "types"}]}},
        "experiments": {
            **CONFIG["experiments"],
            "texts": {
                "title": "Texts",
                "dataset": "strings",
                "fl_models": ["transformer3"],
                "defenses": ["sign"],
                "attacks": ["lti-text"],
                "auxiliary": {"size": 80, "shift": "topics", "beta": 0.25},
                "victims": {"size": 16},
                "pictured": 4,
            },
        },
    }


def test_a_plan_knows_whose_tokenizer_a_data_set_takes():
    plan = Plan(parse_config({**CONFIG, **mixed()}))
    assert [plan.tokenizer_of(name) for name in ("docs", "strings", "types")] == ["docs"] * 3
    assert plan.tokenizer_of("photos") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"types": {"tokenizer": "photos"}}, r"datasets\.types\.tokenizer: got 'photos'; allowed"),
        ({"types": {"tokenizer": "strings"}}, r"types\.tokenizer: got 'strings'; allowed: docs$"),
        ({"types": {"topics": ["types", "strings"]}}, r"strings and types, which both hold strin"),
        ({"types": {"topics": None}}, r"got 'topics' with strings and types, .* hold all topics;"),
        ({"types": {"topics": []}}, r"datasets\.types.topics: got \[\]"),
    ],
)
def test_texts_that_do_not_go_together_are_named(changes, message):
    with pytest.raises(LTIError, match=message):
        parse_config({**CONFIG, **mixed(**changes)})


def test_two_names_of_one_data_set_are_no_two_parts():
    values = {**CONFIG, "shifts": {"x": {"shifted": [{"dataset": "again"}]}}}
    values["datasets"] = {**CONFIG["datasets"], "again": CONFIG["datasets"]["photos"]}
    tiny = CONFIG["experiments"]["tiny"]
    auxiliary = {**tiny["auxiliary"], "shift": "x", "beta": 0.5}
    values["experiments"] = {"tiny": {**tiny, "auxiliary": auxiliary}}
    with pytest.raises(LTIError, match="with photos and again, which both hold everything; allo"):
        parse_config(values)


def test_the_workflow_mixes_topics_with_one_tokenizer(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    checkout.configure(mixed())
    auxiliary, victims = "strings-topics-n80-s0-b0.25", "strings-topics-n16-s0"
    data = checkout.results / "data"
    paths = [data / f"auxiliary/{auxiliary}.safetensors", data / f"victims/{victims}.safetensors"]
    checkout.run(*(str(path.relative_to(checkout.folder)) for path in paths))
    chosen, attacked = (read_selection(path) for path in paths)
    tokenizer = read_tokenizer(data / "docs/tokenizer.json", chosen.metadata["text"])
    read_tokenizer(data / "docs/tokenizer.json", attacked.metadata["text"])
    assert [path.parent.name for path in data.glob("*/tokenizer.json")] == ["docs"]
    assert chosen.in_distribution is not None and chosen.in_distribution.sum() == 20
    pools = [PythonDocs(topics=tuple(t), tokenizer="docs") for t in (STRINGS, TYPES)]
    held = [{row.tobytes() for row in p.load("auxiliary", tokenizer).value} for p in pools]
    for row, inside in zip(chosen.samples.value, chosen.in_distribution, strict=True):
        assert row.tobytes() in held[0 if inside else 1]
    known = {row.tobytes() for row in pools[0].load("victims", tokenizer).value}
    assert {row.tobytes() for row in attacked.samples.value} <= known


# --- CoLA and WikiText ---


def text(name: str, **settings) -> TextDataset:
    data = DATASETS.parse({"use": name, "mirror": str(MIRROR), **settings})
    assert isinstance(data, TextDataset)
    return data


@needs_mirror
def test_wikitext_in_the_words_of_cola_are_windows_between_cls_and_sep():
    tokenizer = text("cola").own_tokenizer()
    samples = text("wikitext", tokenizer="cola").load("victims", tokenizer)
    value = samples.value
    assert value.shape[1] == 16 and (value[:, 0] == 101).all() and (value[:, -1] == 102).all()
    assert not np.isin(value[:, 1:-1], [0, 101, 102]).any()
    # As one text, tokenised by the published file alone.
    import pyarrow.parquet as pq

    rows = pq.read_table(MIRROR / "wikitext-2/validation-00000-of-00001.parquet")["text"]
    published = Tokenizer.from_file(str(MIRROR / "tokenizers/bert-base-uncased/tokenizer.json"))
    published.no_truncation()
    published.no_padding()
    stream = [t for row in rows.to_pylist() for t in published.encode(row).ids[1:-1]]
    assert len(value) == len(stream) // 14
    assert value[:, 1:-1].flatten().tolist() == stream[: 14 * len(value)]


@needs_mirror
def test_cola_in_the_words_of_wikitext_are_windows_over_its_sentences():
    tokenizer = text("wikitext").own_tokenizer()
    samples = text("cola", tokenizer="wikitext").load("victims", tokenizer)
    assert samples.value.shape[1] == 16 and (samples.label == 0).all()
    assert samples.index.tolist() == list(range(len(samples)))
    words = tokenizer.decode(samples.value.flatten().tolist())
    assert words.startswith(" The sailors rode the breeze clear of the rocks. The weights made ")


@needs_mirror
def test_an_auxiliary_set_of_cola_and_wikitext(tmp_path):
    """In the words of one of the two; with a tokenizer each, they do not go together."""
    from lti.stages.data import prepare_dataset, prepare_tokenizer

    def prepare(name: str, of: str, **settings) -> Path:
        output = tmp_path / f"{name}.safetensors"
        data = {"use": name, "mirror": str(MIRROR), **settings}
        prepare_dataset(
            dataset=json.dumps(data),
            part="auxiliary",
            tokenizer=tmp_path / f"{of}.tokenizer.json",
            output=output,
            card=output.with_suffix(".json"),
        )
        return output

    for name in ("cola", "wikitext"):
        settings = json.dumps({"use": name, "mirror": str(MIRROR)})
        prepare_tokenizer(dataset=settings, output=tmp_path / f"{name}.tokenizer.json")
    sources = prepare("cola", "cola"), prepare("wikitext", "cola", tokenizer="cola")

    def select() -> None:
        select_auxiliary(
            source=sources[0],
            size=200,
            seed=0,
            shifted=json.dumps([{"source": str(sources[1]), "classes": None}]),
            beta=0.1,
            output=tmp_path / "mixed.safetensors",
            card=tmp_path / "mixed.json",
        )

    select()
    chosen = read_selection(tmp_path / "mixed.safetensors")
    assert chosen.in_distribution is not None and chosen.in_distribution.sum() == 20
    known = {row.tobytes() for row in read_selection(sources[0]).samples.value}
    found = [row.tobytes() in known for row in chosen.samples.value]
    assert found == chosen.in_distribution.tolist()
    assert chosen.metadata["text"]["padding"] == 0
    prepare("wikitext", "wikitext")
    with pytest.raises(LTIError, match=r"made with another tokenizer than .*Give the data set the"):
        select()
