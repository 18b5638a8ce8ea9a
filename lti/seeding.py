"""Named random streams: every draw in the project comes from one of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = [
    "derive_seed",
    "numpy_generator",
    "restored_global_generators",
    "seed_global_generators",
    "torch_generator",
]


def derive_seed(root: int, *names: str | int) -> int:
    """Return the 63-bit seed of the stream called ``names`` under a root seed.

    Streams with different names are independent for all practical purposes (SHA-256),
    so adding a draw to one never moves another.
    """
    text = "/".join([str(root), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(root: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator at the start of the named stream."""
    return np.random.default_rng(derive_seed(root, *names))


def torch_generator(
    root: int, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator at the start of the named stream, on ``device``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(root, *names))


def seed_global_generators(seed: int) -> None:
    """Set Python's, numpy's and torch's global generators of the CPU, for code that uses these."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def restored_global_generators() -> Iterator[None]:
    """Leave the global generators of the CPU as they were before."""
    import torch

    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
