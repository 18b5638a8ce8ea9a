"""How fast the gradient store writes and reads, beside how fast training eats rows.

Run ``python benchmarks/store.py [--rows N] [--encoding E] [--compress] [--device D]``. Rows
have the length of a LeNet gradient (15,826). Training is the paper's inverter for it, an MLP
15826-3000-3000-3072, forward, backward and Adam step in bfloat16 at batch 256.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lti.gradients.batches import TrainingRows
from lti.gradients.store import GradientStore, StoreSettings, write_store

DIM, PIXELS, HIDDEN, BATCH = 15826, 3072, 3000, 256


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that ``work`` takes, with what it left running on a GPU."""
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def training_rate(device: torch.device, steps: int) -> float:
    """Return the rows a second of training steps on rows that are already there."""
    nn = torch.nn
    model = nn.Sequential(
        nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(),
        nn.Linear(HIDDEN, PIXELS),
    ).to(device)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rows = torch.randn(BATCH, DIM, device=device)
    target = torch.rand(BATCH, PIXELS, device=device)

    def train(count: int) -> None:
        for _ in range(count):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                output = model(rows)
            loss = nn.functional.mse_loss(output.float(), target)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    timed(lambda: train(1), device)
    return steps * BATCH / timed(lambda: train(steps), device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--encoding", default="scaled-float16")
    parser.add_argument("--compress", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one by default")
    parser.add_argument("--stream-mib", type=float, default=256.0)
    parser.add_argument("--shard-mib", type=float, default=256.0)
    options = parser.parse_args()
    device, n = torch.device(options.device), options.rows
    block = torch.randn(4096, DIM, generator=torch.Generator().manual_seed(0))
    if options.encoding == "sign":
        block.sign_()
    rates = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)

        def write() -> None:
            # The same random rows again and again: only the store is measured.
            write_store(
                folder / "g",
                manifest=folder / "g.json",
                n_rows=n,
                dim=DIM,
                encoding=options.encoding,
                compress=options.compress,
                compute=lambda start, stop: block[: stop - start],
                settings=StoreSettings(shard_mib=options.shard_mib),
            )

        rates["write"] = n / timed(write, device)
        store = GradientStore.open(folder / "g", folder / "g.json")
        size = sum(file.stat().st_size for file in (folder / "g").rglob("*") if file.is_file())
        rows: list[TrainingRows] = []

        def load() -> None:
            rows[:] = []
            rows.append(TrainingRows(store, memory_mib=2**20, device=device))

        def epoch() -> None:
            for _ in rows[0].epoch(BATCH, seed=0):
                pass

        rates["load, memory not touched before"] = n / timed(load, device)
        rates["load, again"] = n / timed(load, device)
        rates[f"resident batches ({rows[0].placement})"] = n / timed(epoch, device)
        rows[:] = [
            TrainingRows(store, memory_mib=options.stream_mib, device=device, resident=False)
        ]
        rates[f"streamed batches ({options.stream_mib:g} MiB)"] = n / timed(epoch, device)
        rows.clear()
        training = training_rate(device, steps=50 if device.type == "cuda" else 3)
    row_bytes = store.geometry.row_bytes
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{n} rows of {DIM}, {options.encoding}, {size / n / DIM:.3f} bytes an entry on disk, "
        f"{where}, {torch.get_num_threads()} threads"
    )
    print(f"{'':36}{'rows/s':>10}{'GB/s*':>8}{'/ training':>12}")
    for label, rate in rates.items():
        print(f"{label:36}{rate:10.0f}{rate * row_bytes / 1e9:8.2f}{rate / training:12.1f}")
    print(f"{f'training in bfloat16, batch {BATCH}':36}{training:10.0f}{'':8}{1.0:12.1f}")
    print("* encoded bytes before compression")


if __name__ == "__main__":
    main()
