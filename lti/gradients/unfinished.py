"""A gradient store while it grows: shards in a hidden folder, in a journal once they are whole."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from lti.errors import LTIError
from lti.files import canonical_json, read_json
from lti.gradients.store_format import (
    FORMAT_VERSION,
    Geometry,
    Manifest,
    ShardRecord,
    combine_digests,
    create_arrays,
    metadata_files,
    sync,
    write_durably,
)
from lti.gradients.store_reader import GradientStore

__all__ = ["UnfinishedStore"]

# What may be in a folder that is replaced by a store (the last is Snakemake's).
_STORE_ENTRIES = {"zarr.json", "rows", "scale", ".snakemake_timestamp"}


class UnfinishedStore:
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
        self._lock = path.with_name(f".{path.name}.lock")
        self._records: list[ShardRecord] = []
        self._identity = {
            "format": FORMAT_VERSION,
            "geometry": geometry.model_dump(),
            "attributes": attributes,
        }

    def begin_alone(self) -> None:
        """Go on with what is left of this very store, or begin anew, as the only writer."""
        # From here on no manifest vouches for what is at the path.
        self._manifest_path.unlink(missing_ok=True)
        if self._is_mine():
            if self._path.exists() and not self._store.exists():
                os.rename(self._path, self._store)  # killed between that and the manifest
            for stray in self._store.glob("**/*.partial"):
                stray.unlink()
        self._create_unless_mine()
        if self._path.exists():
            shutil.rmtree(self._path)

    def begin_beside_others(self) -> None:
        """The same where other writers of this store may have begun already."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._create_unless_mine()

    def _create_unless_mine(self) -> None:
        if self._is_mine() and (self._store / "zarr.json").exists():
            return
        shutil.rmtree(self._root, ignore_errors=True)
        self._journal.mkdir(parents=True)
        create_arrays(self._store, self._geometry, self._attributes)
        write_durably(self._root / "identity.json", canonical_json(self._identity))

    def _is_mine(self) -> bool:
        try:
            return bool(read_json(self._root / "identity.json") == self._identity)
        except LTIError:
            return False

    def _record_path(self, shard: int) -> Path:
        return self._journal / f"{shard:06d}.json"

    def keep(self, shard: int) -> bool:
        """Whether a shard is in the journal and its rows on disk still have that digest."""
        try:
            record = ShardRecord.model_validate(read_json(self._record_path(shard)))
            partial = self._manifest([record] * (shard + 1))  # only this shard is looked at
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
        self._lock.unlink(missing_ok=True)


def _open_group(path: Path) -> Any:
    import zarr

    return zarr.open_group(zarr.storage.LocalStore(path), mode="r+")
