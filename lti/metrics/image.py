"""Image metrics: MSE, PSNR and SSIM, all on images clamped to [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lti.errors import LTIError
from lti.metrics.base import METRICS, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.floating[Any]]
    Float64Array = npt.NDArray[np.float64]

__all__ = ["MSE", "PSNR", "PSNR_MSE_FLOOR", "SSIM"]

PSNR_MSE_FLOOR = 1e-10
"""Smallest MSE that PSNR tells apart: an exact reconstruction counts as 100 dB.

Without a floor one exact image makes the mean over victims infinite. 8-bit rounding alone
causes an MSE of 1.3e-6 (59 dB), so the floor never hides a visible difference.
"""

_SIGMA = 1.5
_RADIUS = 5  # int(3.5 * sigma + 0.5), as scikit-image truncates its Gaussian: an 11 x 11 window
_K1, _K2 = 0.01, 0.03
_CHUNK = 512  # images at a time: about 12 MB per float64 copy of 3 x 32 x 32 images


def _chunks(
    truth: FloatArray, reconstruction: FloatArray
) -> Iterator[tuple[slice, Float64Array, Float64Array]]:
    """Yield clamped float64 blocks of both, so that memory does not grow with n."""
    import numpy as np

    if truth.ndim != 4 or truth.shape != reconstruction.shape:
        raise LTIError(
            f"images of shapes {truth.shape} and {reconstruction.shape} cannot be compared; "
            f"expected one shape (n, channels, height, width) for both. Match them first."
        )
    for start in range(0, len(truth), _CHUNK):
        part = slice(start, start + _CHUNK)
        yield (
            part,
            np.clip(truth[part].astype(np.float64), 0.0, 1.0),
            np.clip(reconstruction[part].astype(np.float64), 0.0, 1.0),
        )


@METRICS.register("mse", source="Wu et al. (UAI 2023), main text")
class MSE(Metric):
    """Mean squared error over the channels and pixels of an image, in [0, 1]."""

    label: ClassVar[str] = "MSE"
    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    decimals: ClassVar[int] = 4
    note: ClassVar[str] = (
        "MSE: mean squared error per image over channels and pixels, images clamped to [0, 1]."
    )

    def __call__(self, truth: FloatArray, reconstruction: FloatArray) -> Float64Array:
        """Return (n,) values in [0, 1] for two (n, channels, height, width) arrays."""
        import numpy as np

        values = np.empty(len(truth))
        for part, x, y in _chunks(truth, reconstruction):
            values[part] = np.square(x - y).mean(axis=(1, 2, 3))
        return values


@METRICS.register("psnr", source="Wu et al. (UAI 2023), supplement, Table 1")
class PSNR(Metric):
    """Peak signal-to-noise ratio per image, 10 log10(1 / MSE), in [0, 100] dB.

    MSE is taken as at least :data:`PSNR_MSE_FLOOR`. The mean over victims is the mean of
    the images' PSNR, not the PSNR of the mean MSE.
    """

    label: ClassVar[str] = "PSNR (dB)"
    unit: ClassVar[str] = "dB"
    decimals: ClassVar[int] = 2
    note: ClassVar[str] = (
        "PSNR: 10 log10(1 / MSE) per image, images clamped to [0, 1], MSE at least "
        f"{PSNR_MSE_FLOOR:g} (100 dB); the mean is over the images' PSNR."
    )

    def __call__(self, truth: FloatArray, reconstruction: FloatArray) -> Float64Array:
        """Return (n,) values in dB for two (n, channels, height, width) arrays."""
        import numpy as np

        return -10.0 * np.log10(np.maximum(MSE()(truth, reconstruction), PSNR_MSE_FLOOR))


def _valid_gaussian(size: int) -> Float64Array:
    """Return the (size - 10, size) matrix that filters a line of pixels, borders left out."""
    import numpy as np

    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((size - 2 * _RADIUS, size))
    for row in range(len(matrix)):
        matrix[row, row : row + len(weights)] = weights
    return matrix


@METRICS.register("ssim", source="Wang et al., IEEE TIP 13(4), 2004; scikit-image's settings")
class SSIM(Metric):
    """Structural similarity per image, in [-1, 1].

    The value of ``skimage.metrics.structural_similarity`` with ``gaussian_weights=True,
    sigma=1.5, use_sample_covariance=False, data_range=1.0, channel_axis=0``: the settings
    of Wang et al., computed for each channel and averaged; the 5 pixels at each border,
    where the 11 x 11 window does not fit, are left out. Written for batches, since calling
    scikit-image per image is ten times slower; a test holds the two together.
    """

    label: ClassVar[str] = "SSIM"
    note: ClassVar[str] = (
        "SSIM: per image, 11 x 11 Gaussian window (sigma 1.5), population covariance, "
        "K1 = 0.01, K2 = 0.03, data range 1, mean over the channels."
    )

    def __call__(self, truth: FloatArray, reconstruction: FloatArray) -> Float64Array:
        """Return (n,) values for two (n, channels, height, width) arrays, sides >= 11."""
        import numpy as np

        if min(truth.shape[-2:]) < 2 * _RADIUS + 1:
            raise LTIError(
                f"SSIM of images of {truth.shape[-2]} x {truth.shape[-1]} pixels is not "
                f"defined; its window needs sides of at least 11. Leave out the metric 'ssim'."
            )
        rows, columns = (_valid_gaussian(size) for size in truth.shape[-2:])

        def smooth(image: Float64Array) -> Float64Array:
            return np.asarray(rows @ image @ columns.T)

        c1, c2 = _K1**2, _K2**2
        values = np.empty(len(truth))
        for part, x, y in _chunks(truth, reconstruction):
            mean_x, mean_y = smooth(x), smooth(y)
            var_x = smooth(x * x) - mean_x**2
            var_y = smooth(y * y) - mean_y**2
            covariance = smooth(x * y) - mean_x * mean_y
            similarity = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
                (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
            )
            values[part] = similarity.mean(axis=(1, 2, 3))
        return values
