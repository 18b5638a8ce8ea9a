"""What a metric is, and the registry of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.floating[Any]]

__all__ = ["METRICS", "Metric"]


class Metric(Settings):
    """One number per victim: how close a reconstruction is to the truth.

    A subclass states the class variables below and implements ``__call__``.

    Attributes:
        label: the heading in tables and figures, with the unit: ``"PSNR (dB)"``.
        unit: the unit alone; empty for a number without one.
        direction: which values mean a closer reconstruction, ``"higher"`` or ``"lower"``.
        decimals: digits after the point in tables.
        note: the definition, one sentence, for the footnote of a table.
        backbone: the pretrained network that it looks through, a key of
            :data:`lti.metrics.backbones.BACKBONES`; empty for none. Such a metric has a
            setting ``weights``, the fetched file.
    """

    label: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    decimals: ClassVar[int] = 3
    note: ClassVar[str] = ""
    backbone: ClassVar[str] = ""

    def unavailable(self) -> str:
        """Return why no value can be had here, or "" where values can."""
        return ""

    def __call__(self, truth: FloatArray, reconstruction: FloatArray) -> npt.NDArray[np.float64]:
        """Compare image by image.

        Args:
            truth: (n, channels, height, width), in [0, 1].
            reconstruction: the same shape, finite; clamped to [0, 1].

        Returns:
            (n,) values.
        """
        raise NotImplementedError


METRICS: Registry[Metric] = Registry(
    "metrics",
    modules={
        **dict.fromkeys(("mse", "psnr", "ssim"), "lti.metrics.image"),
        **dict.fromkeys(("lpips", "lpips_alex", "lpips_paper"), "lti.metrics.lpips"),
    },
)
