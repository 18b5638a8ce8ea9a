"""The gradient store: one row a sample, in sharded zarr v3, with a manifest beside it.

A store is written shard by shard by :func:`write_store`, which goes on where a killed
writer stopped, and read through :class:`GradientStore`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from lti.errors import LTIError
from lti.files import canonical_json, read_json
from lti.gradients.encoding import ENCODINGS, Encoding, encode_rows
from lti.gradients.store_format import (
    FORMAT_VERSION,
    Geometry,
    Manifest,
    ShardRecord,
    StoreSettings,
    combine_digests,
    create_arrays,
    hash_rows,
    metadata_files,
    plan_geometry,
    sync,
    write_durably,
)
from lti.gradients.store_reader import GradientStore

if TYPE_CHECKING:
    import torch

__all__ = ["GradientStore", "StoreSettings", "write_store"]

# What may be in a folder that is replaced by a store (the last is Snakemake's).
_STORE_ENTRIES = {"zarr.json", "rows", "scale", ".snakemake_timestamp"}


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
    settings = settings or StoreSettings()
    geometry = plan_geometry(
        n_rows=n_rows, dim=dim, encoding=encoding, compress=compress, settings=settings
    )
    try:
        facts = json.loads(canonical_json(dict(attributes or {})))
    except (TypeError, ValueError) as error:
        raise LTIError(
            f"attributes of {path} are not JSON ({error}). Use plain numbers and strings."
        ) from None
    report = on_rows or (lambda rows: None)
    work = _Unfinished(path, manifest, geometry, facts)
    values, scale = np.empty((0, dim), ENCODINGS[encoding]), None
    for shard in range(geometry.n_shards):
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
            block = encode_rows(_computed(compute, first, last, dim), encoding, first_row=first)
            into = slice(first - start, last - start)
            values[into] = block.values.cpu().numpy()
            if scale is not None and block.scale is not None:
                scale[into] = block.scale.cpu().numpy()
            part = None if scale is None else scale[into]
            digest += hash_rows(values[into], part, first_row=first)
            report(last - first)
        work.add(shard, values[: stop - start], scale, f"{digest % 2**256:064x}")
    work.publish()
    return GradientStore.open(path, manifest)


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


class _Unfinished:
    """The hidden folder in which a store grows: ``store/``, ``journal/``, ``identity.json``."""

    def __init__(
        self, path: Path, manifest: Path, geometry: Geometry, attributes: dict[str, Any]
    ) -> None:
        if path.exists() and not (
            path.is_dir() and {entry.name for entry in path.iterdir()} <= _STORE_ENTRIES
        ):
            raise LTIError(
                f"{path} exists and is not a gradient store; it is left alone. Move it away or "
                f"choose another path."
            )
        self._path, self._manifest_path = path, manifest
        self._geometry, self._attributes = geometry, attributes
        self._root = path.with_name(f".{path.name}.partial")
        self._store = self._root / "store"
        self._journal = self._root / "journal"
        self._records: list[ShardRecord] = []
        # From here on no manifest vouches for what is at the path.
        manifest.unlink(missing_ok=True)
        identity = {
            "format": FORMAT_VERSION,
            "geometry": geometry.model_dump(),
            "attributes": attributes,
        }
        if self._is(identity):
            if path.exists() and not self._store.exists():
                os.rename(path, self._store)  # killed between the last rename and the manifest
            for stray in self._store.glob("**/*.partial"):
                stray.unlink()
        if not (self._is(identity) and (self._store / "zarr.json").exists()):
            shutil.rmtree(self._root, ignore_errors=True)
            self._journal.mkdir(parents=True)
            create_arrays(self._store, geometry, attributes)
            write_durably(self._root / "identity.json", canonical_json(identity))
        if path.exists():
            shutil.rmtree(path)

    def _is(self, identity: dict[str, Any]) -> bool:
        try:
            return bool(read_json(self._root / "identity.json") == identity)
        except LTIError:
            return False

    def _record_path(self, shard: int) -> Path:
        return self._journal / f"{shard:06d}.json"

    def keep(self, shard: int) -> bool:
        """Whether a shard is in the journal and its rows on disk still have that digest."""
        try:
            record = ShardRecord.model_validate(read_json(self._record_path(shard)))
            partial = self._manifest([*self._records, record])
            found = GradientStore(self._store, self._manifest_path, partial).hash_shard(shard)
        except (LTIError, ValidationError):
            return False
        if found == record.digest:
            self._records.append(record)
        return found == record.digest

    def add(self, shard: int, values: np.ndarray, scale: np.ndarray | None, digest: str) -> None:
        """Write a shard, force it to the disk, and only then enter it in the journal."""
        import zarr

        start = shard * self._geometry.shard_rows
        stop = start + len(values)
        # Chunks of zeros are written too: an absent file is damage and never means zero.
        with zarr.config.set({"array.write_empty_chunks": True}):
            group = _open_group(self._store)
            group["rows"][start:stop] = values
            if scale is not None:
                group["scale"][start:stop] = scale[: len(values)]
        files = {}
        for name in self._geometry.shard_files(shard):
            file = self._store / name
            sync(file)
            for folder in file.parents:
                sync(folder)
                if folder == self._store:
                    break
            files[name] = file.stat().st_size
        record = ShardRecord(files=files, digest=digest)
        write_durably(self._record_path(shard), canonical_json(record.model_dump()))
        self._records.append(record)

    def _manifest(self, records: list[ShardRecord]) -> Manifest:
        return Manifest(
            format=FORMAT_VERSION,
            geometry=self._geometry,
            attributes=self._attributes,
            metadata=metadata_files(self._store, self._geometry),
            shards=records,
            digest=combine_digests(self._geometry, records),
        )

    def publish(self) -> None:
        """Move the store to its path, write the manifest, remove the hidden folder."""
        content = self._manifest(self._records).sealed().model_dump(mode="json")
        for name in content["metadata"]:
            sync(self._store / name)
        os.rename(self._store, self._path)
        sync(self._path.parent)
        self._manifest_path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self._manifest_path, json.dumps(content, sort_keys=True, indent=1) + "\n")
        shutil.rmtree(self._root)


def _open_group(path: Path) -> Any:
    import zarr

    return zarr.open_group(zarr.storage.LocalStore(path), mode="r+")
