"""What an inverter is trained on and measured on: encoded gradients beside their samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from lti.compute import Compute, memory_budget
from lti.data.samples import as_input
from lti.fl_models.token_inputs import TokenInputs
from lti.gradients.batches import TrainingRows
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.base import Inverter, NetworkInverter, TrainingSample
from lti.inverters.head import ClassifierHead
from lti.inverters.network import Decoder
from lti.process_group import ALONE, ProcessGroup
from lti.seeding import derive_seed, torch_generator

if TYPE_CHECKING:
    from lti.gradients.store import GradientStore

__all__ = [
    "TrainingInputs",
    "held_out_error",
    "held_out_inputs",
    "statistics_sample",
]

SAMPLE_ROWS = 8192  # for the fixed statistics of the encoder and the decoder
HEAD_SAMPLES = 4096  # on which the FL model's last layer is measured
ENCODE_ROWS = 512  # encoded at once; bounds the memory
EVALUATE_ROWS = 1024  # decoded at once


class TrainingInputs:
    """Encoded training inputs: once for all where nothing is random, else a batch at a time.

    Those that are kept are of type ``dtype``. Where client batches have several samples, these
    are grouped anew every epoch, and what is left over is left out.

    Of processes that train together each yields its part of every batch, and holds all rows or
    reads chunks of its own. Held rows are grouped and defended as one process would; of streamed
    ones each process groups its own, and what one has beyond its part of the steps is left out.
    """

    def __init__(
        self,
        data: AuxiliaryData,
        rows: range,
        *,
        encoder: nn.Module,
        compute: Compute,
        dtype: torch.dtype,
        memory_mib: float,
        group: ProcessGroup = ALONE,
    ) -> None:
        self._data, self._rows, self._group = data, rows, group
        memory_mib /= group.size  # of the host, which they share
        self._encoder, self._compute = encoder, compute
        self._encoded: torch.Tensor | None = None
        width = self._width()
        size = len(rows) * width * dtype.itemsize
        is_fixed = data.batch_size == 1 and not data.defense.is_random
        fits = is_fixed and size <= memory_budget(compute.device, memory_mib)
        if group.all_agree(fits):
            self._encoded = torch.empty((len(rows), width), dtype=dtype, device=compute.device)
            for start, stop in _blocks(data.store, rows):
                index = torch.arange(start, stop)[:, None]
                block = encoder(data.store.rows(start, stop).to(compute.device), data.labels(index))
                self._encoded[start - rows.start : stop - rows.start] = block
        else:
            self._source = TrainingRows(
                data.store, rows=rows, memory_mib=memory_mib, device=compute.device, group=group
            )
            if not group.all_agree(self._source.resident) and self._source.resident:
                self._source = TrainingRows(
                    data.store,
                    rows=rows,
                    memory_mib=memory_mib,
                    device=compute.device,
                    resident=False,
                    group=group,
                )

    def epoch(
        self,
        batch_size: int,
        *,
        seed: int,
        noise: torch.Generator,
        mirrored: bool,
        skip: int = 0,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(rows, inputs)``: every sample once, in one of its views.

        Args:
            batch_size: client batches at a time, of all processes that train together.
            seed: of order, grouping and views.
            noise: of the defense.
            mirrored: whether to draw a view or to take the first.
            skip: how many to leave out, from the first.

        Yields:
            int64 ``(m, B)`` rows of the store, and the inputs ``(m, k)``; of a process of several
            that has none at a step, m is 0.
        """
        grouped = self._grouped(batch_size, seed=seed, mirrored=mirrored)
        for index, rows, whole in islice(grouped, skip, None):
            if rows is None:
                assert self._encoded is not None
                yield index, self._encoded.index_select(0, index[:, 0] - self._rows.start)
            else:
                yield index, self._encode(rows, index, noise, whole)

    def _grouped(
        self, batch_size: int, *, seed: int, mirrored: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor | None, int]]:
        """Yield rows of this process's client batches, their gradients and how many all have.

        Rows ``(m, B)``; gradients ``(m B, k)``, unless inputs are kept encoded.
        """
        batch, views, device = self._data.batch_size, self._data.views, self._compute.device
        order = torch_generator(seed, "order")
        sample = torch.randperm(len(self._rows) // views, generator=order)
        view = torch.zeros_like(sample)
        if mirrored:
            view = torch.randint(views, sample.shape, generator=order)
        whole = len(sample) // batch * batch
        if self._encoded is not None or self._source.resident:
            drawn = (sample * views + view)[:whole].to(device).unflatten(0, (-1, batch))
            for index in drawn.split(batch_size):
                share = self._group.share(len(index))
                own = index[share.start : share.stop]
                yield own, self._take(own), len(index)
            return
        # Streamed rows come with all views; those that were not drawn are dropped.
        wanted = torch.zeros(len(self._rows), dtype=torch.bool)
        wanted[sample * views + view] = True
        wanted = wanted.to(device)
        steps = -(-(whole // batch) // batch_size)
        size = len(self._group.share(batch_size)) * batch
        streamed = self._streamed(wanted, size, read=size * views, seed=derive_seed(seed, "stream"))
        for index, rows in islice(streamed, steps):
            yield index.unflatten(0, (-1, batch)), rows, batch_size

    def _streamed(
        self, wanted: torch.Tensor, size: int, *, read: int, seed: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``size`` wanted rows at a time, at last fewer, of whole client batches.

        A process of several then goes on with none: others may have more.
        """
        batch, device = self._data.batch_size, self._compute.device
        index = torch.empty(0, dtype=torch.int64, device=device)
        held = [(index, torch.empty((0, self._data.store.dim), device=device))]
        for index, rows in self._source.epoch(read, seed=seed):
            kept = wanted[index]
            held.append((index[kept], rows[kept]))
            while sum(len(part) for part, _ in held) >= size:
                joined = [torch.cat(parts) for parts in zip(*held, strict=True)]
                yield joined[0][:size], joined[1][:size]
                held = [(joined[0][size:], joined[1][size:])]
        joined = [torch.cat(parts) for parts in zip(*held, strict=True)]
        rest = len(joined[0]) // batch * batch
        if rest:
            yield joined[0][:rest], joined[1][:rest]
        while self._group.size > 1:
            yield joined[0][:0], joined[1][:0]

    def _take(self, index: torch.Tensor) -> torch.Tensor | None:
        if self._encoded is not None:
            return None
        if not len(index):
            return torch.empty((0, self._data.store.dim), device=self._compute.device)
        return self._source.take(index.flatten())

    def _encode(
        self, rows: torch.Tensor, index: torch.Tensor, noise: torch.Generator, whole: int
    ) -> torch.Tensor:
        data = self._data
        if self._group.size == 1 or not data.defense.is_random:
            gradient = data.observe(rows, noise)
        else:
            # As long as all processes' rows, so that each has the draws that one process would.
            place = self._group.share(whole).start
            everyone = rows.new_zeros(whole * data.batch_size, rows.shape[1])
            everyone[place * data.batch_size :][: len(rows)] = rows
            gradient = data.observe(everyone, noise)[place : place + len(index)]
        if not len(index):
            return gradient
        inputs: torch.Tensor = self._encoder(gradient, data.labels(index))
        return inputs

    def _width(self) -> int:
        """Return the inputs' width, that of one client batch."""
        start, batch = self._rows.start, self._data.batch_size
        rows = self._data.store.rows(start, start + batch).to(self._compute.device)
        noise = torch_generator(0, "width", device=self._compute.device)
        index = torch.arange(start, start + batch, device=self._compute.device)[None]
        gradient = self._data.observe(rows, noise)
        width: int = self._encoder(gradient, self._data.labels(index)).shape[1]
        return width


def _blocks(store: GradientStore, rows: range) -> Iterator[tuple[int, int]]:
    """Cut rows into blocks of whole chunks, so that no chunk is read twice."""
    step = store.geometry.chunk_rows * max(1, ENCODE_ROWS // store.geometry.chunk_rows)
    cuts = [rows.start, *range((rows.start // step + 1) * step, rows.stop, step), rows.stop]
    return pairwise(cuts)


def _first_views(
    data: AuxiliaryData, samples: range
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield rows of the store, of samples in their order, and the gradients; whole batches.

    Only first views; samples that do not fill a batch at the end are left out.
    """
    held = range(samples.start * data.views, samples.stop * data.views)
    rest: tuple[torch.Tensor, torch.Tensor] | None = None
    for start, stop in _blocks(data.store, held):
        index = torch.arange(start + -start % data.views, stop, data.views)
        rows = data.store.rows(start, stop)[index - start]
        if rest is not None:
            index, rows = torch.cat([rest[0], index]), torch.cat([rest[1], rows])
        whole = len(index) // data.batch_size * data.batch_size
        if whole:
            yield index[:whole], rows[:whole]
        rest = index[whole:], rows[whole:]


def statistics_sample(
    settings: NetworkInverter, data: AuxiliaryData, samples: int
) -> TrainingSample:
    """Draw what the network's fixed statistics are taken from; gradients and samples apart."""
    order = torch.randperm(samples, generator=torch_generator(settings.seed, "statistics"))
    # The auxiliary set is in random order: its beginning is a random sample.
    first = range(min(SAMPLE_ROWS * data.batch_size, samples))

    def blocks() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        noise = torch_generator(settings.seed, "statistics", "noise")
        for index, rows in _first_views(data, first):
            label = data.labels(index).unflatten(0, (-1, data.batch_size))
            yield data.observe(rows, noise), label

    head = None
    if data.batch_size > 1 and data.network is not None:
        device = next(data.network.parameters()).device
        seen = as_input(data.value[: min(HEAD_SAMPLES, samples)]).to(device)
        head = ClassifierHead.of(data.network, seen, data.classes)

    def inputs() -> TokenInputs | None:
        if data.network is None or data.vocabulary is None:
            return None
        return TokenInputs.of(data.network, data.vocabulary, data.value.shape[1])

    value = as_input(data.value[order[:SAMPLE_ROWS]])
    return TrainingSample(blocks, value, head, inputs, data.projection.positions())


@torch.no_grad()
def held_out_inputs(
    settings: Inverter,
    data: AuxiliaryData,
    samples: range,
    *,
    encoder: nn.Module,
    compute: Compute,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoded held-out inputs, noise drawn once, and their samples ``(m, B, ...)``."""
    noise = torch_generator(settings.seed, "held-out", device=compute.device)
    encoded, target = [], []
    for index, rows in _first_views(data, samples):
        grouped = index.unflatten(0, (-1, data.batch_size)).to(compute.device)
        gradient = data.observe(rows.to(compute.device), noise)
        encoded.append(encoder(gradient, data.labels(grouped)).to(dtype))
        target.append(targets(data.value, index, data.views).unflatten(0, grouped.shape))
    return torch.cat(encoded), torch.cat(target).to(compute.device)


@torch.no_grad()
def held_out_error(
    decoder: Decoder,
    held_out: tuple[torch.Tensor, torch.Tensor],
    *,
    group: ProcessGroup = ALONE,
) -> float:
    """Return a decoder's mean error on held-out inputs and samples, shared out to a group."""
    total = 0.0
    parts = list(zip(*(part.split(EVALUATE_ROWS) for part in held_out), strict=True))
    for inputs, target in parts[group.rank :: group.size]:
        total += float(decoder.error(inputs, target).sum())
    total = float(group.sum(torch.tensor(total, dtype=torch.float64)))
    return total / len(held_out[1])
