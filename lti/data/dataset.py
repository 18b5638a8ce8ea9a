"""What a data set of images is: labelled 32x32 images in two parts that share nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from lti.errors import LTIError
from lti.registry import Registry, Settings

__all__ = ["DATASETS", "IMAGE_SHAPE", "LabelledImages", "Part", "VisionDataset"]

Part = Literal["auxiliary", "victims"]
"""``auxiliary`` is what an attacker may train on; ``victims`` is what is attacked."""

IMAGE_SHAPE = (3, 32, 32)
"""Channels, height, width of every image in the project."""


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images with their labels and where they came from.

    Attributes:
        image: uint8 (n, 3, 32, 32), RGB.
        label: int64 (n,), the class, 0 or more.
        index: int64 (n,), the position in the source's split, 0 or more.

    Raises:
        LTIError: a shape or a type is not as above, or a label or index is negative.
    """

    image: np.ndarray
    label: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        """Check shapes, types and signs."""
        n = len(self.image) if getattr(self.image, "ndim", 0) else 0
        expected = {
            "image": ((n, *IMAGE_SHAPE), np.dtype(np.uint8)),
            "label": ((n,), np.dtype(np.int64)),
            "index": ((n,), np.dtype(np.int64)),
        }
        for key, (shape, dtype) in expected.items():
            value = getattr(self, key)
            if not isinstance(value, np.ndarray):
                raise LTIError(
                    f"{key} is a {type(value).__name__}; expected a numpy array. "
                    f"Convert it with numpy.asarray."
                )
            if value.shape != shape or value.dtype != dtype:
                raise LTIError(
                    f"{key} is {value.dtype} {value.shape}; expected {dtype} {shape}. "
                    f"Convert it before building LabelledImages."
                )
            if key != "image" and n and value.min() < 0:
                raise LTIError(
                    f"{key} has the value {value.min()}; expected 0 or more. Correct the source."
                )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.label)

    def take(self, positions: np.ndarray | Sequence[int]) -> LabelledImages:
        """Return the images at integer ``positions`` (m,), in that order."""
        where = np.asarray(positions, dtype=np.int64)
        return LabelledImages(self.image[where], self.label[where], self.index[where])


class VisionDataset(Settings):
    """Base of every registered data set of images."""

    class_names: ClassVar[tuple[str, ...]] = ()
    """One name per label, in the order of the labels."""

    @property
    def num_classes(self) -> int:
        """Number of classes: labels are 0 to ``num_classes - 1``."""
        return len(self.class_names)

    @abstractmethod
    def load(self, part: Part) -> LabelledImages:
        """Return all images of one part, always the same ones in the same order.

        Raises:
            LTIError: the data cannot be found or is damaged, or ``part`` is unknown.
        """


DATASETS: Registry[VisionDataset] = Registry(
    "datasets", modules={"cifar10": "lti.data.cifar10", "photos": "lti.data.photos"}
)
"""The known data sets of images."""


def check_part(part: str) -> None:
    """Raise an :class:`LTIError` unless ``part`` is a :data:`Part`."""
    if part not in ("auxiliary", "victims"):
        raise LTIError(f"part {part!r} is unknown; expected 'auxiliary' or 'victims'. Use one.")
