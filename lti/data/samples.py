"""Labelled samples, images or token sequences, as every stage passes them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from lti.errors import LTIError
from lti.files import digest_arrays

if TYPE_CHECKING:
    import torch

__all__ = ["IMAGE_SHAPE", "KEYS", "Modality", "Samples", "as_input", "to_float"]

Modality = Literal["image", "text"]

IMAGE_SHAPE = (3, 32, 32)
"""Channels, height, width of every image in the project."""

KEYS: dict[Modality, str] = {"image": "image", "text": "token"}
"""What the values are called in files."""

_DTYPES = {"image": np.dtype(np.uint8), "text": np.dtype(np.int32)}

# np.ndarray or torch.Tensor: the conversions give back what they got.
ArrayT = TypeVar("ArrayT", "np.ndarray", "torch.Tensor")


@dataclass(frozen=True, eq=False)
class Samples:
    """Samples with their labels and where they came from.

    Attributes:
        value: images, uint8 (n, 3, 32, 32), RGB; or tokens, int32 (n, length), 0 or more.
        label: int64 (n,), the class, 0 or more.
        index: int64 (n,), the position in the source's split, 0 or more.

    Raises:
        LTIError: a shape or a type is not as above, or a token, label or index is negative.
    """

    value: np.ndarray
    label: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        """Check shapes, types and signs."""
        for name in ("value", "label", "index"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray):
                raise LTIError(
                    f"{name} is a {type(array).__name__}; expected a numpy array. "
                    f"Convert it with numpy.asarray."
                )
        n = len(self.value) if self.value.ndim else 0
        is_image = (self.value.shape, self.value.dtype) == ((n, *IMAGE_SHAPE), _DTYPES["image"])
        is_text = self.value.ndim == 2 and self.value.dtype == _DTYPES["text"]
        if not (is_image or (is_text and self.value.shape[1])):
            raise LTIError(
                f"value is {self.value.dtype} {self.value.shape}; expected images, uint8 "
                f"{(n, *IMAGE_SHAPE)}, or tokens, int32 (n, length). Convert it before building "
                f"Samples."
            )
        for name in ("label", "index"):
            array = getattr(self, name)
            if array.shape != (n,) or array.dtype != np.int64:
                raise LTIError(
                    f"{name} is {array.dtype} {array.shape}; expected int64 ({n},). "
                    f"Convert it before building Samples."
                )
        for name in ("value", "label", "index"):
            array = getattr(self, name)
            if n and array.min() < 0:
                raise LTIError(
                    f"{name} has the value {array.min()}; expected 0 or more. Correct the source."
                )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.label)

    @property
    def modality(self) -> Modality:
        """What the values are."""
        return "image" if self.value.dtype == _DTYPES["image"] else "text"

    @property
    def key(self) -> str:
        """What the values are called in files: ``image`` or ``token``."""
        return KEYS[self.modality]

    @property
    def digest(self) -> str:
        """16 hex digits over values and labels: what gradients are computed from."""
        return digest_arrays({self.key: self.value, "label": self.label})

    def take(self, positions: np.ndarray | Sequence[int]) -> Samples:
        """Return the samples at integer ``positions`` (m,), in that order."""
        where = np.asarray(positions, dtype=np.int64)
        return Samples(self.value[where], self.label[where], self.index[where])


def to_float(image: ArrayT) -> ArrayT:
    """Return uint8 images of any shape as float32 in [0, 1], as the same kind of array.

    Raises:
        LTIError: ``image`` is not uint8.
    """
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise LTIError(f"image is {image.dtype}; expected uint8. Convert images once only.")
    if isinstance(image, np.ndarray):
        return image.astype(np.float32) / np.float32(255)
    return image.float() / 255


def as_input(value: torch.Tensor) -> torch.Tensor:
    """Return samples' values as an FL model takes them.

    uint8 images become float32 in [0, 1], int32 tokens int64.
    """
    return to_float(value) if not value.dtype.is_signed else value.long()
