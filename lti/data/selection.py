"""Reproducible selections: the auxiliary set and the victims of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lti.data.dataset import LabelledImages
from lti.errors import LTIError
from lti.files import read_arrays, write_arrays
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import torch

__all__ = [
    "Selection",
    "mix",
    "read_selection",
    "select",
    "to_float",
    "write_selection",
]

METADATA_KEYS = ("class_names", "dataset", "part", "seed", "size")

# np.ndarray or torch.Tensor: to_float gives back what it got.
ImageT = TypeVar("ImageT", "np.ndarray", "torch.Tensor")


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection as it is on disk.

    Attributes:
        images: the selected images.
        in_distribution: bool (n,), whether a sample is of the victims' distribution; only
            for auxiliary sets.
        metadata: at least ``dataset``, ``part``, ``seed``, ``size`` and ``class_names``.
    """

    images: LabelledImages
    in_distribution: np.ndarray | None
    metadata: dict[str, Any]


def select(
    images: LabelledImages,
    *,
    size: int,
    seed: int,
    classes: Sequence[int] | None = None,
    what: str,
) -> LabelledImages:
    """Return the first ``size`` of one seeded permutation of the eligible images.

    A smaller selection is therefore a prefix of every larger one of the same seed.

    Args:
        images: what to choose from.
        size: how many, 1 or more.
        seed: root seed; the stream is ``select/<what>``.
        classes: the eligible labels; all if None.
        what: names the random stream and appears in messages, such as ``"victims"``.

    Raises:
        LTIError: ``size`` is below 1 or above the number of eligible images, or a class
            has no image.
    """
    if size < 1:
        raise LTIError(f"{what}: size {size}; expected 1 or more. Ask for at least one sample.")
    if classes is None:
        eligible = np.arange(len(images))
    else:
        known = np.unique(images.label).tolist()
        for label in classes:
            if label not in known:
                raise LTIError(
                    f"{what}: class {label} has no image here; the labels are "
                    f"{', '.join(map(str, known)) or 'none'}. Use these."
                )
        eligible = np.flatnonzero(np.isin(images.label, list(classes)))
    if size > len(eligible):
        raise LTIError(
            f"{what}: size {size}, but there are {len(eligible)} eligible images. "
            f"Ask for at most {len(eligible)} or allow more classes."
        )
    order = numpy_generator(seed, "select", what).permutation(len(eligible))
    return images.take(eligible[order[:size]])


def mix(
    in_distribution: LabelledImages,
    shifted: LabelledImages,
    *,
    size: int,
    beta: float,
    seed: int,
) -> tuple[LabelledImages, np.ndarray]:
    """Return an auxiliary set of which a share ``beta`` is of the victims' distribution.

    ``round(beta * size)`` images come from ``in_distribution`` and the rest from
    ``shifted``, in an order drawn from the seed. Each part keeps the order of its own
    permutation, so the images of one part are a prefix of those of that part in every
    set of the same seed that takes more of them.

    Args:
        in_distribution: images of the victims' classes.
        shifted: images of other classes of the same split; no ``index`` in both.
        size: how many in all, 1 or more.
        beta: share of ``in_distribution``, 0 to 1.
        seed: root seed.

    Returns:
        The images, and bool (size,): True where an image is from ``in_distribution``.

    Raises:
        LTIError: ``beta`` or ``size`` is out of range, a part has too few images, or an
            index is in both parts.
    """
    if not 0 <= beta <= 1:
        raise LTIError(f"beta {beta}: expected a share from 0 to 1. Correct it.")
    if size < 1:
        raise LTIError(f"auxiliary: size {size}; expected 1 or more. Ask for at least one sample.")
    shared = np.intersect1d(in_distribution.index, shifted.index)
    if len(shared):
        raise LTIError(
            f"{len(shared)} images are both in-distribution and shifted, the first at index "
            f"{shared[0]}; expected none. Choose disjoint classes."
        )
    count = round(beta * size)
    parts = []
    for images, n, what in (
        (in_distribution, count, "in-distribution"),
        (shifted, size - count, "shifted"),
    ):
        if n > len(images):
            raise LTIError(
                f"auxiliary: size {size} at beta {beta} needs {n} {what} images, but there are "
                f"{len(images)}. Use a smaller size or another beta."
            )
        parts.append(select(images, size=n, seed=seed, what=what) if n else images.take([]))
    flag = np.arange(size) < count
    numpy_generator(seed, "select", "mix").shuffle(flag)
    # Position k takes the next image of its own part.
    rank = np.where(flag, np.cumsum(flag) - 1, count + np.cumsum(~flag) - 1)
    return (
        LabelledImages(
            np.concatenate([part.image for part in parts])[rank],
            np.concatenate([part.label for part in parts])[rank],
            np.concatenate([part.index for part in parts])[rank],
        ),
        flag,
    )


def write_selection(
    path: Path | str,
    selection: LabelledImages,
    *,
    in_distribution: np.ndarray | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write a selection to a safetensors file, atomically.

    Args:
        path: the file to write.
        selection: the images, n of them.
        in_distribution: bool (n,) for an auxiliary set, None for victims.
        metadata: at least ``dataset``, ``part``, ``seed``, ``size`` (n) and ``class_names``.

    Raises:
        LTIError: a key of the metadata is missing, ``size`` is not n, or
            ``in_distribution`` is not bool (n,).
    """
    missing = [key for key in METADATA_KEYS if key not in metadata]
    if missing:
        raise LTIError(
            f"{path}: metadata without {', '.join(missing)}; expected {', '.join(METADATA_KEYS)}. "
            f"Add what is missing."
        )
    n = len(selection)
    if metadata["size"] != n:
        raise LTIError(
            f"{path}: metadata says size {metadata['size']}, but there are {n} images. "
            f"Write the size of the selection."
        )
    arrays = {
        "image": selection.image,
        "label": selection.label,
        "index": selection.index,
    }
    if in_distribution is not None:
        flag = np.asarray(in_distribution)
        if flag.shape != (n,) or flag.dtype != np.bool_:
            raise LTIError(
                f"{path}: in_distribution is {flag.dtype} {flag.shape}; expected bool ({n},). "
                f"Give one flag per image."
            )
        arrays["in_distribution"] = flag
    write_arrays(path, arrays, metadata)


def read_selection(path: Path | str) -> Selection:
    """Read what :func:`write_selection` wrote.

    Raises:
        LTIError: the file is missing, damaged or not a selection.
    """
    arrays, metadata = read_arrays(path)
    missing = sorted({"image", "label", "index"} - set(arrays))
    missing += [key for key in METADATA_KEYS if key not in metadata]
    if missing:
        raise LTIError(
            f"{path}: not a selection of images: no {', '.join(missing)}. "
            f"Give the file of a data rule."
        )
    images = LabelledImages(arrays["image"], arrays["label"], arrays["index"])
    return Selection(images, arrays.get("in_distribution"), metadata)


def to_float(image: ImageT) -> ImageT:
    """Return uint8 images of any shape as float32 in [0, 1], as the same kind of array.

    Raises:
        LTIError: ``image`` is not uint8.
    """
    if str(image.dtype).removeprefix("torch.") != "uint8":
        raise LTIError(f"image is {image.dtype}; expected uint8. Convert images once only.")
    if isinstance(image, np.ndarray):
        return image.astype(np.float32) / np.float32(255)
    return image.float() / 255
