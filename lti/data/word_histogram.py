"""Sentences of independent tokens: real text's frequencies, and no grammar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lti.data.dataset import DATASETS
from lti.data.samples import Modality
from lti.data.synthetic import SyntheticDataset

__all__ = ["WordHistogram"]


@DATASETS.register("word-histogram", source="Wu et al. 2023, supplement: out-of-distribution data")
class WordHistogram(SyntheticDataset):
    """Draw every token independently, as often as it occurs in what is imitated.

    Special tokens stay where they are in a sentence that is drawn with its length: [CLS], [SEP],
    padding.
    """

    modality: ClassVar[Modality] = "text"

    def draw(
        self,
        value: np.ndarray,
        count: int,
        generator: np.random.Generator,
        facts: Mapping[str, Any],
    ) -> np.ndarray:
        """Return int32 tokens ``(count, length)`` (see :class:`SyntheticDataset`)."""
        is_word = ~np.isin(value, facts.get("special", []))
        words = value[is_word]
        row = generator.integers(len(value), size=count)
        result = value[row]
        place = is_word[row]
        result[place] = generator.choice(words, size=int(place.sum()))
        return result
