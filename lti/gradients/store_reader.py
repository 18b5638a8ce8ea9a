"""Reading a gradient store: no number ever comes from damaged or incomplete data."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lti.errors import LTIError
from lti.gradients.encoding import ENCODINGS, EncodedRows, decode_rows
from lti.gradients.store_format import Geometry, Manifest, hash_rows, metadata_files, read_manifest

if TYPE_CHECKING:
    import torch

__all__ = ["READ_THREADS", "GradientStore"]

# Chunks read at a time.
READ_THREADS = 4


class GradientStore:
    """A complete store, open for reading. Use :meth:`open`."""

    def __init__(self, path: Path, manifest_path: Path, manifest: Manifest) -> None:
        import zarr

        self.path = path
        self.manifest_path = manifest_path
        self._manifest = manifest
        self.geometry: Geometry = manifest.geometry
        group = zarr.open_group(zarr.storage.LocalStore(path, read_only=True), mode="r")
        names = ["rows", "scale"] if self.geometry.scaled else ["rows"]
        self._arrays: dict[str, Any] = {name: group[name] for name in names}

    @classmethod
    def open(cls, path: Path | str, manifest: Path | str) -> GradientStore:
        """Open a store after checking that it is whole.

        Args:
            path: the store's folder.
            manifest: the JSON file that :func:`lti.gradients.store.write_store` wrote with it.

        Raises:
            LTIError: the manifest is missing or damaged, or the store does not match it: a
                metadata file differs, a shard is missing or has another size.
        """
        path, manifest_path = Path(path), Path(manifest)
        record = read_manifest(manifest_path)
        try:
            found = metadata_files(path, record.geometry)
        except OSError as error:
            file = Path(error.filename or path)
            raise _damage(file, "cannot be read", path, manifest_path) from None
        for name in found:
            if found[name] != record.metadata.get(name):
                raise _damage(path / name, "does not match the manifest", path, manifest_path)
        geometry = record.geometry
        if len(record.shards) != geometry.n_shards or any(
            sorted(shard.files) != sorted(geometry.shard_files(number))
            for number, shard in enumerate(record.shards)
        ):
            raise _damage(manifest_path, "does not list every shard", path, manifest_path)
        store = cls(path, manifest_path, record)
        if store._arrays["rows"].shape != (geometry.n_rows, geometry.dim):
            raise _damage(manifest_path, "declares another shape", path, manifest_path)
        for shard in range(record.geometry.n_shards):
            store._check_files(shard)
        return store

    @property
    def n_rows(self) -> int:
        """Number of samples."""
        return self.geometry.n_rows

    @property
    def dim(self) -> int:
        """Entries of a row."""
        return self.geometry.dim

    @property
    def encoding(self) -> str:
        """How entries are stored; a key of :data:`lti.gradients.encoding.ENCODINGS`."""
        return self.geometry.encoding

    @property
    def attributes(self) -> dict[str, Any]:
        """What the writer said about the rows."""
        return self._manifest.attributes

    @property
    def digest(self) -> str:
        """64 hex digits, equal exactly for equal shape, encoding and rows."""
        return self._manifest.digest

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Return rows ``start`` to ``stop`` (excluded): float32 (stop - start, dim).

        Raises:
            LTIError: the range is not inside the store, or a file is damaged or missing.
        """
        return decode_rows(self.encoded_rows(start, stop))

    def encoded_rows(self, start: int, stop: int) -> EncodedRows:
        """Return rows as they are stored; see :meth:`rows`."""
        import torch

        values = np.empty((max(0, stop - start), self.dim), ENCODINGS[self.encoding])
        scale = np.empty(len(values), np.float32) if self.geometry.scaled else None
        self.read_into(start, stop, values, scale)
        return EncodedRows(
            torch.from_numpy(values), None if scale is None else torch.from_numpy(scale)
        )

    def read_into(
        self, start: int, stop: int, values: np.ndarray, scale: np.ndarray | None
    ) -> None:
        """Read rows into ``values`` (rows, dim) and ``scale`` (rows,), a chunk at a time.

        Raises:
            LTIError: as in :meth:`rows`.
        """
        if not 0 <= start <= stop <= self.n_rows:
            raise LTIError(
                f"rows {start} to {stop} of {self.path}, which has rows 0 to {self.n_rows}. "
                f"Ask for a range inside it."
            )
        if start == stop:
            return
        geometry = self.geometry

        def read_chunk(chunk: int) -> None:
            first = max(start, chunk * geometry.chunk_rows)
            end = min(stop, (chunk + 1) * geometry.chunk_rows)
            into = slice(first - start, end - start)
            self._read("rows", first, end, values[into])

        shards = range(start // geometry.shard_rows, (stop - 1) // geometry.shard_rows + 1)
        for shard in shards:
            self._check_files(shard)
            if scale is not None:
                first, end = geometry.shard_range(shard)
                first, end = max(start, first), min(stop, end)
                self._read("scale", first, end, scale[first - start : end - start])
        chunks = range(start // geometry.chunk_rows, (stop - 1) // geometry.chunk_rows + 1)
        if len(chunks) == 1:
            read_chunk(chunks[0])
            return
        # One chunk a call: zarr's buffers then stay small enough to be reused. Threads also
        # share the cost of touching new memory, which is about that of reading.
        with ThreadPoolExecutor(READ_THREADS) as pool:
            try:
                for _ in pool.map(read_chunk, chunks):
                    pass
            except LTIError:
                pool.shutdown(cancel_futures=True)
                raise

    def verify(self) -> None:
        """Read every row and compare it with the manifest's digests.

        Raises:
            LTIError: a file is damaged, or two intact files have changed places.
        """
        for shard, record in enumerate(self._manifest.shards):
            if self.hash_shard(shard) != record.digest:
                file = self.path / self.geometry.shard_files(shard)[0]
                raise _damage(
                    file, "does not hold the rows it should", self.path, self.manifest_path
                )

    def hash_shard(self, shard: int) -> str:
        """Return the digest of a shard's rows as they are on disk.

        Raises:
            LTIError: a file is damaged or missing.
        """
        start, stop = self.geometry.shard_range(shard)
        total, step = 0, self.geometry.chunk_rows
        for first in range(start, stop, step):
            piece = self.encoded_rows(first, min(stop, first + step))
            scale = None if piece.scale is None else piece.scale.numpy()
            total += hash_rows(piece.values.numpy(), scale, first_row=first)
        return f"{total % 2**256:064x}"

    def _read(self, name: str, start: int, stop: int, out: np.ndarray) -> None:
        # Never across shards, so that the damaged file can be named.
        try:
            out[:] = self._arrays[name][start:stop]
        except Exception as error:  # zarr, its codecs and the system each have their own
            files = self.geometry.shard_files(start // self.geometry.shard_rows)
            file = self.path / files[0 if name == "rows" else 1]
            what = f"is damaged ({error})"
            raise _damage(file, what, self.path, self.manifest_path) from error

    def _check_files(self, shard: int) -> None:
        # Zarr reads a missing file as zeros.
        for name, size in self._manifest.shards[shard].files.items():
            _check_size(self.path / name, size, self.path, self.manifest_path)


def _check_size(file: Path, size: int, path: Path, manifest: Path) -> None:
    try:
        found = file.stat().st_size
    except OSError:
        raise _damage(file, "is missing", path, manifest) from None
    if found != size:
        raise _damage(file, f"has {found} bytes where {size} were written", path, manifest)


def _damage(file: Path, what: str, path: Path, manifest: Path) -> LTIError:
    return LTIError(
        f"{file}: {what}. Delete the store {path} and its manifest {manifest}, and run the same "
        f"command again."
    )
