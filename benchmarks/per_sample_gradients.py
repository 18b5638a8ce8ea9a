"""Per-sample gradients in one call, beside a loop of single backward passes.

Run ``python benchmarks/per_sample_gradients.py [--samples N] [--chunk N] [--repeats N]``. Both
fill the rows of the same ``(chunk, 15826)`` float32 array with the gradients of a LeNet, as the
gradient store's writer does. 265 rows are a chunk of the store at its default of 8 MiB. On a
machine with a GPU, both run there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lti.compute import Compute, acquire
from lti.fl_models import FL_MODELS, FLModel
from lti.gradients.per_sample import per_sample_gradient_function


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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=2120)
    parser.add_argument("--chunk", type=int, default=265)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    options = parser.parse_args()
    compute = acquire(threads=options.threads, gpus=1)
    device, n = compute.device, options.samples
    model = FL_MODELS.parse({"use": "lenet"})
    network = model.build(10).to(device)
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(n, 3, 32, 32, generator=draw).to(device)
    label = torch.randint(10, (n,), generator=draw).to(device)
    gradients = per_sample_gradient_function(model, network)
    dim = sum(parameter.numel() for parameter in network.parameters())
    rows = torch.empty(options.chunk, dim, device=device)
    looped = torch.empty_like(rows)

    def at_once() -> None:
        for start in range(0, n, options.chunk):
            part = slice(start, min(start + options.chunk, n))
            rows[: part.stop - part.start] = gradients(image[part], label[part])

    def one_by_one() -> None:
        for start in range(0, n, options.chunk):
            part = slice(start, min(start + options.chunk, n))
            fill_by_loop(looped, model, network, image[part], label[part])

    together = rate(at_once, n, options.repeats, compute)
    single = rate(one_by_one, n, options.repeats, compute)
    last = (n - 1) % options.chunk + 1
    error = float((rows[:last] - looped[:last]).norm() / looped[:last].norm())
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"LeNet, {n} samples, {where}, {torch.get_num_threads()} threads; samples/s")
    print(f"{f'per-sample function, {options.chunk} at a time':40}{together:12,.0f}")
    print(f"{'loop of single backward passes':40}{single:12,.0f}")
    print(f"{'ratio':40}{together / single:12.1f}")
    print(f"relative difference of the rows: {error:.1e}")


if __name__ == "__main__":
    main()
