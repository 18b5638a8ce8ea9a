"""Text metrics, matching of texts, and the metric stage on text."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import FACTS, PAD, UNKNOWN, WORDS, encode, known, save_tokenizer, text_victims

from lti.errors import LTIError
from lti.files import write_arrays
from lti.metrics import METRICS
from lti.metrics.base import DEFAULT_METRICS
from lti.metrics.matching import match_texts, match_victims
from lti.metrics.measure import measure, read_metrics
from lti.metrics.tokens import Text, read_text
from lti.stages.draw import draw_reconstructions
from lti.stages.measure import measure_attack

NAMES = DEFAULT_METRICS["text"]
RUN = {
    "dataset": "toy",
    "fl_model": "bert",
    "batch_size": 1,
    "defense": "sign",
    "attack": "tag",
    "variant": "tag",
    "auxiliary": "",
    "aux_size": 64,
    "aux_seed": 0,
    "beta": 1.0,
    "seed": 0,
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Text:
    return known(tmp_path_factory.mktemp("text"))


def value(name: str, truth: str, found: str, text: Text) -> float:
    (result,) = METRICS[name]()(encode(truth), encode(found), text)
    return float(result)


# --- the metrics


def test_registry_states_what_text_metrics_are():
    text = {name for name in METRICS if METRICS[name].modality == "text"}
    assert text == set(NAMES)
    for name in text:
        metric = METRICS[name]
        assert (metric.direction, metric.unit, metric.decimals) == ("higher", "", 3)
        assert metric.note.startswith(f"{metric.label}: ")
    assert set(DEFAULT_METRICS["image"]) <= set(METRICS) - text


def test_token_accuracies_known_by_hand(text):
    #        [CLS]  a      bee    cat    [SEP] [PAD] [PAD] [PAD]
    # found  [CLS]  a      cat    cat    dog   [SEP] [PAD] [PAD]
    truth, found = "a bee cat", "a cat cat dog"
    assert value("token_accuracy", truth, found, text) == pytest.approx(2 / 3)
    assert value("token_accuracy_padded", truth, found, text) == pytest.approx(5 / 8)
    assert value("exact", truth, found, text) == 0


def test_what_follows_the_sentence_makes_it_no_less_exact(text):
    assert value("exact", "a bee", "a bee cat", text) == 1
    assert value("token_accuracy", "a bee", "a bee cat", text) == 1
    assert value("token_accuracy_padded", "a bee", "a bee cat", text) == 6 / 8
    assert value("exact", "a bee cat", "a bee", text) == 0


def test_a_token_that_only_the_reconstruction_thinks_special_is_wrong(text):
    truth = encode("a bee")
    found = np.full_like(truth, PAD)
    assert METRICS["token_accuracy"]()(truth, found, text) == [0]
    assert METRICS["token_accuracy_padded"]()(truth, found, text) == [4 / 8]


def test_rouge_known_by_hand(text):
    truth, found = "a bee cat dog", "cat a bee"
    # 3 words of 4 and of 3; one pair of 3 and of 2; the longest common subsequence is "a bee".
    assert value("rouge1", truth, found, text) == pytest.approx(2 * 3 / (4 + 3))
    assert value("rouge2", truth, found, text) == pytest.approx(2 * 1 / (3 + 2))
    assert value("rougeL", truth, found, text) == pytest.approx(2 * 2 / (4 + 3))


def test_rouge_takes_words_with_one_stem_for_one_and_leaves_out_what_is_no_word(text):
    for name in ("rouge1", "rouge2", "rougeL"):
        assert value(name, "a . jumps", ". a jumping .", text) == 1
    assert value("token_accuracy", "a jumps", "a jumping", text) == 0.5


def test_rouge_counts_a_repeated_word_as_often_as_both_have_it(text):
    assert value("rouge1", "a bee", "a a a a", text) == pytest.approx(2 * 1 / (2 + 4))


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_of_an_empty_text_is_zero(name, text):
    for truth, found in (("a bee", ""), ("", "a bee"), ("", ""), (". .", ". .")):
        assert value(name, truth, found, text) == 0
    assert value("rouge2", "a", "a", text) == 0


def test_unknown_words_are_no_text_but_have_to_be_right(text):
    truth = encode("a bee cat")
    truth[0, 2] = UNKNOWN
    right, wrong = truth.copy(), encode("a bee cat")
    assert text.decode(truth) == ["a cat"]
    assert METRICS["token_accuracy"]()(truth, wrong, text) == pytest.approx([2 / 3])
    assert METRICS["exact"]()(truth, right, text) == [1]


def test_nothing_is_won_on_a_victim_without_a_real_token(text):
    truth = np.full((1, 8), PAD, dtype=np.int32)
    values = {name: METRICS[name]()(truth, truth, text)[0] for name in NAMES}
    assert values.pop("token_accuracy_padded") == 1
    assert set(values.values()) == {0}


def _longest(x: list[str], y: list[str]) -> int:
    """By trying every subsequence of the shorter."""
    shorter, longer = sorted((x, y), key=len)
    for size in range(len(shorter), 0, -1):
        for chosen in combinations(shorter, size):
            rest = iter(longer)
            if all(word in rest for word in chosen):
                return size
    return 0


def _f_measure(shared: int, of_truth: int, of_found: int) -> float:
    return 2 * shared / (of_truth + of_found) if shared else 0.0


SENTENCE = st.lists(st.sampled_from(WORDS[:8]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(SENTENCE, SENTENCE)
def test_metrics_agree_with_small_computations(text, truth, found):
    def shared(n: int) -> float:
        x, y = (
            Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            for words in (truth, found)
        )
        return _f_measure((x & y).total(), x.total(), y.total())

    pairs = list(zip(truth, found, strict=False))
    expected = {
        "rouge1": shared(1),
        "rouge2": shared(2),
        "rougeL": _f_measure(_longest(truth, found), len(truth), len(found)),
        "token_accuracy": sum(x == y for x, y in pairs) / max(len(truth), 1),
        "exact": float(truth == found[: len(truth)] and len(truth) > 0),
    }
    for name, number in expected.items():
        got = value(name, " ".join(truth), " ".join(found), text)
        assert got == pytest.approx(number, abs=1e-12), name


TOKENS = st.lists(
    st.lists(st.integers(0, UNKNOWN), min_size=5, max_size=5), min_size=1, max_size=4
).map(lambda rows: np.array(rows, dtype=np.int32))


@settings(max_examples=60, deadline=None)
@given(TOKENS, st.randoms(use_true_random=False))
def test_values_are_fractions_and_1_for_the_truth_itself(text, truth, random):
    found = truth.copy()
    for row in found:
        row[:] = random.sample(list(row), len(row))
    for name in NAMES:
        values = METRICS[name]()(truth, found, text)
        assert values.dtype == np.float64 and values.shape == (len(truth),)
        assert ((values >= 0) & (values <= 1)).all()
    own = {name: METRICS[name]()(truth, truth, text) for name in NAMES}
    assert (own["token_accuracy_padded"] == 1).all()
    real = text.is_real(truth).any(axis=1)
    words = np.array([len(line.replace(".", "").split()) for line in text.decode(truth)])
    for name in ("token_accuracy", "exact"):
        np.testing.assert_array_equal(own[name], real)
    for name, least in (("rouge1", 1), ("rougeL", 1), ("rouge2", 2)):
        np.testing.assert_allclose(own[name], words >= least)
    exact = METRICS["exact"]()(truth, found, text)
    np.testing.assert_array_equal(exact, METRICS["token_accuracy"]()(truth, found, text) == 1)


@pytest.mark.parametrize(
    ("truth", "found", "message"),
    [
        (encode("a"), encode("a", "a"), r"shapes \(1, 8\) and \(2, 8\) cannot be compared"),
        (encode("a")[0], encode("a")[0], r"expected one shape \(n, length\)"),
        (encode("a"), encode("a").astype(float), "reconstructions of type float64 are no tokens"),
        (encode("a"), encode("a") + UNKNOWN, r"reconstructions hold the tokens 14 to .* 0 to 14"),
        (encode("a") - 1, encode("a"), "victims hold the tokens -1 to"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_compared_is_refused(text, name, truth, found, message):
    with pytest.raises(LTIError, match=message):
        METRICS[name]()(truth, found, text)


# --- the tokens


def test_decoding_leaves_out_special_tokens_whoever_says_so(text, tmp_path):
    assert text.decode(encode("a bee .", "")) == ["a bee .", ""]
    # Also what the data set alone takes for special: here "a".
    facts = {**FACTS, "special": [*FACTS["special"], 3]}
    other = read_text(save_tokenizer(tmp_path / "t.json"), facts)
    assert other.decode(encode("a bee")) == ["bee"]
    assert other.is_real(encode("a bee")).tolist() == [[False] * 2 + [True] + [False] * 5]


def test_what_is_no_tokenizer_of_the_data_set_is_refused(tmp_path):
    path = save_tokenizer(tmp_path / "t.json")
    with pytest.raises(LTIError, match="lacks vocabulary, special; got length"):
        read_text(path, {"length": 8})
    with pytest.raises(LTIError, match=r"t\.json has 15 tokens; expected 16"):
        read_text(path, {**FACTS, "vocabulary": 16})
    with pytest.raises(LTIError, match=r"absent\.json: cannot be read as a tokenizer"):
        read_text(tmp_path / "absent.json", FACTS)
    path.write_text("{}")
    with pytest.raises(LTIError, match=r"t\.json: cannot be read as a tokenizer"):
        read_text(path, FACTS)


# --- matching


BATCHES = st.integers(2, 4).flatmap(
    lambda size: st.tuples(
        *(
            st.lists(
                st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=size, max_size=size
            ).map(lambda rows: np.array([rows], dtype=np.int32))
            for _ in range(2)
        )
    )
)


@settings(max_examples=80, deadline=None)
@given(BATCHES)
def test_matching_has_the_fewest_wrong_tokens(batch):
    truth, found = batch
    (order,) = match_texts(truth, found)
    assert sorted(order) == list(range(truth.shape[1]))
    wrong = [
        int((truth[0] != found[0][list(other)]).sum())
        for other in permutations(range(truth.shape[1]))
    ]
    assert (truth[0] != found[0][order]).sum() == min(wrong)


@settings(max_examples=80, deadline=None)
@given(BATCHES, st.randoms(use_true_random=False))
def test_pairs_do_not_depend_on_the_order_inside_a_batch(batch, random):
    """Few tokens, so that many orders have as many wrong ones."""

    def pairs(truth: np.ndarray, found: np.ndarray) -> list:
        (order,) = match_texts(truth, found)
        return sorted(zip(truth[0].tolist(), found[0][order].tolist(), strict=True))

    truth, found = batch
    one, two = (random.sample(range(truth.shape[1]), truth.shape[1]) for _ in range(2))
    assert pairs(truth, found) == pairs(truth[:, one], found[:, two])


def test_padding_tells_which_sentence_it_is():
    truth = encode("a bee", "a bee cat dog")
    found = encode("elk fox gnu hen", "elk fox")
    _, matched = match_victims({"token": truth}, {"reconstruction": found[None]})
    np.testing.assert_array_equal(matched, found[::-1])


# --- the metric stage


def _attack(victims: dict[str, np.ndarray], batch_size: int, *, wrong: int) -> np.ndarray:
    """Reconstructions with so many wrong tokens each, in an order of their own."""
    rng = np.random.default_rng(1)
    found = victims["token"].copy()
    for row in found:
        for position in rng.permutation(len(row))[:wrong]:
            row[position] = (row[position] + rng.integers(1, 8)) % 11
    found = found.reshape(-1, batch_size, found.shape[1])
    return found[:, rng.permutation(batch_size)]


def test_measure_gives_the_metrics_of_the_modality(text):
    victims = text_victims(12)
    found = _attack(victims, 4, wrong=2)[:2]
    frame = measure(victims, {"reconstruction": found}, {**RUN, "batch_size": 4}, text=text)
    assert list(frame) == [*RUN, "victim", "index", "label", *NAMES]
    assert frame["index"].tolist() == victims["index"][:8].tolist()
    assert (frame["token_accuracy_padded"] == 6 / 8).all()
    # Each victim's own tokens count, not those of its neighbours in the batch.
    one = measure(
        {key: array[:8] for key, array in victims.items()},
        {"reconstruction": match_victims(victims, {"reconstruction": found})[1][:, None]},
        RUN,
        text=text,
    )
    for name in NAMES:
        np.testing.assert_array_equal(frame[name], one[name])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.permutations(range(4)))
def test_measures_do_not_depend_on_the_order_of_the_reconstructions(text, seed, order):
    victims = text_victims(8, seed=seed)
    found = _attack(victims, 4, wrong=5)
    run = {**RUN, "batch_size": 4}
    names = ["token_accuracy", "exact", "rougeL"]
    frames = [
        measure(victims, {"reconstruction": values}, run, metrics=names, text=text)
        for values in (found, found[:, list(order)])
    ]
    assert frames[0].equals(frames[1])


def _broken(what: str, victims: dict, run: dict, found: dict) -> None:
    if what == "negative":
        found["reconstruction"][1, 0, 0] = -1
    elif what == "floats":
        found["reconstruction"] = found["reconstruction"].astype(np.float32)
    elif what == "length":
        found["reconstruction"] = found["reconstruction"][..., :7]
    elif what == "images":
        found["reconstruction"] = np.zeros((12, 1, 3, 32, 32), np.float32)
    elif what == "both":
        victims["image"] = np.zeros((12, 3, 32, 32), np.uint8)
    elif what == "too many":
        found["reconstruction"] = np.repeat(found["reconstruction"], 2, axis=0)
    elif what == "absent":
        del found["reconstruction"]
    elif what == "label":
        victims["label"] = victims["label"][:5]
    elif what == "beyond":
        found["reconstruction"][0, 0, 0] = UNKNOWN + 1


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("negative", "reconstructions are int32 with a least value of -1; expected tokens"),
        ("floats", "reconstructions are float32 .* expected tokens"),
        ("length", r"shape \(12, 1, 7\) for victims of shape \(12, 8\); .* \(n_batches, B, 8\)"),
        ("images", r"shape \(12, 1, 3, 32, 32\) for victims of shape \(12, 8\)"),
        ("both", "victims need one of the arrays 'image' and 'token'; got .*'image'.*'token'"),
        ("too many", "24 batches of 1 reconstructions but only 12 victims"),
        ("absent", "expected an array 'reconstruction'"),
        ("label", "need an array 'label' with one value per token"),
        ("beyond", "reconstructions hold the tokens 0 to 15; expected 0 to 14"),
    ],
)
def test_measure_refuses_texts_that_it_cannot_compare(text, what, message):
    victims, run = text_victims(12), dict(RUN)
    found = {"reconstruction": _attack(victims, 1, wrong=1)}
    _broken(what, victims, run, found)
    with pytest.raises(LTIError, match=message):
        measure(victims, found, run, text=text)


def test_metrics_of_another_modality_are_refused(text):
    victims = text_victims(4)
    found = {"reconstruction": _attack(victims, 1, wrong=1)}
    with pytest.raises(LTIError, match=r"metric psnr compares samples of modality image; .* text"):
        measure(victims, found, RUN, metrics=["exact", "psnr"], text=text)
    with pytest.raises(LTIError, match=r"text metrics need to know of the tokens.* --tokenizer"):
        measure(victims, found, RUN)
    images = {**victims, "image": np.zeros((4, 3, 32, 32), np.uint8)}
    del images["token"]
    found = {"reconstruction": np.zeros((4, 1, 3, 32, 32), np.float32)}
    with pytest.raises(LTIError, match=r"metric exact .* modality text; .* mse, psnr, ssim"):
        measure(images, found, RUN, metrics=["exact"])


def test_stage_reads_the_tokenizer(tmp_path):
    victims = text_victims(6)
    facts = {"dataset": "toy", "text": FACTS}
    write_arrays(tmp_path / "victims.safetensors", victims, facts)
    metadata = {
        **RUN,
        "defense_settings": {"use": "sign"},
        "fl_model_settings": {"use": "bert"},
    }
    found = {"reconstruction": _attack(victims, 1, wrong=0)}
    write_arrays(tmp_path / "found.safetensors", found, metadata)
    files = {
        "victims": tmp_path / "victims.safetensors",
        "reconstructions": tmp_path / "found.safetensors",
        "metric": ["exact", "rouge1"],
        "output": tmp_path / "metrics.csv",
    }
    with pytest.raises(LTIError, match="--tokenizer"):
        measure_attack(**files)
    tokenizer = save_tokenizer(tmp_path / "tokenizer.json")
    measure_attack(**files, tokenizer=tokenizer)
    frame = read_metrics(files["output"])
    assert frame["exact"].tolist() == [1] * 6 and frame["rouge1"].tolist() == [1] * 6
    assert set(frame["paper_defense"]) == {"sign"}
    with pytest.raises(LTIError, match=r"expected an array 'image'\. Only images"):
        draw_reconstructions(
            victims=files["victims"],
            reconstructions=[files["reconstructions"]],
            output=tmp_path / "a.png",
        )
    write_arrays(files["victims"], victims, {"dataset": "toy"})
    with pytest.raises(LTIError, match=r"--tokenizer: got .*; .* holds no text"):
        measure_attack(**files, tokenizer=tokenizer)
