"""What noise leaves of a gradient, under principal components and under feature hashing.

Run ``python benchmarks/projections.py [--fl-model M] [--dataset D] [--samples N] [--sigma S]``.
Prints the variances of gradients along the principal directions (of samples that the directions
were not fitted to), and how many exceed the noise's: sigma^2 in a direction, c sigma^2 in a bin
that sums c coordinates.
"""

from __future__ import annotations

import argparse

import torch

from lti.compute import acquire
from lti.data.dataset import DATASETS
from lti.data.samples import as_input
from lti.data.selection import select
from lti.fl_models import FL_MODELS, FLTask, attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import block_rows, even_blocks, per_sample_gradient_function
from lti.projections import FitSample
from lti.projections.principal import PrincipalComponents

OTHERS = 512  # samples that the variances are of
SHOWN = (10, 50, 100, 200, 300, 400, 500)
BINS = 16_384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fl-model", default="resnet20")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--sigma", type=float, default=0.1)
    options = parser.parse_args()
    acquire(threads=None, gpus=0)
    dataset = DATASETS.parse({"use": options.dataset})
    count = options.samples + OTHERS
    samples = select(dataset.load("auxiliary"), size=count, seed=0, what="auxiliary")
    model = FL_MODELS.parse({"use": options.fl_model})
    network = model.build(FLTask(classes=len(dataset.read_class_names()))).eval()
    layout = ParameterLayout.of(attacked(model, network))
    gradients = per_sample_gradient_function(model, network)
    value, label = as_input(torch.from_numpy(samples.value)), torch.from_numpy(samples.label)
    gradient = torch.empty(count, layout.total)
    for start, stop in even_blocks(0, count, block_rows(layout.total)):
        gradient[start:stop] = gradients(value[start:stop], label[start:stop])

    settings = PrincipalComponents(samples=options.samples)
    first = gradient[: options.samples]
    sample = FitSample(value[: options.samples], network, layout, first.clone)
    fitted = settings.fitted(settings.fit(sample))
    variance = fitted.project(gradient[options.samples :], layout=layout).var(dim=0)
    print(f"{options.fl_model}, {layout.total:,} coordinates, {options.samples:,} samples")
    for rank in SHOWN:
        print(f"direction {rank:4}: variance {variance[rank - 1]:.4g}")
    for name, noise in (
        ("a direction", options.sigma**2),
        (f"one of {BINS:,} bins", options.sigma**2 * layout.total / BINS),
    ):
        above = int((variance > noise).sum())
        print(f"noise of {name}: variance {noise:.4g}; {above} directions vary more")


if __name__ == "__main__":
    main()
