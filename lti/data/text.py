"""What a data set of text is: sentences or windows of tokens, and their tokenizer."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from lti.data.dataset import Dataset, Part
from lti.data.samples import Modality, Samples
from lti.data.tokenizer import read_tokenizer, text_facts, write_tokenizer
from lti.errors import LTIError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "TextDataset",
    "as_samples",
    "sentence_windows",
    "sentences",
    "text_length",
    "token_stream",
    "unlabelled",
    "windows",
]

ENCODED = 10_000
"""Sentences whose encodings, a kilobyte each, are in memory at a time."""


class TextDataset(Dataset):
    """Base of every registered data set of text."""

    modality: ClassVar[Modality] = "text"

    # The search for near copies holds one bit a token in 64.
    length: int = Field(16, ge=2, le=64, description="Tokens of a sample.")

    tokenizer: str | None = Field(
        None,
        description="A key of `datasets`, whose tokenizer it takes; null: its own. Data sets that "
        "are mixed need one in common.",
    )

    @abstractmethod
    def own_tokenizer(self) -> Tokenizer:
        """Return this data set's own tokenizer, with its padding and cutting.

        Raises:
            LTIError: it cannot be had.
        """

    @abstractmethod
    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return all samples of one part, always the same ones in the same order.

        Args:
            part: which part.
            tokenizer: what :meth:`own_tokenizer` returns, which is called if None is given,
                or another data set's.

        Raises:
            LTIError: the data cannot be found or is damaged, the tokenizer is that of another
                data set and not given, or ``part`` is unknown.
        """

    def tokenizer_or_own(self, tokenizer: Tokenizer | None) -> Tokenizer:
        """Return the tokenizer given, or where None is this data set's own.

        Raises:
            LTIError: none is given, and the settings name another data set's.
        """
        if tokenizer is None and self.tokenizer is not None:
            raise LTIError(
                f"{self.name}: got no tokenizer; expected that of the data set {self.tokenizer}, "
                f"which its settings name. Give what `own_tokenizer` of that one returns."
            )
        return tokenizer or self.own_tokenizer()

    def write_tokenizer(self, path: Path) -> int:
        """Write this data set's own tokenizer to a file and return its number of tokens."""
        tokenizer = self.own_tokenizer()
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
    """Return the tokens of texts one after another, int32 (n,), without any added ones.

    Whatever the tokenizer pads or cuts samples to, texts are neither.
    """
    with _neither_padded_nor_cut(tokenizer):
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    parts = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
    return np.concatenate([np.empty(0, dtype=np.int32), *parts])


@contextlib.contextmanager
def _neither_padded_nor_cut(tokenizer: Tokenizer) -> Iterator[None]:
    padding, truncation = tokenizer.padding, tokenizer.truncation
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        yield
    finally:
        if padding is not None:
            tokenizer.enable_padding(**padding)
        if truncation is not None:
            tokenizer.enable_truncation(**truncation)


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


def text_length(tokenizer: Tokenizer, *, length: int) -> int:
    """Return how many tokens of a sample of ``length`` stand for text, none of them padding.

    Raises:
        LTIError: the tokenizer's own tokens ([CLS], [SEP], ...) leave no place.
    """
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    if special >= length:
        raise LTIError(
            f"length: got {length}, where the tokenizer adds {special} tokens of its own to each "
            f"sample; expected more than that. Use longer samples."
        )
    return length - special


def as_samples(value: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Return windows of text with the tokens around them that the tokenizer adds to a sample.

    Args:
        value: int32 (m, k), tokens of text.
        tokenizer: what made them; [CLS] before and [SEP] behind, say, are of its template.

    Returns:
        int32 (m, k + what is added).
    """
    probe = tokenizer.encode("a")
    # Padding is in the mask of special tokens too, but gets no attention.
    whole = [i for i, seen in enumerate(probe.attention_mask) if seen]
    words = [i for i in whole if not probe.special_tokens_mask[i]]
    around = (probe.ids[: words[0]], [probe.ids[i] for i in whole if i > words[-1]])
    before, behind = (np.tile(np.array(ids, dtype=value.dtype), (len(value), 1)) for ids in around)
    return np.concatenate([before, value, behind], axis=1)


def sentences(
    texts: Sequence[str], label: np.ndarray, tokenizer: Tokenizer, *, length: int, where: str
) -> Samples:
    """Return sentences as samples, each padded or cut by the tokenizer; ``index`` counts them.

    Args:
        texts: n of them.
        label: int64 (n,).
        tokenizer: which pads and cuts to ``length``.
        length: tokens of a sample.
        where: what the sentences are of, for messages.

    Raises:
        LTIError: the tokenizer pads or cuts to another length, or not at all.
    """
    value = np.empty((len(texts), length), dtype=np.int32)
    for start in range(0, len(texts), ENCODED):
        encodings = tokenizer.encode_batch(list(texts[start : start + ENCODED]))
        lengths = {len(encoding.ids) for encoding in encodings}
        if lengths != {length}:
            raise LTIError(
                f"{where}: the tokenizer gives sentences of {min(lengths)} to {max(lengths)} "
                f"tokens; expected {length} of each. Give the file of `lti prepare-tokenizer` "
                f"with the same settings."
            )
        value[start : start + ENCODED] = [encoding.ids for encoding in encodings]
    return Samples(value, label, np.arange(len(label)))


def sentence_windows(texts: Sequence[str], tokenizer: Tokenizer, *, length: int) -> Samples:
    """Return windows of sentences, each from a space on, that follow each other.

    For tokenizers that do not pad. The label is 0, ``index`` the number of the window.

    Args:
        texts: the sentences.
        tokenizer: what makes tokens of them.
        length: tokens of a sample.

    Raises:
        LTIError: the tokenizer's own tokens leave no place.
    """
    size = text_length(tokenizer, length=length)
    tokens = token_stream(tokenizer, [f" {text}" for text in texts])
    value = as_samples(windows(tokens, length=size, stride=size), tokenizer)
    return unlabelled(value, np.arange(len(value)))


def unlabelled(value: np.ndarray, index: np.ndarray) -> Samples:
    """Return samples without a class of their own: all have label 0.

    Args:
        value: int32 (n, length).
        index: int64 (n,).
    """
    return Samples(np.ascontiguousarray(value), np.zeros(len(value), dtype=np.int64), index)
