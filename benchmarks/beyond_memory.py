"""Training from a store of several times the memory, in shuffled blocks, against one in memory.

Run ``python benchmarks/beyond_memory.py [--samples N] [--epochs N] [--times T] [--chunk-mib M]
[--defenses D]``: LeNet gradients of the data set ``photos``, the commands of the workflow, one
after another. Trained are, for each defense, an inverter on rows in memory, one on the same rows
with ``--memory-mib`` a T-th of the store, and, to say how much two runs differ anyway, one in
memory with another seed. Chunks of half a MiB are 16 rows: as many chunks are then in memory at
once as of a store of some GB, whose chunks have 8 MiB.

The rate is the median over all epochs but the first (wall time); the processor time is that of the
whole command, start and statistics included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd

DEFENSES = {"none": {}, "gauss": {"sigma": 0.01}, "sign": {}}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


class Run(NamedTuple):
    """What one training took and reached."""

    rate: float
    """Samples a second."""
    seconds: float
    """Of the processor."""
    losses: list[float]
    """Held-out, by epoch."""


def lti(stage: str, **options: object) -> float:
    """Run a stage and return the processor time that it took, in seconds."""
    command = [sys.executable, "-m", "lti", stage]
    for key, value in options.items():
        command += [f"--{key.replace('_', '-')}", str(value)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def prepare(folder: Path, samples: int) -> dict[str, Path]:
    """Make the auxiliary set and the FL model; return the options that name them."""
    photos, model = '{"use": "photos"}', '{"use": "lenet", "seed": 0}'
    for part in ("auxiliary", "victims"):
        paths = {"output": folder / f"{part}.safetensors", "card": folder / f"{part}.json"}
        lti("prepare-dataset", dataset=photos, part=part, **paths)
    lti(
        "select-auxiliary",
        source=folder / "auxiliary.safetensors",
        victims=folder / "victims.safetensors",
        size=samples,
        seed=0,
        output=folder / "a.safetensors",
        card=folder / "a.json",
    )
    lti(
        "draw-fl-model",
        fl_model=model,
        dataset_card=folder / "auxiliary.json",
        output=folder / "m.safetensors",
        card=folder / "m.json",
    )
    return {"auxiliary": folder / "a.safetensors", "fl_model": folder / "m.safetensors"}


def train(
    folder: Path, given: dict[str, object], *, epochs: int, seed: int, memory_mib: float
) -> Run:
    """Train an inverter by its command."""
    inverter = {
        "use": "tuned",
        "epochs": epochs,
        "hidden": 512,
        "components": 256,
        "use_mirrored": False,
        "holdout": 0.1,
        "seed": seed,
    }
    seconds = lti(
        "train-inverter",
        **given,
        inverter=json.dumps(inverter),
        memory_mib=memory_mib,
        checkpoints=folder / "checkpoints",
        output=folder / "i.safetensors",
        card=folder / "i.json",
        history=folder / "i.csv",
        threads=1,
    )
    history = pd.read_csv(folder / "i.csv")
    rate = statistics.median(history["samples_per_second"][1:])
    return Run(rate, seconds, history["held_out_loss"].tolist())


def compare(
    folder: Path, sources: dict[str, Path], name: str, arguments: argparse.Namespace
) -> None:
    """Train on one defense's gradients in three ways, and print what came of it."""
    defense = json.dumps({"use": name, **DEFENSES[name]})
    store = {"output": folder / f"{name}.zarr", "manifest": folder / f"{name}.json"}
    pieces = json.dumps({"chunk_mib": arguments.chunk_mib, "shard_mib": 32})
    lti("compute-gradients", **sources, defense=defense, store=pieces, threads=1, **store)
    geometry = json.loads(store["manifest"].read_text())["geometry"]
    size = 2 if geometry["encoding"] == "scaled-float16" else 1
    mib = geometry["n_rows"] * geometry["dim"] * size / 2**20
    memory = mib / arguments.times
    chunk = geometry["chunk_rows"]
    held = int(memory / 2 / (chunk * geometry["dim"] * size / 2**20)) * chunk
    print(f"\n{name}: a store of {mib:.0f} MiB; rows shuffled together: {held:,}")
    given = {
        **sources,
        "defense": defense,
        "gradients": store["output"],
        "manifest": store["manifest"],
    }
    runs = {
        "in memory": train(folder, given, epochs=arguments.epochs, seed=0, memory_mib=4096),
        f"in {memory:.0f} MiB": train(
            folder, given, epochs=arguments.epochs, seed=0, memory_mib=memory
        ),
        "another seed": train(folder, given, epochs=arguments.epochs, seed=1, memory_mib=4096),
    }
    first = runs["in memory"]
    for title, run in runs.items():
        losses = ", ".join(f"{loss:.5f}" for loss in run.losses)
        apart = max(abs(a / b - 1) for a, b in zip(run.losses, first.losses, strict=True))
        print(
            f"{title:>14}: {run.rate:7,.0f} samples/s ({run.rate / first.rate:.2f}), "
            f"{run.seconds:5.1f} s of processor ({run.seconds / first.seconds:.2f}); "
            f"held-out loss {losses} (at most {apart:.2%} apart)"
        )


def main() -> None:
    """Print rates and held-out losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--times", type=float, default=4.0)
    parser.add_argument("--chunk-mib", type=float, default=0.5)
    parser.add_argument("--defenses", nargs="+", choices=DEFENSES, default=["none", "gauss"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = prepare(folder, arguments.samples)
        for defense in arguments.defenses:
            compare(folder, sources, defense, arguments)


if __name__ == "__main__":
    main()
