"""The gradient store: one row a sample, in sharded zarr v3, with a manifest beside it.

A store is written shard by shard by :func:`write_store`, which goes on where a killed
writer stopped, and read through :class:`GradientStore`. Several processes may write its shards
first, each its own (:func:`write_shards`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

import numpy as np

from lti.errors import LTIError
from lti.files import canonical_json
from lti.gradients.encoding import ENCODINGS, Encoding, encode_rows
from lti.gradients.store_format import Geometry, StoreSettings, hash_rows, plan_geometry
from lti.gradients.store_reader import GradientStore
from lti.gradients.unfinished import UnfinishedStore
from lti.interruption import saving_first

if TYPE_CHECKING:
    import torch

__all__ = ["GradientStore", "StoreContent", "StoreSettings", "write_shards", "write_store"]


class StoreContent(TypedDict):
    """What a store holds and how it is cut; the same for each of several writers."""

    n_rows: int
    """Number of samples."""
    dim: int
    """Entries of a row."""
    encoding: Encoding
    """See :func:`lti.gradients.encoding.encode_rows`."""
    compute: Callable[[int, int], torch.Tensor | np.ndarray]
    """Given ``start, stop``, returns those rows, float32 (stop - start, dim). It is called for
    consecutive ranges of at most a chunk, and must give a row the same value whichever run asks for
    it."""
    manifest: Path | str
    """The JSON file to write beside the store; what later steps depend on."""
    compress: NotRequired[bool]
    """Worth it for signs (25x) and pruned gradients (50x), not for dense ones: by default not."""
    attributes: NotRequired[Mapping[str, Any]]
    """JSON-able facts on the rows. Another writer's unfinished shards are only kept if it had the
    same ones, so name here all that decides the rows."""
    settings: NotRequired[StoreSettings]
    """Piece sizes and memory."""
    on_rows: NotRequired[Callable[[int], None]]
    """Called with the number of rows just finished, for progress."""


def write_store(path: Path | str, **content: Unpack[StoreContent]) -> GradientStore:
    """Write a store, going on with what a killed writer of the same store left.

    Shards are gathered in a hidden folder beside ``path``. A shard counts as finished when
    it is whole on disk and recorded in a journal with a digest, which is checked again
    before it is kept. The folder then moves to ``path`` and the manifest is written last.
    An earlier store at ``path`` is replaced.

    Args:
        path: folder of the store.
        content: see :class:`StoreContent`.

    Raises:
        LTIError: rows of another shape, rows that cannot be encoded, a row too large for
            memory, or something at ``path`` that is not a store.
    """
    geometry, work = _begin(Path(path), content)
    work.begin_alone()
    _write(work, geometry, range(geometry.n_shards), content)
    with saving_first():  # a store that is whole is not given up for the few files that are left
        work.publish()
    return GradientStore.open(path, content["manifest"])


def write_shards(
    path: Path | str, *, part: int, parts: int, **content: Unpack[StoreContent]
) -> range:
    """Write one part of a store's shards, beside other processes that write the other parts.

    :func:`write_store` with the same content then finds them, checks their digests, computes
    what is missing and finishes. The bytes are those of one writer.

    Args:
        path: folder of the store.
        part: which part, from 0.
        parts: how many there are, 1 or more.
        content: of the whole store; see :class:`StoreContent`.

    Returns:
        The shards that are there now.

    Raises:
        LTIError: as :func:`write_store`.
    """
    if not 0 <= part < parts:
        raise LTIError(f"got part {part} of {parts}; expected one from 0 to {parts - 1}.")
    geometry, work = _begin(Path(path), content)
    own = range(part * geometry.n_shards // parts, (part + 1) * geometry.n_shards // parts)
    work.begin_beside_others()
    _write(work, geometry, own, content)
    return own


def _begin(path: Path, content: StoreContent) -> tuple[Geometry, UnfinishedStore]:
    geometry = plan_geometry(
        n_rows=content["n_rows"],
        dim=content["dim"],
        encoding=content["encoding"],
        compress=content.get("compress", False),
        settings=content.get("settings") or StoreSettings(),
    )
    try:
        facts = json.loads(canonical_json(dict(content.get("attributes", {}))))
    except (TypeError, ValueError) as error:
        raise LTIError(
            f"attributes of {path} are not JSON ({error}). Use plain numbers and strings."
        ) from None
    return geometry, UnfinishedStore(path, Path(content["manifest"]), geometry, facts)


def _write(
    work: UnfinishedStore,
    geometry: Geometry,
    shards: range,
    content: StoreContent,
) -> None:
    """Compute and write the shards that are not there yet."""
    report, dim = content.get("on_rows", lambda rows: None), geometry.dim
    values, scale = np.empty((0, dim), ENCODINGS[geometry.encoding]), None
    for shard in shards:
        start, stop = geometry.shard_range(shard)
        if work.keep(shard):
            report(stop - start)
            continue
        if not len(values):
            values = np.empty((geometry.shard_rows, dim), values.dtype)
            scale = np.empty(geometry.shard_rows, np.float32) if geometry.scaled else None
        digest = 0
        for first in range(start, stop, geometry.chunk_rows):
            last = min(stop, first + geometry.chunk_rows)
            computed = _computed(content["compute"], first, last, dim)
            block = encode_rows(computed, geometry.encoding, first_row=first)
            into = slice(first - start, last - start)
            values[into] = block.values.cpu().numpy()
            if scale is not None and block.scale is not None:
                scale[into] = block.scale.cpu().numpy()
            part = None if scale is None else scale[into]
            digest += hash_rows(values[into], part, first_row=first)
            report(last - first)
        work.add(shard, values[: stop - start], scale, f"{digest % 2**256:064x}")


def _computed(
    compute: Callable[[int, int], torch.Tensor | np.ndarray], start: int, stop: int, dim: int
) -> torch.Tensor:
    import torch

    rows = torch.as_tensor(compute(start, stop)).detach()
    if rows.shape != (stop - start, dim):
        raise LTIError(
            f"rows {start} to {stop} came as shape {tuple(rows.shape)}; expected "
            f"{(stop - start, dim)}. Fix the function that computes them."
        )
    return rows
