"""How far an FL model's gradient is linear in the image: what LTI-MAP's steps rely on.

Run ``python benchmarks/linearity.py [--fl-model M ...] [--dataset D] [--samples N] [--blur S]``.
Images are blurred to about what an inverter gives back. For the way e from a blurred image x to the
true one it compares the gradient's change ``g(x + e) - g(x)`` with its derivative ``J e``, and e
with the way that the change points to, ``J' (g(x + e) - g(x))``. A rectifier's derivative jumps,
and J sees none of its jumps; so it does the same with the derivative of rectifiers that are
softened, ``relu(a) = E max(0, a + w rms(a) n)`` with n standard normal, for widths w.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch.func import jvp, vjp
from torchvision.transforms.functional import gaussian_blur  # type: ignore[import-untyped]

from lti.compute import acquire
from lti.data.dataset import DATASETS
from lti.data.samples import as_input
from lti.data.selection import select
from lti.fl_models import FL_MODELS, FLTask
from lti.fl_models.soft_rectifiers import SoftRectifiers
from lti.gradients.per_sample import GradientFunction, per_sample_gradient_function

WIDTHS = (0.0, 0.01, 0.03, 0.1, 0.3)
BLOCK = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fl-model", nargs="+", default=["lenet", "resnet20"])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--blur", type=float, default=2.2, help="standard deviation, in pixels")
    options = parser.parse_args()
    acquire(threads=None, gpus=0)
    dataset = DATASETS.parse({"use": options.dataset})
    samples = select(dataset.load("auxiliary"), size=options.samples, seed=0, what="auxiliary")
    image, label = as_input(torch.from_numpy(samples.value)), torch.from_numpy(samples.label)
    blurred = gaussian_blur(image, 13, options.blur)
    psnr = -10 * (blurred - image).square().flatten(1).mean(dim=1).log10().mean()
    print(f"{len(image)} images of {options.dataset}, blurred to {psnr:.1f} dB; medians")
    for name in options.fl_model:
        model = FL_MODELS.parse({"use": name})
        network = model.build(FLTask(classes=len(dataset.read_class_names())))
        gradients = per_sample_gradient_function(model, network.requires_grad_(False))
        for width in WIDTHS:
            parts = (part.split(BLOCK) for part in (image, blurred, label))
            blocks = zip(*parts, strict=True)
            found = torch.cat([_measure(gradients, block, width) for block in blocks])
            change, length, way = found.median(dim=0).values.tolist()
            print(
                f"{name}, width {width:4}: cosine of J e and the change {change:.3f}, "
                f"length {length:.3f} of it; cosine of what it points to and e {way:.3f}"
            )


def _measure(
    gradients: GradientFunction, block: Sequence[torch.Tensor], width: float
) -> torch.Tensor:
    """Return both cosines of each image, and between them a ratio of lengths, ``(b, 3)``."""
    image, blurred, label = block
    way = image - blurred
    change = gradients(image, label) - gradients(blurred, label)

    def softened(x: torch.Tensor) -> torch.Tensor:
        with SoftRectifiers(width):
            return gradients(x, label)

    first_order = jvp(softened, (blurred,), (way,))[1]
    (pointed,) = vjp(softened, blurred)[1](change)
    return torch.stack(
        [
            torch.cosine_similarity(first_order, change),
            first_order.norm(dim=1) / change.norm(dim=1),
            torch.cosine_similarity(pointed.flatten(1), way.flatten(1)),
        ],
        dim=1,
    )


if __name__ == "__main__":
    main()
