"""What a user brings: images or sentences with labels, in one source or in two."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator

from lti.data.dataset import Dataset, Part, check_part
from lti.data.division import name_classes, number_labels, split, without_victims
from lti.data.hub import Home, fetch_file
from lti.data.pixels import read_pixels
from lti.data.rows import Rows, files_digest
from lti.data.samples import IMAGE_SHAPE, Samples
from lti.data.text import TextDataset, sentence_windows, sentences
from lti.data.tokenizer import FILE, pad_and_cut, parse_tokenizer
from lti.errors import LTIError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["OwnData", "OwnImages", "OwnText"]

PADDINGS = ("[PAD]", "<pad>", "<|pad|>")
"""What tokenizers call the token that fills short samples."""


class OwnData(Dataset):
    """Base of data sets of a user's own samples.

    The victims are rows of a source of their own or, where the settings name none, a share of
    each class of the only one. Auxiliary samples that equal a victim are dropped.
    """

    victims_share: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Share of each class that the victims are, where they have no source of "
        "their own. At least one sample of a class is of each part.",
    )
    split_seed: int = Field(0, description="Root seed of that split.")

    @abstractmethod
    def own_rows(self, part: Part) -> Rows | None:
        """Return the source of a part; None of victims that are a share of the only one.

        Raises:
            LTIError: it is not there.
        """

    @abstractmethod
    def places(self) -> set[str]:
        """Return what the settings say of where samples are, without a look at it."""

    def named_classes(self) -> tuple[str, ...] | None:
        """Return the names of the classes, where settings say them."""
        return None

    def read_class_names(self) -> tuple[str, ...]:
        """Return the names of the settings, of the auxiliary source, or of its labels.

        Raises:
            LTIError: the source cannot be read, or its labels are of several kinds.
        """
        return self._labels(self.rows_of("auxiliary"), None)[1]

    def rows_of(self, part: Part) -> Rows:
        """Return the source that samples of a part are of."""
        rows = self.own_rows(part)
        return rows if rows is not None else self.rows_of("auxiliary")

    def _labels(
        self, rows: Rows, names: tuple[str, ...] | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return numbers of classes, int64 (n,), and their names, which are found if None."""
        labels, stated = rows.labels()
        if not labels:
            raise LTIError(f"{rows.where}: no samples; expected some. Name another source.")
        if names is None:
            names = name_classes(labels, self.named_classes() or stated, where=rows.where)
        return number_labels(labels, names, where=rows.where), names

    def chosen(self, part: Part) -> tuple[Rows, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Return a part's source, its rows, their labels, and the names of the classes.

        Raises:
            LTIError: a source cannot be read, labels are wrong, or a class cannot be split.
        """
        check_part(part)
        auxiliary = self.rows_of("auxiliary")
        label, names = self._labels(auxiliary, None)
        victims = self.own_rows("victims")
        if victims is None:
            both = split(
                label, names, share=self.victims_share, seed=self.split_seed, where=auxiliary.where
            )
            chosen = both[0 if part == "auxiliary" else 1]
            return auxiliary, chosen, label[chosen], names
        if part == "auxiliary":
            return auxiliary, np.arange(len(label)), label, names
        label, _ = self._labels(victims, names)
        return victims, np.arange(len(label)), label, names

    def corpus(self, part: Part) -> str:
        """Return where a part is read from, with a digest of its files' names, sizes and times.

        An auxiliary sample is left out if it is a victim, and victims have the auxiliary
        source's classes, so that both parts depend on both sources.
        """
        sources = (self.own_rows("auxiliary"), self.own_rows("victims"))
        return ", ".join(f"{rows.where} {rows.content()}" for rows in sources if rows is not None)

    def shared(self, other: Dataset) -> str:
        """Return a place that both are read from."""
        if isinstance(other, OwnData) and (both := self.places() & other.places()):
            return f"samples of {min(both)}"
        return super().shared(other)


class OwnImages(OwnData):
    """Base of data sets of a user's own images."""

    def load(self, part: Part) -> Samples:
        """Return the images of a part; ``index`` is the row of its source.

        Raises:
            LTIError: a source cannot be read, labels are wrong, images are damaged, a class
                cannot be split, or all auxiliary images of a class are victims.
        """
        samples, names, where = self._images(part)
        if part == "victims":
            return samples
        return without_victims(samples, self._images("victims")[0], names, where=where)

    def _images(self, part: Part) -> tuple[Samples, tuple[str, ...], str]:
        source, rows, label, names = self.chosen(part)
        image = np.empty((len(rows), *IMAGE_SHAPE), dtype=np.uint8)

        def use(number: int, cell: Any) -> None:
            image[number] = read_pixels(_file_of(cell))

        source.visit(rows, use)
        return Samples(image, label, rows), names, source.where


class OwnText(OwnData, TextDataset):
    """Base of data sets of a user's own sentences.

    A sample is a sentence with what its tokenizer adds, padded and cut to ``length`` tokens.
    With a tokenizer that has no token for padding, the sentences of a part, each from a space
    on, follow each other and are cut into windows; then the label is 0.
    """

    tokenizer_file: Path | None = Field(
        None, description="A `tokenizer.json`, whose padding and cutting are set to `length`."
    )
    tokenizer_repository: str | None = Field(
        None,
        description="A repository of the Hugging Face hub that has a `tokenizer.json`. One of "
        "`tokenizer`, `tokenizer_file` and this is needed.",
    )

    @model_validator(mode="after")
    def _one_tokenizer(self) -> OwnText:
        given = [self.tokenizer, self.tokenizer_file, self.tokenizer_repository]
        if sum(value is not None for value in given) != 1:
            raise ValueError(
                "expected one of tokenizer, tokenizer_file and tokenizer_repository, and no more"
            )
        return self

    def own_tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the settings, which pads and cuts to ``length`` if it can."""
        path = self.tokenizer_file
        if path is None:
            home = Home(
                name=self.name,
                repository=str(self.tokenizer_repository),
                config=None,
                folder="",
                rows={},
                ways=("a local file, in the setting 'tokenizer_file'",),
                embedded="python-docs",
            )
            path = fetch_file(home, FILE)
        tokenizer = parse_tokenizer(path, remedy=f"Give the path of a {FILE}.")
        known = [token for token in PADDINGS if tokenizer.token_to_id(token) is not None]
        return pad_and_cut(tokenizer, length=self.length, padding=known[0] if known else None)

    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return the sentences of a part; ``index`` is the row of its source.

        Raises:
            LTIError: as for images, a sentence is no text or blank, or the tokenizer is
                another data set's and not given, or pads or cuts to another length.
        """
        tokenizer = self.tokenizer_or_own(tokenizer)
        samples, names, where = self._sentences(part, tokenizer)
        if part == "victims":
            return samples
        victims = self._sentences("victims", tokenizer)[0]
        return without_victims(samples, victims, names, where=where)

    def corpus(self, part: Part) -> str:
        """Return the sources as for images, and the file of the tokenizer."""
        path = self.tokenizer_file
        told = "" if path is None else f", {path} {files_digest([(path.name, path)])}"
        return super().corpus(part) + told

    def read(self, part: Part, tokenizer_file: Path) -> tuple[Samples, dict[str, Any]]:
        """Return the samples of a part and facts; ``corpus`` is where they are from.

        It has no times of files: equal samples have equal cards.
        """
        samples, facts = super().read(part, tokenizer_file)
        return samples, {**facts, "corpus": self.rows_of(part).where}

    def _sentences(self, part: Part, tokenizer: Tokenizer) -> tuple[Samples, tuple[str, ...], str]:
        source, rows, label, names = self.chosen(part)
        texts: list[str] = []

        def use(_: int, cell: Any) -> None:
            if not isinstance(cell, str) or not cell.strip():
                raise ValueError(f"{cell!r}, expected text")
            texts.append(cell)

        source.visit(rows, use)
        if tokenizer.padding is None:
            samples = sentence_windows(texts, tokenizer, length=self.length)
            return samples, names, source.where
        made = sentences(texts, label, tokenizer, length=self.length, where=source.where)
        return Samples(made.value, label, rows), names, source.where


def _file_of(cell: Any) -> Path | bytes:
    """Return what an image is decoded from."""
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(content, bytes | Path):
        raise ValueError(f"{type(content).__name__}, expected the bytes of an image file")
    return content
