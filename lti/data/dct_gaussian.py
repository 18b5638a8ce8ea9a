"""Images whose spatial frequencies are Gaussian: real images' variances, and no objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lti.data.dataset import DATASETS
from lti.data.synthetic import SyntheticDataset

__all__ = ["DctGaussian"]

BLOCK = 4096  # images transformed at once


@DATASETS.register("dct-gaussian", source="Wu et al. 2023, supplement: out-of-distribution data")
class DctGaussian(SyntheticDataset):
    """Draw every DCT coefficient of an image from a Gaussian of its own, and clip.

    The transform runs over height and width, channel by channel (the paper's code runs it over
    width and channel); means and variances are those of the imitated images' coefficients, in
    [0, 1].
    """

    def draw(
        self,
        value: np.ndarray,
        count: int,
        generator: np.random.Generator,
        facts: Mapping[str, Any],
    ) -> np.ndarray:
        """Return uint8 images ``(count, c, h, w)`` (see :class:`SyntheticDataset`)."""
        from scipy.fft import dctn, idctn

        first, second = np.zeros(value.shape[1:]), np.zeros(value.shape[1:])
        for start in range(0, len(value), BLOCK):
            part = dctn(value[start : start + BLOCK] / 255.0, axes=(2, 3), norm="ortho")
            first += part.sum(axis=0)
            second += np.square(part).sum(axis=0)
        mean = first / len(value)
        deviation = np.sqrt(np.maximum(second / len(value) - np.square(mean), 0))
        result = np.empty((count, *value.shape[1:]), dtype=np.uint8)
        for start in range(0, count, BLOCK):
            size = (min(BLOCK, count - start), *value.shape[1:])
            drawn = mean + deviation * generator.standard_normal(size)
            image = idctn(drawn, axes=(2, 3), norm="ortho")
            result[start : start + BLOCK] = np.rint(image.clip(0, 1) * 255)
        return result
