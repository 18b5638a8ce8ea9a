"""A text data set for tests: a tokenizer of short words, victims and what attacks make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from lti.metrics.tokens import Text, read_text

__all__ = ["FACTS", "PAD", "WORDS", "encode", "known", "save_tokenizer", "text_victims"]

SPECIAL = ("[PAD]", "[CLS]", "[SEP]")
# At most three letters, which no stemmer changes, but for the last; "." is no word at all.
WORDS = ("a", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", ".", "jumps", "jumping")
PAD, CLS, SEP = 0, 1, 2
UNKNOWN = len(SPECIAL) + len(WORDS)
FACTS: dict[str, Any] = {
    "length": 8,
    "vocabulary": UNKNOWN + 1,
    "padding": PAD,
    "special": [PAD, CLS, SEP],
}


def save_tokenizer(path: Path) -> Path:
    """Write the tokenizer, which takes the unknown word for special too."""
    vocabulary = {word: token for token, word in enumerate((*SPECIAL, *WORDS, "[UNK]"))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*SPECIAL, "[UNK]"])
    tokenizer.save(str(path))
    return path


def known(folder: Path) -> Text:
    """Return what metrics know of the tokens."""
    return read_text(save_tokenizer(folder / "tokenizer.json"), FACTS)


def encode(*sentences: str, length: int = 8) -> np.ndarray:
    """Return int32 (n, length): [CLS], the words, [SEP], padding."""
    rows = []
    for sentence in sentences:
        row = [CLS, *(len(SPECIAL) + WORDS.index(word) for word in sentence.split()), SEP]
        rows.append((row + [PAD] * length)[:length])
    return np.array(rows, dtype=np.int32)


def text_victims(n: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return n random sentences of two to six words."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS[:8], rng.integers(2, 7))) for _ in range(n)]
    return {
        "token": encode(*sentences),
        "label": np.arange(n, dtype=np.int64) % 2,
        "index": np.arange(n, dtype=np.int64) * 5,
    }
