"""Sentences of a user's own in parquet or CSV files."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from lti.data.dataset import DATASETS
from lti.data.own import OwnText
from lti.data.tables import Tables

__all__ = ["TextTable"]


@DATASETS.register("text-table", source="tables of your own, docs/your-data.md")
class TextTable(Tables, OwnText):
    """Sentences in a column of parquet or CSV, padded and cut to ``length`` tokens."""

    text: str = Field("text", description="Column of the sentences.")

    suffixes: ClassVar[tuple[str, ...]] = (".parquet", ".csv")

    @property
    def value_column(self) -> str:
        """Column of the sentences."""
        return self.text
