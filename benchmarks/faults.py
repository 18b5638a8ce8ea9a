"""Kill, damage, fill the disk, cut the network: ``nice python benchmarks/faults.py --work FOLDER``.

A quickstart at a small size is disturbed, each time followed by what ``docs/running.md`` says, and
its results are compared with those of a run that nobody disturbed. Every choice is from a seed;
what is done is in ``FOLDER/faults.jsonl``, and the same command goes on after it. At the end the
tables of ``docs/reliability.md`` are printed, and written with all records to ``FOLDER``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from fault_checkout import TARGET, Checkout, contents, differences
from fault_damage import KINDS, damage, stopped

OUTCOMES = ("recovered", "detected", "harmless", "unread", "stuck", "wrong")
DISKS = (0.25, 0.5, 0.8)  # shares of what a run takes


class Campaign:
    """The faults so far, and the run that they are compared with.

    Args:
        folder: for all of it.
        seed: of every choice.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed = folder, seed
        self.journal = folder / "faults.jsonl"
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        # In one place: Snakemake notes absolute paths of the code.
        self.checkout = Checkout(folder / "checkout")
        self.reference = self.make_reference()
        self.expected: dict[str, str] = json.loads((folder / "expected.json").read_text())
        self.work: float = json.loads((folder / "work.json").read_text())

    def make_reference(self) -> Checkout:
        """Run undisturbed, unless that was done."""
        folder = self.folder / "reference"
        if not (self.folder / "work.json").exists():
            self.checkout.clear()
            before = processor_seconds(os.getpid())
            if not self.checkout.run("--", TARGET):
                raise SystemExit(self.checkout.said())
            work = processor_seconds(os.getpid()) - before
            self.checkout.copy(folder)
            found = contents(self.checkout.results)
            (self.folder / "expected.json").write_text(json.dumps(found, indent=1))
            (self.folder / "work.json").write_text(json.dumps(work))
            print(f"undisturbed: {len(found)} results, {work:.0f} s of a processor", flush=True)
        return Checkout(folder)

    def draw(self, *names: object) -> random.Random:
        """Return the generator of one fault."""
        return random.Random("/".join(map(str, (self.seed, *names))))

    def done(self, phase: str, number: int) -> bool:
        """Return whether a fault is in the journal."""
        return any((r["phase"], r["number"]) == (phase, number) for r in self.records)

    def note(self, phase: str, number: int, began: float, record: dict[str, Any]) -> None:
        """Enter a fault in the journal and print it."""
        seconds = round(time.monotonic() - began, 1)
        record = {"phase": phase, "number": number, "seconds": seconds, **record}
        self.records.append(record)
        with self.journal.open("a") as file:
            file.write(json.dumps(record) + "\n")
        shown = " | ".join(str(record.get(key, "")) for key in ("kind", "file", "how", "by"))
        print(f"{phase} {number}: {record['outcome']} in {seconds} s | {shown}", flush=True)


def kill(campaign: Campaign, count: int) -> None:
    """Kill one process of a run, go on, kill again; compare whenever a run comes to its end."""
    checkout = campaign.checkout
    pending: list[tuple[int, float, dict[str, Any]]] = []
    numbers = [n for n in range(count) if not campaign.done("kill", n)]
    checkout.clear()
    while numbers or pending:
        number = numbers[0] if numbers else -1
        draw = campaign.draw("kill", number)
        # In time of the processor: a busy machine does not move the kills to the beginning.
        wait = draw.uniform(0, campaign.work / 6) if numbers else math.inf
        began = time.monotonic()
        process = checkout.start("--", TARGET)
        while process.poll() is None and processor_seconds(process.pid) < wait:
            time.sleep(0.05)
        if process.poll() is not None:  # at its end before the kill
            outcome: dict[str, Any] = {"outcome": "recovered"}
            if process.returncode:
                outcome = {"outcome": "stuck", "output": checkout.said()[-3000:]}
            elif wrong := differences(checkout.results, campaign.expected):
                outcome = {"outcome": "wrong", "wrong": wrong}
            for earlier, start, record in pending:
                campaign.note("kill", earlier, start, {**record, **outcome})
            pending.clear()
            checkout.clear()
            continue
        record = kill_one(process, draw)
        if record["kind"] == "Snakemake":
            # What it was asked for may still run, as it may where a user has seen it die.
            locks = list((checkout.folder / ".snakemake/locks").glob("*"))
            record["by"] = "Snakemake's lock" if locks else "nothing was locked yet"
            checkout.run("--unlock")
        pending.append(
            (number, began, {**record, "how": f"SIGKILL after {wait:.1f} s of a processor"})
        )
        numbers.pop(0)


def processor_seconds(number: int) -> float:
    """Return the time that a process and all below it have had of a processor."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(number)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += sum(each.cpu_times()[:4])
    return total


def kill_one(process: subprocess.Popen[str], draw: random.Random) -> dict[str, Any]:
    """Kill Snakemake, or a process below it, and wait until Snakemake has ended."""
    tree = [psutil.Process(process.pid)]
    with contextlib.suppress(psutil.Error):
        tree += tree[0].children(recursive=True)
    chosen, kind = draw.choice(tree), "a job"
    stage = "snakemake"
    with contextlib.suppress(psutil.Error):
        command = chosen.cmdline()
        stage = command[3] if command[1:3] == ["-m", "lti"] else Path(command[0]).name
    if chosen.pid == process.pid:
        kind, stage = "Snakemake", ", ".join(["snakemake", *(p.name() for p in tree[1:])])
    with contextlib.suppress(psutil.Error):
        chosen.kill()
    process.wait(timeout=600)
    by = f"Snakemake: status {process.returncode}"
    return {"kind": kind, "file": stage, "by": by}


def damage_files(campaign: Campaign, count: int) -> None:
    """Damage files of every kind, as often."""
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        if campaign.done("damage", number):
            continue
        start = campaign.reference
        if KINDS[kind][1] != TARGET:
            start = Checkout(campaign.folder / f"stopped-{kinds.index(kind)}")
            if not start.results.exists():
                stopped(campaign.reference, kind, campaign.checkout)
                campaign.checkout.copy(start.folder)
        began = time.monotonic()
        draw = campaign.draw("damage", number)
        record = damage(campaign.reference, start, campaign.checkout, kind, campaign.expected, draw)
        campaign.note("damage", number, began, {"kind": kind, **record})


def fill_disk(campaign: Campaign) -> None:
    """Run on a disk that is too small, and go on once it is large enough."""
    taken = sum(p.stat().st_size for p in campaign.reference.folder.rglob("*") if p.is_file())
    for number, share in enumerate(DISKS):
        if campaign.done("disk", number):
            continue
        began = time.monotonic()
        disk = campaign.folder / "disk"
        disk.mkdir(exist_ok=True)
        size = int(taken * share)
        record: dict[str, Any] = {"kind": "disk full", "how": f"{size / 2**20:.0f} MiB"}
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "lti-faults", str(disk)],
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            record |= {"outcome": "skipped", "by": mounted.stderr.strip()}
            campaign.note("disk", number, began, record)
            continue
        try:
            checkout = Checkout(disk / "checkout")
            filled = not checkout.run("--", TARGET)
            output = checkout.said()
            record["by"] = "No space left" if "No space left" in output else output[-300:]
            subprocess.run(["mount", "-o", f"remount,size={4 * taken}", str(disk)], check=True)
            if not filled:
                record["outcome"] = "harmless"
            elif checkout.run("--", TARGET):
                record["outcome"] = "recovered"
            else:
                record |= {"outcome": "stuck", "output": checkout.said()[-3000:]}
            if wrong := differences(checkout.results, campaign.expected):
                record |= {"wrong": wrong}
                record["outcome"] = "stuck" if record["outcome"] == "stuck" else "wrong"
        finally:
            subprocess.run(["umount", str(disk)], check=True)
        campaign.note("disk", number, began, record)


def cut_network(campaign: Campaign) -> None:
    """Run without a network: where it may be taken away, in a namespace without one."""
    if campaign.done("network", 0):
        return
    began = time.monotonic()
    without = ("unshare", "--net")
    closed = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    isolated = subprocess.run([*without, "true"], capture_output=True).returncode == 0
    campaign.checkout.clear()
    succeeded = campaign.checkout.run(
        "--", TARGET, before=without if isolated else (), LTI_DATA_MIRROR="", **closed
    )
    record = {"kind": "no network", "how": "unshare --net" if isolated else "a closed proxy"}
    record["outcome"] = "harmless"
    if not succeeded:
        record |= {"outcome": "stuck", "output": campaign.checkout.said()[-3000:]}
    elif wrong := differences(campaign.checkout.results, campaign.expected):
        record |= {"outcome": "wrong", "wrong": ", ".join(wrong)}
    campaign.note("network", 0, began, record)


def table(records: list[dict[str, Any]]) -> str:
    """Return Markdown: what was injected, by phase and kind, and what came of it."""
    lines = [
        "| fault | injected | recovered | noticed by `sha256sum` alone | harmless | never read "
        "again | stuck | wrong results |",
        "| :-- " + "| --: " * 7 + "|",
    ]
    kinds = dict.fromkeys((r["phase"], r["kind"]) for r in records if r["outcome"] != "skipped")
    for phase, kind in kinds:
        chosen = [r["outcome"] for r in records if (r["phase"], r["kind"]) == (phase, kind)]
        counts = [len(chosen), *(chosen.count(outcome) for outcome in OUTCOMES)]
        lines.append(f"| {phase}: {kind} | " + " | ".join(map(str, counts)) + " |")
    outcomes = [r["outcome"] for r in records if r["outcome"] != "skipped"]
    counts = [len(outcomes), *(outcomes.count(outcome) for outcome in OUTCOMES)]
    return "\n".join([*lines, "| all | " + " | ".join(map(str, counts)) + " |"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="Folder for it all.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damages", type=int, default=50)
    phases: dict[str, Callable[[Campaign], None]] = {}
    parser.add_argument("--phases", nargs="+", default=["damage", "disk", "network", "kill"])
    chosen = parser.parse_args()
    phases = {
        "damage": lambda campaign: damage_files(campaign, chosen.damages),
        "disk": fill_disk,
        "network": cut_network,
        "kill": lambda campaign: kill(campaign, chosen.kills),
    }
    campaign = Campaign(chosen.work.resolve(), chosen.seed)
    for name in chosen.phases:
        phases[name](campaign)
    text = table(campaign.records)
    (campaign.folder / "faults.md").write_text(text)
    (campaign.folder / "faults.json").write_text(json.dumps(campaign.records, indent=1))
    print(text)


if __name__ == "__main__":
    main()
