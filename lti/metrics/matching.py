"""Which reconstruction of a batch belongs to which victim."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["match_batches", "match_texts", "match_victims", "victims_key"]

_KEYS = ("image", "token")  # as in lti.data.samples, on which no table should depend


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

    n_batches, batch_size = truth.shape[:2]
    order = np.tile(np.arange(batch_size), (n_batches, 1))
    if batch_size == 1:
        return order
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    for k in range(n_batches):
        x, y = (
            np.clip(a[k].reshape(batch_size, -1).astype(np.float64), 0.0, 1.0)
            for a in (truth, reconstruction)
        )
        order[k] = linear_sum_assignment(cdist(x, y, "sqeuclidean"))[1]
    return order


def match_texts(truth: Array, reconstruction: Array) -> npt.NDArray[np.intp]:
    """Find the order of the reconstructions with the fewest wrong tokens in each batch.

    All positions count, padding too: where a sentence ends tells which it is. Orders with as
    many wrong tokens are told apart by the samples' contents, never by the order in which they
    came: the pairs are the same however a batch is permuted.

    Args:
        truth: tokens, int (n_batches, B, length).
        reconstruction: the same shape.

    Returns:
        (n_batches, B) indices: ``reconstruction[k][order[k]]`` lines up with ``truth[k]``.
    """
    import numpy as np

    n_batches, batch_size = truth.shape[:2]
    order = np.tile(np.arange(batch_size), (n_batches, 1))
    if batch_size == 1:
        return order
    from scipy.optimize import linear_sum_assignment

    for k in range(n_batches):
        rows, columns = (np.lexsort(a[k].T[::-1]) for a in (truth, reconstruction))
        wrong = truth[k][rows, None] != reconstruction[k][None, columns]
        order[k][rows] = columns[linear_sum_assignment(wrong.sum(axis=2))[1]]
    return order


def match_victims(
    victims: Mapping[str, Array], reconstructions: Mapping[str, Array]
) -> tuple[Array, Array]:
    """Line up the victims that an attack covered with their reconstructions.

    Batch k holds the victims ``[k * B, (k + 1) * B)``; an attack may cover only the first
    batches. Images are matched by :func:`match_batches`, texts by :func:`match_texts`.

    Args:
        victims: the victims' arrays; ``image`` uint8 (n, channels, height, width) or
            ``token`` int32 (n, length).
        reconstructions: the attack's arrays; ``reconstruction`` is in the attack's own order,
            float (n_batches, B, channels, height, width), finite, or int32 (n_batches, B,
            length), 0 or more.

    Returns:
        truth and matched reconstruction: float32 (n_batches * B, channels, height, width),
        the truth in [0, 1], or int32 (n_batches * B, length).

    Raises:
        LTIError: arrays missing, of the wrong shape or type, not finite, or negative tokens.
    """
    import numpy as np

    key = victims_key(victims)
    value = victims[key]
    if "reconstruction" not in reconstructions:
        raise LTIError(
            f"expected an array 'reconstruction'; got {sorted(reconstructions)}. Check which "
            f"files were passed."
        )
    found = reconstructions["reconstruction"]
    _check_shapes(value, found)
    truth = value[: found.shape[0] * found.shape[1]]
    if key == "image":
        _check_images(value, found)
        truth = truth.astype(np.float32) / np.float32(255)
        order = match_batches(truth.reshape(found.shape), found)
    else:
        _check_tokens(value, found)
        order = match_texts(truth.reshape(found.shape), found)
    matched = found[np.arange(len(found))[:, None], order].reshape(truth.shape)
    return truth, matched.astype(truth.dtype, copy=False)


def victims_key(victims: Mapping[str, Array]) -> str:
    """Return what the victims' values are called, ``"image"`` or ``"token"``.

    Raises:
        LTIError: the victims have neither or both.
    """
    keys = [key for key in _KEYS if key in victims]
    if len(keys) != 1:
        raise LTIError(
            f"victims need one of the arrays {' and '.join(map(repr, _KEYS))}; got "
            f"{sorted(victims)}. Check which files were passed."
        )
    return keys[0]


def _check_shapes(value: Array, found: Array) -> None:
    if found.ndim != value.ndim + 1 or found.shape[2:] != value.shape[1:] or 0 in found.shape:
        raise LTIError(
            f"reconstructions of shape {found.shape} for victims of shape {value.shape}; expected "
            f"(n_batches, B, {', '.join(map(str, value.shape[1:]))}). Run the attack again."
        )
    n_batches, batch_size = found.shape[:2]
    if n_batches * batch_size > len(value):
        raise LTIError(
            f"{n_batches} batches of {batch_size} reconstructions but only {len(value)} victims; "
            f"expected no more than there are victims. Run the attack on these victims again."
        )


def _check_images(image: Array, found: Array) -> None:
    import numpy as np

    if image.dtype != np.uint8:
        raise LTIError(f"victims of type {image.dtype}; expected uint8. Write the victims again.")
    bad = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2, 3, 4)))
    if bad.size:
        raise LTIError(
            f"{bad.size} of {len(found)} reconstructed batches hold NaN or infinity (the first is "
            f"batch {bad[0]}); expected finite values in [0, 1]. The attack diverged: lower its "
            f"learning rate and run it again."
        )


def _check_tokens(token: Array, found: Array) -> None:
    for array, what in ((token, "victims"), (found, "reconstructions")):
        if array.dtype.kind not in "iu" or array.min() < 0:
            raise LTIError(
                f"{what} are {array.dtype} with a least value of {array.min()}; expected tokens, "
                f"integers of 0 or more. Make them again."
            )
