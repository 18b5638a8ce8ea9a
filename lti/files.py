"""Outputs that appear whole or not at all, and reads that never run code from data."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "atomic_path",
    "canonical_json",
    "digest_arrays",
    "digest_json",
    "read_arrays",
    "read_card",
    "read_json",
    "read_tensors",
    "write_arrays",
    "write_card",
    "write_json",
    "write_tensors",
]


@contextlib.contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it into place if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.stem}.", suffix=".part" + path.suffix
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """Return compact JSON with sorted keys: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def digest_json(value: Any) -> str:
    """Return 16 hex digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]


def write_json(path: Path | str, value: Any) -> None:
    """Write indented JSON with sorted keys, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, sort_keys=True, indent=2) + "\n")


def read_json(
    path: Path | str, *, remedy: str = "Delete it and run the same command again."
) -> Any:
    """Read JSON; ``remedy`` ends the error's message.

    Raises:
        LTIError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise LTIError(f"{path}: cannot be read as JSON ({error}). {remedy}") from None


def write_card(path: Path | str, facts: Mapping[str, Any]) -> None:
    """Write facts as :func:`write_json` does, with a digest of them under the key ``check``."""
    write_json(path, {**facts, "check": digest_json(facts)})


def read_card(path: Path | str) -> dict[str, Any]:
    """Read the facts that :func:`write_card` wrote.

    Raises:
        LTIError: the file is missing, damaged or no card.
    """
    card = read_json(path)
    check = card.pop("check", None) if isinstance(card, dict) else None
    if check is None or check != digest_json(card):
        raise LTIError(
            f"{path}: does not match its own digest: it is damaged. Delete it and run the same "
            f"command again."
        )
    return dict(card)


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """Return 16 hex digits over names, types, shapes and contents."""
    import numpy as np

    state = hashlib.sha256()
    for key in sorted(arrays):
        array = np.asarray(arrays[key], order="C")
        state.update(f"{key}:{array.dtype.str}:{array.shape};".encode())
        state.update(array.tobytes())
    return state.hexdigest()[:16]


def write_arrays(
    path: Path | str, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write numpy arrays and JSON-able metadata to a safetensors file, atomically.

    The header carries digests of arrays and metadata, which :func:`read_arrays` checks.
    """
    import numpy as np
    from safetensors.numpy import save_file

    # Not ascontiguousarray: it gives a number without dimensions one.
    contiguous = {key: np.asarray(value, order="C") for key, value in arrays.items()}
    # One header key only: safetensors writes several in no fixed order.
    header = canonical_json(
        {
            "digest": digest_arrays(contiguous),
            "metadata": metadata or {},
            "metadata_digest": digest_json(metadata or {}),
        }
    )
    with atomic_path(path) as temporary:
        save_file(contiguous, temporary, metadata={"lti": header})


def read_arrays(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what :func:`write_arrays` wrote.

    Raises:
        LTIError: the file is missing, damaged, or not of this project.
    """
    from safetensors import SafetensorError, safe_open

    remedy = "Delete it and run the same command again."
    try:
        with safe_open(str(path), framework="np") as file:
            header = json.loads((file.metadata() or {})["lti"])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = header["metadata"]
        expected = header["digest"], header["metadata_digest"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LTIError(f"{path}: cannot be read ({error}). {remedy}") from None
    if (digest_arrays(arrays), digest_json(metadata)) != expected:
        raise LTIError(f"{path}: its content does not match its digest: it is damaged. {remedy}")
    return arrays, metadata


def write_tensors(
    path: Path | str,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """:func:`write_arrays` for torch tensors (moved to the CPU)."""
    write_arrays(path, {k: v.detach().cpu().numpy() for k, v in tensors.items()}, metadata)


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """:func:`read_arrays` for torch tensors, on the CPU."""
    import torch

    arrays, metadata = read_arrays(path)
    return {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}, metadata
