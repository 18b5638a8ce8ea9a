"""Prose about Python that comes with Python itself: ``pydoc_data.topics``, what ``help`` shows.

Nothing is downloaded. The text differs between versions of Python, so samples and numbers
do, too; everything else follows from the text. The tokenizer is trained here, on the
auxiliary part alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import platform
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from lti.data.dataset import DATASETS, Dataset, Part, check_part
from lti.data.samples import Samples
from lti.data.text import (
    TextDataset,
    as_samples,
    text_length,
    token_stream,
    unlabelled,
    windows,
)
from lti.errors import LTIError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["PythonDocs", "paragraphs", "split_topics"]

MODULE = "pydoc_data.topics"
# Of the characters of the prose. A large group of topics would be most of the victims.
VICTIMS_SHARE, GROUP_SHARE = 0.2, 0.1
# A paragraph of at least as many words in two topics makes them one group; shorter ones,
# such as "See section ... for details.", are common to topics that share nothing else.
SHARED_WORDS = 8
MIN_WORDS = 6
MIN_LETTERS = 0.8


@DATASETS.register("python-docs", source="pydoc_data.topics of Python's standard library")
class PythonDocs(TextDataset):
    """Windows of tokens of Python's own documentation, split by topic; no download.

    Paragraphs of prose (:func:`paragraphs`) of a topic are joined by line breaks and cut
    into consecutive windows; a window lies within one topic. Topics that share a paragraph
    are in the same part (:func:`split_topics`), whichever of them are chosen, and a victim
    whose tokens occur anywhere in the auxiliary part is left out. With a tokenizer that adds
    tokens to a sample ([CLS], [SEP]), a window is shorter by these, and they stand around it.

    ``index`` is the number of the window in its part, those that are left out counted. There
    is no class: the label is 0.
    """

    topics: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Topics, as `help` knows them, of which text is taken; null: all. Each is of "
        "the auxiliary part or of the victims, always the same.",
    )

    vocabulary: int = Field(
        1024, ge=257, le=65536, description="Tokens of the tokenizer, which is trained."
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="Tokens from one auxiliary window to the next; null: they follow each other. "
        "Victims do not overlap.",
    )

    class_names: ClassVar[tuple[str, ...]] = ("text",)

    def own_tokenizer(self) -> Tokenizer:
        """Train a byte-level BPE on the auxiliary part; the same text gives the same one.

        Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
        Units"; on bytes as in GPT-2.
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        with _one_thread():
            tokenizer.train_from_iterator(self._texts("auxiliary"), trainer)
        return tokenizer

    def load(self, part: Part, tokenizer: Tokenizer | None = None) -> Samples:
        """Return the windows of a part.

        Raises:
            LTIError: this Python has no ``pydoc_data.topics``, or none of these topics in
                this part, the tokenizer is another data set's and not given, or ``part`` is
                unknown.
        """
        check_part(part)
        tokenizer = self.tokenizer_or_own(tokenizer)
        length = text_length(tokenizer, length=self.length)
        stride = (self.stride or length) if part == "auxiliary" else length

        def cut(text: str, stride: int) -> np.ndarray:
            return windows(token_stream(tokenizer, [text]), length=length, stride=stride)

        value = np.concatenate([cut(text, stride) for text in self._texts(part)])
        index = np.arange(len(value))
        if part == "victims":
            known = {
                window.tobytes()
                for text in _texts()["auxiliary"].values()
                for window in cut(text, 1)
            }
            index = np.flatnonzero([window.tobytes() not in known for window in value])
        return unlabelled(as_samples(value[index], tokenizer), index)

    def _texts(self, part: Part) -> list[str]:
        """Return the prose of each chosen topic of a part.

        Raises:
            LTIError: there is no such topic, or none of them is of the part.
        """
        texts = _texts()
        if self.topics is None:
            return list(texts[part].values())
        known = sorted(name for names in texts.values() for name in names)
        for name in self.topics:
            if name not in known:
                raise LTIError(
                    f"topics: got {name!r}; expected topics of this Python's documentation: "
                    f"{', '.join(known)}. Name these."
                )
        chosen = [text for name, text in texts[part].items() if name in self.topics]
        if not chosen:
            raise LTIError(
                f"topics: got {', '.join(self.topics)}, none of which is of the part {part}; "
                f"expected one or more of {', '.join(texts[part])}. Name one of them too."
            )
        return chosen

    def shared(self, other: Dataset) -> str:
        """Return the topics that are chosen of both."""
        if not isinstance(other, PythonDocs):
            return ""
        if self.topics is None or other.topics is None:
            return "all topics"
        return ", ".join(sorted(set(self.topics) & set(other.topics)))

    def corpus(self, part: Part) -> str:
        """Return module and version of Python."""
        return f"{MODULE} of Python {platform.python_version()}"


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of prose of a topic, each on one line, in order.

    Left out are headings, signatures, grammar, tables and code: what does not end like a
    sentence, has fewer than 6 words, or of whose characters less than 0.8 are letters and
    spaces. A list's mark in front of a paragraph is removed.
    """
    found = []
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split())
        line = re.sub(r"(?<=\w)- (?=\w)", "-", line)  # a line that ends at a hyphen
        line = re.sub(r"^(?:[*•-]|\w{1,2}\.) ", "", line)
        letters = sum(character.isalpha() or character == " " for character in line)
        ends = line.endswith((".", ":", "!", "?", ")"))
        if ends and len(line.split()) >= MIN_WORDS and letters >= MIN_LETTERS * len(line):
            found.append(line)
    return found


def split_topics(topics: Mapping[str, list[str]]) -> dict[Part, list[str]]:
    """Divide topics between the parts.

    Topics that have a paragraph of 8 words or more in common, directly or through a third
    one, are a group. Groups are taken in the order of the SHA-256 of the first of their
    names, which no other topic moves; one becomes victims if it has at most 0.1 of all
    characters and the victims have at most 0.2 with it.

    Args:
        topics: the paragraphs of each topic by its name.

    Returns:
        Names, sorted, of each part.
    """
    group = {name: name for name in topics}  # the first name of its group
    owner: dict[str, str] = {}
    for name in sorted(topics):
        for paragraph in topics[name]:
            if len(paragraph.split()) < SHARED_WORDS:
                continue
            pair = {group[name], group[owner.setdefault(paragraph, name)]}
            if len(pair) == 2:
                group = {key: min(pair) if first in pair else first for key, first in group.items()}
    members: dict[str, list[str]] = {}
    for name in sorted(topics):
        members.setdefault(group[name], []).append(name)
    size = {
        first: sum(map(len, {line for name in names for line in topics[name]}))
        for first, names in members.items()
    }
    total, victims, taken = sum(size.values()), set(), 0
    for first in sorted(members, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if size[first] <= GROUP_SHARE * total and taken + size[first] <= VICTIMS_SHARE * total:
            victims.update(members[first])
            taken += size[first]
    return {"auxiliary": sorted(set(topics) - victims), "victims": sorted(victims)}


def _texts() -> dict[Part, dict[str, str]]:
    """Return the prose of each topic of each part, by name; a paragraph is once in a part."""
    try:
        source = importlib.import_module(MODULE).topics
    except ModuleNotFoundError:
        raise LTIError(
            f"python-docs: this Python ({platform.python_version()}) has no module {MODULE}; "
            f"expected it in the standard library. Use another build of Python: some leave the "
            f"help texts out."
        ) from None
    topics = {name: paragraphs(text) for name, text in source.items()}
    texts: dict[Part, dict[str, str]] = {}
    for part, names in split_topics(topics).items():
        seen: set[str] = set()
        texts[part] = {}
        for name in names:
            fresh = [line for line in dict.fromkeys(topics[name]) if line not in seen]
            seen.update(fresh)
            texts[part][name] = "\n".join(fresh)
    return texts


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep ``tokenizers`` from counting on several threads, whose order is chance."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
