"""What a data set of text is: sentences or windows of tokens, and their tokenizer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from lti.data.dataset import Dataset, Part
from lti.data.samples import Modality, Samples
from lti.data.tokenizer import read_tokenizer, text_facts, write_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["TextDataset", "token_stream", "unlabelled", "windows"]


class TextDataset(Dataset):
    """Base of every registered data set of text."""

    modality: ClassVar[Modality] = "text"

    # The search for near copies holds one bit a token in 64.
    length: int = Field(16, ge=2, le=64, description="Tokens of a sample.")

    @abstractmethod
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, with the padding and cutting of this data set.

        Raises:
            LTIError: it cannot be had.
        """

    @abstractmethod
    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return all samples of one part, always the same ones in the same order.

        Args:
            part: which part.
            tokenizer: what :meth:`tokenizer` returns, which is called if None is given.

        Raises:
            LTIError: the data cannot be found or is damaged, the tokenizer is another data
                set's, or ``part`` is unknown.
        """

    def write_tokenizer(self, path: Path) -> int:
        """Write the tokenizer to a file and return its number of tokens."""
        tokenizer = self.tokenizer()
        write_tokenizer(path, tokenizer)
        return tokenizer.get_vocab_size()

    def read(self, part: Part, tokenizer_file: Path) -> tuple[Samples, dict[str, Any]]:
        """Return the samples of a part, tokenised as a file says, and facts about them.

        The facts are :func:`lti.data.tokenizer.text_facts` and the part's ``corpus``.
        """
        tokenizer = read_tokenizer(tokenizer_file)
        facts = {**text_facts(tokenizer, length=self.length), "corpus": self.corpus(part)}
        return self.load(part, tokenizer), facts


def token_stream(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """Return the tokens of texts one after another, int32 (n,), without any added ones."""
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    parts = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    return np.concatenate([np.empty(0, dtype=np.int32), *parts])


def windows(tokens: np.ndarray, *, length: int, stride: int) -> np.ndarray:
    """Return the windows that begin at every ``stride``-th token and are whole.

    Args:
        tokens: int32 (n,).
        length: tokens of a window.
        stride: tokens from the beginning of one window to that of the next.

    Returns:
        int32 (m, length), a view; row k begins at token ``k * stride``.
    """
    if len(tokens) < length:
        return np.empty((0, length), dtype=tokens.dtype)
    return np.lib.stride_tricks.sliding_window_view(tokens, length)[::stride]


def unlabelled(value: np.ndarray, index: np.ndarray) -> Samples:
    """Return samples without a class of their own: all have label 0.

    Args:
        value: int32 (n, length).
        index: int64 (n,).
    """
    return Samples(np.ascontiguousarray(value), np.zeros(len(value), dtype=np.int64), index)
