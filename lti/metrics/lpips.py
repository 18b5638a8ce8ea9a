"""LPIPS: the distance between two images as a pretrained network sees them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lti.errors import LTIError
from lti.metrics.backbones import read_backbone, read_pickled_tensors, unavailable_reason
from lti.metrics.base import METRICS, Metric

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import nn

    FloatArray = npt.NDArray[np.floating[Any]]
    Float64Array = npt.NDArray[np.float64]

__all__ = ["LPIPS", "AlexLPIPS", "PaperLPIPS"]

_SOURCE = "Zhang et al., CVPR 2018; package lpips, weights v0.1"
_PAIRS = 64  # at a time: about 100 MB of VGG's features


class _LPIPS(Metric):
    """What the three share.

    At every pixel of five layers, features are scaled to unit length; the squared
    differences are weighted by learned channel weights, averaged over the pixels and summed
    over the layers. The weights come with the package ``lpips``, the network from the stage
    ``fetch-backbone``; images keep their 32 x 32 pixels, as in the paper.
    """

    direction: ClassVar[Literal["higher", "lower"]] = "lower"
    net: ClassVar[Literal["vgg", "alex"]] = "vgg"
    normalise: ClassVar[bool] = True
    """Whether [0, 1] is mapped to [-1, 1], the range that the network was trained on."""

    weights: Path | None = Field(None, description="Fetched backbone (safetensors).")

    def unavailable(self) -> str:
        """Return why no value can be had, or ""."""
        return unavailable_reason(self._file())

    def _file(self) -> Path:
        if self.weights is None:
            raise LTIError(
                f"metric {self.name} got no weights; expected those of {self.backbone}. Fetch "
                f"them with `lti fetch-backbone` and pass --backbone."
            )
        return self.weights

    def __call__(self, truth: FloatArray, reconstruction: FloatArray) -> Float64Array:
        """Return (n,) values, 0 for equal images, of two (n, 3, height, width) arrays."""
        import numpy as np
        import torch

        if truth.ndim != 4 or truth.shape[1] != 3 or truth.shape != reconstruction.shape:
            raise LTIError(
                f"images of shapes {truth.shape} and {reconstruction.shape} cannot be compared "
                f"by LPIPS; expected one shape (n, 3, height, width). Match them first."
            )
        network = _build_network(self.net, self._file())
        values = np.empty(len(truth))
        with torch.inference_mode():
            for start in range(0, len(truth), _PAIRS):
                part = slice(start, start + _PAIRS)
                x, y = (
                    torch.from_numpy(images[part].astype(np.float32)).clamp_(0, 1)
                    for images in (truth, reconstruction)
                )
                values[part] = network(x, y, normalize=self.normalise).flatten().numpy()
        return values


@METRICS.register("lpips", source=_SOURCE)
class LPIPS(_LPIPS):
    """LPIPS with VGG16, on images scaled to [-1, 1] as the network expects."""

    label: ClassVar[str] = "LPIPS"
    backbone: ClassVar[str] = "vgg16"
    note: ClassVar[str] = "LPIPS: VGG16, weights v0.1, images scaled from [0, 1] to [-1, 1]."


@METRICS.register("lpips_alex", source=_SOURCE)
class AlexLPIPS(_LPIPS):
    """LPIPS with AlexNet, on images scaled to [-1, 1] as the network expects."""

    label: ClassVar[str] = "LPIPS (AlexNet)"
    backbone: ClassVar[str] = "alexnet"
    net: ClassVar[Literal["vgg", "alex"]] = "alex"
    note: ClassVar[str] = (
        "LPIPS (AlexNet): AlexNet, weights v0.1, images scaled from [0, 1] to [-1, 1]."
    )


@METRICS.register("lpips_paper", source="Wu et al. (UAI 2023), supplement, Table 2; public code")
class PaperLPIPS(_LPIPS):
    """LPIPS with VGG16 on images left in [0, 1], as the paper's code computes it."""

    label: ClassVar[str] = "LPIPS (as the paper)"
    backbone: ClassVar[str] = "vgg16"
    normalise: ClassVar[bool] = False
    note: ClassVar[str] = (
        "LPIPS (as the paper): VGG16, weights v0.1, fed images in [0, 1] where it expects "
        "[-1, 1], as the paper's code does."
    )


def _build_network(net: Literal["vgg", "alex"], weights: Path) -> nn.Module:
    """Return the network of the package ``lpips`` in evaluation mode, on the CPU.

    The package itself would download the backbone and read its own weights with its
    caller's defaults: it is given both.

    Args:
        net: the package's name of the backbone.
        weights: the fetched backbone.

    Raises:
        LTIError: the weights are unavailable, damaged or another network's.
    """
    import lpips
    import torch

    # Without memory or random numbers: every weight is replaced, and 130 million are dropped.
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore", UserWarning)  # of its old way to call torchvision
        network = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.lpips.ScalingLayer()  # constants, not weights
    state = {}
    convolutions = read_backbone(weights)
    for key in network.net.state_dict():  # slice2.5.bias is torchvision's features.5.bias
        name = f"features.{key.partition('.')[2]}"
        if name in convolutions:
            state[f"net.{key}"] = convolutions[name]
    linear = Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    for key, value in read_pickled_tensors(linear).items():
        state[key] = value
        # The package lists these layers twice: lin0 is also lins.0.
        state[f"lins.{key.removeprefix('lin')}"] = value
    try:
        network.load_state_dict(state | _constants(network), strict=True, assign=True)
    except RuntimeError as error:
        raise LTIError(
            f"{weights}: not the weights of {net} ({error}). Delete it and run the same command "
            f"again."
        ) from None
    evaluated: nn.Module = network.eval().requires_grad_(False)
    return evaluated


def _constants(network: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in network.state_dict().items() if "scaling_layer" in key}
