"""Processes that train one network together, on batches that they share: torch.distributed.

Each has its own device and the same weights. Of every batch each takes a part; gradients are
averaged, and what is reported is summed. One process by itself is a group too, in which nothing is
exchanged.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lti.errors import LTIError

if TYPE_CHECKING:
    import torch

__all__ = ["ALONE", "MEMBER", "ProcessGroup", "join_group", "member"]

MEMBER = "LTI_PROCESS"
"""The environment variable that tells a process its place: JSON, set by :mod:`lti.launch`."""

_PATIENCE_SECONDS = 15.0  # until who started the group ends what is left of it


@dataclass(frozen=True)
class ProcessGroup:
    """A process's place among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one writes the outputs."""
        return self.rank == 0

    def share(self, total: int) -> range:
        """Return this process's part of ``total`` things; the first process's is the largest."""
        first, last = (-(-total * rank // self.size) for rank in (self.rank, self.rank + 1))
        return range(first, last)

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter], *, weight: int) -> None:
        """Replace the parameters' gradients by their weighted mean over the processes.

        Args:
            parameters: the same ones in every process; without a gradient, it counts as 0.
            weight: of this process's gradients: how many losses they are the mean gradient of.
        """
        if self.size == 1:
            return
        import torch
        from torch import distributed

        parameters = [parameter for parameter in parameters if parameter.requires_grad]
        total = torch.tensor(float(weight), device=parameters[0].device)
        with _complete():
            pending = [distributed.all_reduce(total, async_op=True)]
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad *= weight
                pending.append(distributed.all_reduce(parameter.grad, async_op=True))
            for work in pending:
                work.wait()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= total

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum over the processes; of one process the tensor itself."""
        if self.size == 1:
            return value
        from torch import distributed

        total = value.clone()
        with _complete():
            distributed.all_reduce(total)
        return total

    def most(self, *values: float) -> list[float]:
        """Return the greatest of each value over the processes."""
        if self.size == 1:
            return list(values)
        import torch
        from torch import distributed

        greatest = torch.tensor(values, dtype=torch.float64)  # on the CPU: no GPU waits for it
        with _complete():
            distributed.all_reduce(greatest, op=distributed.ReduceOp.MAX)
        result: list[float] = greatest.tolist()
        return result

    def all_agree(self, value: bool) -> bool:
        """Return whether it is true in every process."""
        return not self.most(not value)[0]

    def copy_from_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.size == 1:
            return
        from torch import distributed

        with _complete():
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                distributed.broadcast(whole, src=0)
                tensor.detach().copy_(whole)


ALONE = ProcessGroup()


def member() -> ProcessGroup:
    """Return the place that this process was started for; by itself: :data:`ALONE`."""
    if (text := os.environ.get(MEMBER)) is None:
        return ALONE
    place = json.loads(text)
    return ProcessGroup(place["rank"], place["size"])


@contextmanager
def join_group(device: torch.device) -> Iterator[ProcessGroup]:
    """Connect to the others, where this process is one of several, until the block ends.

    Args:
        device: this process's own; others of a group are of the same type.
    """
    group = member()
    if group.size == 1:
        yield group
        return
    from torch import distributed

    _leave_with_the_parent()
    # Only processes of this node talk, and a name that stands for it may not lead back to it.
    for library in ("GLOO", "NCCL"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
    store = json.loads(os.environ[MEMBER])["store"]
    with _complete():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"file://{store}",
            rank=group.rank,
            world_size=group.size,
        )
    try:
        yield group
    finally:
        # Not where it failed: that would wait for the others, which may wait for this one.
        if sys.exc_info()[0] is None:
            distributed.destroy_process_group()


@contextmanager
def _complete() -> Iterator[None]:
    """Say it in this project's words where another process of the group has gone."""
    try:
        yield
    except RuntimeError as error:
        # Its error is the one to show; who started the group does, and ends this process.
        time.sleep(_PATIENCE_SECONDS)
        raise LTIError(
            f"other processes of this training cannot be reached ({error}). Run the same command "
            f"again; it goes on from what was saved."
        ) from None


def _leave_with_the_parent() -> None:
    """End this process when the one that started it has ended, however it did."""

    def watch() -> None:
        # Its other end is open in the parent alone. Not sys.stdin, whose lock would outlive this.
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
