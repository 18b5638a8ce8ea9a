"""What an inverter is trained on: encoded gradients beside their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from lti.compute import Compute, memory_budget
from lti.data.selection import to_float
from lti.gradients.batches import TrainingRows
from lti.inverters.base import Inverter, TrainingSample
from lti.projections import Projection
from lti.projections.identity import Identity
from lti.seeding import derive_seed, torch_generator

if TYPE_CHECKING:
    from lti.defenses import Defense
    from lti.gradients.layout import ParameterLayout
    from lti.gradients.store import GradientStore

__all__ = ["AuxiliaryData", "TrainingInputs", "held_out_inputs", "statistics_sample", "targets"]

SAMPLE_ROWS = 8192  # for the fixed statistics of the encoder and the decoder
ENCODE_ROWS = 512  # encoded at once; bounds the memory


@dataclass(frozen=True)
class AuxiliaryData:
    """The attacker's data with their gradients, ``views`` consecutive rows a sample."""

    store: GradientStore
    image: torch.Tensor
    """uint8 ``(n, c, h, w)``; view 1 of a sample is its mirror image."""
    views: int
    defense: Defense
    layout: ParameterLayout
    """Of the FL model's gradient, before projection."""
    projection: Projection = field(default_factory=Identity)

    def randomise(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw the random part of the defense on projected rows."""
        counts = self.projection.counts(self.layout.total) if self.defense.is_random else None
        return self.defense.randomise(rows, generator=generator, counts=counts)


class TrainingInputs:
    """Encoded training inputs: once for all where nothing is random, else a batch at a time."""

    def __init__(
        self,
        data: AuxiliaryData,
        rows: range,
        *,
        encoder: nn.Module,
        compute: Compute,
        memory_mib: float,
    ) -> None:
        self._data, self._rows = data, rows
        self._encoder, self._compute = encoder, compute
        self._encoded: torch.Tensor | None = None
        width = encoder(data.store.rows(rows.start, rows.start + 1).to(compute.device)).shape[1]
        size = len(rows) * width * compute.dtype.itemsize
        if not data.defense.is_random and size <= memory_budget(compute.device, memory_mib):
            self._encoded = torch.empty(
                (len(rows), width), dtype=compute.dtype, device=compute.device
            )
            for start, stop in _blocks(data.store, rows):
                block = encoder(data.store.rows(start, stop).to(compute.device))
                self._encoded[start - rows.start : stop - rows.start] = block
        else:
            self._source = TrainingRows(
                data.store, rows=rows, memory_mib=memory_mib, device=compute.device
            )

    def epoch(
        self, batch_size: int, *, seed: int, mirrored: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield ``(row indices, inputs)``: every sample once, in one of its views."""
        noise = torch_generator(seed, "noise", device=self._compute.device)
        order = torch_generator(seed, "order")
        views = self._data.views
        sample = torch.randperm(len(self._rows) // views, generator=order)
        view = torch.zeros_like(sample)
        if mirrored:
            view = torch.randint(views, sample.shape, generator=order)
        if self._encoded is None and not self._source.resident:
            # Streamed rows come with all views; those that were not drawn are dropped.
            drawn = torch.zeros(len(self._rows), dtype=torch.bool)
            drawn[sample * views + view] = True
            drawn = drawn.to(self._compute.device)
            for index, rows in self._source.epoch(
                batch_size * views, seed=derive_seed(seed, "stream")
            ):
                kept = drawn[index]
                if kept.any():
                    yield index[kept], self._encode(rows[kept], noise)
            return
        for index in (sample * views + view).to(self._compute.device).split(batch_size):
            if self._encoded is not None:
                yield index, self._encoded.index_select(0, index - self._rows.start)
            else:
                yield index, self._encode(self._source.take(index), noise)

    def _encode(self, rows: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        inputs: torch.Tensor = self._encoder(self._data.randomise(rows, noise))
        return inputs


def _blocks(store: GradientStore, rows: range) -> Iterator[tuple[int, int]]:
    """Cut rows into blocks of whole chunks, so that no chunk is read twice."""
    step = store.geometry.chunk_rows * max(1, ENCODE_ROWS // store.geometry.chunk_rows)
    cuts = [rows.start, *range((rows.start // step + 1) * step, rows.stop, step), rows.stop]
    return pairwise(cuts)


def statistics_sample(settings: Inverter, data: AuxiliaryData, samples: int) -> TrainingSample:
    """Draw what the network's fixed statistics are taken from; gradients and images apart."""
    order = torch.randperm(samples, generator=torch_generator(settings.seed, "statistics"))
    rows = range(min(SAMPLE_ROWS, samples) * data.views)

    def blocks() -> Iterator[torch.Tensor]:
        noise = torch_generator(settings.seed, "statistics", "noise")
        # The auxiliary set is in random order: its beginning is a random sample.
        for start, stop in _blocks(data.store, rows):
            first_views = data.store.rows(start, stop)[-start % data.views :: data.views]
            yield data.randomise(first_views, noise)

    return TrainingSample(blocks, to_float(data.image[order[:SAMPLE_ROWS]]))


def targets(image: torch.Tensor, index: torch.Tensor, views: int) -> torch.Tensor:
    """Return what rows ``index`` of the store are gradients of: float32 images in [0, 1]."""
    target = to_float(image.index_select(0, index // views))
    mirrored = (index % views == 1)[:, None, None, None]
    return torch.where(mirrored, target.flip(3), target)


@torch.no_grad()
def held_out_inputs(
    settings: Inverter,
    data: AuxiliaryData,
    samples: range,
    *,
    encoder: nn.Module,
    compute: Compute,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the encoded held-out inputs, noise drawn once, and their images."""
    noise = torch_generator(settings.seed, "held-out", device=compute.device)
    encoded = []
    held = range(samples.start * data.views, samples.stop * data.views)
    for start, stop in _blocks(data.store, held):
        rows = data.store.rows(start, stop)[-start % data.views :: data.views]
        rows = data.randomise(rows.to(compute.device), noise)
        encoded.append(encoder(rows).to(compute.dtype))
    image = to_float(data.image[samples.start : samples.stop])
    return torch.cat(encoded), image.to(compute.device)
