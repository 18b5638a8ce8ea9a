"""Sentences beside their reconstructions and the paper's: cut, compared, coloured, drawn."""

from __future__ import annotations

import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lti.data.find import find_texts, indices_of
from lti.data.samples import Samples
from lti.data.selection import read_selection, select, write_selection
from lti.data.tokenizer import write_tokenizer
from lti.errors import LTIError
from lti.files import read_json, write_arrays, write_card
from lti.report.paper_texts import paper_line, paper_texts
from lti.report.picture import choose_positions
from lti.report.pieces import known_pieces, pieces, printed_pieces, visible
from lti.report.style import FAINT, INK, WRONG
from lti.report.text_examples import (
    TextBlock,
    TextExample,
    TextRow,
    TextRun,
    find_paper_texts,
    shown_positions,
    text_blocks,
)
from lti.report.text_html import text_html, write_text_html
from lti.report.text_lines import TextLine, Token, TrueText
from lti.report.text_notes import text_notes
from lti.report.text_plot import _advance, _wrapped, plot_texts
from lti.stages.draw_texts import draw_texts
from lti.stages.selection import select_victims

MIRROR = Path(os.environ.get("LTI_DATA_MIRROR") or "/nonexistent")
needs_mirror = pytest.mark.skipif(
    not (MIRROR / "tokenizers").is_dir(),
    reason="needs tokenizers: LTI_DATA_MIRROR is unset or has no folder tokenizers",
)

# The first six are special. Words of the paper's first sentence among others.
TEXT = "the team played its home games in the season . the team 's home season <unk> is long \n"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
WORDS += ["the", "weights", "made", "rope", "stretch", "over", "pull", "##ey", ".", ",", "'", "s"]
WORDS += ["boys", "kept", "a", "&", "<", "dog", "##s", "stretched", "broke", "below", "中"]
SPECIAL = (0, 2, 3)


def word_tokenizer() -> Tokenizer:
    """Word pieces, as BERT's: ``##`` goes on with a word."""
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in WORDS[:5]])
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer


def byte_tokenizer() -> Tokenizer:
    """Byte-level pairs, as GPT-2's: a space belongs to the word behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


WORD, BYTE = word_tokenizer(), byte_tokenizer()
TRUTH = "[CLS] the weights made the rope stretch over the pulley. [SEP] [PAD] [PAD] [PAD]"


def tokens(text: str, tokenizer: Tokenizer = WORD) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def shown(line: TextLine) -> str:
    """A line with its wrong tokens in braces and its special ones in brackets of their own."""
    marks = {"right": "{}", "wrong": "{{{}}}", "special": "<{}>", "unknown": "?{}?"}
    parts = []
    for token in line.tokens:
        space = " " if token.text.startswith(" ") else ""
        parts.append(space + marks[token.kind].format(token.text.removeprefix(" ")))
    return "".join(parts)


# --- how tokens read


@settings(max_examples=60, deadline=None)
@given(data=st.data(), tokenizer=st.sampled_from([WORD, BYTE]))
def test_pieces_are_the_decoded_text(data, tokenizer):
    several = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=16)
    given_tokens = data.draw(several)
    found = pieces(tokenizer, given_tokens)
    assert len(found) == len(given_tokens)
    assert "".join(found) == tokenizer.decode(given_tokens, skip_special_tokens=False)


def test_words_are_joined_as_the_tokenizer_decodes():
    assert pieces(WORD, tokens("[CLS] the dogs pulley, a dog [SEP]")) == (
        ["[CLS]", " the", " dog", "s", " pull", "ey", ",", " a", " dog", " [SEP]"]
    )
    found = pieces(BYTE, tokens("the team 's season", BYTE))
    assert found[0] == "the" and found[1] == " team" and "".join(found) == "the team 's season"


def test_a_character_of_several_tokens_belongs_to_the_last():
    first, second, third = tokens("中", BYTE)
    (x,) = tokens("x", BYTE)
    assert pieces(BYTE, [x, first, second, third, x]) == ["x", "", "", "中", "x"]
    # What never becomes a character is its own.
    assert pieces(BYTE, [x, first, x]) == ["x", "\N{REPLACEMENT CHARACTER}", "x"]
    assert pieces(BYTE, [first, first, second, third]) == [
        "\N{REPLACEMENT CHARACTER}",
        "",
        "",
        "中",
    ]
    assert "".join(pieces(BYTE, [first, second])) == "\N{REPLACEMENT CHARACTER}"


def test_bytes_of_no_character_are_shown_where_they_are():
    """A space and the first byte of a character are one token of GPT-2, for example."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first = BYTE.id_to_token(tokens("中", BYTE)[0])
    vocabulary = {entry: number for number, entry in enumerate([*alphabet, f"Ġ{first}", "no"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", first), ("n", "o")]))
    tokenizer.decoder = decoders.ByteLevel()
    both, no = vocabulary[f"Ġ{first}"], vocabulary["no"]
    assert pieces(tokenizer, [no, both, no]) == ["no", " \N{REPLACEMENT CHARACTER}", "no"]


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (" the", " the"),
        ("ey", "ey"),
        (" ", " ␣"),
        ("  ", " ␣"),
        ("   x", " ␣␣x"),
        (" \n", " ↵"),
        ("a\tb\n", "a⇥b↵"),
        ("\x00\u200e", "\N{REPLACEMENT CHARACTER}" * 2),
        ("", ""),
    ],
)
def test_what_is_not_seen_gets_a_mark(piece, expected):
    assert visible(piece) == expected


# --- the tokens of a printed sentence


def test_known_pieces_read_as_inside_a_sentence():
    known = known_pieces(WORD)
    assert {"ey", "s", ".", "the", "[SEP]", "中"} <= known
    assert not any(piece.startswith("##") or piece != piece.strip() for piece in known)
    assert {"the", "season", "<|endoftext|>"} <= known_pieces(BYTE)
    assert "" not in known_pieces(BYTE)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_true_sentence_is_cut_into_its_tokens(data):
    given_tokens = data.draw(st.lists(st.sampled_from(range(6, len(WORDS))), min_size=1))
    given_tokens = [WORDS.index("the"), *given_tokens]
    true = pieces(WORD, given_tokens)
    stripped = [piece.strip() for piece in true]
    assert printed_pieces("".join(true), stripped, known_pieces(WORD)) == true
    # The paper prints no space before an s, say: a cut may be where no white space is.
    squeezed = "".join(true).replace(" s", "s")
    found = printed_pieces(squeezed, stripped, known_pieces(WORD))
    assert found is not None and [piece.strip() for piece in found] == stripped


def test_of_all_cuts_the_one_that_agrees_most_is_taken():
    true = ["the", "pull", "ey", "."]
    known = known_pieces(WORD)
    assert printed_pieces("the pull below.", true, known) == ["the", " pull", " below", "."]
    assert printed_pieces("the stretched.", true, known | {"ed"}) == ["the", " stretch", "ed", "."]
    assert printed_pieces("the stretched.", true[:3], known | {"ed"}) == ["the", " stretched", "."]
    # Characters may be unknown; longer tokens may not.
    assert printed_pieces("the 丩ey.", true, known) == ["the", " 丩", "ey", "."]
    assert printed_pieces("the pull.", true, known) is None
    assert printed_pieces("the pull ey . .", true, known) is None


# --- comparing


def test_kinds_and_accuracy():
    true = TrueText(np.array(tokens(TRUTH)), WORD, SPECIAL)
    assert shown(true.line) == (
        "<[CLS]> the weights made the rope stretch over the pulley. <[SEP]> <[PAD]> <[PAD]> <[PAD]>"
    )
    assert true.line.accuracy is None
    found = tokens("[SEP] the weights boys the rope stretch [PAD] the pulls. [SEP] [PAD] dog [PAD]")
    line = true.compare(np.array(found))
    assert shown(line) == (
        "{[SEP]} the weights {boys} the rope stretch {[PAD]} the pull{s}. "
        "<[SEP]> <[PAD]> {dog} <[PAD]>"
    )
    # Of 11 tokens that are not special 3 are wrong; the wrong special ones do not count.
    assert line.accuracy == 8 / 11
    assert [token.true for token in line.tokens if token.kind == "wrong"] == (
        ["[CLS]", "made", "over", "ey", "[PAD]"]
    )
    # The same word, another token.
    other = WORDS.index("s")
    split = true.compare(np.array([*found[:11], other, *found[12:]]))
    assert split.tokens[11] == Token(" s", "wrong", ".")


def test_a_sentence_of_special_tokens_alone_has_no_accuracy():
    true = TrueText(np.array([2, 3, 0]), WORD, SPECIAL)
    assert true.compare(np.array([2, 7, 0])).accuracy is None


def test_a_wrong_token_is_seen_even_if_it_is_no_character():
    first, second, third = tokens("中", BYTE)
    (x,) = tokens("x", BYTE)
    true = TrueText(np.array([x, first, second, third]), BYTE, ())
    assert shown(true.line) == "x中"
    wrong = true.compare(np.array([first, first, second, third])).tokens
    assert wrong[0] == Token("\N{REPLACEMENT CHARACTER}", "wrong", "x")
    other = true.compare(np.array([x, x, second, third])).tokens
    assert other[1] == Token("x", "wrong", "\N{REPLACEMENT CHARACTER}")


def test_a_printed_sentence_is_right_where_it_reads_the_same():
    true = TrueText(np.array(tokens(TRUTH)), WORD, SPECIAL)
    printed = "[CLS] the weights kept the rope stretched broke the pulley. [SEP] [PAD] [PAD] [PAD]"
    line = true.read(printed, known_pieces(WORD))
    assert shown(line) == (
        "<[CLS]> the weights {kept} the rope {stretched} {broke} the pulley. "
        "<[SEP]> <[PAD]> <[PAD]> <[PAD]>"
    )
    assert line.accuracy == 8 / 11
    unknown = true.read("the rope.", known_pieces(WORD))
    assert unknown == TextLine((Token("the rope.", "unknown"),))


# --- the paper's sentences


def test_the_papers_sentences():
    cola, wikitext = paper_texts("cola"), paper_texts("wikitext")
    assert [(entry.example, entry.row) for entry in cola] == [(1, 1), (2, 15), (3, 13)]
    assert [(entry.example, entry.row) for entry in wikitext] == [(1, None), (2, None), (3, None)]
    assert paper_texts("photos") == ()
    cells = {(d, a) for d in ("none", "sign", "prune", "gauss") for a in ("lti", "tag")}
    assert all(set(entry.reconstructions) == cells for entry in (*cola, *wikitext))
    assert {(e.figure, e.fl_model) for e in cola} == {("Supplement Figure 5", "bert")}
    assert {(e.figure, e.fl_model) for e in wikitext} == {("Supplement Figure 6", "transformer3")}
    assert cola[0].truth == TRUTH
    assert wikitext[2].reconstructions["sign", "lti"] == (
        "Steven full 14 and withoutel <unk> his is just another dangerinks of"
    )


@pytest.mark.parametrize(
    ("dataset", "defense", "shows"),
    [
        ("cola", {"use": "sign"}, True),
        ("cola", {"use": "sign", "defense_at": "batch"}, True),
        ("cola", {"use": "gauss", "sigma": 0.001}, True),
        ("cola", {"use": "gauss", "sigma": 0.01}, False),
        ("wikitext", {"use": "gauss", "sigma": 0.01, "defense_at": "sample"}, True),
        ("wikitext", {"use": "prune", "rate": 0.9}, False),
        ("wikitext", {"use": "clip"}, False),
    ],
)
def test_the_papers_line_is_that_of_the_same_defense(dataset, defense, shows):
    entry = paper_texts(dataset)[0]
    line = paper_line(entry, defense=defense, attack="tag")
    assert line == (entry.reconstructions[defense["use"], "tag"] if shows else None)
    assert paper_line(entry, defense=defense, attack="nearest") is None


# --- victims and their rows


def run(found, *, defense="sign", attack="lti", batch_size=1, **changes) -> TextRun:
    found = np.array(found, dtype=np.int32)
    metadata = {
        **{"dataset": "cola", "fl_model": "bert-small", "batch_size": batch_size},
        **{"defense": defense, "defense_settings": {"use": defense}},
        **{"attack": attack, "variant": attack, **changes},
    }
    return TextRun(found.reshape(-1, batch_size, found.shape[-1]), metadata)


@pytest.fixture
def victims() -> dict[str, np.ndarray]:
    """Four victims; the third is the paper's first sentence."""
    texts = [
        "[CLS] a dog made the rope. [SEP]",
        "[CLS] the dogs stretch over the rope [SEP]",
        TRUTH,
        "[CLS] the weights & < the pulley. [SEP]",
    ]
    token = np.zeros((4, 16), dtype=np.int32)
    for row, text in zip(token, texts, strict=True):
        row[: len(tokens(text))] = tokens(text)
    return {"token": token, "index": np.array([40, 7, 1, 9])}


def blocks_of(victims, runs, positions=(0, 1, 2, 3), **changes) -> list[TextBlock]:
    options = {"tokenizer": WORD, "special": SPECIAL, "paper": paper_texts("cola"), **changes}
    return text_blocks(victims, runs, positions=positions, **options)


def test_rows_of_a_victim_have_the_papers_line_beside_ours(victims):
    runs = [
        run(victims["token"], defense=defense, attack=attack)
        for defense in ("none", "sign")
        for attack in ("tag", "nearest")
    ]
    (block,) = blocks_of(victims, runs, positions=[2, 0])
    assert block.title == "CoLA, small BERT, B = 1"
    first, second = block.examples
    assert first.title == "Position 1 in its split; Supplement Figure 5, example 1"
    assert second.title == "Position 40 in its split"
    assert [(row.defense, row.attack) for row in first.rows] == [
        *(("no defense", "TAG"), ("no defense", "nearest"), ("sign", "TAG"), ("sign", "nearest")),
    ]
    assert all(row.ours.accuracy == 1 for row in first.rows)
    assert [row.paper is None for row in first.rows] == [False, True, False, True]
    paper = first.rows[2].paper
    assert (
        "".join(token.text for token in paper.tokens)
        == (paper_texts("cola")[0].reconstructions["sign", "tag"])
    )
    assert paper.tokens[0].kind == "unknown"  # this vocabulary lacks most of its words
    assert all(row.paper is None for row in second.rows)


def test_the_papers_line_needs_its_defense_and_batches_of_one(victims):
    gauss = {"defense": "gauss", "defense_settings": {"use": "gauss", "sigma": 0.5}}
    runs = [run(victims["token"]), run(victims["token"], **gauss)]
    (block,) = blocks_of(victims, runs, positions=[2])
    sign, noise = block.examples[0].rows
    assert shown(sign.paper) == (
        "<[CLS]> the weights {boys} the rope {stretched} over the pulley. "
        "<[SEP]> <[PAD]> <[PAD]> <[PAD]>"
    )
    assert sign.paper.accuracy == 9 / 11
    assert noise.paper is None
    (block,) = blocks_of(victims, [run(victims["token"], batch_size=2)], positions=[2])
    assert block.examples[0].rows[0].paper is None
    (block,) = blocks_of(victims, runs, positions=[2], paper=())
    assert block.examples[0].title == "Position 1 in its split"
    assert all(row.paper is None for row in block.examples[0].rows)


def test_batches_are_matched_and_settings_have_blocks(victims):
    token = victims["token"]
    swapped = token[[1, 0, 3, 2]].copy()
    swapped[0, 1] = WORDS.index("boys")
    runs = [run(token), run(swapped, batch_size=2), run(token, defense="none")]
    one, two = blocks_of(victims, runs, positions=[0, 1])
    assert (one.batch_size, two.batch_size) == (1, 2)
    assert [row.defense for row in one.examples[0].rows] == ["sign", "no defense"]
    assert two.title == "CoLA, small BERT, B = 2"
    assert [example.rows[0].ours.accuracy for example in two.examples] == [1.0, 6 / 7]
    assert shown(two.examples[1].rows[0].ours).startswith("<[CLS]> {boys} dogs stretch")
    assert any(note.startswith("B > 1") for note in text_notes([one, two]))
    assert not any(note.startswith("B > 1") for note in text_notes([one]))


def test_variants_of_one_attack_are_told_apart(victims):
    token = victims["token"]
    runs = [run(token, variant="lti-small"), run(token, variant="lti"), run(token, attack="tag")]
    (block,) = blocks_of(victims, runs, positions=[0])
    assert [row.attack for row in block.examples[0].rows] == ["LTI (lti-small)", "LTI", "TAG"]


def test_what_cannot_be_shown_is_refused(victims):
    token = victims["token"]
    with pytest.raises(LTIError, match="0 runs and 1 victims to draw"):
        blocks_of(victims, [], positions=[0])
    with pytest.raises(LTIError, match="1 runs and 0 victims to draw"):
        blocks_of(victims, [run(token)], positions=[])
    with pytest.raises(LTIError, match="victim 3 cannot be drawn: lti on sign covers only the"):
        blocks_of(victims, [run(token[:2])], positions=[1, 3])
    wrong = np.where(token == 3, len(WORDS), token)
    with pytest.raises(LTIError, match=f"lti on sign gives the token {len(WORDS)}; expected"):
        blocks_of(victims, [run(wrong)])
    with pytest.raises(LTIError, match=f"the victims hold the token {len(WORDS)}"):
        blocks_of({**victims, "token": wrong}, [run(token)])
    with pytest.raises(LTIError, match=r"reconstructions of shape \(4, 1, 15\)"):
        blocks_of(victims, [run(token[:, :15])])


def test_which_victims_are_sentences_of_the_paper(victims):
    assert find_paper_texts(victims["token"], WORD, paper_texts("cola")) == {
        2: paper_texts("cola")[0]
    }
    assert find_paper_texts(victims["token"], WORD, ()) == {}


def test_shown_positions():
    alone = shown_positions(50, 6, seed=3)
    assert alone == choose_positions(50, 6, seed=3)
    found = shown_positions(50, 6, first=[40, 2, 60], seed=3)
    assert found[:2] == [40, 2] and len(set(found)) == 6 and max(found) < 50
    assert found[2:] == sorted(found[2:])
    assert found != shown_positions(50, 6, first=[40, 2, 60], seed=4)
    assert shown_positions(50, 1, first=[40, 2], seed=3) == [40]
    assert shown_positions(3, 9, first=[2], seed=3) == [2, 0, 1]


# --- victims named by their text


def test_find_texts_leaves_white_space_and_special_tokens_aside(victims):
    texts = ["the weights made the rope stretch over the pulley .", "a dog", "a dogmade the rope."]
    assert find_texts(victims["token"], WORD, texts) == [2, None, None]
    assert find_texts(victims["token"], WORD, [TRUTH]) == [2]
    twice = np.concatenate([victims["token"], victims["token"]])
    assert find_texts(twice, WORD, [TRUTH]) == [2]
    windows = np.array([tokens(" its home games in the", BYTE)])
    assert find_texts(windows, BYTE, ["its home games in the", " its home games"]) == [0, None]


def test_samples_are_named_by_index_or_text(victims):
    samples = Samples(victims["token"], np.zeros(4, dtype=np.int64), victims["index"])
    assert indices_of(samples, [9, TRUTH, 40], tokenizer=WORD) == [9, 1, 40]
    assert indices_of(samples, [9, 99]) == [9, 99]  # whether it is there, select checks
    with pytest.raises(LTIError, match=r"got the text .* expected positions alone"):
        indices_of(samples, [TRUTH])
    with pytest.raises(LTIError, match="no sample reads 'a rope', which is to be included"):
        indices_of(samples, ["a rope"], tokenizer=WORD)


METADATA = {"dataset": "cola", "part": "victims", "seed": None, "class_names": ["a"]}


def test_stage_includes_victims_by_their_text(victims, tmp_path):
    tokenizer = tmp_path / "tokenizer.json"
    write_tokenizer(tokenizer, WORD)
    samples = Samples(victims["token"], np.zeros(4, dtype=np.int64), victims["index"])
    part, output, card = (tmp_path / name for name in ("part", "victims", "card.json"))
    write_selection(part, samples, metadata={**METADATA, "size": 4})
    options = {"source": part, "size": 3, "seed": 0, "output": output, "card": card}
    text = '"the weights made the rope stretch over the pulley."'
    select_victims(**options, include=f"[9, {text}]", tokenizer=tokenizer)
    expected = select(samples, size=3, seed=0, include=[9, 1], what="victims")
    np.testing.assert_array_equal(read_selection(output).samples.index, expected.index)
    assert read_json(card)["include"] == [9, 1]
    for wrong in ("{}", "[1"):
        with pytest.raises(LTIError, match=r"--include: got .*; expected a JSON list"):
            select_victims(**options, include=wrong)


# --- the web page


class Page(HTMLParser):
    """What a reader sees: the text of cells by row, marks in braces; and what may be wrong."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.titles: list[str] = []
        self.notes: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += attrs
        if tag in self.VOID:
            return
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "mark":
            self.titles.append(dict(attrs)["title"])
            self.handle_data("{")
        elif tag == "li":
            self.notes.append("")

    def handle_endtag(self, tag):
        if tag == "mark":
            self.handle_data("}")
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data
        elif "li" in self._open:
            self.notes[-1] += data


def example_blocks(victims) -> list[TextBlock]:
    found = victims["token"].copy()
    found[2, 3] = WORDS.index("boys")
    runs = [
        run(found, defense=defense, attack=attack)
        for defense in ("none", "sign")
        for attack in ("lti", "nearest")
    ]
    return blocks_of(victims, runs, positions=[2, 3])


def test_page_has_the_papers_sentence_in_the_row_of_ours(victims):
    blocks = example_blocks(victims)
    page = Page(text_html(blocks, title="A & B", notes=text_notes(blocks)))
    ours = "[CLS] the weights {boys} the rope stretch over the pulley. [SEP] [PAD] [PAD] [PAD]"
    paper = "[CLS] the weights {boys} the rope {stretched} over the pulley. [SEP] [PAD] [PAD] [PAD]"
    assert page.rows[:7] == [
        ["defense", "attack", "right", "reconstruction", "right", "the paper's reconstruction"],
        ["Position 1 in its split; Supplement Figure 5, example 1"],
        ["original", TRUTH],
        ["no defense", "LTI", "91%", ours, "100%", TRUTH],
        ["nearest", "91%", ours, "", ""],
        ["sign", "LTI", "91%", ours, "82%", paper],
        ["nearest", "91%", ours, "", ""],
    ]
    assert page.rows[8] == ["original", "[CLS] the weights & < the pulley. [SEP]" + " [PAD]" * 6]
    assert page.titles == ["true: made"] * 4 + ["true: stretch"] + ["true: made"]


def test_page_without_the_papers_sentences_has_no_column_for_them(victims):
    blocks = blocks_of(victims, [run(victims["token"])], positions=[0], paper=())
    page = Page(text_html(blocks, title="x"))
    assert page.rows[0] == ["defense", "attack", "right", "reconstruction"]
    assert all("paper" not in cell for row in page.rows for cell in row)


def test_page_is_escaped_and_needs_nothing_else(tmp_path):
    evil = "<script>\"'&"
    line = TextLine((Token(evil, "wrong", evil), Token(" " + evil, "right")), 0.5)
    example = TextExample(evil, line, (TextRow(evil, evil, line, line),))
    text = text_html([TextBlock(evil, 1, (example,))], title=evil, notes=[evil])
    page = Page(text)
    assert "<script" not in text
    assert page.rows[1] == [evil]
    assert page.rows[2] == ["original", f"{{{evil}}} {evil}"]
    assert page.rows[3] == [evil, evil, *["50%", f"{{{evil}}} {evil}"] * 2]
    assert page.titles == [f"true: {evil}"] * 3
    assert page.notes == [evil]
    assert not {"src", "href"} & {name for name, _ in page.attributes}
    assert "url(" not in text and "@import" not in text


def test_page_has_fixed_bytes(victims, tmp_path):
    for name in "ab":
        write_text_html(tmp_path / name, example_blocks(victims), title="x", notes=["y"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert b"\r" not in (tmp_path / "a").read_bytes()


def test_wrong_tokens_are_told_by_more_than_their_color():
    text = text_html([], title="x")
    (rule,) = (line for line in text.splitlines() if line.startswith("mark {"))
    assert "text-decoration: underline" in rule and f"color: {WRONG.lower()}" in rule
    assert f"color: {INK}" in text and f".special {{ color: {FAINT.lower()}" in text


# --- notes


def test_notes(victims):
    blocks = example_blocks(victims)
    card = {"fl_model": {"use": "bert", "seed": 7}, "pretrained": False}
    notes = text_notes(blocks, paper=paper_texts("cola"), fl_model=card)
    assert notes[1] == "FL model: not pretrained; weights drawn from seed 7."
    assert "Supplement Figure 5 (CoLA, BERT); shown where the defense" in notes[2]
    assert len(notes) == 3
    card["note"] = "not pretrained: as the settings say"
    assert text_notes(blocks, fl_model=card)[1] == (
        "FL model: not pretrained: as the settings say; weights drawn from seed 7."
    )
    card = {"fl_model": {"use": "bert"}, "pretrained": True, "weights": "a/b"}
    assert text_notes(blocks, fl_model=card)[1] == "FL model: pretrained (a/b)."
    line = TextLine((Token("a␣↵", "right"),))
    marked = [TextBlock("", 1, (TextExample("", line, ()),))]
    assert text_notes(marked)[-1] == "␣ a space, ↵ the end of a line."
    assert len(text_notes(marked)) == 2


# --- the picture


def fragments(draw) -> list[list[tuple[str, str]]]:
    word = st.lists(
        st.tuples(st.text("abil.-W", min_size=1, max_size=9), st.sampled_from([INK, WRONG])),
        min_size=1,
        max_size=3,
    )
    return draw(st.lists(word, max_size=12))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), width=st.floats(20, 200))
def test_wrapped_lines_are_narrow_and_hold_everything(data, width):
    words = fragments(data.draw)
    lines = list(_wrapped(words, width))
    flat = [(text, color) for line in lines for _, text, color in line]
    expected = [part for word in words for part in word]

    def letters(parts):
        return [(c, color) for text, color in parts for c in text]

    assert letters(flat) == letters(expected)
    for line in lines:
        end = 0.0
        for x, text, _ in line:
            assert x >= end - 1e-6
            end = x + _advance(text)
        assert end <= width + 1e-6


def test_words_are_kept_whole_where_there_is_room():
    word = [("pull", INK), ("ey", WRONG)]
    width = _advance("the pulley")
    lines = list(_wrapped([[("the", INK)], word, word], width))
    assert [[text for _, text, _ in line] for line in lines] == (
        [["the", "pull", "ey"], ["pull", "ey"]]
    )
    assert lines[0][1][0] == pytest.approx(_advance("the "), abs=0.2)
    # Too wide for any line: parted.
    narrow = list(_wrapped([word], _advance("pul") + 1))
    assert ["".join(text for _, text, _ in line) for line in narrow] == ["pul", "ley"]


def _red(path: Path) -> int:
    import matplotlib.image

    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    return int((pixels == [int(WRONG[k : k + 2], 16) for k in (1, 3, 5)]).all(axis=2).sum())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_picture_is_written_with_fixed_bytes(victims, tmp_path, suffix):
    victims["token"][3, 4] = WORDS.index("中")  # the font lacks it
    blocks = example_blocks(victims)
    for name in "ab":
        plot_texts(tmp_path / f"{name}{suffix}", blocks, notes=["$x_1$ costs $5"])
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second and b"CreationDate" not in first


def test_picture_is_red_where_tokens_are_wrong(victims, tmp_path):
    token = victims["token"]
    right = blocks_of(victims, [run(token)], positions=[0], paper=())
    wrong = blocks_of(victims, [run(token[[1, 0, 2, 3]])], positions=[0], paper=())
    for name, blocks in (("right", right), ("wrong", wrong)):
        plot_texts(tmp_path / f"{name}.png", blocks)
    assert _red(tmp_path / "right.png") == 0
    # Letters, and lines below them: wider than they are high.
    assert _red(tmp_path / "wrong.png") > 500


def test_picture_refuses_what_it_cannot_draw(victims, tmp_path):
    with pytest.raises(LTIError, match=r"written as \.png or \.pdf"):
        plot_texts(tmp_path / "a.svg", example_blocks(victims))
    with pytest.raises(LTIError, match="expected at least one victim"):
        plot_texts(tmp_path / "a.png", [TextBlock("x", 1, ())])
    assert list(tmp_path.iterdir()) == []


# --- the stage


def test_stage_shows_the_papers_sentence_first_in_all_three(victims, tmp_path):
    from lti.data.tokenizer import text_facts

    facts = {**text_facts(WORD, length=16), "special": list(SPECIAL)}
    tokenizer = tmp_path / "tokenizer.json"
    write_tokenizer(tokenizer, WORD)
    source = tmp_path / "victims.safetensors"
    write_arrays(source, victims, {"dataset": "cola", "text": facts})
    paths = []
    for number, (attack, n) in enumerate((("lti", 4), ("tag", 3))):
        one = run(victims["token"][:n], attack=attack)
        paths.append(tmp_path / f"{number}.safetensors")
        write_arrays(paths[-1], {"reconstruction": one.reconstruction}, one.metadata)
    write_card(tmp_path / "card.json", {"fl_model": {"seed": 3}, "pretrained": False})
    outputs = {suffix: tmp_path / f"texts.{suffix}" for suffix in ("html", "pdf", "png")}
    options = {"tokenizer": tokenizer, "fl_model_card": tmp_path / "card.json", "title": "Small"}
    draw_texts(victims=source, reconstructions=paths, count=2, seed=1, **options, **outputs)
    page = Page(outputs["html"].read_text())
    headings = [row[0] for row in page.rows if row[0].startswith("Position")]
    # The second is one of those that both attacks cover, by the seed.
    (other,) = (position for position in shown_positions(3, 2, first=[2], seed=1) if position != 2)
    assert headings == [
        "Position 1 in its split; Supplement Figure 5, example 1",
        f"Position {victims['index'][other]} in its split",
    ]
    assert page.rows[3][:3] == ["sign", "LTI", "100%"]
    assert "FL model: not pretrained; weights drawn from seed 3." in page.notes
    assert "<h1>Small</h1>" in outputs["html"].read_text()
    assert outputs["pdf"].read_bytes().startswith(b"%PDF")
    assert outputs["png"].read_bytes().startswith(b"\x89PNG")


def test_stage_refuses_victims_that_are_no_text(tmp_path):
    source = tmp_path / "victims.safetensors"
    write_arrays(source, {"image": np.zeros((2, 3, 32, 32), np.uint8)}, {"dataset": "photos"})
    paths = {name: tmp_path / name for name in ("tokenizer", "html", "pdf", "png")}
    with pytest.raises(LTIError, match="holds image; expected an array 'token'"):
        draw_texts(victims=source, reconstructions=[source], **paths)


# --- with the real tokenizers and texts


WINDOWS = (
    ". and Zack Novak . Burke was named Big Ten Freshman of the Year",
    " 12 NCAA Division I men 's basketball season . The team played its home games",
    " turned full circle and Capel <unk> today is just another ruined relic of",
)
"""The paper's windows of WikiText as they stand in the data."""


@needs_mirror
@pytest.mark.parametrize(
    ("dataset", "name", "texts"),
    [
        ("cola", "bert-base-uncased", [entry.truth for entry in paper_texts("cola")]),
        ("wikitext", "gpt2", WINDOWS),
    ],
)
def test_every_sentence_of_the_paper_can_be_cut(dataset, name, texts):
    tokenizer = Tokenizer.from_file(str(MIRROR / "tokenizers" / name / "tokenizer.json"))
    known, entries = known_pieces(tokenizer), paper_texts(dataset)
    token = np.array([tokens(text, tokenizer) for text in texts])
    assert token.shape == (3, 16)
    assert find_paper_texts(token, tokenizer, entries) == dict(enumerate(entries))
    accuracy = {}
    for row, entry in zip(token, entries, strict=True):
        true = TrueText(row, tokenizer, (0, 101, 102) if dataset == "cola" else ())
        for key, text in entry.reconstructions.items():
            line = true.read(text, known)
            assert len(line.tokens) == 16
            assert "".join("".join(t.text for t in line.tokens).split()) == "".join(text.split())
            accuracy[entry.example, *key] = line.accuracy
    # Counted by hand.
    expected = {
        "cola": {(3, "sign", "lti"): 4 / 12, (1, "gauss", "lti"): 7 / 11, (2, "none", "lti"): 1},
        "wikitext": {(1, "none", "tag"): 13 / 16, (2, "gauss", "tag"): 12 / 16},
    }[dataset]
    for key, value in expected.items():
        assert accuracy[key] == value, key


@needs_mirror
def test_where_the_papers_sentences_are():
    import pyarrow.parquet as pq

    rows = pq.read_table(next((MIRROR / "glue-cola").glob("validation-*")))["sentence"].to_pylist()
    tokenizer = Tokenizer.from_file(str(MIRROR / "tokenizers/bert-base-uncased/tokenizer.json"))
    for entry in paper_texts("cola"):
        found = tokenizer.encode(rows[entry.row]).ids
        found = found[: 15 if len(found) > 16 else 16] + ([102] if len(found) > 16 else [])
        assert found + [0] * (16 - len(found)) == tokens(entry.truth, tokenizer)
    # Of WikiText-2's validation split none is among the consecutive windows.
    lines = pq.read_table(next((MIRROR / "wikitext-2").glob("validation-*")))["text"].to_pylist()
    tokenizer = Tokenizer.from_file(str(MIRROR / "tokenizers/gpt2/tokenizer.json"))
    encoded = tokenizer.encode_batch(lines, add_special_tokens=False)
    stream = np.concatenate([np.array(line.ids, dtype=int) for line in encoded])
    every = np.lib.stride_tricks.sliding_window_view(stream, 16)
    starts = [np.flatnonzero((every == tokens(w, tokenizer)).all(axis=1)) for w in WINDOWS]
    assert [start.tolist() for start in starts] == [[51579], [51478], [51366]]
    assert [int(start[0] % 16) for start in starts] == [11, 6, 6]
