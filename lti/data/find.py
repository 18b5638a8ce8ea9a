"""Samples that read like a given text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

__all__ = ["find_texts"]


def find_texts(
    token: npt.NDArray[Any], tokenizer: Tokenizer, texts: Iterable[str]
) -> list[int | None]:
    """Return where the first sample is that reads like each text; None where there is none.

    Neither white space nor special tokens make a difference: papers print no space before
    punctuation where data sets have one, and some print special tokens.

    Args:
        token: int (n, length).
        tokenizer: of the data set.
        texts: whole samples, as the data set has them or as they are printed.
    """
    places: dict[str, int] = {}
    for position, text in enumerate(tokenizer.decode_batch(token.tolist())):
        places.setdefault(_letters(text), position)
    found = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return [places.get(_letters(tokenizer.decode(tokens))) for tokens in found]


def _letters(text: str) -> str:
    return "".join(text.split())
