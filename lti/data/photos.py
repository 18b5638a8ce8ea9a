"""Ten colour photographs that come with scikit-image and scikit-learn, cut into patches.

Nothing is downloaded. A patch of scale ``s`` is a square of ``32 * s`` pixels of the
photograph, reduced to 32x32 by averaging ``s`` x ``s`` blocks: every pixel that is read
lies inside the patch's own rectangle, so two patches with disjoint rectangles share
nothing. Victims come from rectangles that no auxiliary patch of any scale touches.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from lti.data.dataset import DATASETS, Dataset, Part, check_part
from lti.data.samples import Samples
from lti.errors import LTIError

__all__ = ["PHOTOGRAPHS", "Photograph", "Photos", "patch_rectangles"]

SIDE = 32
SCALES = (1, 2, 3, 4, 5, 6, 7, 8)
VICTIM_SCALES = (
    2,
    3,
    4,
    5,
    6,
    7,
    8,
)  # at scale 1 there is texture, hardly ever a thing
# Pixels from one patch to the next, before the photograph's unit: few small patches and
# many large ones, because it is the large ones that show things.
STRIDES = {1: 24, 2: 24}
STRIDE = 16
# Least standard deviation of a patch's grey values, of 255. Without one, plain sky and
# night would be a third of some photographs; victims are meant to be looked at.
CONTRAST = {"auxiliary": 8.0, "victims": 16.0}

Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Photograph:
    """One source photograph; a rectangle is (top, left, height, width) in its own pixels.

    Attributes:
        name: the class name.
        package: the installed package whose folder holds the file.
        file: path inside that folder.
        size: height and width in pixels, checked because the rectangles depend on it.
        unit: factor on every scale and stride: larger for photographs with more pixels
            than detail.
        victims: the rectangles reserved for victims.
    """

    name: str
    package: str
    file: str
    size: tuple[int, int]
    unit: int
    victims: tuple[Rectangle, ...]


# Public domain or CC0 except china (Daniel Buechele) and flower (vultilion), CC BY 2.0.
PHOTOGRAPHS: tuple[Photograph, ...] = (
    # the face; the badge on the suit
    Photograph(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        (512, 512),
        1,
        ((4, 104, 208, 208), (330, 120, 96, 96)),
    ),
    # the left eye, without most of the other one
    Photograph("chelsea", "skimage", "data/chelsea.png", (300, 451), 1, ((40, 96, 160, 160),)),
    # the cup
    Photograph("coffee", "skimage", "data/coffee.png", (400, 600), 1, ((0, 168, 240, 240),)),
    # the upper half of the rocket
    Photograph("rocket", "skimage", "data/rocket.jpg", (427, 640), 1, ((112, 208, 224, 224),)),
    # the front wheel
    Photograph(
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        (500, 741),
        1,
        ((250, 500, 224, 224),),
    ),
    Photograph(
        "hubble",
        "skimage",
        "data/hubble_deep_field.jpg",
        (872, 1000),
        2,
        ((360, 560, 320, 320),),
    ),
    # the gland in the lower half
    Photograph("tissue", "skimage", "data/ihc.png", (512, 512), 1, ((288, 224, 192, 192),)),
    # the optic disc and its vessels
    Photograph("retina", "skimage", "data/retina.jpg", (1411, 1411), 3, ((370, 40, 576, 576),)),
    # the upper storeys of the pagoda
    Photograph(
        "china",
        "sklearn",
        "datasets/images/china.jpg",
        (427, 640),
        1,
        ((24, 104, 192, 192),),
    ),
    # the flower without its rim
    Photograph(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        (427, 640),
        1,
        ((82, 196, 208, 208),),
    ),
)


def _windows(within: Rectangle, side: int, stride: int) -> Iterator[tuple[int, int]]:
    top, left, height, width = within
    for y in range(top, top + height - side + 1, stride):
        for x in range(left, left + width - side + 1, stride):
            yield y, x


def _overlaps(y: int, x: int, side: int, other: Rectangle) -> bool:
    top, left, height, width = other
    return y < top + height and top < y + side and x < left + width and left < x + side


def patch_rectangles(part: Part) -> np.ndarray:
    """Return where every candidate patch of a part lies: int64 (n, 5).

    The columns are the photograph (its place in :data:`PHOTOGRAPHS`), top, left, height
    and width in the photograph's own pixels. Row ``i`` is the patch whose ``index`` is
    ``i``; :meth:`Photos.load` leaves out the rows with too little contrast.

    Raises:
        LTIError: ``part`` is unknown.
    """
    check_part(part)
    rows = []
    for number, photo in enumerate(PHOTOGRAPHS):
        whole = ((0, 0, *photo.size),)
        areas = photo.victims if part == "victims" else whole
        forbidden = () if part == "victims" else photo.victims
        for scale in VICTIM_SCALES if part == "victims" else SCALES:
            side = SIDE * scale * photo.unit
            stride = STRIDES.get(scale, STRIDE) * photo.unit
            for area in areas:
                for y, x in _windows(area, side, stride):
                    if not any(_overlaps(y, x, side, other) for other in forbidden):
                        rows.append((number, y, x, side, side))
    return np.array(rows, dtype=np.int64)


def _read(photo: Photograph) -> np.ndarray:
    """Return a photograph as uint8 (height, width, 3)."""
    from PIL import Image

    # find_spec does not import the package: only its folder is needed.
    spec = importlib.util.find_spec(photo.package)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    path = Path(folders[0] if folders else photo.package) / photo.file
    remedy = f"Reinstall {photo.package}: its wheel ships this file."
    try:
        with Image.open(path) as file:
            pixels = np.asarray(file.convert("RGB"))
    except OSError as error:
        raise LTIError(f"photograph {path}: cannot be read ({error}). {remedy}") from None
    if pixels.shape[:2] != photo.size:
        raise LTIError(
            f"photograph {path}: got {pixels.shape[:2]} pixels, expected {photo.size}. {remedy}"
        )
    return pixels


def _block_means(sums: np.ndarray, factor: int) -> np.ndarray:
    """Return the rounded mean of the ``factor`` x ``factor`` block that starts at each pixel.

    Args:
        sums: int32 (height + 1, width + 1, 3), sums of all pixels above and to the left.
        factor: side of a block in pixels.
    """
    f = factor
    total = sums[f:, f:] - sums[:-f, f:] - sums[f:, :-f] + sums[:-f, :-f]
    return ((total + f * f // 2) // (f * f)).astype(np.uint8)


@DATASETS.register("photos", source="photographs in the wheels of scikit-image and scikit-learn")
class Photos(Dataset):
    """32x32 patches of ten photographs at eight scales; the label is the photograph."""

    class_names: ClassVar[tuple[str, ...]] = tuple(photo.name for photo in PHOTOGRAPHS)

    def load(self, part: Part) -> Samples:
        """Return the patches of a part that have enough contrast.

        ``index`` is the row of :func:`patch_rectangles`.

        Raises:
            LTIError: ``part`` is unknown, or a photograph is missing or of another size.
        """
        rectangles = patch_rectangles(part)
        patch = np.empty((len(rectangles), SIDE, SIDE, 3), dtype=np.uint8)
        for number, photo in enumerate(PHOTOGRAPHS):
            mine = rectangles[:, 0] == number
            pixels = _read(photo)
            # 1411 * 1411 * 255 fits into 31 bits.
            sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1, 3), dtype=np.int32)
            sums[1:, 1:] = pixels.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
            for side in np.unique(rectangles[mine, 3]):
                factor = int(side) // SIDE
                means = _block_means(sums, factor)
                for row in np.flatnonzero(mine & (rectangles[:, 3] == side)):
                    y, x = rectangles[row, 1], rectangles[row, 2]
                    patch[row] = means[y : y + side : factor, x : x + side : factor]
        # float64 of a mean of integers: the same decision on every machine.
        contrast = patch.mean(axis=3).reshape(len(patch), -1).std(axis=1)
        kept = np.flatnonzero(contrast >= CONTRAST[part])
        image = np.ascontiguousarray(patch[kept].transpose(0, 3, 1, 2))
        return Samples(image, rectangles[kept, 0].copy(), kept.astype(np.int64))
