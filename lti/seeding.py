"""Named random streams: every draw in the project comes from one of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["derive_seed", "numpy_generator", "torch_generator"]


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
