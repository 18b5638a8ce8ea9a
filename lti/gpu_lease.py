"""Which GPU a process may use: one that no other process on this node has leased.

Snakemake counts the resource ``gpu`` and assigns no device. So every process takes one by itself: a
lock on one file a device, in a folder of this node and user, tried without blocking and held until
the process ends, however it ends: the kernel releases it.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import IO

from lti.errors import LTIError

__all__ = ["lease_gpu", "lease_gpus"]

JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")  # SLURM, PBS, LSF
_POLL_SECONDS = 0.5
_held: dict[str, IO[str]] = {}  # open, and so held, until the process ends


def lease_gpu(wait_seconds: float) -> str | None:
    """Return one device (:func:`lease_gpus`), or None where there are no devices."""
    return next(iter(lease_gpus(1, wait_seconds)), None)


def lease_gpus(count: int, wait_seconds: float) -> list[str]:
    """Return devices that no other process has leased, and keep them until this process ends.

    The pool is ``CUDA_VISIBLE_DEVICES`` where a scheduler has set it, otherwise all of the node's
    devices, found without starting CUDA. The locks lie in ``LTI_LEASES``, by default
    ``/tmp/lti-gpu-<user id>``. What a scheduler grants to one job it grants to no other, and where
    it confines jobs, each sees its devices as 0, 1, ...: so a job's locks are its own.

    Args:
        count: how many; all are taken at once, or none.
        wait_seconds: how long to wait where too many are held; a message says that it does.

    Returns:
        their indices or identifiers; the same ones at every call; empty where there are no devices.

    Raises:
        LTIError: the pool has fewer, too many stayed held, or the folder of the locks cannot be
            used.
    """
    if _held:
        return list(_held)
    devices = _visible_gpus()
    if not devices:
        return []
    if len(devices) < count:
        raise LTIError(
            f"{count} GPUs were granted, and this process may use {len(devices)} "
            f"({', '.join(devices)}). Lower --resources gpu=N to the number of devices on this "
            f"machine."
        )
    folder = _folder()
    began = time.monotonic()
    waiting = False
    whose = "all" if count == 1 else "too many"
    while True:
        taken: dict[str, IO[str]] = {}
        for device in devices:
            if (lock := _try_lock(folder / f"{device.replace('/', '_')}.lock")) is not None:
                taken[device] = lock
                if len(taken) == count:
                    _held.update(taken)
                    return list(_held)
        for lock in taken.values():  # two that wait for one another's would wait for ever
            lock.close()
        if time.monotonic() - began > wait_seconds:
            raise LTIError(
                f"{whose} GPUs ({', '.join(devices)}) stayed held for {wait_seconds:.0f} s by "
                f"other stages. Lower --resources gpu=N to the number of devices on this machine."
            )
        if not waiting:
            waiting = True
            print(
                f"{whose} GPUs ({', '.join(devices)}) are held by other stages (locks in "
                f"{folder}): waiting up to {wait_seconds:.0f} s for "
                f"{count if count > 1 else 'one'}.",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(_POLL_SECONDS)


def _folder() -> Path:
    """Return the folder of the locks: not TMPDIR, which schedulers set anew for every job."""
    folder = Path(os.environ.get("LTI_LEASES", f"/tmp/lti-gpu-{os.getuid()}"))
    job = next((os.environ[name] for name in JOB_IDS if os.environ.get(name)), None)
    if job is not None and "CUDA_VISIBLE_DEVICES" in os.environ:
        folder /= f"job-{job.replace('/', '_')}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(f"it belongs to user {folder.stat().st_uid}")
    except OSError as error:
        raise LTIError(
            f"{folder}: GPU locks cannot be kept there ({error}). Set LTI_LEASES to a folder of "
            f"yours on a disk of this node."
        ) from None
    return folder


def _try_lock(path: Path) -> IO[str] | None:
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _visible_gpus() -> list[str]:
    """Return device identifiers without starting CUDA in this process."""
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if granted is not None:
        return [item.strip() for item in granted.split(",") if item.strip() not in ("", "-1")]
    root = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(root.iterdir())))] if root.is_dir() else []
