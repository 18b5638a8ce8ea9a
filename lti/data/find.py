"""Samples that read like a given text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lti.data.samples import Samples
from lti.errors import LTIError

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

__all__ = ["find_texts", "indices_of"]


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


def indices_of(
    samples: Samples, entries: Sequence[int | str], *, tokenizer: Tokenizer | None = None
) -> list[int]:
    """Return the indices of samples that are named by their index or, if they are text, read so.

    Args:
        samples: among which the texts are found; whether the indices are there is not checked.
        entries: indices (:attr:`lti.data.samples.Samples.index`) and texts.
        tokenizer: of the data set; only for texts.

    Raises:
        LTIError: a text without a tokenizer, or that no sample reads as.
    """
    texts = [entry for entry in entries if isinstance(entry, str)]
    if texts and (tokenizer is None or samples.modality != "text"):
        raise LTIError(
            f"got the text {texts[0]!r} to include; expected positions alone, or samples of text "
            f"with their tokenizer. Name the sample's position."
        )
    places: dict[int | str, int | None] = {}
    if texts and tokenizer is not None:
        places.update(zip(texts, find_texts(samples.value, tokenizer, texts), strict=True))
    indices = []
    for entry in entries:
        place = places.get(entry)
        if isinstance(entry, str) and place is None:
            raise LTIError(
                f"no sample reads {entry!r}, which is to be included; expected the text of a "
                f"whole sample. Correct it, or name the sample's position."
            )
        indices.append(int(entry) if place is None else int(samples.index[place]))
    return indices


def _letters(text: str) -> str:
    return "".join(text.split())
