"""Sentences of a user's choice from the Hugging Face hub."""

from __future__ import annotations

from pydantic import Field

from lti.data.dataset import DATASETS
from lti.data.own import OwnText
from lti.data.tables import HubSplits

__all__ = ["TextHub"]


@DATASETS.register("text-hub", source="the Hugging Face hub, docs/your-data.md")
class TextHub(HubSplits, OwnText):
    """Sentences of the Hugging Face hub, padded and cut to ``length`` tokens."""

    text: str = Field("text", description="Column of the sentences.")

    @property
    def value_column(self) -> str:
        """Column of the sentences."""
        return self.text
