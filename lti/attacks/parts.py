"""One attack in several jobs: each takes whole blocks of victim batches, and writes a part.

Blocks are cut the same however many jobs there are, and whatever memory is free: what is computed
at once decides the last bits. So the parts, one after another, have the bytes of one job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.files import canonical_json, read_tensors, write_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["SHARED", "WHOLE", "Part", "block_bytes", "read_parts", "write_part"]

GPU_MIB = 4096.0  # of a block's temporary numbers

SHARED = frozenset({"objective_step"})
"""Tensors that all parts have in common; the others have a row a victim batch."""


@dataclass(frozen=True)
class Part:
    """Which of several jobs this is, from 0."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            LTIError: there is no such part.
        """
        if not 0 <= self.number < self.of:
            raise LTIError(f"got part {self.number} of {self.of}; expected 0 to {self.of - 1}.")

    def blocks(self, count: int, at_once: int) -> list[slice]:
        """Return this part's blocks of ``count`` victim batches; few blocks may leave it none."""
        blocks = [slice(i, min(i + at_once, count)) for i in range(0, count, at_once)]
        first, last = (number * len(blocks) // self.of for number in (self.number, self.number + 1))
        return blocks[first:last]


WHOLE = Part()


def block_bytes(device: torch.device, processor_mib: float) -> int:
    """Return the bytes that a block may take: by the kind of device, not by what is free on it."""
    return int((GPU_MIB if device.type == "cuda" else processor_mib) * 2**20)


def write_part(
    path: Path, part: Part, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]
) -> None:
    """Write what a part found, and what was attacked how: ``facts``, JSON-able."""
    write_tensors(path, tensors, {"number": part.number, "of": part.of, "facts": dict(facts)})


def read_parts(
    paths: Sequence[Path], *, count: int, facts: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Return the tensors of the whole.

    Args:
        paths: all parts' files, in order.
        count: victim batches that there must be.
        facts: what must have been attacked, and how.

    Raises:
        LTIError: a file is missing, damaged, of another attack or in another's place, or victim
            batches are missing.
    """
    import torch

    found: list[dict[str, torch.Tensor]] = []
    for number, path in enumerate(paths):
        tensors, metadata = read_tensors(path)
        expected = {"number": number, "of": len(paths), "facts": dict(facts)}
        if canonical_json(metadata) != canonical_json(expected):
            raise LTIError(
                f"{path}: got a part of {canonical_json(metadata)}; expected "
                f"{canonical_json(expected)}. Delete it and run the same command again."
            )
        if "reconstruction" in tensors:
            found.append(tensors)
    size = sum(len(part["reconstruction"]) for part in found)
    if size != count or any(part.keys() != found[0].keys() for part in found):
        raise LTIError(
            f"{paths[0]} and the other parts: got {size} victim batches; expected {count}. Delete "
            f"them and run the same command again."
        )
    return {
        key: value if key in SHARED else torch.cat([part[key] for part in found])
        for key, value in found[0].items()
    }
