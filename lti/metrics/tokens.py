"""What a text metric needs to know of tokens: which are special, and how they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Text", "read_text"]


@dataclass(frozen=True)
class Text:
    """The tokens of a text data set.

    Attributes:
        vocabulary: number of tokens; they are 0 to ``vocabulary - 1``.
        special: tokens that stand for no text, such as padding and the ends of a sentence.
        decode: tokens int (n, length) to n texts, special tokens left out.
    """

    vocabulary: int
    special: frozenset[int]
    decode: Callable[[npt.NDArray[Any]], list[str]]

    def is_real(self, token: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return where tokens of any shape are not special."""
        import numpy as np

        return ~np.isin(token, sorted(self.special))

    def check(self, token: npt.NDArray[Any], *, what: str) -> None:
        """Refuse tokens outside the vocabulary.

        Raises:
            LTIError: there is one.
        """
        if token.size and not 0 <= token.min() <= token.max() < self.vocabulary:
            raise LTIError(
                f"{what} hold the tokens {token.min()} to {token.max()}; expected 0 to "
                f"{self.vocabulary - 1}. They are of another tokenizer: make them again."
            )


def read_text(tokenizer: Path | str, facts: Mapping[str, Any]) -> Text:
    """Return what is known of the tokens of a text data set.

    Args:
        tokenizer: the data set's, as ``tokenizers.Tokenizer.save`` writes it (JSON).
        facts: ``vocabulary``, the number of tokens, and ``special``, a list of tokens: the
            entry ``text`` in the metadata of a data set's part, or of a selection of it.

    Raises:
        LTIError: a fact is missing, or the tokenizer cannot be read or has another number of
            tokens.
    """
    from tokenizers import Tokenizer

    missing = [key for key in ("vocabulary", "special") if key not in facts]
    if missing:
        raise LTIError(
            f"what is known of the tokens lacks {', '.join(missing)}; got "
            f"{', '.join(sorted(facts)) or 'nothing'}. Prepare the data set again."
        )
    vocabulary, special = int(facts["vocabulary"]), frozenset(map(int, facts["special"]))
    try:
        read = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the binding raises no narrower class
        raise LTIError(
            f"{tokenizer}: cannot be read as a tokenizer ({error}). Delete it and run the same "
            f"command again."
        ) from None
    if read.get_vocab_size() != vocabulary:
        raise LTIError(
            f"{tokenizer} has {read.get_vocab_size()} tokens; expected {vocabulary}, as the data "
            f"set says. Pass that data set's tokenizer."
        )

    def decode(token: npt.NDArray[Any]) -> list[str]:
        rows = [[entry for entry in row if entry not in special] for row in token.tolist()]
        # The tokenizer may know more of them, such as that of an unknown word.
        texts: list[str] = read.decode_batch(rows, skip_special_tokens=True)
        return texts

    return Text(vocabulary, special, decode)
