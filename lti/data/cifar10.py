"""CIFAR-10 from its public home, from a mirror folder or from torchvision's folder.

Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. About
3 % of its test images have a near-duplicate among the training images (Barz & Denzler,
"Do We Train on Test Data?", 2020), so a victim can have a near-duplicate in a large
auxiliary set.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from lti.data.cifar10_batches import read_batches
from lti.data.dataset import DATASETS, Dataset, Part, check_part
from lti.data.samples import IMAGE_SHAPE, Samples
from lti.errors import LTIError

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Cifar10"]

HUB_NAME = "uoft-cs/cifar10"
SPLITS = {"auxiliary": "train", "victims": "test"}
COUNTS = {"train": 50_000, "test": 10_000}
PROBE_SECONDS = 5.0


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
            mirror = _from_environment("LTI_DATA_MIRROR")
            root = _from_environment("LTI_TORCHVISION_ROOT")
        if mirror is not None:
            image, label = _read_mirror(mirror, split)
        elif root is not None:
            image, label = read_batches(root, split)
        else:
            image, label = _read_hub(split)
        return _in_canonical_order(image, label)


def _from_environment(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value) if value else None


def _in_canonical_order(image: np.ndarray, label: np.ndarray) -> Samples:
    digests = b"".join(hashlib.sha256(one.tobytes()).digest()[:8] for one in image)
    order = np.lexsort((label, np.frombuffer(digests, dtype=">u8")))
    return Samples(image[order], label[order], order.astype(np.int64))


def _decode(batches: Iterator[pa.Table], count: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode arrow batches with the columns ``img`` (PNG bytes) and ``label``."""
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
            if row < count:
                with Image.open(io.BytesIO(cell["bytes"]), formats=["PNG"]) as file:
                    pixels = np.asarray(file)
                if pixels.shape != (32, 32, 3) or not 0 <= value <= 9:
                    raise ValueError(
                        f"row {row} is an image of shape {pixels.shape} with label {value}"
                    )
                image[row] = pixels.transpose(2, 0, 1)
                label[row] = value
            row += 1
    if row != count:
        raise ValueError(f"{where} has {row} rows, expected {count}")
    return image, label


def _read_mirror(mirror: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    folder = mirror / "cifar10"
    remedy = (
        f"Copy the parquet files of {HUB_NAME} there again, or leave the mirror (setting "
        f"'mirror', environment variable LTI_DATA_MIRROR) unset."
    )
    shards = sorted(folder.glob(f"{split}-*.parquet"))
    if not shards:
        raise LTIError(f"{folder}: no file {split}-*.parquet in this mirror. {remedy}")
    totals = {int(found[1]) for path in shards if (found := re.search(r"-of-(\d+)\.", path.name))}
    for total in totals:
        for number in range(total):
            path = folder / f"{split}-{number:05d}-of-{total:05d}.parquet"
            if not path.exists():
                raise LTIError(f"{path}: this shard of the mirror is missing. {remedy}")
    parts = []
    for path in shards:
        try:
            parts.append(_read_shard(path))
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise LTIError(f"{path}: cannot be read ({error}). {remedy}") from None
    count = sum(len(label) for _, label in parts)
    if count != COUNTS[split]:
        held = ", ".join(
            f"{path.name} {len(label)}" for path, (_, label) in zip(shards, parts, strict=True)
        )
        raise LTIError(
            f"{folder}: {count} images in the {split} split ({held}), expected "
            f"{COUNTS[split]}. {remedy}"
        )
    return np.concatenate([i for i, _ in parts]), np.concatenate([n for _, n in parts])


def _read_shard(path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.parquet as pq

    count = pq.read_metadata(path).num_rows
    with _hub_switched_off():
        from datasets import load_dataset

        # Streaming copies nothing to the cache; the folder takes the lock file that is left.
        with tempfile.TemporaryDirectory(prefix="lti-") as cache:
            rows = load_dataset(
                "parquet", data_files=str(path), split="train", streaming=True, cache_dir=cache
            )
            return _decode(rows.with_format("arrow").iter(batch_size=1000), count, path.name)


def _read_hub(split: str) -> tuple[np.ndarray, np.ndarray]:
    # Asking once, briefly: the client itself retries for half a minute or more.
    reachable, reason = _hub_answers()
    with contextlib.nullcontext() if reachable else _hub_switched_off():
        from datasets import load_dataset

        try:
            rows = load_dataset(HUB_NAME, split=split)
            batches = rows.with_format("arrow").iter(batch_size=1000)
            return _decode(batches, COUNTS[split], HUB_NAME)
        except Exception as error:  # whatever the client raises, the ways out are the same
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LTIError(
                f"cifar10: {HUB_NAME} cannot be loaded ({detail}{reason}). One of three ways: "
                f"(1) connect to the network once, after which the Hugging Face cache (HF_HOME) "
                f"serves it; (2) a mirror folder with cifar10/train-*.parquet and "
                f"cifar10/test-*.parquet, in the setting 'mirror' or the environment variable "
                f"LTI_DATA_MIRROR; (3) an existing torchvision folder, in the setting "
                f"'torchvision_root' or the environment variable LTI_TORCHVISION_ROOT. "
                f"The data set 'photos' needs none of them."
            ) from None


def _hub_answers() -> tuple[bool, str]:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # the client's classes differ between its versions
        return False, f"; the hub does not answer: {type(error).__name__}"
    return True, ""


@contextlib.contextmanager
def _hub_switched_off() -> Iterator[None]:
    """Keep ``datasets`` off the network for a while: local files and its cache only."""
    import datasets
    import huggingface_hub

    holders: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [holder.HF_HUB_OFFLINE for holder in holders]
    try:
        for holder in holders:
            holder.HF_HUB_OFFLINE = True
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.HF_HUB_OFFLINE = value
