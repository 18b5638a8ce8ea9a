"""Data sets of text: their sources, windows and tokenizers, and the victims' near copies."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from workflow_runner import Checkout

from lti.config import parse_config
from lti.data import DATASETS, Samples, cola, hub, near_copies, wikitext
from lti.data import read_selection as read
from lti.data.near_copies import NEAR_COPY, find_near_copies, write_near_copies
from lti.data.python_docs import PythonDocs, paragraphs, split_topics
from lti.data.text import TextDataset, windows
from lti.data.tokenizer import read_tokenizer, text_facts, write_tokenizer
from lti.errors import LTIError
from lti.files import read_arrays, read_json
from lti.metrics.near_copies import read_near_copies
from lti.plan import Plan
from lti.stages.data import prepare_dataset, prepare_tokenizer
from lti.stages.gradients import compute_gradients
from lti.stages.near_copies import find_near_copies as near_copies_stage
from lti.stages.selection import select_auxiliary, select_victims

MIRROR = Path(os.environ.get("LTI_DATA_MIRROR") or "/nonexistent")
needs_mirror = pytest.mark.skipif(
    not ((MIRROR / "glue-cola").is_dir() and (MIRROR / "wikitext-2").is_dir()),
    reason="needs CoLA and WikiText: LTI_DATA_MIRROR is unset or lacks glue-cola or wikitext-2",
)


def assert_same(a: Samples, b: Samples) -> None:
    for name in ("value", "label", "index"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def tokens(rows: Iterable[Iterable[int]]) -> Samples:
    value = np.array([list(row) for row in rows], dtype=np.int32)
    return Samples(value, np.zeros(len(value), dtype=np.int64), np.arange(len(value)))


def write_rows(path: Path, **columns: list) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


# --- windows ---


@given(n=st.integers(0, 60), length=st.integers(2, 20), stride=st.integers(1, 25))
def test_windows_are_the_whole_slices_at_every_stride(n, length, stride):
    stream = np.arange(n, dtype=np.int32)
    expected = [stream[k : k + length] for k in range(0, n, stride) if k + length <= n]
    got = windows(stream, length=length, stride=stride)
    assert got.shape == (len(expected), length) and got.dtype == np.int32
    for row, one in zip(got, expected, strict=True):
        np.testing.assert_array_equal(row, one)


# --- python-docs ---


@functools.cache
def docs_parts(stride: int | None = None) -> tuple[Tokenizer, dict[str, Samples]]:
    data = PythonDocs(stride=stride)
    tokenizer = data.own_tokenizer()
    return tokenizer, {part: data.load(part, tokenizer) for part in ("auxiliary", "victims")}


def docs_prose(part: str) -> list[list[str]]:
    topics = importlib.import_module("pydoc_data.topics").topics
    prose = {name: paragraphs(text) for name, text in topics.items()}
    return [prose[name] for name in split_topics(prose)[part]]


def test_python_docs_are_windows_of_the_prose_of_their_part():
    tokenizer, parts = docs_parts()
    assert len(parts["auxiliary"]) > 2500 and len(parts["victims"]) > 500
    for part, samples in parts.items():
        assert samples.value.shape[1] == 16 and samples.value.max() < 1024
        assert (samples.label == 0).all() and len(PythonDocs.class_names) == 1
        assert (np.diff(samples.index) > 0).all()
        text = "\n".join("\n".join(dict.fromkeys(lines)) for lines in docs_prose(part))
        found = whole = 0
        for window in samples.value[::7]:
            words = tokenizer.decode(window.tolist())
            if "\ufffd" not in words:  # a window may cut a character's bytes
                whole += 1
                found += words in text
        # A paragraph that another topic of the part has is left out of its second one.
        assert whole > len(samples) / 8 and found > 0.95 * whole
    assert np.array_equal(parts["auxiliary"].index, np.arange(len(parts["auxiliary"])))


def test_no_window_of_a_victim_occurs_in_the_auxiliary_part_at_any_place():
    tokenizer, parts = docs_parts()
    _, dense = docs_parts(stride=1)
    # Windows at every place, whose every 16th are the consecutive ones.
    every = {window.tobytes() for window in dense["auxiliary"].value}
    assert {window.tobytes() for window in parts["auxiliary"].value} <= every
    assert not every & {window.tobytes() for window in parts["victims"].value}
    assert_same(dense["victims"], parts["victims"])
    # What was left out does occur.
    streams = [
        tokenizer.encode("\n".join(lines)).ids for lines in _fresh(docs_prose("victims")) if lines
    ]
    all_windows = np.concatenate(
        [windows(np.array(ids, dtype=np.int32), length=16, stride=16) for ids in streams]
    )
    left_out = np.setdiff1d(np.arange(len(all_windows)), parts["victims"].index)
    np.testing.assert_array_equal(all_windows[parts["victims"].index], parts["victims"].value)
    assert {all_windows[k].tobytes() for k in left_out} <= every


def _fresh(topics: list[list[str]]) -> list[list[str]]:
    """Each paragraph in the first of the topics that have it."""
    seen: set[str] = set()
    kept = []
    for lines in topics:
        kept.append([line for line in dict.fromkeys(lines) if line not in seen])
        seen |= set(lines)
    return kept


def test_no_long_paragraph_is_in_both_parts():
    both = [
        {line for lines in docs_prose(part) for line in lines if len(line.split()) >= 8}
        for part in ("auxiliary", "victims")
    ]
    assert min(map(len, both)) > 100 and not both[0] & both[1]


def test_the_tokenizer_and_the_auxiliary_part_do_not_depend_on_the_victims(monkeypatch):
    tokenizer, parts = docs_parts()
    module = importlib.import_module("pydoc_data.topics")
    victims = set(split_topics({k: paragraphs(v) for k, v in module.topics.items()})["victims"])
    spoilt = {
        name: text.translate(str.maketrans("aeiot", "eioat")) if name in victims else text
        for name, text in reversed(module.topics.items())  # nor on the order of the topics
    }
    monkeypatch.setattr(module, "topics", spoilt)
    assert PythonDocs().own_tokenizer().to_str() == tokenizer.to_str()
    assert_same(PythonDocs().load("auxiliary", tokenizer), parts["auxiliary"])
    assert not np.array_equal(
        PythonDocs().load("victims", tokenizer).value[:9], parts["victims"].value[:9]
    )


def test_two_trainings_give_the_same_file_and_leave_the_environment_alone(tmp_path):
    code = (
        "import os, sys, pathlib\nfrom lti.data import DATASETS\n"
        "before = dict(os.environ)\n"
        "DATASETS['python-docs']().write_tokenizer(pathlib.Path(sys.argv[1]))\n"
        "assert dict(os.environ) == before\n"
    )
    contents = []
    for seed, parallel in (("1", {}), ("2", {"TOKENIZERS_PARALLELISM": "true"})):
        path = tmp_path / f"{seed}.json"
        environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
        environment |= {"PYTHONHASHSEED": seed, **parallel}
        subprocess.run([sys.executable, "-c", code, path], env=environment, check=True)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == docs_parts()[0].to_str().encode()


def test_a_stride_and_a_vocabulary_are_settings(monkeypatch):
    tokenizer, parts = docs_parts()
    _, half = docs_parts(stride=8)
    whole = {window.tobytes() for window in parts["auxiliary"].value}
    assert len(half["auxiliary"]) > 1.9 * len(parts["auxiliary"])
    assert whole <= {window.tobytes() for window in half["auxiliary"].value}
    small = PythonDocs(vocabulary=300, length=8)
    assert small.own_tokenizer().get_vocab_size() == 300
    assert small.load("victims").value.shape[1] == 8
    assert tokenizer.get_vocab_size() == 1024
    for wrong in ({"length": 1}, {"length": 65}, {"stride": 0}, {"vocabulary": 256}):
        with pytest.raises(
            LTIError, match=rf"{next(iter(wrong))}: got {next(iter(wrong.values()))}"
        ):
            DATASETS.parse({"use": "python-docs", **wrong})


def test_a_python_without_its_help_texts_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    with pytest.raises(LTIError, match=r"python-docs: .* has no module pydoc_data\.topics; .*Use"):
        PythonDocs().own_tokenizer()


def test_prose_is_kept_and_the_rest_is_not():
    text = (
        "The heading of it\n=================\n\n"
        "A first sentence that goes\non after a line-\nbreak of the source.\n\n"
        "   x = f(1)\n   y = g(2, 3)[4] + h(5) * 6 - 7 / 8 ** 9.\n\n"
        'if_stmt ::= "if" expression ":" suite\n\n'
        "object.__len__(self)\n\n   Called to implement the built-in function that counts.\n\n"
        "Too short a sentence.\n\n"
        "* A mark of a list in front of this one!\n\n"
        "12. And the number of an item in front of this one?\n"
    )
    assert paragraphs(text) == [
        "A first sentence that goes on after a line-break of the source.",
        "Called to implement the built-in function that counts.",
        "A mark of a list in front of this one!",
        "And the number of an item in front of this one?",
    ]
    assert paragraphs("") == []


LONG = [f"paragraph {k} has a number of words that is at least eight." for k in range(12)]
SHORT = ["this one is short and common."]


@settings(deadline=None)
@given(
    topics=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=4),
        st.lists(st.sampled_from(LONG + SHORT), max_size=3),
        max_size=12,
    ),
    data=st.data(),
)
def test_topics_that_share_a_paragraph_are_never_parted(topics, data):
    parts = split_topics(topics)
    assert sorted(parts["auxiliary"] + parts["victims"]) == sorted(topics)
    held = [{line for name in parts[part] for line in topics[name]} for part in parts]
    assert not (held[0] & held[1]) - set(SHORT)
    # Of the characters, each paragraph of a group counted once.
    total = sum(map(len, held[0] | held[1]))
    assert sum(map(len, held[1])) <= 0.2 * (total + 12 * len(SHORT[0]))
    names = data.draw(st.permutations(sorted(topics)))
    assert split_topics({name: topics[name] for name in names}) == parts


def test_a_large_topic_is_never_a_victim_and_small_ones_are():
    topics = {f"topic {k}": [f"{LONG[0]} {k}"] for k in range(40)}
    topics["large"] = [" ".join(LONG)]
    parts = split_topics(topics)
    assert "large" in parts["auxiliary"] and 5 <= len(parts["victims"]) <= 12
    # Another topic moves none of the others, unless it takes their room.
    more = split_topics({**topics, "another": [LONG[1]]})
    assert len(set(more["victims"]) ^ set(parts["victims"])) <= 2


# --- CoLA and WikiText: a mirror ---

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "dog", "bark", "##s", "cat", "."]


def small_bert() -> Tokenizer:
    vocabulary = {word: k for k, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(WORDS[:5])
    return tokenizer


SENTENCES = ["The dog barks.", "The", "The dog the cat the dog the cat.", "Zebra ."]
JUDGMENTS = [1, 0, 0, 1]
EXPECTED = [
    [2, 5, 6, 7, 8, 10, 3, 0],
    [2, 5, 3, 0, 0, 0, 0, 0],
    [2, 5, 6, 5, 9, 5, 6, 3],  # cut, [SEP] kept
    [2, 1, 10, 3, 0, 0, 0, 0],
]


@pytest.fixture
def cola_mirror(tmp_path, monkeypatch) -> Path:
    """A mirror whose validation split is two shards of two sentences."""
    folder = tmp_path / "mirror"
    for number in range(2):
        rows = slice(2 * number, 2 * number + 2)
        write_rows(
            folder / f"glue-cola/validation-0000{number}-of-00002.parquet",
            sentence=SENTENCES[rows],
            label=JUDGMENTS[rows],
            idx=[0, 1],
        )
    path = folder / "tokenizers/bert-base-uncased/tokenizer.json"
    path.parent.mkdir(parents=True)
    write_tokenizer(path, small_bert())
    monkeypatch.setitem(cola.COUNTS, "validation", 4)
    monkeypatch.setattr(cola, "VOCABULARY", len(WORDS))
    return folder


def test_cola_is_padded_and_cut_as_bert_does_it(cola_mirror, monkeypatch):
    data = DATASETS.parse({"use": "cola", "mirror": str(cola_mirror), "length": 8})
    samples = data.load("victims")
    assert samples.value.tolist() == EXPECTED
    assert samples.label.tolist() == JUDGMENTS
    assert samples.index.tolist() == [0, 1, 2, 3]
    assert data.class_names == ("unacceptable", "acceptable")
    assert data.corpus("victims") == "CoLA, validation split"
    monkeypatch.setenv("LTI_DATA_MIRROR", str(cola_mirror))
    assert_same(DATASETS.parse({"use": "cola", "length": 8}).load("victims"), samples)


def test_a_tokenizer_comes_back_from_its_file_with_padding_and_facts(cola_mirror, tmp_path):
    data = DATASETS.parse({"use": "cola", "mirror": str(cola_mirror), "length": 8})
    assert isinstance(data, TextDataset)
    path = tmp_path / "tokenizer.json"
    assert data.write_tokenizer(path) == len(WORDS)
    samples, facts = data.read("victims", path)
    assert samples.value.tolist() == EXPECTED
    digest = facts.pop("tokenizer")
    # An unknown word is a word; [MASK] never occurs.
    assert facts == {
        "length": 8,
        "vocabulary": len(WORDS),
        "padding": 0,
        "special": [0, 2, 3, 4],
        "corpus": "CoLA, validation split",
    }
    again = read_tokenizer(path, {"tokenizer": digest})
    assert text_facts(again, length=8)["tokenizer"] == digest
    assert again.decode(EXPECTED[0]) == "the dog bark ##s ."
    write_tokenizer(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    with pytest.raises(LTIError, match=rf"digest {digest}; expected None, .*Give the file"):
        read_tokenizer(path, {})
    longer = DATASETS.parse({"use": "cola", "mirror": str(cola_mirror), "length": 9})
    with pytest.raises(LTIError, match=r"sentences of 8 to 8 tokens; expected 9 of each\. Give"):
        longer.read("victims", path)
    write_tokenizer(path, small_bert())
    with pytest.raises(LTIError, match="sentences of 3 to 11 tokens; expected 8"):
        data.read("victims", path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"sentence": ["a", "b"], "label": [1, 2]}, r"row 1 is 'b' with label 2"),
        ({"sentence": ["a", "b"], "label": [1, -1]}, r"row 1 is 'b' with label -1"),
        ({"sentence": ["a", None], "label": [1, 1]}, r"row 1 is None with label 1"),
        ({"sentence": [3, 4], "label": [1, 1]}, r"row 0 is 3 with label 1"),
        ({"sentence": ["a", "b"], "label": [None, 1]}, r"row 0 is 'a' with label None"),
        ({"sentence": ["a", "b"]}, r"cannot be read .*label"),
        ({"text": ["a", "b"], "label": [0, 1]}, r"cannot be read .*sentence"),
        ({"sentence": ["a"], "label": [1]}, r"3 rows .*00001-of-00002\.parquet 1\), expected 4"),
    ],
)
def test_wrong_rows_of_cola_are_refused(cola_mirror, rows, message):
    path = cola_mirror / "glue-cola/validation-00001-of-00002.parquet"
    write_rows(path, **rows)
    remedy = r"Copy the parquet files of nyu-mll/glue there again"
    with pytest.raises(LTIError, match=rf"{message}.*{remedy}"):
        DATASETS.parse({"use": "cola", "mirror": str(cola_mirror)}).load("victims")
    path.unlink()
    with pytest.raises(LTIError, match=r"00001-of-00002\.parquet: this shard .*missing"):
        DATASETS.parse({"use": "cola", "mirror": str(cola_mirror)}).load("victims")
    with pytest.raises(LTIError, match=r"no file train-\*\.parquet in this mirror"):
        DATASETS.parse({"use": "cola", "mirror": str(cola_mirror)}).load("auxiliary")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"model": {"type": "BPE"}}',
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        b"cos\nsystem\n(S'touch pwned'\ntR.",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_tokenizer_is_refused(cola_mirror, tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = cola_mirror / "tokenizers/bert-base-uncased/tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(LTIError, match=r"no tokenizer can be read .*Copy .* of google-bert/bert"):
        DATASETS.parse({"use": "cola", "mirror": str(cola_mirror)}).own_tokenizer()
    checksum = path.with_name("tokenizer.json.sha256")
    checksum.write_text(f"{hashlib.sha256(content).hexdigest()}  tokenizer.json\n")
    with pytest.raises(LTIError, match=r"(no tokenizer can|cannot) be read .*Delete it and run"):
        read_tokenizer(path)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_or_other_tokenizer_is_named(cola_mirror, monkeypatch):
    data = DATASETS.parse({"use": "cola", "mirror": str(cola_mirror)})
    monkeypatch.setattr(cola, "VOCABULARY", 30_522)
    with pytest.raises(LTIError, match="11 tokens; expected the 30522 of google-bert"):
        data.own_tokenizer()
    (cola_mirror / "tokenizers/bert-base-uncased/tokenizer.json").unlink()
    with pytest.raises(LTIError, match=r"uncased/tokenizer\.json: no tokenizer can be read"):
        data.own_tokenizer()


ROWS = ["", " = abc = \n", "", " de fg\n", "abcab", "\n"] * 5


@pytest.fixture
def wiki_mirror(tmp_path, monkeypatch) -> Path:
    """A mirror of 30 rows in the test split and 6 in the validation split; bytes are tokens."""
    tokenizer = byte_tokenizer()
    folder = tmp_path / "mirror"
    for number in range(3):
        rows = ROWS[10 * number : 10 * number + 10]
        write_rows(folder / f"wikitext-2/test-0000{number}-of-00003.parquet", text=rows)
    write_rows(folder / "wikitext-2/validation-00000-of-00001.parquet", text=ROWS[:6])
    path = folder / "tokenizers/gpt2/tokenizer.json"
    path.parent.mkdir(parents=True)
    write_tokenizer(path, tokenizer)
    counts = {"test": 30, "validation": 6}
    monkeypatch.setattr(wikitext, "MIRROR", dataclasses.replace(wikitext.MIRROR, rows=counts))
    monkeypatch.setattr(wikitext, "VOCABULARY", tokenizer.get_vocab_size())
    return folder


def byte_tokenizer() -> Tokenizer:
    letters = {letter: k for k, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def stream(rows: list[str]) -> np.ndarray:
    """The tokens of rows: of a text in ASCII, one a character."""
    ids = byte_tokenizer().encode("".join(rows)).ids
    assert len(ids) == len("".join(rows))
    return np.array(ids)


@pytest.mark.parametrize("stride", [None, 1, 3, 20])
def test_wikitext_is_cut_into_windows_of_all_its_rows_in_order(wiki_mirror, stride):
    data = DATASETS.parse(
        {"use": "wikitext", "mirror": str(wiki_mirror), "length": 7, "stride": stride}
    )
    for part, rows, step in (("auxiliary", ROWS, stride or 7), ("victims", ROWS[:6], 7)):
        samples, text = data.load(part), stream(rows)
        assert len(samples) == (len(text) - 7) // step + 1
        for k, window in enumerate(samples.value):
            np.testing.assert_array_equal(window, text[k * step : k * step + 7])
        np.testing.assert_array_equal(samples.index, np.arange(len(samples)))
        assert (samples.label == 0).all()
    assert data.corpus("auxiliary") == "WikiText-2, test split"
    assert data.corpus("victims") == "WikiText-2, validation split"


def test_wikitext_has_windows_that_begin_elsewhere_too(wiki_mirror):
    text = "".join(ROWS[:6])
    settings = {"use": "wikitext", "mirror": str(wiki_mirror), "length": 7}
    plain = DATASETS.parse(settings)
    # The second is one of the consecutive windows.
    also = [text[3:10], text[14:21], text[12:19]]
    assert [stream([part]).tolist() for part in also] == [
        stream([text])[start : start + 7].tolist() for start in (3, 14, 12)
    ]
    samples = DATASETS.parse({**settings, "also": also}).load("victims")
    n = len(plain.load("victims"))
    np.testing.assert_array_equal(samples.value[:n], plain.load("victims").value)
    np.testing.assert_array_equal(samples.value[n:], [stream([part]) for part in also[::2]])
    np.testing.assert_array_equal(samples.index, np.arange(n + 2))
    auxiliary = DATASETS.parse({**settings, "also": also}).load("auxiliary")
    np.testing.assert_array_equal(auxiliary.value, plain.load("auxiliary").value)
    for wrong, message in (("abc", "'abc' has 3 tokens; expected 7"), ("~" * 7, "is not in the")):
        with pytest.raises(LTIError, match=message):
            DATASETS.parse({**settings, "also": [wrong]}).load("victims")


def test_wrong_rows_and_tokenizers_of_wikitext_are_refused(wiki_mirror):
    data = DATASETS.parse({"use": "wikitext", "mirror": str(wiki_mirror), "length": 7})
    with pytest.raises(LTIError, match=r"a tokenizer of 11 tokens; expected GPT-2's 257\. Give"):
        data.load("victims", small_bert())
    path = wiki_mirror / "wikitext-2/test-00001-of-00003.parquet"
    write_rows(path, text=[*ROWS[:9], None])
    with pytest.raises(LTIError, match=r"a row is None, expected text.*Salesforce/wikitext there"):
        data.load("auxiliary")
    write_rows(path, text=ROWS[:9])
    with pytest.raises(LTIError, match=r"29 rows in the test split .*expected 30"):
        data.load("auxiliary")


# --- CoLA and WikiText: the hub ---


@pytest.fixture
def fake_hub(monkeypatch):
    """A hub that answers; what is asked of it is noted, and rows are as a test sets them."""
    import datasets

    asked: list[tuple] = []
    rows: dict[str, dict[str, list]] = {}

    def load_dataset(repository, config, *, split):
        asked.append((repository, config, split))
        return datasets.Dataset.from_dict(rows[split])

    monkeypatch.delenv("LTI_DATA_MIRROR", raising=False)
    monkeypatch.setattr(hub, "_hub_answers", lambda: (True, ""))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return SimpleNamespace(asked=asked, rows=rows)


def test_wikitext_from_the_hub_is_a_seeded_share_of_the_train_split(fake_hub, monkeypatch):
    tokenizer = byte_tokenizer()
    text = [f"row {k} of the text\n" for k in range(2500)]
    fake_hub.rows.update(train={"text": text}, validation={"text": text[:3]})
    counts = {"train": 2500, "validation": 3}
    monkeypatch.setattr(wikitext, "HUB", dataclasses.replace(wikitext.HUB, rows=counts))
    monkeypatch.setattr(wikitext, "VOCABULARY", tokenizer.get_vocab_size())

    def load(part="auxiliary", **changes):
        return DATASETS.parse({"use": "wikitext", **changes}).load(part, tokenizer)

    whole, ids = load(share=1.0), stream(text)
    np.testing.assert_array_equal(whole.value, ids[: len(ids) // 16 * 16].reshape(-1, 16))
    tenth, third, other = load(), load(share=0.3), load(seed=1)
    deviation = np.sqrt(0.09 * len(whole))
    assert abs(len(tenth) - 0.1 * len(whole)) < 5 * deviation
    assert_same(whole.take(tenth.index), tenth)
    assert set(tenth.index) < set(third.index)
    assert set(tenth.index) != set(other.index)
    assert len(load("victims", share=0.1)) == len(stream(text[:3])) // 16
    assert fake_hub.asked[0] == ("Salesforce/wikitext", "wikitext-103-v1", "train")
    assert fake_hub.asked[-1] == ("Salesforce/wikitext", "wikitext-103-v1", "validation")
    data = DATASETS.parse({"use": "wikitext"})
    assert data.corpus("auxiliary") == "WikiText-103, train split, 0.1 of the windows"
    fake_hub.rows["train"]["text"].append("one more")
    with pytest.raises(LTIError, match="has more than 2500 rows"):
        load()
    with pytest.raises(LTIError, match=r"share: got 0; .*greater than 0"):
        load(share=0)


def test_cola_from_the_hub_is_the_same_as_from_a_mirror(fake_hub, cola_mirror, monkeypatch):
    import huggingface_hub

    fake_hub.rows["validation"] = {"sentence": SENTENCES, "label": JUDGMENTS}
    fetched: list[tuple] = []

    def hf_hub_download(repository, name, **options):
        fetched.append((repository, name, options))
        return str(cola_mirror / "tokenizers/bert-base-uncased" / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    samples = DATASETS.parse({"use": "cola", "length": 8}).load("victims")
    assert (samples.value.tolist(), samples.label.tolist()) == (EXPECTED, JUDGMENTS)
    assert fake_hub.asked == [("nyu-mll/glue", "cola", "validation")]
    expected = ("google-bert/bert-base-uncased", "tokenizer.json", {"local_files_only": False})
    assert fetched == [expected]


def test_offline_without_a_source_each_message_names_the_ways(tmp_path):
    """An address nobody listens at stands for a machine without a network."""
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LTI_", "HF_")) and not key.lower().endswith("_proxy")
    }
    environment |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    code = (
        "from lti.data import DATASETS, wikitext\nfrom lti.errors import LTIError\n"
        "from tokenizers import Tokenizer, models\n"
        "wikitext.VOCABULARY = 0\n"
        "for name in ('cola', 'wikitext'):\n"
        "    data = DATASETS[name]()\n"
        "    other = Tokenizer(models.BPE())\n"
        "    for read in (data.own_tokenizer, lambda: data.load('victims', other)):\n"
        "        try: read()\n"
        "        except LTIError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    places = ("tokenizers/bert-base", "glue-cola/train-*", "tokenizers/gpt2", "wikitext-2/test-*")
    assert len(lines) == 4
    for line, place in zip(lines, places, strict=True):
        for way in ("One of 2 ways", "HF_HOME", "LTI_DATA_MIRROR", "does not answer", place):
            assert way in line, line
        assert line.endswith("The data set 'python-docs' needs none of them.")


def test_naming_a_data_set_of_text_imports_nothing_heavy():
    code = (
        "import sys\nfrom lti.data import DATASETS\nimport lti.data.near_copies\n"
        "[DATASETS[name] for name in ('cola', 'wikitext', 'python-docs')]\n"
        "heavy = {'torch', 'datasets', 'huggingface_hub', 'tokenizers', 'transformers', 'scipy',"
        " 'pandas', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["python-docs", "cola", "wikitext"])
def test_an_unknown_part_is_refused(name):
    with pytest.raises(LTIError, match="part 'test' is unknown"):
        DATASETS[name]().load("test")


# --- CoLA and WikiText: the real ones ---


@needs_mirror
def test_the_real_cola_has_the_sentences_of_the_papers_supplement():
    data = DATASETS.parse({"use": "cola", "mirror": str(MIRROR)})
    tokenizer = data.own_tokenizer()
    victims, auxiliary = data.load("victims", tokenizer), data.load("auxiliary", tokenizer)
    assert (len(auxiliary), len(victims)) == (8551, 1043)
    # Rows and texts of its Figure 5.
    for row, text in {
        1: "[CLS] the weights made the rope stretch over the pulley. [SEP] [PAD] [PAD] [PAD]",
        15: "[CLS] every senator seems to become more corrupt, as he talks to more lobby [SEP]",
        13: "[CLS] the more does bill smoke, the more susan hates him. [SEP] [PAD] [PAD]",
    }.items():
        shown = tokenizer.decode(victims.value[row].tolist(), skip_special_tokens=False)
        assert shown == text
    facts = text_facts(tokenizer, length=16)
    del facts["tokenizer"]
    assert facts == {
        **{"length": 16, "vocabulary": 30_522, "padding": 0},
        "special": [0, 101, 102, 103],
    }
    similarity, position = find_near_copies(victims, auxiliary, special=[0, 101, 102, 103])
    # "Any senator seems to become more corrupt, as he talks to more lobbyists."
    closest = auxiliary.value[position[15]]
    assert similarity[15] == pytest.approx(13 / 14)
    assert (closest != victims.value[15]).sum() == 1
    # About a quarter have a near copy, twenty or so a copy.
    assert 0.2 < (similarity >= NEAR_COPY).mean() < 0.4
    assert 10 < (similarity == 1).sum() < 40


@needs_mirror
def test_the_real_wikitext_equals_an_independent_tokenisation():
    import pyarrow.parquet as pq

    data = DATASETS.parse({"use": "wikitext", "mirror": str(MIRROR)})
    tokenizer = Tokenizer.from_file(str(MIRROR / "tokenizers/gpt2/tokenizer.json"))
    assert data.own_tokenizer().to_str() == tokenizer.to_str()
    for part, split, count, rows in (
        ("auxiliary", "test", 18_308, 300),
        ("victims", "validation", 16_003, 3_760),
    ):
        path = MIRROR / f"wikitext-2/{split}-00000-of-00001.parquet"
        text = "".join(pq.read_table(path)["text"].to_pylist()[:rows])
        ids = np.array(tokenizer.encode(text).ids, dtype=np.int32)
        samples = data.load(part, tokenizer)
        assert len(samples) == count
        whole = len(ids) // 16
        assert whole == count or rows < 3_760
        np.testing.assert_array_equal(samples.value[:whole], ids[: 16 * whole].reshape(-1, 16))
    facts = text_facts(tokenizer, length=16)
    assert (facts["padding"], facts["special"], facts["vocabulary"]) == (None, [50_256], 50_257)


# --- near copies ---


def common_subsequence(a: list[int], b: list[int]) -> int:
    """The textbook's table."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = (
                table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
            )
    return table[-1][-1]


def brute_force(victims, auxiliary, special) -> tuple[list[float], list[int]]:
    similarities, positions = [], []
    for victim in victims:
        a = [token for token in victim if token not in special]
        found = []
        for sample in auxiliary:
            b = [token for token in sample if token not in special]
            found.append(common_subsequence(a, b) / max(len(a), len(b), 1))
        similarities.append(max(found))
        positions.append(found.index(max(found)))
    return similarities, positions


@settings(max_examples=150, deadline=None)
@given(data=st.data(), vocabulary=st.integers(2, 8), length=st.integers(2, 9))
def test_near_copies_are_those_of_all_pairs(data, vocabulary, length):
    row = st.lists(st.integers(0, vocabulary - 1), min_size=length, max_size=length)
    victims = data.draw(st.lists(row, min_size=1, max_size=9))
    auxiliary = data.draw(st.lists(row, min_size=1, max_size=25))
    special = data.draw(st.sets(st.integers(0, vocabulary), max_size=2))
    expected = brute_force(victims, auxiliary, special)
    for blocks in ((256, 16_384, 1 << 18), (2, 3, 4)):
        with pytest.MonkeyPatch.context() as patch:
            names = ("VICTIMS_BLOCK", "AUXILIARY_BLOCK", "PAIRS_BLOCK")
            for name, value in zip(names, blocks, strict=True):
                patch.setattr(near_copies, name, value)
            finished: list[int] = []
            similarity, position = find_near_copies(
                tokens(victims),
                tokens(auxiliary),
                special=sorted(special),
                on_victims=finished.append,
            )
        assert sum(finished) == len(victims) and max(finished) <= blocks[0]
        assert (similarity.dtype, position.dtype) == (np.float64, np.int64)
        assert similarity.tolist() == expected[0]
        assert position.tolist() == expected[1]


def test_near_copies_of_sequences_of_64_tokens_and_of_large_numbers():
    draw = np.random.default_rng(0)
    auxiliary = draw.integers(0, 6, (60, 64)) * 300_000_000
    victims = np.concatenate([draw.integers(0, 6, (5, 64)) * 300_000_000, auxiliary[7:8, ::-1]])
    victims = np.concatenate([victims, auxiliary[41:42]])
    expected = brute_force(victims.tolist(), auxiliary.tolist(), {0})
    similarity, position = find_near_copies(tokens(victims), tokens(auxiliary), special=[0])
    assert similarity.tolist() == expected[0] and position.tolist() == expected[1]
    assert (similarity[-1], position[-1]) == (1.0, 41) and similarity[-2] < 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_near_copies_do_not_depend_on_the_order(seed):
    draw = np.random.default_rng(seed)
    victims, auxiliary = draw.integers(0, 9, (20, 6)), draw.integers(0, 9, (40, 6))
    similarity, position = find_near_copies(tokens(victims), tokens(auxiliary), special=[])
    order, others = draw.permutation(20), draw.permutation(40)
    again, where = find_near_copies(tokens(victims[order]), tokens(auxiliary[others]), special=[])
    np.testing.assert_array_equal(again, similarity[order])
    # The first of the closest: in another order another one, as close.
    alone = find_near_copies(tokens(victims), tokens(auxiliary[position]), special=[])[0]
    np.testing.assert_array_equal(alone >= similarity, True)
    assert (where < 40).all()


def test_wrong_input_for_near_copies_is_refused():
    few = tokens([[1, 2, 3]])
    image = Samples(
        np.zeros((1, 3, 32, 32), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64)
    )
    with pytest.raises(LTIError, match="victims: got images; near copies are found for text"):
        find_near_copies(image, few, special=[])
    with pytest.raises(LTIError, match="auxiliary: got images"):
        find_near_copies(few, image, special=[])
    with pytest.raises(LTIError, match="victims of 3 tokens and auxiliary samples of 2; expected"):
        find_near_copies(few, tokens([[1, 2]]), special=[])
    with pytest.raises(LTIError, match="victims of 65 tokens"):
        find_near_copies(tokens([range(65)]), tokens([range(65)]), special=[])
    with pytest.raises(LTIError, match="auxiliary: no samples; expected 1 or more"):
        find_near_copies(few, few.take([]), special=[])
    none, nowhere = find_near_copies(few.take([]), few, special=[])
    assert none.shape == nowhere.shape == (0,)


def test_near_copies_survive_the_disk(tmp_path):
    path = tmp_path / "near.safetensors"
    similarity, position = np.array([1 / 3, 0.75, 0.0, 13 / 14]), np.array([4, 0, 0, 2])
    write_near_copies(path, similarity, position)
    copies = read_near_copies(path)
    np.testing.assert_array_equal(copies.similarity, similarity)
    assert (copies.threshold, copies.novel.tolist()) == (NEAR_COPY, [True, False, True, False])
    assert "longest common subsequence" in copies.definition
    np.testing.assert_array_equal(read_arrays(path)[0]["position"], position)


# --- stages, plan and workflow ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A folder with python-docs' tokenizer, parts and selections."""
    folder = tmp_path_factory.mktemp("prepared")
    dataset = json.dumps({"use": "python-docs", "vocabulary": 300})
    prepare_tokenizer(dataset=dataset, output=folder / "tokenizer.json")
    for part in ("auxiliary", "victims"):
        prepare_dataset(
            dataset=dataset,
            part=part,
            tokenizer=folder / "tokenizer.json",
            output=folder / f"{part}.safetensors",
            card=folder / f"{part}.json",
        )
    for name, stage, size in (("auxiliary", select_auxiliary, 50), ("victims", select_victims, 9)):
        stage(
            source=folder / f"{name}.safetensors",
            size=size,
            seed=3,
            output=folder / f"{name}-selected.safetensors",
            card=folder / f"{name}-selected.json",
        )
    return folder


def test_selections_of_text_say_what_their_tokens_are(prepared):
    tokenizer = read_tokenizer(prepared / "tokenizer.json")
    for part, size in (("auxiliary", 50), ("victims", 9)):
        source = read(prepared / f"{part}.safetensors")
        selected = read(prepared / f"{part}-selected.safetensors")
        assert selected.metadata["text"] == source.metadata["text"]
        assert selected.metadata["text"].pop("corpus").startswith("pydoc_data.topics of Python 3.")
        assert selected.metadata["text"] == text_facts(tokenizer, length=16)
        assert selected.metadata["text"]["vocabulary"] == 300
        assert read_json(prepared / f"{part}-selected.json")["text"] == source.metadata["text"]
        assert len(selected.samples) == size
        # A row of the source, found by its index.
        at = np.searchsorted(source.samples.index, selected.samples.index)
        assert_same(source.samples.take(at), selected.samples)


def test_the_stage_of_near_copies_counts_no_special_tokens_and_needs_one_tokenizer(
    prepared, tmp_path
):
    output, log = tmp_path / "near.safetensors", tmp_path / "near.log"
    files = [prepared / f"{part}-selected.safetensors" for part in ("victims", "auxiliary")]
    near_copies_stage(victims=files[0], auxiliary=files[1], output=output, log=log)
    victims, auxiliary = (read(path).samples.value.tolist() for path in files)
    arrays, _ = read_arrays(output)
    found = (arrays["similarity"].tolist(), arrays["position"].tolist())
    assert found == brute_force(victims, auxiliary, set())
    assert "0 of 9 victims have one (0.75)" in log.read_text()
    other = json.dumps({"use": "python-docs", "vocabulary": 301})
    prepare_tokenizer(dataset=other, output=tmp_path / "tokenizer.json")
    prepare_dataset(
        dataset=other,
        part="victims",
        tokenizer=tmp_path / "tokenizer.json",
        output=tmp_path / "victims.safetensors",
        card=tmp_path / "victims.json",
    )
    with pytest.raises(LTIError, match="have different tokenizers; expected the same"):
        near_copies_stage(
            victims=tmp_path / "victims.safetensors", auxiliary=files[1], output=output
        )


def test_text_needs_a_tokenizer_and_images_have_none(prepared, tmp_path):
    files = {"output": tmp_path / "x.safetensors", "card": tmp_path / "x.json"}
    with pytest.raises(
        LTIError, match="tokenizer: got None for the data set python-docs; expected"
    ):
        prepare_dataset(dataset='{"use": "python-docs"}', part="victims", **files)
    with pytest.raises(LTIError, match=r"got .*tokenizer\.json for the data set photos; expected"):
        prepare_dataset(
            dataset='{"use": "photos"}',
            part="victims",
            tokenizer=prepared / "tokenizer.json",
            **files,
        )
    with pytest.raises(LTIError, match="got photos, which consists of images; expected text"):
        prepare_tokenizer(dataset='{"use": "photos"}', output=tmp_path / "tokenizer.json")
    with pytest.raises(LTIError, match=r"--mirrored: got .*auxiliary.*, which is text"):
        compute_gradients(
            auxiliary=prepared / "auxiliary-selected.safetensors",
            fl_model=tmp_path / "none.safetensors",
            defense='{"use": "none"}',
            mirrored=True,
            output=tmp_path / "x.zarr",
            manifest=tmp_path / "x.json",
        )
    assert list(tmp_path.iterdir()) == []


def experiment(dataset: str, **auxiliary) -> dict:
    return {
        "title": dataset,
        "dataset": dataset,
        "fl_models": ["lenet" if dataset == "photos" else "transformer3"],
        "defenses": ["none"],
        "attacks": ["lti" if dataset == "photos" else "lti-text"],
        "auxiliary": {"size": 160, **auxiliary},
        "victims": {"size": 8},
        "pictured": 4,
    }


def test_a_plan_has_mirror_images_of_images_alone():
    values = {
        "datasets": {"python-docs": {"use": "python-docs"}, "photos": {"use": "photos"}},
        "fl_models": {"lenet": {"use": "lenet"}, "transformer3": {"use": "transformer3"}},
        "defenses": {"none": {"use": "none"}},
        "inverters": {
            "tuned": {"use": "tuned"},
            "text": {"use": "paper-text", "use_mirrored": True},
        },
        "attacks": {
            "lti": {"use": "lti", "inverter": "tuned"},
            "lti-text": {"use": "lti", "inverter": "text"},
        },
        "experiments": {
            "words": experiment("python-docs"),
            # No contradiction, and `text` asks for mirror images in vain: there are none.
            "others": experiment("python-docs", mirrored=False),
            "patches": experiment("photos"),
        },
    }
    plan = Plan(parse_config(values))
    assert not plan.auxiliary["python-docs-n160-s0"].mirrored
    assert plan.auxiliary["photos-n160-s0"].mirrored
    values["experiments"]["patches"] = experiment("photos", mirrored=False)
    with pytest.raises(LTIError, match=r"^experiments\.patches\.auxiliary\.mirrored: got False"):
        parse_config(values)


def test_the_workflow_finds_near_copies(tmp_path):
    checkout = Checkout.fresh(tmp_path / "checkout")
    checkout.configure(
        {
            "datasets.python-docs": {"use": "python-docs", "vocabulary": 300},
            "fl_models.transformer3": {"use": "transformer3"},
            "defenses.none": {"use": "none"},
            "inverters.text": {"use": "paper-text"},
            "attacks.lti-text": {"use": "lti", "inverter": "text"},
            "experiments": {"words": experiment("python-docs")},
        }
    )
    target = "results/data/near_copies/python-docs-n8-s0/python-docs-n160-s0.safetensors"
    expected = [
        "find_near_copies",
        "prepare_dataset auxiliary",
        "prepare_dataset victims",
        "prepare_tokenizer",
        "select_auxiliary",
        "select_victims",
    ]
    assert checkout.planned(target) == expected
    checkout.run(target)
    assert len(read_near_copies(checkout.folder / target).similarity) == 8
    assert checkout.planned(target) == []
