"""Windows of a text that begin where none of the consecutive ones does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from lti.data.text import token_stream, windows
from lti.errors import LTIError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["further_windows"]


def further_windows(
    tokens: np.ndarray, texts: Iterable[str], tokenizer: Tokenizer, *, length: int
) -> np.ndarray:
    """Return the windows that are given texts, int32 (k, length), in the order of these.

    A text that one of the consecutive windows is adds none.

    Args:
        tokens: int32 (n,), the whole text.
        texts: as they stand in it, white space included: ``length`` tokens each.
        tokenizer: what made the tokens.
        length: tokens of a window.

    Raises:
        LTIError: a text has another number of tokens, or is nowhere.
    """
    everywhere = windows(tokens, length=length, stride=1)
    found = []
    for text in texts:
        window = token_stream(tokenizer, [text])
        if len(window) != length:
            raise LTIError(
                f"also: {text!r} has {len(window)} tokens; expected {length}, a window. Give it as "
                f"it stands in the text, with the space before its first word."
            )
        starts = np.flatnonzero((everywhere == window).all(axis=1))
        if not len(starts):
            raise LTIError(
                f"also: {text!r} is not in the victims' split; expected a part of it. Give it as "
                f"it stands there, white space included."
            )
        if (starts % length).all():
            found.append(window)
    return np.array(found, dtype=np.int32).reshape(-1, length)
