"""Images of a user's own in parquet files."""

from __future__ import annotations

from pydantic import Field

from lti.data.dataset import DATASETS
from lti.data.own import OwnImages
from lti.data.tables import Tables

__all__ = ["ImageTable"]


@DATASETS.register("image-table", source="tables of your own, docs/your-data.md")
class ImageTable(Tables, OwnImages):
    """Image files in a column of parquet, cropped to squares and reduced to 32 x 32 pixels.

    A cell is the content of an image file, or has it as ``bytes`` beside a ``path``, as
    ``datasets`` writes it.
    """

    image: str = Field("image", description="Column of the images.")

    @property
    def value_column(self) -> str:
        """Column of the images."""
        return self.image
