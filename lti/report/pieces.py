"""How tokens read: the text of each inside its sentence, and the tokens of a printed one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["known_pieces", "pieces", "printed_pieces", "visible"]

# What the decoder writes for bytes that are no character, or not yet.
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Marks for white space that a reader would not see.
_MARKS = {" ": "␣", "\n": "↵", "\t": "⇥"}


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; joined, they are the text that the tokenizer decodes.

    A space between words belongs to the piece behind it. A character of several byte-level
    tokens belongs to the last of them; the pieces of the others are empty.

    Args:
        tokenizer: of the data set.
        tokens: of its vocabulary, special ones included.
    """
    found: list[str] = []
    done, pending = "", False
    for end in range(1, len(tokens) + 1):
        text: str = tokenizer.decode(list(tokens[:end]), skip_special_tokens=False)
        incomplete = end < len(tokens) and text.endswith(_REPLACEMENT)
        if incomplete:  # bytes of a character that is not whole yet, perhaps
            text = text[:-1]
        piece = text[len(done) :]
        if pending and piece.startswith(_REPLACEMENT):  # those before never became a character
            found[-1] += _REPLACEMENT
            piece = piece[1:]
        found.append(piece)
        done, pending = text, incomplete
    return found


def visible(piece: str) -> str:
    """Return a piece for print: one leading space stays, all else that is not seen gets a mark."""
    space, rest = (" ", piece[1:]) if piece.startswith(" ") else ("", piece)
    if space and not rest:
        rest = " "
    marked = (_MARKS.get(c, c if c.isprintable() else _REPLACEMENT) for c in rest)
    return space + "".join(marked)


def known_pieces(tokenizer: Tokenizer) -> frozenset[str]:
    """Return how the tokens of a vocabulary read inside a sentence, without spaces around."""
    start: str = tokenizer.decode([0], skip_special_tokens=False)
    pairs = [[0, token] for token in range(tokenizer.get_vocab_size())]
    texts = tokenizer.decode_batch(pairs, skip_special_tokens=False)
    return frozenset(text[len(start) :].strip() for text in texts) - {""}


def printed_pieces(
    text: str, truth: Sequence[str], vocabulary: Collection[str]
) -> list[str] | None:
    """Return the tokens of a printed sentence, one for each token of the true one.

    Print does not say where a word's tokens part, nor where a space before punctuation was
    left out. Of all ways to cut the text into as many tokens as the truth has, the one that
    agrees with the truth at the most positions is taken; then the one with long tokens.

    Args:
        text: as printed; tokens end at white space at the latest.
        truth: the true tokens as they read, without spaces around.
        vocabulary: of such tokens; any single character counts as one too.

    Returns:
        The tokens, with a leading space where the text has white space; None where the text
        cannot be cut into that many.
    """
    words = text.split()
    joined = "".join(words)
    ends = [sum(map(len, words[: number + 1])) for number in range(len(words))]
    longest = max(map(len, vocabulary), default=0)
    # By where a cut is: the best score up to there, and the cuts before it.
    best: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = {0: ((0, 0), ())}
    for true in truth:
        following: dict[int, tuple[tuple[int, int], tuple[int, ...]]] = {}
        for start, ((right, length), cuts) in best.items():
            word_end = next((end for end in ends if end > start), start)
            for end in range(start + 1, min(word_end, start + longest) + 1):
                piece = joined[start:end]
                if len(piece) == 1 or piece in vocabulary:
                    score = (right + (piece == true), length + len(piece) ** 2)
                    known = following.get(end)
                    if known is None or score > known[0]:
                        following[end] = (score, (*cuts, start))
        best = following
    if len(joined) not in best:
        return None
    cuts = (*best[len(joined)][1], len(joined))
    starts = {0, *ends}
    return [
        (" " if start in starts and start else "") + joined[start:end]
        for start, end in pairwise(cuts)
    ]
