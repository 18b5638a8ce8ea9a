"""CIFAR-10 as torchvision keeps it, read without running anything that a file says.

The Python version of the batches is in pickle format, whose reader normally calls
whatever a file names. Here a file is read only if its MD5 is the published one, and then
by a reader that knows the three names these files contain and puts inert stand-ins in
their place: no function of numpy or of any other package is called by a file. The binary
version (``cifar-10-batches-bin``) is plain bytes and comes first where both exist.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from lti.errors import LTIError

__all__ = ["read_batches"]

# torchvision.datasets.CIFAR10.train_list and test_list
MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PER_BATCH = 10_000
PIXELS = 3 * 32 * 32


def read_batches(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return image uint8 (n, 3, 32, 32) and label int64 (n,) of a split, in file order.

    Args:
        root: the folder that torchvision calls ``root``.
        split: ``"train"`` or ``"test"``.

    Raises:
        LTIError: a file is missing, or is not the published one.
    """
    names = [name for name in MD5 if name.startswith("data" if split == "train" else "test")]
    binary, python = root / "cifar-10-batches-bin", root / "cifar-10-batches-py"
    if binary.is_dir():
        parts = [_read_binary(binary / f"{name}.bin") for name in names]
    elif python.is_dir():
        parts = [_read_python(python / name, MD5[name]) for name in names]
    else:
        raise LTIError(
            f"{root}: holds neither cifar-10-batches-bin nor cifar-10-batches-py; expected "
            f"torchvision's CIFAR-10 folder. Point the setting 'torchvision_root' (or the "
            f"environment variable LTI_TORCHVISION_ROOT) at the folder that holds one of them, "
            f"or leave it unset."
        )
    return np.concatenate([i for i, _ in parts]), np.concatenate([n for _, n in parts])


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LTIError(
            f"{path}: cannot be read ({error.strerror}). Unpack the CIFAR-10 archive again."
        ) from None


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = _content(path)
    if len(content) != PER_BATCH * (1 + PIXELS):
        raise LTIError(
            f"{path}: {len(content)} bytes, expected {PER_BATCH * (1 + PIXELS)}. "
            f"Unpack the CIFAR-10 archive again."
        )
    rows = np.frombuffer(content, dtype=np.uint8).reshape(PER_BATCH, 1 + PIXELS)
    if rows[:, 0].max() > 9:
        raise LTIError(
            f"{path}: a label {rows[:, 0].max()}, expected 0 to 9. "
            f"Unpack the CIFAR-10 archive again."
        )
    return rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].astype(np.int64)


def _read_python(path: Path, md5: str) -> tuple[np.ndarray, np.ndarray]:
    content = _content(path)
    remedy = "Unpack the CIFAR-10 archive again; this file was not opened."
    got = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if got != md5:
        raise LTIError(f"{path}: MD5 {got}, expected {md5}: not the published file. {remedy}")
    try:
        batch = _InertReader(io.BytesIO(content), encoding="latin1").load()
        image, label = batch["data"].bytes, np.array(batch["labels"], dtype=np.int64)
        pixels = np.frombuffer(image, dtype=np.uint8).reshape(len(label), 3, 32, 32)
    except Exception as error:  # a malformed stream can raise almost anything
        raise LTIError(f"{path}: not a CIFAR-10 batch ({error}). {remedy}") from None
    return pixels.copy(), label


class _Array:
    """Stands in for a numpy array in the file: remembers its bytes."""

    bytes: bytes = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        # numpy's own state: version, shape, type, Fortran order, content
        _, shape, kind, fortran, content = state
        if not isinstance(kind, _Kind) or kind.code != "u1" or fortran or len(shape) != 2:
            raise pickle.UnpicklingError("an array that is not plain uint8 with two axes")
        self.bytes = content.encode("latin1")


class _Kind:
    """Stands in for a numpy type in the file."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and the like: only one-byte integers are admitted."""


class _InertReader(pickle.Unpickler):
    """Reads lists, dicts, numbers and strings; three numpy names become stand-ins."""

    def find_class(self, module: str, name: str) -> Any:
        stand_ins: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _Kind,
        }
        try:
            return stand_ins[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None
