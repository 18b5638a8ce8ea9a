"""CoLA: English sentences that linguists judged acceptable or not.

Source: Warstadt, Singh and Bowman, "Neural Network Acceptability Judgments", 2019; a task of
GLUE (Wang et al. 2019), whose labels of the test split are not public. Many validation
sentences differ from a training sentence in a word or two: see
:mod:`lti.data.near_copies`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from lti.data.dataset import DATASETS, Part, check_part
from lti.data.hub import MIRROR_VARIABLE, Home, from_environment, read_hub, read_mirror
from lti.data.samples import Samples
from lti.data.text import TextDataset, sentence_windows, sentences
from lti.data.tokenizer import pad_and_cut, pretrained_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

__all__ = ["Cola"]

SPLITS = {"auxiliary": "train", "victims": "validation"}
COUNTS = {"train": 8_551, "validation": 1_043}
HOME = Home(
    name="cola",
    repository="nyu-mll/glue",
    config="cola",
    folder="glue-cola",
    rows=COUNTS,
    ways=(
        "a mirror folder with glue-cola/train-*.parquet and glue-cola/validation-*.parquet, in "
        "the setting 'mirror' or the environment variable LTI_DATA_MIRROR",
    ),
    embedded="python-docs",
)
TOKENIZER = Home(
    name="cola",
    repository="google-bert/bert-base-uncased",
    config=None,
    folder="tokenizers/bert-base-uncased",
    rows={},
    ways=(
        "a mirror folder with tokenizers/bert-base-uncased/tokenizer.json, in the setting "
        "'mirror' or the environment variable LTI_DATA_MIRROR",
    ),
    embedded="python-docs",
)
VOCABULARY = 30_522
PADDING = "[PAD]"


@DATASETS.register("cola", source="Warstadt et al. 2019, Neural Network Acceptability Judgments")
class Cola(TextDataset):
    """CoLA: the train split is the auxiliary part, the validation split the victims.

    A sample is [CLS], the sentence, [SEP], then [PAD] up to ``length`` tokens of
    bert-base-uncased; a longer sentence is cut and keeps its [SEP], as BERT does it. The
    label is the judgment, ``index`` the row of the split. With another tokenizer that does
    not pad (GPT-2's), the sentences, each from a space on, follow each other and are cut into
    windows; then the label is 0 and ``index`` the number of the window.

    From ``mirror``, else from the folder that ``LTI_DATA_MIRROR`` names, else from the
    Hugging Face hub or its local cache.
    """

    mirror: Path | None = Field(
        None,
        description="Folder with `glue-cola/train-*.parquet`, `glue-cola/validation-*.parquet` "
        "and `tokenizers/bert-base-uncased/tokenizer.json`.",
    )

    class_names: ClassVar[tuple[str, ...]] = ("unacceptable", "acceptable")

    def own_tokenizer(self) -> Tokenizer:
        """Return that of bert-base-uncased, which pads and cuts to ``length``."""
        tokenizer = pretrained_tokenizer(TOKENIZER, mirror=self._mirror(), vocabulary=VOCABULARY)
        return pad_and_cut(tokenizer, length=self.length, padding=PADDING)

    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return the sentences of a split, in its order.

        Raises:
            LTIError: no source can be reached, or one is incomplete or damaged, or the
                tokenizer is another data set's and not given, or pads or cuts to another
                length.
        """
        check_part(part)
        tokenizer = self.tokenizer_or_own(tokenizer)
        mirror, split = self._mirror(), SPLITS[part]
        if mirror is None:
            rows = [read_hub(HOME, split, _decode)]
        else:
            rows = read_mirror(mirror, HOME, split, _decode)
        texts = [text for some, _ in rows for text in some]
        if self.tokenizer is not None and tokenizer.padding is None:
            return sentence_windows(texts, tokenizer, length=self.length)
        label = np.array([label for _, labels in rows for label in labels], dtype=np.int64)
        return sentences(texts, label, tokenizer, length=self.length, where=self.name)

    def corpus(self, part: Part) -> str:
        """Return the split."""
        return f"CoLA, {SPLITS[part]} split"

    def _mirror(self) -> Path | None:
        return self.mirror or from_environment(MIRROR_VARIABLE)


def _decode(batches: Iterator[pa.Table], count: int) -> tuple[list[str], list[int]]:
    """Return the ``count`` sentences and labels of rows ``sentence``, ``label``."""
    texts: list[str] = []
    labels: list[int] = []
    for batch in batches:
        texts += batch.column("sentence").to_pylist()
        labels += batch.column("label").to_pylist()
    for row, (sentence, label) in enumerate(zip(texts, labels, strict=True)):
        if not isinstance(sentence, str) or label not in (0, 1):
            raise ValueError(f"row {row} is {sentence!r} with label {label!r}")
    return texts, labels
