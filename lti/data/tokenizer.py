"""Tokenizers as files: written once, read by every stage that needs words or tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.checksums import read_checked, write_checked
from lti.data.hub import Home, fetch_file
from lti.errors import LTIError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = [
    "FILE",
    "pad_and_cut",
    "parse_tokenizer",
    "pretrained_tokenizer",
    "read_tokenizer",
    "text_facts",
    "write_tokenizer",
]

FILE = "tokenizer.json"
"""What a published tokenizer's file is called."""


def pretrained_tokenizer(home: Home, *, mirror: Path | None, vocabulary: int) -> Tokenizer:
    """Return a published tokenizer, from a mirror folder if one is given or else the hub.

    Args:
        home: its repository, which has a ``tokenizer.json``.
        mirror: the folder that holds ``home.folder``.
        vocabulary: tokens that it must have.

    Raises:
        LTIError: it cannot be had, is damaged, or has another vocabulary.
    """
    path = fetch_file(home, FILE) if mirror is None else mirror / home.folder / FILE
    tokenizer = parse_tokenizer(path, remedy=f"Copy {FILE} of {home.repository} there again.")
    size = tokenizer.get_vocab_size()
    if size != vocabulary:
        raise LTIError(
            f"{path}: {size} tokens; expected the {vocabulary} of {home.repository}. Copy its "
            f"{FILE} there again."
        )
    return tokenizer


def pad_and_cut(tokenizer: Tokenizer, *, length: int, padding: str | None) -> Tokenizer:
    """Return the tokenizer, set to pad and cut sentences to ``length`` tokens.

    Args:
        tokenizer: is changed.
        length: tokens of a sample, its own ones ([CLS], [SEP], ...) included.
        padding: the token that fills short sentences; None: it neither pads nor cuts.
    """
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if padding is not None:
        tokenizer.enable_truncation(length)
        number = tokenizer.token_to_id(padding)
        tokenizer.enable_padding(length=length, pad_id=number, pad_token=padding)
    return tokenizer


def write_tokenizer(path: Path | str, tokenizer: Tokenizer) -> None:
    """Write a tokenizer with a checksum: equal tokenizers give equal bytes."""
    write_checked(path, tokenizer.to_str())


def read_tokenizer(path: Path | str, facts: Mapping[str, Any] | None = None) -> Tokenizer:
    """Read a tokenizer that :func:`write_tokenizer` wrote.

    Args:
        path: the file.
        facts: ``text`` of the metadata of samples that it is for; None does not check.

    Raises:
        LTIError: the file is missing, damaged or no tokenizer, or not the one of the facts.
    """
    remedy = "Delete it and run the same command again."
    tokenizer = _parse(path, read_checked(path), remedy=remedy)
    if facts is not None and _digest(tokenizer) != facts.get("tokenizer"):
        raise LTIError(
            f"{path}: digest {_digest(tokenizer)}; expected {facts.get('tokenizer')}, the "
            f"tokenizer of these samples. Give the file of their data set."
        )
    return tokenizer


def text_facts(tokenizer: Tokenizer, *, length: int) -> dict[str, Any]:
    """Return what is said of tokenised samples under the key ``text`` of their metadata.

    Args:
        tokenizer: as the samples were tokenised with, padding included.
        length: tokens of a sample.

    Returns:
        ``length``; ``vocabulary``, the number of tokens; ``padding``, the token that fills
        short samples, None where none is short; ``special``, sorted, the tokens that stand
        for no text ([CLS], [SEP], [PAD], ..., but not an unknown word's); ``tokenizer``, a
        digest, which :func:`read_tokenizer` checks.
    """
    unknown = getattr(tokenizer.model, "unk_token", None)
    added = tokenizer.get_added_tokens_decoder()
    special = [i for i, token in added.items() if token.special and token.content != unknown]
    padding = tokenizer.padding
    return {
        "length": length,
        "vocabulary": tokenizer.get_vocab_size(),
        "padding": None if padding is None else padding["pad_id"],
        "special": sorted(special),
        "tokenizer": _digest(tokenizer),
    }


def _digest(tokenizer: Tokenizer) -> str:
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]


def parse_tokenizer(path: Path | str, *, remedy: str) -> Tokenizer:
    """Read a ``tokenizer.json``.

    Args:
        path: the file.
        remedy: the last sentence of the message that it is none.

    Raises:
        LTIError: it is missing or no tokenizer.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LTIError(f"{path}: no tokenizer can be read from it ({error}). {remedy}") from None
    return _parse(path, text, remedy=remedy)


def _parse(path: Path | str, text: str, *, remedy: str) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises nothing more special
        raise LTIError(f"{path}: no tokenizer can be read from it ({error}). {remedy}") from None
