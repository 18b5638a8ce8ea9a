"""SIGTERM and SIGUSR1: long work saves and leaves, everything else leaves at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lti.checkpoint import Checkpoint

# Counts up, saving where that is due; prints when it is ready for the signal.
WORK = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
import torch
from lti.checkpoint import Checkpoint
from lti.files import atomic_path
from lti import interruption
interruption.leave_when_asked()
kind, folder = sys.argv[1], Path(sys.argv[2])
checkpoint = Checkpoint(folder / "c.safetensors", {}, every_seconds=3600)
if kind == "stuck":
    interruption.GRACE_SECONDS = 0.5
with nullcontext() if kind == "plain" else interruption.saving_first():
    with atomic_path(folder / "out.txt") as temporary:
        temporary.write_text("half")
        for step in range(100_000):
            if step == 3:
                print("ready", flush=True)
            time.sleep(0.01)
            if kind == "saves" and checkpoint.due():
                checkpoint.save({"step": torch.tensor(step)}, position=step)
            if kind == "ends" and interruption.asked_to_leave():
                break
print("finished", flush=True)
"""


def run(kind: str, folder: Path, number: signal.Signals) -> tuple[int, str, float]:
    with subprocess.Popen(
        [sys.executable, "-c", WORK, kind, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(number)
        process.send_signal(number)  # a scheduler may send it to the process and to its group
        output = process.stdout.read()
        process.wait(timeout=60)
        return process.returncode, output, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda n: n.name)
def test_work_that_saves_does_so_and_leaves(tmp_path, number):
    status, output, seconds = run("saves", tmp_path, number)
    assert (status, output) == (128 + number, "") and seconds < 10
    saved = Checkpoint(tmp_path / "c.safetensors", {}).load()
    assert saved is not None
    assert torch.equal(saved[0]["step"], torch.tensor(saved[1])) and saved[1] >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_other_work_leaves_at_once_and_leaves_nothing_half(tmp_path):
    status, output, seconds = run("plain", tmp_path, signal.SIGTERM)
    assert (status, output) == (128 + signal.SIGTERM, "") and seconds < 5
    assert list(tmp_path.iterdir()) == []


def test_work_that_does_not_come_to_its_save_is_ended(tmp_path):
    status, output, seconds = run("stuck", tmp_path, signal.SIGTERM)
    assert (status, output) == (128 + signal.SIGTERM, "") and 0.4 < seconds < 10
    assert not (tmp_path / "out.txt").exists()


def test_work_that_ends_first_gives_its_result(tmp_path):
    status, output, _ = run("ends", tmp_path, signal.SIGTERM)
    assert (status, output) == (0, "finished\n")
    assert (tmp_path / "out.txt").read_text() == "half"
