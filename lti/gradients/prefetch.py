"""Reading scattered chunks of a gradient store while earlier ones are being used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from lti.gradients.encoding import EncodedRows
from lti.gradients.store_reader import READ_THREADS, GradientStore

if TYPE_CHECKING:
    import torch

__all__ = ["prefetched_groups"]


def prefetched_groups(
    store: GradientStore, groups: list[list[tuple[int, int]]], buffers: list[EncodedRows]
) -> Generator[tuple[torch.Tensor, EncodedRows], None, None]:
    """Read groups of chunks ahead, in a thread, into buffers used in turn.

    Args:
        store: an open store.
        groups: each a list of ``(start, stop)`` rows inside one chunk.
        buffers: encoded rows to overwrite, each with room for the largest group.

    Yields:
        The store indices of a group's rows, int64 (rows,), and the buffer that begins with
        them, which is valid until the next group is asked for.

    Raises:
        LTIError: a file is damaged or missing.
    """
    free: queue.SimpleQueue[EncodedRows | None] = queue.SimpleQueue()
    ready: queue.SimpleQueue[tuple[torch.Tensor, EncodedRows] | BaseException] = queue.SimpleQueue()
    for buffer in buffers:
        free.put(buffer)

    def read() -> None:
        try:
            for group in groups:
                buffer = free.get()
                if buffer is None:
                    return
                ready.put(_read_group(store, group, buffer))
        except BaseException as error:
            ready.put(error)

    thread = threading.Thread(target=read, name="gradient-store-reader", daemon=True)
    thread.start()
    try:
        for _ in groups:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            free.put(item[1])
    finally:
        free.put(None)
        thread.join()


def _read_group(
    store: GradientStore, group: list[tuple[int, int]], buffer: EncodedRows
) -> tuple[torch.Tensor, EncodedRows]:
    import torch

    values = buffer.values.numpy()
    scale = None if buffer.scale is None else buffer.scale.numpy()
    offsets = np.cumsum([0, *(stop - start for start, stop in group)])

    def read(position: int) -> None:
        into = slice(offsets[position], offsets[position + 1])
        store.read_into(*group[position], values[into], None if scale is None else scale[into])

    with ThreadPoolExecutor(READ_THREADS) as pool:
        for _ in pool.map(read, range(len(group))):
            pass
    indices = torch.from_numpy(np.concatenate([np.arange(*bounds) for bounds in group]))
    return indices, buffer
