"""WikiText: articles of the English Wikipedia, rare words replaced by ``<unk>``.

Source: Merity et al., "Pointer Sentinel Mixture Models", 2016. The validation and test splits
of WikiText-2 and WikiText-103 are the same articles; WikiText-2, with its smaller vocabulary, has
more words replaced, so that windows of one are not windows of the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from lti.data.dataset import DATASETS, Part, check_part
from lti.data.further import further_windows
from lti.data.hub import MIRROR_VARIABLE, Home, from_environment, read_hub, read_mirror
from lti.data.samples import Samples
from lti.data.text import (
    TextDataset,
    as_samples,
    text_length,
    token_stream,
    unlabelled,
    windows,
)
from lti.data.tokenizer import pretrained_tokenizer
from lti.errors import LTIError
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

__all__ = ["WikiText"]

REPOSITORY = "Salesforce/wikitext"
WAYS = (
    "a mirror folder with wikitext-2/test-*.parquet and wikitext-2/validation-*.parquet, in the "
    "setting 'mirror' or the environment variable LTI_DATA_MIRROR (the auxiliary part is then "
    "the test split of WikiText-2)",
)
HUB = Home(
    name="wikitext",
    repository=REPOSITORY,
    config="wikitext-103-v1",
    folder="wikitext-103",
    rows={"train": 1_801_350, "validation": 3_760},
    ways=WAYS,
    embedded="python-docs",
)
MIRROR = Home(
    name="wikitext",
    repository=REPOSITORY,
    config="wikitext-2-v1",
    folder="wikitext-2",
    rows={"test": 4_358, "validation": 3_760},
    ways=WAYS,
    embedded="python-docs",
)
TOKENIZER = Home(
    name="wikitext",
    repository="openai-community/gpt2",
    config=None,
    folder="tokenizers/gpt2",
    rows={},
    ways=(
        "a mirror folder with tokenizers/gpt2/tokenizer.json, in the setting 'mirror' or the "
        "environment variable LTI_DATA_MIRROR",
    ),
    embedded="python-docs",
)
VOCABULARY = 50_257


@DATASETS.register("wikitext", source="Merity et al. 2016, Pointer Sentinel Mixture Models")
class WikiText(TextDataset):
    """Windows of tokens of WikiText, GPT-2's if no others; victims are the validation split.

    The auxiliary part is a random share of the windows of WikiText-103's train split from
    the Hugging Face hub or its local cache; where ``mirror`` is set or ``LTI_DATA_MIRROR``
    names a folder, it is all windows of the test split of WikiText-2 from there.

    The rows of a split, tokenised one by one as they are (``<unk>`` is three tokens), follow
    each other in their order. Nothing is left out: headings are text like any other, empty
    rows have no tokens. Windows go on from row to row and from article to article; the
    tokens at the end that fill none are dropped. With a tokenizer that adds tokens to a sample
    ([CLS], [SEP]), a window is shorter by these, and they stand around it.

    ``index`` is the number of a window among all of its split: its first token is ``index``
    times the stride. Windows of ``also`` that begin elsewhere have the numbers after the
    last. There is no class: the label is 0.
    """

    mirror: Path | None = Field(
        None,
        description="Folder with `wikitext-2/test-*.parquet`, `wikitext-2/validation-*.parquet` "
        "and `tokenizers/gpt2/tokenizer.json`.",
    )
    share: float = Field(
        0.1, gt=0, le=1, description="Of the windows of WikiText-103's train split, drawn."
    )
    seed: int = Field(0, description="Root seed of that draw.")
    stride: int | None = Field(
        None,
        ge=1,
        description="Tokens from one auxiliary window to the next; null: they follow each other. "
        "Victims do not overlap.",
    )

    also: tuple[str, ...] = Field(
        (),
        description="Texts that victims are windows of too, wherever they begin: as they stand in "
        "the split, a window's tokens each.",
    )

    class_names: ClassVar[tuple[str, ...]] = ("text",)

    def own_tokenizer(self) -> Tokenizer:
        """Return that of GPT-2; windows need no padding."""
        return pretrained_tokenizer(TOKENIZER, mirror=self._mirror(), vocabulary=VOCABULARY)

    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return the windows of a part, in the order of the text.

        Each window of the train split is drawn or not for itself, so that a smaller share
        is contained in a larger one of the same seed.

        Raises:
            LTIError: no source can be reached, or one is incomplete or damaged, the
                tokenizer is another data set's and not given or, without that setting, has
                another vocabulary than GPT-2's, or ``also`` is not in the victims' split.
        """
        check_part(part)
        tokenizer = self.tokenizer_or_own(tokenizer)
        if self.tokenizer is None and tokenizer.get_vocab_size() != VOCABULARY:
            raise LTIError(
                f"wikitext: a tokenizer of {tokenizer.get_vocab_size()} tokens; expected GPT-2's "
                f"{VOCABULARY}. Give the file of `lti prepare-tokenizer` for this data set."
            )
        length = text_length(tokenizer, length=self.length)

        def decode(batches: Iterator[pa.Table], count: int) -> np.ndarray:
            return np.concatenate([token_stream(tokenizer, _rows(batch)) for batch in batches])

        mirror = self._mirror()
        home, split = self._source(part)
        if mirror is None:
            tokens = read_hub(home, split, decode)
        else:
            tokens = np.concatenate(read_mirror(mirror, home, split, decode))
        stride = (self.stride or length) if part == "auxiliary" else length
        value = windows(tokens, length=length, stride=stride)
        if part == "victims" and self.also:
            further = further_windows(tokens, self.also, tokenizer, length=length)
            value = np.concatenate([value, further])
        index = np.arange(len(value))
        if split == "train":
            drawn = numpy_generator(self.seed, "wikitext", "share").random(len(value))
            index = np.flatnonzero(drawn < self.share)
        return unlabelled(as_samples(value[index], tokenizer), index)

    def corpus(self, part: Part) -> str:
        """Return the split, and how much of it."""
        home, split = self._source(part)
        name = "WikiText-2" if home is MIRROR else "WikiText-103"
        share = f", {self.share:g} of the windows" if split == "train" else ""
        return f"{name}, {split} split{share}"

    def _source(self, part: Part) -> tuple[Home, str]:
        home = HUB if self._mirror() is None else MIRROR
        return home, "validation" if part == "victims" else next(iter(home.rows))

    def _mirror(self) -> Path | None:
        return self.mirror or from_environment(MIRROR_VARIABLE)


def _rows(batch: pa.Table) -> list[str]:
    rows: list[str] = batch.column("text").to_pylist()
    for row in rows:
        if not isinstance(row, str):
            raise ValueError(f"a row is {row!r}, expected text")
    return rows
