"""Images of a user's choice from the Hugging Face hub."""

from __future__ import annotations

from pydantic import Field

from lti.data.dataset import DATASETS
from lti.data.own import OwnImages
from lti.data.tables import HubSplits

__all__ = ["ImageHub"]


@DATASETS.register("image-hub", source="the Hugging Face hub, docs/your-data.md")
class ImageHub(HubSplits, OwnImages):
    """Images of the Hugging Face hub, cropped to squares and reduced to 32 x 32 pixels."""

    image: str = Field("image", description="Column of the images.")

    @property
    def value_column(self) -> str:
        """Column of the images."""
        return self.image
