"""Training batches from a gradient store, whatever its size.

Rows that fit are held in their encoded form, on the training device if that has room;
otherwise whole chunks are read in random order, some hundred at a time, and their rows
shuffled together. Single rows in random order would read 10 to 40 times slower.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lti.compute import memory_budget
from lti.errors import LTIError
from lti.gradients.encoding import ENCODINGS, EncodedRows, decode_rows
from lti.gradients.prefetch import prefetched_groups
from lti.gradients.store_reader import GradientStore
from lti.process_group import ALONE, ProcessGroup

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingRows"]

_MIB = 2**20


class TrainingRows:
    """A range of a store's rows, drawn in shuffled batches.

    Row indices are those of the store throughout, whatever the range.

    Attributes:
        rows: the rows that are drawn.
        device: where batches are delivered.
        resident: whether all rows are in memory; otherwise they are streamed.
        placement: ``"cuda"`` or ``"cpu"`` where resident rows lie, or ``"streamed"``.
    """

    def __init__(
        self,
        store: GradientStore,
        *,
        rows: range | None = None,
        limit: int | None = None,
        memory_mib: float = 4096.0,
        device: torch.device | str = "cpu",
        resident: bool | None = None,
        group: ProcessGroup = ALONE,
    ) -> None:
        """Load the rows if they fit.

        Args:
            store: an open store.
            rows: consecutive rows to draw, all by default; leave held-out rows outside.
            limit: at most so many of them, from the first.
            memory_mib: host memory for rows, in MiB. Rows held on a GPU take none of it.
            device: where batches are delivered.
            resident: hold the rows (True) or stream them (False) regardless of their size.
            group: of several processes each streams chunks of its own, other ones every epoch.

        Raises:
            LTIError: no rows, rows outside the store, less memory than two chunks, or a
                damaged store.
        """
        import torch

        self._store, self._group = store, group
        self.rows = _checked_range(store, rows, limit)
        self.device = torch.device(device)
        self._budget = int(memory_mib * _MIB)
        size = len(self.rows) * store.geometry.row_bytes
        on_gpu = (
            self.device.type == "cuda"
            and resident is not False
            and size <= memory_budget(self.device, memory_mib)
        )
        self.resident = (on_gpu or size <= self._budget) if resident is None else resident
        home = self.device if on_gpu else torch.device("cpu")
        self.placement = home.type if self.resident else "streamed"
        self._held = self._load(home) if self.resident else None
        if not self.resident:
            self._group_chunks()

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Return resident rows by their store indices.

        Args:
            indices: (batch,) int64, at least one, any device.

        Returns:
            float32 (batch, dim) on :attr:`device`.

        Raises:
            LTIError: the rows are streamed, or an index is outside :attr:`rows`.
        """
        import torch

        if self._held is None:
            raise LTIError(
                "rows by index were asked of a store that is streamed. Raise memory_mib so that "
                "it is resident, or use epoch()."
            )
        # On a GPU the look-up itself checks; reading the indices back would make it wait.
        if indices.device.type == "cpu":
            low, high = (int(bound) for bound in torch.aminmax(indices))
            if low not in self.rows or high not in self.rows:
                raise LTIError(
                    f"rows {low} to {high} were asked for; expected rows inside {self.rows}."
                )
        return self._gather(self._held, indices - self.rows.start)

    def epoch(self, batch_size: int, *, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield every row exactly once, in an order that the seed decides.

        The order also depends on whether the rows are streamed, and then on ``memory_mib``. Of
        streamed rows, a process of several yields those of its own chunks.

        Args:
            batch_size: rows of a batch; the last batch may have fewer.
            seed: of the order; take another for every epoch.

        Yields:
            ``(indices, rows)`` on :attr:`device`: int64 (batch,) rows of the store, and their
            gradients, float32 (batch, dim).

        Raises:
            LTIError: a batch size below 1, or a file was damaged since the store was opened.
        """
        import torch

        if batch_size < 1:
            raise LTIError(f"a batch of {batch_size} rows; expected at least 1.")
        if self._held is None:
            yield from self._stream(batch_size, seed)
            return
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.rows), generator=generator).to(self.device)
        for positions in order.split(batch_size):
            yield positions + self.rows.start, self._gather(self._held, positions)

    def _gather(self, encoded: EncodedRows, positions: torch.Tensor) -> torch.Tensor:
        # Gathered and moved in encoded form: half or a quarter of the bytes.
        positions = positions.to(encoded.values.device)
        values = encoded.values.index_select(0, positions).to(self.device)
        scale = encoded.scale
        if scale is not None:
            scale = scale.index_select(0, positions).to(self.device)
        return decode_rows(EncodedRows(values, scale))

    def _load(self, home: torch.device) -> EncodedRows:
        import torch

        start, stop = self.rows.start, self.rows.stop
        if home.type == "cpu":
            return self._store.encoded_rows(start, stop)
        dtype = getattr(torch, ENCODINGS[self._store.encoding])
        values = torch.empty((len(self.rows), self._store.dim), dtype=dtype, device=home)
        scales = []
        step = self._store.geometry.chunk_rows
        for first in range(start, stop, step):
            piece = self._store.encoded_rows(first, min(stop, first + step))
            values[first - start : first - start + step].copy_(piece.values)
            if piece.scale is not None:
                scales.append(piece.scale)
        return EncodedRows(values, torch.cat(scales).to(home) if scales else None)

    def _group_chunks(self) -> None:
        """Cut the rows at the store's chunks, and find how many chunks a group may have."""
        step = self._store.geometry.chunk_rows
        start, stop = self.rows.start, self.rows.stop
        cuts = [start, *range((start // step + 1) * step, stop, step), stop]
        self._chunks = list(itertools.pairwise(cuts))
        # Two groups are in memory: the one being drawn from and the one being read.
        chunk_bytes = step * self._store.geometry.row_bytes
        self._per_group = self._budget // (2 * chunk_bytes)
        if self._per_group < 1:
            raise LTIError(
                f"memory_mib={self._budget / _MIB:g} is less than two chunks of "
                f"{chunk_bytes / _MIB:.3g} MiB of {self._store.path}. Raise it."
            )
        self._per_group = min(self._per_group, len(self._chunks))
        # Kept from epoch to epoch: the first touch of memory costs as much as reading.
        self._spare: list[EncodedRows] = []

    def _new_buffer(self) -> EncodedRows:
        import torch

        geometry = self._store.geometry
        rows = min(self._per_group * geometry.chunk_rows, len(self.rows))
        dtype = getattr(torch, ENCODINGS[self._store.encoding])
        scale = torch.empty(rows) if geometry.scaled else None
        return EncodedRows(torch.empty((rows, geometry.dim), dtype=dtype), scale)

    def _stream(self, batch_size: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self._chunks), generator=generator).tolist()
        own = order[self._group.rank :: self._group.size]
        chunks = [self._chunks[position] for position in own]
        groups = [
            chunks[first : first + self._per_group]
            for first in range(0, len(chunks), self._per_group)
        ]
        rest: tuple[torch.Tensor, torch.Tensor] | None = None
        buffers = [
            self._spare.pop() if self._spare else self._new_buffer()
            for _ in range(min(2, len(groups)))
        ]
        with contextlib.ExitStack() as stack:
            stack.callback(self._spare.extend, buffers)  # once the reader has stopped
            filled = stack.enter_context(
                contextlib.closing(prefetched_groups(self._store, groups, buffers))
            )
            for indices, encoded in filled:
                shuffled = torch.randperm(len(indices), generator=generator)
                first = 0
                while first < len(indices):
                    held = 0 if rest is None else len(rest[0])
                    positions = shuffled[first : first + batch_size - held]
                    first += len(positions)
                    batch = (
                        indices[positions].to(self.device),
                        self._gather(encoded, positions),
                    )
                    if rest is not None:
                        batch = (torch.cat([rest[0], batch[0]]), torch.cat([rest[1], batch[1]]))
                    rest = batch if len(batch[0]) < batch_size else None
                    if rest is None:
                        yield batch
        if rest is not None:
            yield rest


def _checked_range(store: GradientStore, rows: range | None, limit: int | None) -> range:
    rows = range(store.n_rows) if rows is None else rows
    if limit is not None:
        rows = rows[: max(0, limit)]
    if rows.step != 1 or not 0 <= rows.start < rows.stop <= store.n_rows:
        raise LTIError(
            f"{rows} with limit={limit} of {store.path}, which has {store.n_rows} rows; expected "
            f"at least one and consecutive ones inside it."
        )
    return rows
