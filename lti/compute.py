"""Where a stage computes: threads on the processor, or a GPU that no other stage holds."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lti.gpu_lease import lease_gpu
from lti.process_group import member

if TYPE_CHECKING:
    import torch

__all__ = [
    "WAIT_SECONDS",
    "Compute",
    "acquire",
    "hardware",
    "matmul_dtype",
    "memory_budget",
    "peak_memory",
    "peak_memory_mib",
]

WAIT_SECONDS = 3600.0  # for a device that another process holds

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


@dataclass(frozen=True)
class Compute:
    """The device and the number format of matrix products."""

    device: torch.device
    dtype: torch.dtype


def acquire(*, threads: int | None, gpus: int = 0, wait_seconds: float = WAIT_SECONDS) -> Compute:
    """Set the thread count and lease a GPU (:mod:`lti.gpu_lease`) where the workflow granted one.

    Args:
        threads: processor threads for torch; None: torch's default.
        gpus: GPUs granted. 0 computes on the processor, more than one on one: a process of several
            that train together has one, which was leased before.
        wait_seconds: how long to wait for a device that another process holds.

    Raises:
        LTIError: a GPU was granted, there are some, and all stay held.
    """
    import torch

    _keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    # TF32 would round auxiliary gradients, and so flip small signs, where victims' are exact.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if gpus > 0:
        leased = member().size > 1
        index = os.environ.get("CUDA_VISIBLE_DEVICES") if leased else lease_gpu(wait_seconds)
        if index is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = index
            if torch.cuda.is_available():
                device = torch.device("cuda", 0)
                return Compute(device, matmul_dtype(device))
            print(
                f"GPU {index} was granted, but torch {torch.__version__} cannot use CUDA here: "
                f"computing on the processor.",
                file=sys.stderr,
            )
    device = torch.device("cpu")
    return Compute(device, matmul_dtype(device))


def _keep_freed_memory() -> None:
    """Make glibc keep what is freed, rather than hand every large tensor back to the system.

    A training step allocates its gradients anew; without this, the system clears their
    pages each time, which takes as long as the matrix products.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return  # another C library
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def matmul_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies in it faster, otherwise float32."""
    import torch

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast and _cpu_has_native_bf16() else torch.float32


def memory_budget(device: torch.device, memory_mib: float) -> int:
    """Return the bytes that training data may take: of the host, or half of a GPU's free ones."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return int(memory_mib * 2**20)


def peak_memory_mib(compute: Compute) -> float:
    """Return the most memory that this process had, in MiB: of its GPU, or of the host."""
    if compute.device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(compute.device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hardware(compute: Compute) -> str:
    """Return what decides placement and rounding of a run, for what only the same may resume."""
    if compute.device.type != "cuda":
        return f"{compute.device.type}, {compute.dtype}"  # not every processor has bfloat16
    import torch

    facts = torch.cuda.get_device_properties(compute.device)
    return f"{facts.name}, {facts.total_memory >> 20} MiB, {compute.dtype}"


def peak_memory(compute: Compute) -> str:
    """Return :func:`peak_memory_mib` in words, for a stage's last line."""
    kind = "GPU memory" if compute.device.type == "cuda" else "memory"
    return f"at most {peak_memory_mib(compute):,.0f} MiB of {kind}"


def _cpu_has_native_bf16() -> bool:
    import torch

    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    if probe is not None:
        return bool(probe())
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
