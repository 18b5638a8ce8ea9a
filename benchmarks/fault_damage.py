"""Damage for ``faults.py``: what a byte that changed, or an end that is missing, comes to."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
from fault_checkout import TARGET, Checkout, differences

__all__ = ["CHECKSUMS", "KINDS", "damage", "stopped"]

IMAGES = "photos-n600-s0/lenet/identity"
INVERTER = f"results/inverters/{IMAGES}/b1/gauss/quick"
STORE = f"results/gradients/{IMAGES}/undefended"
# Patterns of the files of each kind, below the checkout; where it is not a finished run that is
# damaged, what was asked for when it was killed.
KINDS: dict[str, tuple[tuple[str, ...], str]] = {
    "store: shard": (("results/**/*.zarr/*/c/**/*",), TARGET),
    "store: zarr.json": (("results/**/*.zarr/**/zarr.json",), TARGET),
    "store: manifest": (("results/**/*.manifest.json",), TARGET),
    "arrays (safetensors)": (("results/**/*.safetensors",), TARGET),
    "card (JSON)": (("results/**/*.json",), TARGET),
    "tokenizer": (("results/data/*/tokenizer.json",), TARGET),
    "metric rows (CSV)": (("results/metrics/**/*.csv",), TARGET),
    "summary (CSV, Markdown)": (("results/*/*/summary.csv", "results/*/*/summary.md"), TARGET),
    "checksum": (("results/**/*.sha256",), TARGET),
    "table, history (CSV, Markdown, LaTeX)": (
        ("results/*/*/table_*", "results/**/*.history.csv", "results/**/*.tried.csv"),
        TARGET,
    ),
    "figure (PNG, PDF, HTML)": (
        ("results/**/*.png", "results/**/*.pdf", "results/**/*.html"),
        TARGET,
    ),
    "Snakemake's records": ((".snakemake/metadata/**/*",), TARGET),
    "checkpoint of a stopped training": (
        ("results/checkpoints/*.safetensors",),
        f"{INVERTER}.safetensors",
    ),
    "store that is not finished": (
        (f"{Path(STORE).parent}/.undefended.zarr.partial/**/*",),
        f"{STORE}.manifest.json",
    ),
}
CHECKSUMS = "find results -name '*.sha256' -execdir sha256sum --check --quiet {} +"
NOT_CARDS = (".manifest.json", "tokenizer.json", "zarr.json")


def stopped(reference: Checkout, kind: str, checkout: Checkout) -> None:
    """Kill a training after its first checkpoint, or a writer of a store after its first shards."""
    goal = KINDS[kind][1]
    reference.copy(checkout.folder)
    if "checkpoint" in kind:
        # Not one that is being written, whose name begins with a dot.
        made, names, least = checkout.results / "checkpoints", "[!.]*.safetensors", 1
        lost = [checkout.folder / f"{INVERTER}.safetensors"]
    else:
        root = checkout.folder / Path(STORE).parent / ".undefended.zarr.partial"
        made, names, least = root / "journal", "*.json", 3
        lost = [checkout.folder / f"{STORE}.manifest.json", checkout.folder / f"{STORE}.zarr"]
    for path in lost:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    process = checkout.start("--", goal)
    while len(list(made.glob(names))) < least:
        if process.poll() is not None:
            raise SystemExit(f"{goal} was made before it could be stopped:\n{checkout.said()}")
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        child.kill()
    process.wait()
    if not list(made.glob(names)):
        raise SystemExit(f"{goal} left nothing to go on from:\n{checkout.said()}")


def files_of(kind: str, checkout: Checkout) -> list[Path]:
    """Return the files of a kind, relative to the checkout, sorted."""
    found = {path for pattern in KINDS[kind][0] for path in checkout.folder.glob(pattern)}
    if kind.startswith("card"):
        found = {path for path in found if not path.name.endswith(NOT_CARDS)}
    names = [path.relative_to(checkout.folder) for path in found if path.is_file()]
    return sorted(name for name in names if (checkout.folder / name).stat().st_size)


def spoil(path: Path, draw: random.Random) -> str:
    """Change one bit of a file or cut its end off, its time of change kept or not."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    cut = draw.random() < 0.3
    if cut:
        content = content[:place]
    else:
        content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    kept = draw.random() < 0.5  # a disk that decays does not touch the time
    if kept:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    what = f"cut to {place} bytes" if cut else f"a bit of byte {place} flipped"
    return f"{what} of {before.st_size}, time {'kept' if kept else 'new'}"


def damage(
    reference: Checkout,
    start: Checkout,
    checkout: Checkout,
    kind: str,
    expected: dict[str, str],
    draw: random.Random,
) -> dict[str, Any]:
    """Damage one file, give the same command again, let one consumer read it, follow the advice.

    Args:
        reference: the finished run.
        start: what is damaged a copy of: the finished run, or one that was stopped.
        checkout: where to.
        kind: of :data:`KINDS`.
        expected: contents of the finished run.
        draw: every choice.
    """
    start.copy(checkout.folder)
    name = draw.choice(files_of(kind, checkout))
    how = spoil(checkout.folder / name, draw)
    spoilt = (checkout.folder / name).read_bytes()
    goal = [KINDS[kind][1]]
    record: dict[str, Any] = {"file": str(name), "how": how, "by": "", "outcome": ""}

    succeeded = checkout.run("--", *goal)
    if succeeded and unchanged(checkout.folder / name, spoilt):
        goal = consumer_of(name, reference, draw) or goal
        if goal != [KINDS[kind][1]]:
            for output in goal:
                remove(checkout.folder / output)
            succeeded = checkout.run("--", *goal)
    if not succeeded:
        record["by"] = message_of(checkout.said())
        for path in advised(checkout.said()):
            remove(checkout.folder / path)
        if not checkout.run("--", *goal):
            return {**record, "outcome": "stuck", "output": checkout.said()[-3000:]}
        record["outcome"] = "recovered"
    wrong = differences(checkout.results, expected)
    if succeeded and unchanged(checkout.folder / name, spoilt):
        # Nobody has refused it; does the documented check?
        command = ["bash", "-c", CHECKSUMS]
        check = subprocess.run(command, cwd=checkout.folder, capture_output=True, text=True)
        wrong = [other for other in wrong if f"results/{other}" != str(name)]
        if check.returncode:
            record["by"] = "sha256sum"
            record["outcome"] = "detected"
        else:
            read = kind.startswith("Snakemake") or consumer_of(name, reference, draw)
            record["outcome"] = "harmless" if read else "unread"
    elif succeeded:
        record["by"] = "Snakemake or the stage: made again"
        record["outcome"] = "recovered"
    if wrong:
        record |= {"outcome": "wrong", "wrong": wrong}
    return record


def unchanged(path: Path, content: bytes) -> bool:
    """Whether a damaged file still is as it was damaged."""
    return path.exists() and path.read_bytes() == content


def remove(path: Path) -> None:
    """Remove a file, or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def consumer_of(name: Path, checkout: Checkout, draw: random.Random) -> list[str]:
    """Return the outputs of one job that had a file, or the store it is of, as its input."""
    stores = (str(path) for path in name.parents if path.suffix == ".zarr")
    wanted = {str(name), str(name).removesuffix(".sha256"), *stores}
    jobs: dict[str, list[str]] = {}
    for record in checkout.records():
        if wanted & set(record["input"]):
            jobs.setdefault(record["log"][0] if record["log"] else "", []).append(record["output"])
    jobs.pop("", None)
    return sorted(jobs[draw.choice(sorted(jobs))]) if jobs else []


def message_of(output: str) -> str:
    """Return the line that says what is wrong."""
    found = re.search(r"^error: (.*)$", output, re.MULTILINE)
    return found[1] if found else "Snakemake: " + output.strip().splitlines()[-1]


def advised(output: str) -> list[str]:
    """Return the files that the message says to delete."""
    message = message_of(output)
    store = re.search(r"Delete the store (\S+) and its manifest ([^\s,]+)", message)
    if store:
        return [store[1], store[2]]
    manifest = re.match(r"(\S+)\.manifest\.json: .*the store beside it", message)
    if manifest:
        return [f"{manifest[1]}.zarr", f"{manifest[1]}.manifest.json"]
    named = re.match(r"([^\s:]+): ", message)
    return [named[1]] if named and re.search(r"[Dd]elete it", message) else []
