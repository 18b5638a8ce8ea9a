"""What a metric is, and the registry of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lti.data.samples import Modality

    Array = npt.NDArray[Any]

__all__ = ["DEFAULT_METRICS", "METRICS", "Metric"]

DEFAULT_METRICS: Mapping[Modality, tuple[str, ...]] = {
    "image": ("mse", "psnr", "ssim"),
    "text": ("token_accuracy", "token_accuracy_padded", "rouge1", "rouge2", "rougeL", "exact"),
}
"""What an experiment reports where it names no metrics."""


class Metric(Settings):
    """One number per victim: how close a reconstruction is to the truth.

    A subclass states the class variables below and implements ``__call__``.

    Attributes:
        modality: the samples that it compares, ``"image"`` or ``"text"``.
        label: the heading in tables and figures, with the unit: ``"PSNR (dB)"``.
        unit: the unit alone; empty for a number without one.
        direction: which values mean a closer reconstruction, ``"higher"`` or ``"lower"``.
        decimals: digits after the point in tables.
        note: the definition, one sentence, for the footnote of a table.
        backbone: the pretrained network that it looks through, a key of
            :data:`lti.metrics.backbones.BACKBONES`; empty for none. Such a metric has a
            setting ``weights``, the fetched file.
    """

    modality: ClassVar[Modality] = "image"
    label: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    decimals: ClassVar[int] = 3
    note: ClassVar[str] = ""
    backbone: ClassVar[str] = ""

    def unavailable(self) -> str:
        """Return why no value can be had here, or "" where values can."""
        return ""

    def __call__(
        self, truth: Array, reconstruction: Array, *context: Any
    ) -> npt.NDArray[np.float64]:
        """Compare sample by sample.

        Args:
            truth: images, float (n, channels, height, width) in [0, 1]; or tokens, int32
                (n, length).
            reconstruction: the same shape; images finite, and clamped to [0, 1].
            context: nothing for images; for text one :class:`lti.metrics.tokens.Text`, what
                there is to know of the tokens.

        Returns:
            (n,) values.
        """
        raise NotImplementedError


METRICS: Registry[Metric] = Registry(
    "metrics",
    modules={
        **dict.fromkeys(("mse", "psnr", "ssim"), "lti.metrics.image"),
        **dict.fromkeys(("lpips", "lpips_alex", "lpips_paper"), "lti.metrics.lpips"),
        **dict.fromkeys(
            ("token_accuracy", "token_accuracy_padded", "exact", "rouge1", "rouge2", "rougeL"),
            "lti.metrics.text",
        ),
    },
)
