"""Gradient matching on many victims in one batch, beside one victim at a time.

Run ``python benchmarks/ig.py [--victims N] [--iterations N] [--defense D ...]``. The attack is
the real one (``ig``) on LeNet gradients, with the objective that suits each defense. A
victim-step is one Adam step of one victim. One at a time, only some of the victims are run,
since each takes the same time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from lti.attacks import ATTACKS, Observations
from lti.compute import Compute, acquire
from lti.defenses import DEFENSES
from lti.fl_models import FL_MODELS, FLTask
from lti.gradients.per_sample import per_sample_gradient_function
from lti.progress import Progress
from lti.projections import PROJECTIONS

SETTINGS = {"prune": {"rate": 0.99}, "gauss": {"sigma": 0.1}}


def observe(defense_name: str, victims: int, compute: Compute) -> Observations:
    """Return what a server would receive of random images."""
    model = FL_MODELS.parse({"use": "lenet"})
    network = model.build(FLTask(classes=10))
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(victims, 3, 32, 32, generator=draw)
    label = torch.randint(10, (victims,), generator=draw)
    gradient = per_sample_gradient_function(model, network)(image, label).detach()
    defense = DEFENSES.parse({"use": defense_name, **SETTINGS.get(defense_name, {})})
    return Observations(
        gradient=defense.defend(gradient, generator=draw),
        label=label[:, None],
        batch_size=1,
        model=model,
        network=network.requires_grad_(False).to(compute.device),
        defense=defense,
        sample_shape=(3, 32, 32),
        projection=PROJECTIONS.parse({"use": "identity"}),
    )


def rate(observed: Observations, iterations: int, compute: Compute) -> float:
    """Return victim-steps a second of the attack on all victims at once."""

    def attack(steps: int) -> None:
        method = ATTACKS.parse({"use": "ig", "iterations": steps})
        with tempfile.TemporaryDirectory() as folder:
            method.reconstruct(
                observed,
                compute=compute,
                seed=0,
                progress=Progress("ig", every_seconds=1e9),
                checkpoints=Path(folder),
            )

    attack(2)  # the first steps also build kernels
    began = time.perf_counter()
    attack(iterations)  # ends with a copy to the host, so a GPU has finished
    return len(observed.gradient) * iterations / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--victims", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--defense", nargs="+", default=["none", "sign", "prune", "gauss"])
    parser.add_argument("--threads", type=int, help="torch's default if not given")
    options = parser.parse_args()
    compute = acquire(threads=options.threads, gpus=1)
    device = compute.device
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"LeNet, {where}, {torch.get_num_threads()} threads; victim-steps/s")
    print(f"{'defense':10}{f'{options.victims} at once':>14}{'one alone':>16}{'ratio':>8}")
    for name in options.defense:
        observed = observe(name, options.victims, compute)
        together = rate(observed, options.iterations, compute)
        one = replace(
            observed,
            gradient=observed.gradient[:1],
            label=None if observed.label is None else observed.label[:1],
        )
        single = rate(one, options.iterations, compute)
        print(f"{name:10}{together:14,.0f}{single:16,.0f}{together / single:8.1f}", flush=True)


if __name__ == "__main__":
    main()
