"""CIFAR-10 from its public home, from a mirror folder or from torchvision's folder.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. About
3 % of its test images have a near-duplicate among the training images (Barz & Denzler,
"Do We Train on Test Data?", 2020), so a victim can have a near-duplicate in a large
auxiliary set.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from lti.data.cifar10_batches import read_batches
from lti.data.dataset import DATASETS, Dataset, Part, check_part
from lti.data.hub import MIRROR_VARIABLE, Home, from_environment, read_hub, read_mirror
from lti.data.samples import IMAGE_SHAPE, Samples

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Cifar10"]

SPLITS = {"auxiliary": "train", "victims": "test"}
COUNTS = {"train": 50_000, "test": 10_000}
HOME = Home(
    name="cifar10",
    repository="uoft-cs/cifar10",
    config=None,
    folder="cifar10",
    rows=COUNTS,
    ways=(
        "a mirror folder with cifar10/train-*.parquet and cifar10/test-*.parquet, in the setting "
        "'mirror' or the environment variable LTI_DATA_MIRROR",
        "an existing torchvision folder, in the setting 'torchvision_root' or the environment "
        "variable LTI_TORCHVISION_ROOT",
    ),
    embedded="photos",
)


@DATASETS.register("cifar10", source="Krizhevsky 2009, Learning Multiple Layers of Features")
class Cifar10(Dataset):
    """CIFAR-10: the train split is the auxiliary part, the test split the victims.

    The first of these that is set is used, and no other one is tried after it:
    ``mirror``, ``torchvision_root``, the environment variables ``LTI_DATA_MIRROR`` and
    ``LTI_TORCHVISION_ROOT``; if none is, the Hugging Face hub or its local cache.

    The images come in an order that depends on their content alone, because the sources
    keep them in different orders: the same seed selects the same images from each.
    ``index`` is the position in the split of the source that was read.

    Attributes:
        mirror: folder with ``cifar10/train-*.parquet`` and ``cifar10/test-*.parquet``.
        torchvision_root: folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py``.
    """

    mirror: Path | None = Field(
        None, description="Folder with `cifar10/train-*.parquet` and `cifar10/test-*.parquet`."
    )
    torchvision_root: Path | None = Field(
        None, description="Folder with `cifar-10-batches-bin` or `cifar-10-batches-py`."
    )

    class_names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )

    def load(self, part: Part) -> Samples:
        """Return the train (auxiliary) or test (victims) split.

        Raises:
            LTIError: no source can be reached, or one is incomplete or damaged.
        """
        check_part(part)
        split = SPLITS[part]
        mirror, root = self.mirror, self.torchvision_root
        if mirror is None and root is None:
            mirror = from_environment(MIRROR_VARIABLE)
            root = from_environment("LTI_TORCHVISION_ROOT")
        if mirror is not None:
            parts = read_mirror(mirror, HOME, split, _decode)
            image, label = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        elif root is not None:
            image, label = read_batches(root, split)
        else:
            image, label = read_hub(HOME, split, _decode)
        return _in_canonical_order(image, label)


def _in_canonical_order(image: np.ndarray, label: np.ndarray) -> Samples:
    digests = b"".join(hashlib.sha256(one.tobytes()).digest()[:8] for one in image)
    order = np.lexsort((label, np.frombuffer(digests, dtype=">u8")))
    return Samples(image[order], label[order], order.astype(np.int64))


def _decode(batches: Iterator[pa.Table], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode ``count`` rows with the columns ``img`` (PNG bytes) and ``label``."""
    from PIL import Image

    image = np.empty((count, *IMAGE_SHAPE), dtype=np.uint8)
    label = np.empty(count, dtype=np.int64)
    row = 0
    for batch in batches:
        for cell, value in zip(
            batch.column("img").to_pylist(),
            batch.column("label").to_pylist(),
            strict=True,
        ):
            with Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"]) as file:
                pixels = np.asarray(file)
            if pixels.shape != (32, 32, 3) or not 0 <= value <= 9:
                raise ValueError(
                    f"row {row} is an image of shape {pixels.shape} with label {value}"
                )
            image[row] = pixels.transpose(2, 0, 1)
            label[row] = value
            row += 1
    return image, label
