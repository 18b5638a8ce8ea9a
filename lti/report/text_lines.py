"""A sentence and its reconstructions, compared token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lti.report.pieces import pieces, printed_pieces, visible

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

__all__ = ["TextLine", "Token", "TrueText"]

Kind = Literal["right", "wrong", "special", "unknown"]

# For the first tokens of a character of several.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Token:
    """One token as it is shown.

    Attributes:
        text: what is printed, with the space before it where there is one.
        kind: ``right`` or ``wrong`` at its position; ``special`` is a right one that stands for
            no text; ``unknown`` where a printed sentence could not be cut into its tokens.
        true: how the true token reads, where this one is wrong.
    """

    text: str
    kind: Kind
    true: str = ""


@dataclass(frozen=True)
class TextLine:
    """One sentence as it is shown.

    Attributes:
        tokens: in their order.
        accuracy: share of right tokens where the true one is not special; None for the truth
            itself, where all are special, and where it is not known.
    """

    tokens: tuple[Token, ...]
    accuracy: float | None = None


class TrueText:
    """A sentence, ready to be compared with.

    Args:
        token: int (length,), of the tokenizer's vocabulary.
        tokenizer: of the data set.
        special: tokens that stand for no text.
    """

    def __init__(
        self, token: npt.NDArray[Any], tokenizer: Tokenizer, special: Collection[int]
    ) -> None:
        self._tokens: list[int] = token.tolist()
        self._tokenizer = tokenizer
        self._real = [entry not in special for entry in self._tokens]
        self._pieces = pieces(tokenizer, self._tokens)

    @property
    def line(self) -> TextLine:
        """The sentence itself as shown."""
        return TextLine(self._shown(self._pieces, [True] * len(self._pieces)))

    def compare(self, token: npt.NDArray[Any]) -> TextLine:
        """Return a reconstruction, int (length,), as shown: right where tokens are equal."""
        found: list[int] = token.tolist()
        right = [a == b for a, b in zip(found, self._tokens, strict=True)]
        return self._line(pieces(self._tokenizer, found), right)

    def read(self, printed: str, vocabulary: Collection[str]) -> TextLine:
        """Return a printed reconstruction as shown: right where tokens read the same.

        Args:
            printed: the sentence.
            vocabulary: see :func:`lti.report.pieces.printed_pieces`.
        """
        true = [piece.strip() for piece in self._pieces]
        found = printed_pieces(printed, true, vocabulary)
        if found is None:
            return TextLine((Token(printed, "unknown"),))
        return self._line(found, [a.strip() == b for a, b in zip(found, true, strict=True)])

    def _line(self, texts: Sequence[str], right: Sequence[bool]) -> TextLine:
        counted = [value for value, real in zip(right, self._real, strict=True) if real]
        accuracy = sum(counted) / len(counted) if counted else None
        return TextLine(self._shown(texts, right), accuracy)

    def _shown(self, texts: Sequence[str], right: Sequence[bool]) -> tuple[Token, ...]:
        tokens = []
        for number, (text, is_right) in enumerate(zip(texts, right, strict=True)):
            shown = visible(text) if number else visible(text).removeprefix(" ")
            if is_right:
                tokens.append(Token(shown, "right" if self._real[number] else "special"))
            else:
                true = visible(self._pieces[number]).strip() or _INCOMPLETE
                tokens.append(Token(shown or _INCOMPLETE, "wrong", true))
        return tuple(tokens)
