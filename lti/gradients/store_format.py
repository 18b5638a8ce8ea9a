"""What a gradient store looks like on disk: geometry, zarr metadata and manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lti.errors import LTIError
from lti.files import atomic_path, canonical_json, digest_json, read_json
from lti.gradients.encoding import ENCODINGS, item_bytes

if TYPE_CHECKING:
    import zarr

__all__ = [
    "FORMAT_VERSION",
    "Geometry",
    "Manifest",
    "ShardRecord",
    "StoreSettings",
    "combine_digests",
    "create_arrays",
    "hash_rows",
    "metadata_files",
    "plan_geometry",
    "read_manifest",
    "sync",
    "write_durably",
]

FORMAT_VERSION = 1
_MIB = 2**20


class StoreSettings(BaseModel):
    """How large the pieces of a store are and how much memory may be used."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    chunk_mib: float = Field(
        default=8.0,
        gt=0,
        le=16,
        description="Size of a chunk (whole rows, the unit of reading) before compression, in "
        "MiB. From 4 to 16 reads fastest.",
    )
    shard_mib: float = Field(
        default=256.0,
        gt=0,
        le=1024,
        description="Size of a shard (one file, the unit of writing and resuming) before "
        "compression, in MiB. A smaller shard loses less work when a writer is killed.",
    )
    samples_per_job: int = Field(
        default=1_000_000,
        ge=1,
        description="A store of more auxiliary samples is written by several jobs, of about so "
        "many samples each.",
    )
    memory_mib: float = Field(
        default=4096.0,
        gt=0,
        description="Memory, in MiB, for rows while writing and reading, whatever their number. "
        "At least four times shard_mib. Stores that fit are read whole.",
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> StoreSettings:
        if self.chunk_mib > self.shard_mib:
            raise ValueError(
                f"chunk_mib {self.chunk_mib:g} is above shard_mib {self.shard_mib:g}; a shard "
                f"holds whole chunks"
            )
        # A shard being written exists as rows, as encoded chunks and as the file's bytes.
        if self.memory_mib < 4 * self.shard_mib:
            raise ValueError(
                f"memory_mib {self.memory_mib:g} is below 4 * shard_mib = "
                f"{4 * self.shard_mib:g}; raise it or lower shard_mib"
            )
        return self


class Geometry(BaseModel):
    """Shape, encoding and piece sizes of a store."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_rows: int = Field(ge=1)
    dim: int = Field(ge=1)
    encoding: str
    compress: bool
    chunk_rows: int = Field(ge=1)
    shard_rows: int = Field(ge=1)

    @property
    def n_shards(self) -> int:
        """Number of shards; all but the last hold ``shard_rows`` rows."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def scaled(self) -> bool:
        """Whether every row has a float32 scale."""
        return self.encoding == "scaled-float16"

    @property
    def row_bytes(self) -> int:
        """Bytes of an encoded row before compression, with its scale."""
        return self.dim * item_bytes(self.encoding) + (4 if self.scaled else 0)

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Return the first row of a shard and the row after its last."""
        start = shard * self.shard_rows
        return start, min(start + self.shard_rows, self.n_rows)

    def shard_files(self, shard: int) -> list[str]:
        """Return the files of a shard, relative to the store."""
        return [f"rows/c/{shard}/0", *([f"scale/c/{shard}"] if self.scaled else [])]


def plan_geometry(
    *, n_rows: int, dim: int, encoding: str, compress: bool, settings: StoreSettings
) -> Geometry:
    """Choose rows per chunk and chunks per shard.

    Raises:
        LTIError: no rows, no entries, an unknown encoding, or a row that does not fit memory.
    """
    if n_rows < 1 or dim < 1:
        raise LTIError(f"a store of {n_rows} rows of {dim} entries; expected at least 1 of each.")
    row = dim * item_bytes(encoding)
    # While a row is encoded there are its float32 form, a scaled copy and masks.
    if row + 12 * dim > settings.memory_mib * _MIB:
        raise LTIError(
            f"a row of {dim} entries does not fit memory_mib={settings.memory_mib:g}. Raise "
            f"memory_mib or project the gradients to fewer entries."
        )
    chunk_rows = min(max(1, int(settings.chunk_mib * _MIB) // row), n_rows)
    shard_chunks = max(1, int(settings.shard_mib * _MIB) // (chunk_rows * row))
    shard_chunks = min(shard_chunks, -(-n_rows // chunk_rows))
    return Geometry(
        n_rows=n_rows,
        dim=dim,
        encoding=encoding,
        compress=compress,
        chunk_rows=chunk_rows,
        shard_rows=chunk_rows * shard_chunks,
    )


def create_arrays(path: Path, geometry: Geometry, attributes: Mapping[str, Any]) -> zarr.Group:
    """Create an empty zarr v3 group with the arrays ``rows`` and, if scaled, ``scale``.

    Every chunk carries a CRC-32C, and so does a shard's index: a flipped byte raises.
    """
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    group = zarr.create_group(
        zarr.storage.LocalStore(path),
        zarr_format=3,
        attributes={"format": FORMAT_VERSION, **geometry.model_dump(), "lti": dict(attributes)},
    )
    compressors: list[Any] = [Crc32cCodec()]
    if geometry.compress:
        # Measured on LeNet gradients (bytes an entry; decoding, decoded GB/s on one core):
        # signs 0.039 at 1.6, pruned 0.99 0.037 at 5.9. Shuffling slows the sparse floats.
        shuffle: Literal["bitshuffle", "noshuffle"] = (
            "bitshuffle" if geometry.encoding == "sign" else "noshuffle"
        )
        compressors.insert(0, BloscCodec(cname="zstd", clevel=3, shuffle=shuffle))
    dtype = np.dtype(ENCODINGS[geometry.encoding])
    group.create_array(
        "rows",
        shape=(geometry.n_rows, geometry.dim),
        dtype=dtype,
        chunks=(geometry.chunk_rows, geometry.dim),
        shards=(geometry.shard_rows, geometry.dim),
        compressors=compressors,
        fill_value=0,
    )
    if geometry.scaled:
        group.create_array(
            "scale",
            shape=(geometry.n_rows,),
            dtype="float32",
            chunks=(geometry.shard_rows,),
            compressors=[Crc32cCodec()],
            fill_value=0,
        )
    return group


class ShardRecord(BaseModel):
    """A finished shard: its files with their sizes in bytes, and a digest of its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, int]
    digest: str = Field(pattern="^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The small file beside a store that says what a whole store is.

    ``metadata`` holds the SHA-256 of zarr's own JSON files, ``digest`` identifies shape,
    encoding and rows (not attributes, piece sizes or compression), and ``check`` guards
    the manifest itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    geometry: Geometry
    attributes: dict[str, Any]
    metadata: dict[str, str]
    shards: list[ShardRecord]
    digest: str
    check: str = ""

    def sealed(self) -> Manifest:
        """Return a copy whose ``check`` is right."""
        content = digest_json(self.model_dump(mode="json", exclude={"check"}))
        return self.model_copy(update={"check": content})


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        LTIError: it is missing, damaged or of another format version.
    """
    remedy = "Delete it and the store beside it, and run the same command again."
    value = read_json(path, remedy=remedy)
    version = value.get("format") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise LTIError(
            f"{path}: format {version!r}; this version reads format {FORMAT_VERSION}. {remedy}"
        )
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError:
        raise LTIError(f"{path}: not a manifest of a gradient store. {remedy}") from None
    if manifest.check != manifest.sealed().check:
        raise LTIError(f"{path}: does not match its own digest: it is damaged. {remedy}")
    return manifest


def metadata_files(path: Path, geometry: Geometry) -> dict[str, str]:
    """Return the SHA-256 of each of zarr's metadata files, by relative name.

    Raises:
        OSError: one cannot be read.
    """
    names = ["zarr.json", "rows/zarr.json", *(["scale/zarr.json"] if geometry.scaled else [])]
    return {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}


def hash_rows(values: np.ndarray, scale: np.ndarray | None, *, first_row: int) -> int:
    """Return the sum modulo 2^256 of the SHA-256 of each encoded row with its index.

    A sum, so that the digest of a store does not depend on where its shards begin.
    """
    values = np.ascontiguousarray(values)
    total = 0
    for offset in range(len(values)):
        state = hashlib.sha256((first_row + offset).to_bytes(8, "little"))
        if scale is not None:
            state.update(scale[offset].tobytes())
        state.update(values[offset].data)
        total += int.from_bytes(state.digest(), "big")
    return total % 2**256


def combine_digests(geometry: Geometry, shards: list[ShardRecord]) -> str:
    """Return the digest of a store: equal exactly for equal shape, encoding and rows."""
    total = sum(int(record.digest, 16) for record in shards) % 2**256
    head = {"shape": [geometry.n_rows, geometry.dim], "encoding": geometry.encoding}
    return hashlib.sha256(canonical_json([head, f"{total:064x}"]).encode()).hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a text file that, once this returns, survives a power failure; atomically."""
    with atomic_path(path) as temporary, temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync(path.parent)


def sync(path: Path) -> None:
    """Force a file or a folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
