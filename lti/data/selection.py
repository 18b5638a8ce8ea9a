"""Reproducible selections: the auxiliary set and the victims of an experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lti.data.samples import KEYS, Samples
from lti.errors import LTIError
from lti.files import read_arrays, write_arrays
from lti.seeding import numpy_generator

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "Selection",
    "of_classes",
    "read_selection",
    "select",
    "write_selection",
]

METADATA_KEYS = ("class_names", "dataset", "part", "seed", "size")


@dataclass(frozen=True, eq=False)
class Selection:
    """A selection as it is on disk.

    Attributes:
        samples: the selected samples.
        in_distribution: bool (n,), whether a sample is of the victims' distribution; only
            for auxiliary sets.
        metadata: at least ``dataset``, ``part``, ``seed``, ``size`` and ``class_names``.
    """

    samples: Samples
    in_distribution: np.ndarray | None
    metadata: dict[str, Any]

    @property
    def stored(self) -> tuple[str, int]:
        """Digest and size of the set whose gradients are stored.

        Its own, or those of a larger set (``of`` and ``of_digest`` in the metadata) that begins
        with these samples.
        """
        if "of" in self.metadata:
            return self.metadata["of_digest"], self.metadata["of"]
        return self.samples.digest, len(self.samples)


def select(
    samples: Samples,
    *,
    size: int,
    seed: int,
    classes: Sequence[int] | None = None,
    include: Sequence[int] = (),
    what: str,
) -> Samples:
    """Return the first ``size`` of one seeded permutation of the eligible samples.

    A smaller selection is therefore a prefix of every larger one of the same seed. Samples to
    include come first; the permutation is the same with them and without.

    Args:
        samples: what to choose from.
        size: how many, 1 or more.
        seed: root seed; the stream is ``select/<what>``.
        classes: the eligible labels; all if None.
        include: indices (:attr:`lti.data.samples.Samples.index`) of samples that come first, in
            this order.
        what: names the random stream and appears in messages, such as ``"victims"``.

    Raises:
        LTIError: ``size`` is below 1 or above the number of eligible samples, a class has no
            sample, or an index to include is named twice, is that of no eligible sample, or
            has no place within ``size``.
    """
    if size < 1:
        raise LTIError(f"{what}: size {size}; expected 1 or more. Ask for at least one sample.")
    eligible = _of_classes(samples, classes, what=what)
    if size > len(eligible):
        raise LTIError(
            f"{what}: size {size}, but there are {len(eligible)} eligible samples. "
            f"Ask for at most {len(eligible)} or allow more classes."
        )
    order = eligible[numpy_generator(seed, "select", what).permutation(len(eligible))]
    first = _positions(samples.index[eligible], include, size=size, what=what)
    first = eligible[first]
    order = np.concatenate([first, order[~np.isin(order, first)]])
    return samples.take(order[:size])


def of_classes(samples: Samples, classes: Sequence[int] | None, *, what: str) -> Samples:
    """Return the samples of some classes, in their order; all if ``classes`` is None.

    Raises:
        LTIError: a class has no sample.
    """
    return samples.take(_of_classes(samples, classes, what=what))


def _of_classes(
    samples: Samples, classes: Sequence[int] | None, *, what: str
) -> npt.NDArray[np.intp]:
    if classes is None:
        return np.arange(len(samples))
    known = np.unique(samples.label).tolist()
    for label in classes:
        if label not in known:
            raise LTIError(
                f"{what}: class {label} has no sample here; the labels are "
                f"{', '.join(map(str, known)) or 'none'}. Use these."
            )
    return np.flatnonzero(np.isin(samples.label, list(classes)))


def _positions(
    index: np.ndarray, include: Sequence[int], *, size: int, what: str
) -> npt.NDArray[np.intp]:
    """Return where in ``index`` the indices to include are."""
    if len(include) > size:
        raise LTIError(
            f"{what}: {len(include)} samples to include in a selection of {size}; expected at "
            f"most {size}. Include fewer or ask for more samples."
        )
    if twice := [value for value in include if list(include).count(value) > 1]:
        raise LTIError(
            f"{what}: index {twice[0]} is to be included more than once; expected every index "
            f"once. Name it once."
        )
    place = {int(value): position for position, value in enumerate(index)}
    for value in include:
        if value not in place:
            raise LTIError(
                f"{what}: no eligible sample has the index {value}, which is to be included; "
                f"expected one of {len(place)} indices from {min(place)} to {max(place)}. Correct "
                f"`include`."
            )
    return np.array([place[value] for value in include], dtype=np.intp)


def write_selection(
    path: Path | str,
    selection: Samples,
    *,
    in_distribution: np.ndarray | None = None,
    metadata: Mapping[str, Any],
) -> None:
    """Write a selection to a safetensors file, atomically.

    Args:
        path: the file to write.
        selection: the samples, n of them.
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
            f"{path}: metadata says size {metadata['size']}, but there are {n} samples. "
            f"Write the size of the selection."
        )
    arrays = {
        selection.key: selection.value,
        "label": selection.label,
        "index": selection.index,
    }
    if in_distribution is not None:
        flag = np.asarray(in_distribution)
        if flag.shape != (n,) or flag.dtype != np.bool_:
            raise LTIError(
                f"{path}: in_distribution is {flag.dtype} {flag.shape}; expected bool ({n},). "
                f"Give one flag per sample."
            )
        arrays["in_distribution"] = flag
    write_arrays(path, arrays, metadata)


def read_selection(path: Path | str) -> Selection:
    """Read what :func:`write_selection` wrote.

    Raises:
        LTIError: the file is missing, damaged or not a selection.
    """
    arrays, metadata = read_arrays(path)
    key = next((key for key in KEYS.values() if key in arrays), None)
    missing = sorted({"label", "index"} - set(arrays))
    missing += [] if key else [" or ".join(KEYS.values())]
    missing += [key for key in METADATA_KEYS if key not in metadata]
    if missing:
        raise LTIError(
            f"{path}: not a selection of samples: no {', '.join(missing)}. "
            f"Give the file of a data rule."
        )
    assert key is not None
    samples = Samples(arrays[key], arrays["label"], arrays["index"])
    return Selection(samples, arrays.get("in_distribution"), metadata)
