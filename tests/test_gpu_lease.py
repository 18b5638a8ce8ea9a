"""GPU leases: real processes, devices that are only names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from lti import gpu_lease
from lti.compute import acquire
from lti.errors import LTIError

# Leases a device, says which and when, works, says when it stopped.
WORK = """
import sys, time
from lti.gpu_lease import lease_gpu
device = lease_gpu(60)
began = time.monotonic()
print(device, began, flush=True)
assert lease_gpu(0) == device
time.sleep(float(sys.argv[1]))
print(time.monotonic(), flush=True)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Four devices, as a scheduler grants them, and none held by this process at the end."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0, 1,GPU-a1/b2,7")
    monkeypatch.setenv("LTI_LEASES", str(tmp_path / "leases"))
    for name in gpu_lease.JOB_IDS:
        monkeypatch.delenv(name, raising=False)
    held: dict = {}
    monkeypatch.setattr(gpu_lease, "_held", held)
    yield ["0", "1", "GPU-a1/b2", "7"]
    for lock in held.values():
        lock.close()


def worker(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORK, str(seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().split()[0]


def test_no_two_processes_hold_one_device(pool):
    workers = [worker(0.7) for _ in range(10)]  # more than devices
    spans: dict[str, list[tuple[float, float]]] = {device: [] for device in pool}
    waited = 0
    for process in workers:
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        device, began, ended = output.split()
        spans[device].append((float(began), float(ended)))
        waited += "all GPUs (0, 1, GPU-a1/b2, 7) are held by other stages" in errors
    assert sum(map(len, spans.values())) == 10
    for of_one in spans.values():
        assert of_one  # every device is used
        ordered = sorted(of_one)
        for (_, ended), (began, _) in pairwise(ordered):
            assert ended <= began
    assert waited >= 6


def test_a_killed_holder_frees_its_device(pool):
    holders = [worker(60) for _ in pool]
    try:
        devices = [first_line(process) for process in holders]
        assert sorted(devices) == sorted(pool)
        with pytest.raises(LTIError, match=r"all GPUs \(0, 1, .*\) stayed held for 0 s.*Lower"):
            gpu_lease.lease_gpu(0.2)
        holders[2].kill()
        holders[2].wait()
        began = time.monotonic()
        assert gpu_lease.lease_gpu(30) == devices[2]
        assert time.monotonic() - began < 5
    finally:
        for process in holders:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", gpu_lease.JOB_IDS)
def test_jobs_of_a_scheduler_each_have_their_own_device_0(pool, monkeypatch, name):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv(name, "17")
    holder = worker(60)
    try:
        assert first_line(holder) == "0"
        with pytest.raises(LTIError, match="stayed held"):
            gpu_lease.lease_gpu(0)  # of the same job
        monkeypatch.setenv(name, "18[3].host")
        assert gpu_lease.lease_gpu(0) == "0"
    finally:
        holder.kill()
        holder.communicate()


def test_the_temporary_folder_of_a_job_does_not_part_the_pool(pool, tmp_path, monkeypatch):
    monkeypatch.delenv("LTI_LEASES")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / name))
        monkeypatch.setattr("tempfile.tempdir", None)
        assert gpu_lease._folder() == Path(f"/tmp/lti-gpu-{os.getuid()}")


def test_locks_that_cannot_be_kept_are_said(pool, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTI_LEASES", str(tmp_path / "file" / "leases"))
    with pytest.raises(LTIError, match=r"GPU locks cannot be kept there .*Set LTI_LEASES to"):
        gpu_lease.lease_gpu(0)


def test_an_empty_grant_is_no_device(pool, monkeypatch):
    for empty in ("", "-1", " , "):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", empty)
        assert gpu_lease.lease_gpu(0) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_granted_gpus_that_torch_cannot_use_leave_the_processor(pool, capsys):
    assert acquire(threads=None, gpus=1).device.type == "cpu"
    assert "GPU 0 was granted, but torch" in capsys.readouterr().err


def test_several_devices_are_leased_at_once_or_none(pool, monkeypatch):
    other = worker(3.0)
    taken = first_line(other)
    left = [device for device in pool if device != taken]
    with pytest.raises(LTIError, match=r"too many GPUs .* stayed held"):
        gpu_lease.lease_gpus(4, 0)
    assert gpu_lease._held == {}
    assert gpu_lease.lease_gpus(3, 60) == left  # those that were let go again
    assert gpu_lease.lease_gpus(3, 0) == left
    other.communicate(timeout=60)
    with monkeypatch.context() as fresh, pytest.raises(LTIError, match=r"5 GPUs were granted.*4"):
        fresh.setattr(gpu_lease, "_held", {})
        gpu_lease.lease_gpus(5, 0)
