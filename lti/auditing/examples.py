"""Victims beside what came back of them, as a page shows them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lti.auditing.result import Example
from lti.report.pieces import pieces, visible

if TYPE_CHECKING:
    import numpy.typing as npt
    from tokenizers import Tokenizer

    Array = npt.NDArray[Any]

__all__ = ["examples_of", "png"]


def examples_of(
    truth: Array,
    matched: Array,
    share: Array,
    positions: Sequence[int],
    *,
    tokenizer: Tokenizer | None = None,
) -> tuple[Example, ...]:
    """Return victims with their reconstructions.

    Args:
        truth: ``(n, 3, h, w)`` in [0, 1] or tokens ``(n, length)``.
        matched: the same shape, matched inside each batch.
        share: ``(n,)``, what came back of each.
        positions: which victims, in order.
        tokenizer: for tokens.
    """

    def shown(sample: Array) -> bytes | tuple[str, ...]:
        if tokenizer is None:
            return png(sample)
        return tuple(map(visible, pieces(tokenizer, [int(token) for token in sample])))

    return tuple(
        Example(int(k), shown(truth[k]), shown(matched[k]), float(share[k])) for k in positions
    )


def png(image: Array) -> bytes:
    """Return an image ``(3, h, w)`` in [0, 1] as a PNG of 8 bits a channel."""
    import numpy as np
    from PIL import Image

    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    target = io.BytesIO()
    Image.fromarray(levels).save(target, format="PNG", optimize=True)
    return target.getvalue()
