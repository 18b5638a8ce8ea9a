"""Which reconstruction of a batch belongs to which victim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["match_batches", "match_victims"]


def match_batches(truth: Array, reconstruction: Array) -> npt.NDArray[np.intp]:
    """Find the order of the reconstructions with the least total MSE in each batch.

    A gradient of a batch says nothing about the order of its samples, so an attack returns
    them in any order. Values are clamped to [0, 1], as in the metrics.

    Args:
        truth: (n_batches, B, ...).
        reconstruction: the same shape.

    Returns:
        (n_batches, B) indices: ``reconstruction[k][order[k]]`` lines up with ``truth[k]``.
    """
    import numpy as np
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    n_batches, batch_size = truth.shape[:2]
    order = np.tile(np.arange(batch_size), (n_batches, 1))
    if batch_size == 1:
        return order
    for k in range(n_batches):
        x, y = (
            np.clip(a[k].reshape(batch_size, -1).astype(np.float64), 0.0, 1.0)
            for a in (truth, reconstruction)
        )
        order[k] = linear_sum_assignment(cdist(x, y, "sqeuclidean"))[1]
    return order


def match_victims(
    victims: Mapping[str, Array], reconstructions: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Line up the victims that an attack covered with their reconstructions.

    Batch k holds the victims ``[k * B, (k + 1) * B)``; an attack may cover only the first
    batches.

    Args:
        victims: the victims' arrays; ``image`` is uint8 (n, channels, height, width).
        reconstructions: the attack's arrays; ``reconstruction`` is float
            (n_batches, B, channels, height, width), finite, in the attack's own order.

    Returns:
        truth and matched reconstruction, both float32 (n_batches * B, channels, height,
        width), the truth in [0, 1].

    Raises:
        LTIError: arrays missing, of the wrong shape or type, or not finite.
    """
    import numpy as np

    if "image" not in victims or "reconstruction" not in reconstructions:
        raise LTIError(
            f"image metrics need the arrays 'image' and 'reconstruction'; got "
            f"{sorted(victims)} and {sorted(reconstructions)}. Check which files were passed."
        )
    image, found = victims["image"], reconstructions["reconstruction"]
    if image.dtype != np.uint8:
        raise LTIError(f"victims of type {image.dtype}; expected uint8. Write the victims again.")
    if found.ndim != 5 or found.shape[2:] != image.shape[1:] or 0 in found.shape:
        raise LTIError(
            f"reconstructions of shape {found.shape} for victims of shape {image.shape}; expected "
            f"(n_batches, B, {', '.join(map(str, image.shape[1:]))}). Run the attack again."
        )
    n_batches, batch_size = found.shape[:2]
    if n_batches * batch_size > len(image):
        raise LTIError(
            f"{n_batches} batches of {batch_size} reconstructions but only {len(image)} victims; "
            f"expected no more than there are victims. Run the attack on these victims again."
        )
    bad = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2, 3, 4)))
    if bad.size:
        raise LTIError(
            f"{bad.size} of {n_batches} reconstructed batches hold NaN or infinity (the first is "
            f"batch {bad[0]}); expected finite values in [0, 1]. The attack diverged: lower its "
            f"learning rate and run it again."
        )
    truth = image[: n_batches * batch_size].astype(np.float32) / np.float32(255)
    order = match_batches(truth.reshape(found.shape), found)
    matched = found[np.arange(n_batches)[:, None], order].reshape(truth.shape)
    return truth, matched.astype(np.float32, copy=False)
