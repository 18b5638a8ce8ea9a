"""Per-sample hashed gradients of networks for text, beside a loop of single backward passes.

Run ``python benchmarks/bert_gradients.py [--model M ...] [--samples N] [--at-once N]
[--defense D] [--repeats N] [--threads N]``. Both make the rows that the gradient store keeps: 16
tokens, the attacked parameters, the defense's deterministic part, hashed as in the paper (ratio
0.01 for BERT, 0.1 for the transformer). The loop joins a sample's gradient to one row first. Rows
differ by rounding, and with ``--defense sign`` by the signs of entries that are nearly 0.
Peak memory is the process's (on a GPU, torch's), weights included, before the loop has run. On
a machine with a GPU, all runs there.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lti.compute import Compute, acquire
from lti.defenses import DEFENSES
from lti.fl_models import FL_MODELS, FLTask, attacked
from lti.gradients.layout import ParameterLayout
from lti.gradients.per_sample import block_rows, even_blocks, per_sample_parts_function
from lti.projections import PROJECTIONS

LENGTH = 16
BERT = FLTask(classes=2, vocabulary=30_522, length=LENGTH, padding=0)
GPT = FLTask(classes=1, vocabulary=50_257, length=LENGTH)


@dataclass(frozen=True)
class Case:
    """A network as the configuration has it, and the paper's hashing of its gradient."""

    settings: dict[str, object]
    task: FLTask
    ratio: float


CASES = {
    "transformer3": Case({"use": "transformer3"}, GPT, 0.1),
    "bert-small": Case(
        {"use": "bert", "layers": 4, "width": 256, "heads": 4, "intermediate": 1024}, BERT, 0.01
    ),
    "bert": Case({"use": "bert", "pretrained": "never"}, BERT, 0.01),
}


def seconds(work: Callable[[], object], compute: Compute) -> float:
    """Return how long a call takes."""
    began = time.perf_counter()
    work()
    if compute.device.type == "cuda":
        torch.cuda.synchronize(compute.device)
    return time.perf_counter() - began


def peak_gib(compute: Compute) -> float:
    """Return the most memory that was used so far."""
    if compute.device.type == "cuda":
        return torch.cuda.max_memory_allocated(compute.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(name: str, options: argparse.Namespace, compute: Compute) -> None:
    """Measure one network and print."""
    case, device = CASES[name], compute.device
    model = FL_MODELS.parse(case.settings)
    network = model.build(case.task).requires_grad_(False).to(device)
    layout = ParameterLayout.of(attacked(model, network))
    defense = DEFENSES.parse({"use": options.defense})
    hashing = PROJECTIONS.parse({"use": "hash", "ratio": case.ratio})
    at_once = options.at_once or block_rows(layout.total)
    n = options.samples or max(4, 2 * at_once)
    draw = torch.Generator().manual_seed(0)
    token = torch.randint(1, case.task.vocabulary or 0, (n, LENGTH), generator=draw).to(device)
    label = token if model.label_is_sample else (torch.arange(n) % 2).to(device)
    gradients = per_sample_parts_function(model, network)
    seen = list(attacked(model, network).values())

    def together() -> torch.Tensor:
        rows = []
        for start, stop in even_blocks(0, n, at_once):
            parts = gradients(token[start:stop], label[start:stop])
            defended = defense.deterministic_parts(parts, layout=layout)
            rows.append(hashing.project_parts(defended, layout=layout))
        return torch.cat(rows)

    def one_by_one() -> torch.Tensor:
        rows = []
        for index in range(n):
            loss = model.loss(network(token[index : index + 1]), label[index : index + 1])
            parts = torch.autograd.grad(loss, seen)
            row = torch.cat([part.flatten() for part in parts])[None]
            rows.append(hashing.project(defense.deterministic(row), layout=layout))
        return torch.cat(rows)

    def backward_alone() -> None:
        for index in range(n):
            loss = model.loss(network(token[index : index + 1]), label[index : index + 1])
            torch.autograd.grad(loss, seen)

    rows = together()
    peak = peak_gib(compute)
    for parameter in seen:
        parameter.requires_grad_()
    looped = one_by_one()
    error = float((rows - looped).norm() / looped.norm())
    ways = {
        f"per-sample function, {at_once} at a time": together,
        "loop of single backward passes": one_by_one,
        "the same, gradients thrown away": backward_alone,
    }
    # In turns, so that what else the machine does hits all of them.
    times: dict[str, list[float]] = {what: [] for what in ways}
    for _ in range(options.repeats):
        for what, work in ways.items():
            times[what].append(seconds(work, compute))
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{name}, {layout.total:,} coordinates, {options.defense}, hashed to {rows.shape[1]:,}, "
        f"{n} samples, {where}, {torch.get_num_threads()} threads; samples/s"
    )
    rate = {what: n / statistics.median(measured) for what, measured in times.items()}
    for what, value in rate.items():
        print(f"{what:40}{value:12.2f}")
    fast, slow, _ = rate.values()
    print(f"{'ratio of the first two':40}{fast / slow:12.2f}")
    print(f"{'peak memory, GiB':40}{peak:12.2f}")
    print(f"relative difference of the rows: {error:.1e}", flush=True)


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--samples", type=int, help="default: twice those at once, at least 4")
    parser.add_argument("--at-once", type=int, help="default: as many as the store's writer")
    parser.add_argument("--defense", choices=["none", "sign", "prune"], default="none")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    options = parser.parse_args()
    compute = acquire(threads=options.threads, gpus=1)
    for name in options.model:
        compare(name, options, compute)


if __name__ == "__main__":
    main()
