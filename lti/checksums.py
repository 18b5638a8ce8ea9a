"""Text files that are read again, each beside its SHA-256: a changed character is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lti.errors import LTIError
from lti.files import atomic_path

__all__ = ["read_checked", "write_checked"]


def write_checked(path: Path | str, text: str) -> None:
    """Write UTF-8 text, and beside it ``<name>.sha256`` for ``sha256sum --check``; atomically.

    Line ends stay as they are.
    """
    path = Path(path)
    content = text.encode()
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    with atomic_path(_checksum(path)) as temporary:
        temporary.write_text(f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def read_checked(path: Path | str) -> str:
    """Read what :func:`write_checked` wrote.

    Raises:
        LTIError: the file or its checksum is missing, or they do not match.
    """
    path = Path(path)
    remedy = "Delete it and run the same command again."
    try:
        content = path.read_bytes()
        text, expected = content.decode(), _checksum(path).read_bytes().split()
    except (OSError, ValueError) as error:
        raise LTIError(f"{path}: cannot be read with its checksum ({error}). {remedy}") from None
    if expected[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise LTIError(
            f"{path}: does not match {_checksum(path).name} beside it: one of them is damaged. "
            f"{remedy}"
        )
    return text


def _checksum(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
