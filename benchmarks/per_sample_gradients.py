"""Per-sample gradients in one call, beside a loop of single backward passes.

Run ``python benchmarks/per_sample_gradients.py [--model M ...] [--samples N] [--at-once N]
[--repeats N]``. Both fill the rows of one ``(at once, parameters)`` float32 array, as the
gradient store's writer does. As many gradients are computed at once as there: 530 of LeNet's
15,826 parameters, 31 of ResNet20's 269,722. On a machine with a GPU, both run there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lti.compute import Compute, acquire
from lti.fl_models import FL_MODELS, FLModel, FLTask
from lti.gradients.per_sample import block_rows, per_sample_gradient_function


def rate(work: Callable[[], None], samples: int, repeats: int, compute: Compute) -> float:
    """Return the median samples a second; the first run is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if compute.device.type == "cuda":
            torch.cuda.synchronize(compute.device)
        seconds.append(time.perf_counter() - began)
    return samples / statistics.median(seconds[1:])


def fill_by_loop(
    rows: torch.Tensor,
    model: FLModel,
    network: torch.nn.Module,
    image: torch.Tensor,
    label: torch.Tensor,
) -> None:
    """Fill one row by one backward pass."""
    parameters = list(network.parameters())
    for index in range(len(image)):
        loss = model.loss(network(image[index : index + 1]), label[index : index + 1])
        gradients = torch.autograd.grad(loss, parameters)
        torch.cat([gradient.flatten() for gradient in gradients], out=rows[index])


def compare(name: str, options: argparse.Namespace, compute: Compute) -> None:
    """Measure one FL model and print."""
    device = compute.device
    model = FL_MODELS.parse({"use": name})
    network = model.build(FLTask(classes=10)).to(device)
    dim = sum(parameter.numel() for parameter in network.parameters())
    at_once = options.at_once or block_rows(dim)
    n = options.samples or 4 * at_once
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, 32, 32, generator=draw).to(device)
    label = torch.randint(10, (n,), generator=draw).to(device)
    gradients = per_sample_gradient_function(model, network)
    rows = torch.empty(at_once, dim, device=device)
    looped = torch.empty_like(rows)

    def together() -> None:
        for start in range(0, n, at_once):
            part = slice(start, min(start + at_once, n))
            rows[: part.stop - part.start] = gradients(image[part], label[part])

    def one_by_one() -> None:
        for start in range(0, n, at_once):
            part = slice(start, min(start + at_once, n))
            fill_by_loop(looped, model, network, image[part], label[part])

    fast = rate(together, n, options.repeats, compute)
    slow = rate(one_by_one, n, options.repeats, compute)
    last = (n - 1) % at_once + 1
    error = float((rows[:last] - looped[:last]).norm() / looped[:last].norm())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, {n} samples, {where}, {torch.get_num_threads()} threads; samples/s")
    print(f"{f'per-sample function, {at_once} at a time':40}{fast:12,.0f}")
    print(f"{'loop of single backward passes':40}{slow:12,.0f}")
    print(f"{'ratio':40}{fast / slow:12.1f}")
    print(f"relative difference of the rows: {error:.1e}", flush=True)


def main() -> None:
    """Measure every FL model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["lenet", "resnet20"])
    parser.add_argument("--samples", type=int, help="default: four times those at once")
    parser.add_argument("--at-once", type=int, help="default: as many as the store's writer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    options = parser.parse_args()
    compute = acquire(threads=options.threads, gpus=1)
    for name in options.model:
        compare(name, options, compute)


if __name__ == "__main__":
    main()
