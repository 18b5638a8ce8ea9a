"""Victims of whom the auxiliary set has a near copy, and those of whom it has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.files import read_arrays

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["NearCopies", "read_near_copies"]


@dataclass(frozen=True, eq=False)
class NearCopies:
    """How close the auxiliary set comes to every victim.

    Attributes:
        similarity: float (n,), of every victim to the auxiliary sample that is closest to it.
        threshold: the similarity from which on that sample is a near copy.
        definition: what the similarity is, a phrase for footnotes; may be empty.
    """

    similarity: npt.NDArray[np.floating[Any]]
    threshold: float
    definition: str = ""

    @property
    def novel(self) -> npt.NDArray[np.bool_]:
        """Bool (n,): which victims the auxiliary set has no near copy of."""
        # In the similarity's precision: float32 0.7 is less than float64 0.7.
        threshold = self.similarity.dtype.type(self.threshold)
        return self.similarity < threshold

    @property
    def count(self) -> int:
        """Number of victims of whom there is a near copy."""
        return len(self.similarity) - int(self.novel.sum())


def read_near_copies(path: Path | str) -> NearCopies:
    """Read the file of the stage ``find-near-copies``.

    It holds an array ``similarity`` and the metadata ``threshold`` and, optionally,
    ``similarity``, the definition.

    Raises:
        LTIError: the file is missing or damaged or lacks one of these.
    """
    import numpy as np

    arrays, metadata = read_arrays(path)
    similarity, threshold = arrays.get("similarity"), metadata.get("threshold")
    good = similarity is not None and similarity.ndim == 1 and similarity.dtype.kind == "f"
    if not good or similarity is None or not np.isfinite(similarity).all():
        raise LTIError(
            f"{path}: expected an array 'similarity' of finite floats, one a victim; got arrays "
            f"{sorted(arrays)}. Delete it and run the same command again."
        )
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise LTIError(
            f"{path}: its metadata says threshold {threshold!r}; expected a number. Delete it "
            f"and run the same command again."
        )
    return NearCopies(similarity, float(threshold), str(metadata.get("similarity", "")))
