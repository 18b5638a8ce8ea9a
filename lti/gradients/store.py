"""The gradient store: one row a sample, in sharded zarr v3, with a manifest beside it.

A store is written shard by shard by :func:`write_store`, which goes on where a killed
writer stopped, and read through :class:`GradientStore`. Several processes may write its shards
first, each its own (:func:`write_shards`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

__all__ = ["GradientStore", "StoreSettings", "write_shards", "write_store"]


def write_store(
    path: Path | str,
    *,
    n_rows: int,
    dim: int,
    encoding: Encoding,
    compute: Callable[[int, int], torch.Tensor | np.ndarray],
    manifest: Path | str,
    compress: bool = False,
    attributes: Mapping[str, Any] | None = None,
    settings: StoreSettings | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> GradientStore:
    """Write a store, going on with what a killed writer of the same store left.

    Shards are gathered in a hidden folder beside ``path``. A shard counts as finished when
    it is whole on disk and recorded in a journal with a digest, which is checked again
    before it is kept. The folder then moves to ``path`` and the manifest is written last.
    An earlier store at ``path`` is replaced.

    Args:
        path: folder of the store.
        n_rows: number of samples.
        dim: entries of a row.
        encoding: see :func:`lti.gradients.encoding.encode_rows`.
        compute: given ``start, stop``, returns those rows, float32 (stop - start, dim). It is
            called for consecutive ranges of at most a chunk, and must give a row the same
            value whichever run asks for it.
        manifest: the JSON file to write beside the store; what later steps depend on.
        compress: worth it for signs (25x) and pruned gradients (50x), not for dense ones.
        attributes: JSON-able facts on the rows. Another writer's unfinished shards are only
            kept if it had the same ones, so name here all that decides the rows.
        settings: piece sizes and memory.
        on_rows: called with the number of rows just finished, for progress.

    Raises:
        LTIError: rows of another shape, rows that cannot be encoded, a row too large for
            memory, or something at ``path`` that is not a store.
    """
    path, manifest = Path(path), Path(manifest)
    geometry = plan_geometry(
        n_rows=n_rows,
        dim=dim,
        encoding=encoding,
        compress=compress,
        settings=settings or StoreSettings(),
    )
    work = UnfinishedStore(path, manifest, geometry, _facts(path, attributes))
    work.begin_alone()
    _write(work, geometry, range(geometry.n_shards), compute, on_rows)
    with saving_first():  # a store that is whole is not given up for the few files that are left
        work.publish()
    return GradientStore.open(path, manifest)


def write_shards(
    path: Path | str,
    *,
    part: int,
    parts: int,
    n_rows: int,
    dim: int,
    encoding: Encoding,
    compute: Callable[[int, int], torch.Tensor | np.ndarray],
    manifest: Path | str,
    compress: bool = False,
    attributes: Mapping[str, Any] | None = None,
    settings: StoreSettings | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> range:
    """Write one part of a store's shards, beside other processes that write the other parts.

    :func:`write_store` with the same arguments then finds them, checks their digests, computes
    what is missing and finishes. The bytes are those of one writer.

    Args:
        path: folder of the store.
        part: which part, from 0.
        parts: how many there are, 1 or more.
        n_rows: of the whole store, as all that follows; see :func:`write_store`.
        dim: entries of a row.
        encoding: of entries.
        compute: returns rows.
        manifest: the JSON file beside the store.
        compress: whether to.
        attributes: facts on the rows.
        settings: piece sizes and memory.
        on_rows: for progress.

    Returns:
        The shards that are there now.

    Raises:
        LTIError: as :func:`write_store`.
    """
    if not 0 <= part < parts:
        raise LTIError(f"got part {part} of {parts}; expected one from 0 to {parts - 1}.")
    path, manifest = Path(path), Path(manifest)
    geometry = plan_geometry(
        n_rows=n_rows,
        dim=dim,
        encoding=encoding,
        compress=compress,
        settings=settings or StoreSettings(),
    )
    own = range(part * geometry.n_shards // parts, (part + 1) * geometry.n_shards // parts)
    work = UnfinishedStore(path, manifest, geometry, _facts(path, attributes))
    work.begin_beside_others()
    _write(work, geometry, own, compute, on_rows)
    return own


def _facts(path: Path, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(canonical_json(dict(attributes or {})))
    except (TypeError, ValueError) as error:
        raise LTIError(
            f"attributes of {path} are not JSON ({error}). Use plain numbers and strings."
        ) from None
    return facts


def _write(
    work: UnfinishedStore,
    geometry: Geometry,
    shards: range,
    compute: Callable[[int, int], torch.Tensor | np.ndarray],
    on_rows: Callable[[int], None] | None,
) -> None:
    """Compute and write the shards that are not there yet."""
    report = on_rows or (lambda rows: None)
    dim = geometry.dim
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
            computed = _computed(compute, first, last, dim)
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
