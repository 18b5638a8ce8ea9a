"""Rows of gradients that are read only where they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from lti.gradients.store_reader import GradientStore

__all__ = ["Rows", "StoredRows"]


class Rows(Protocol):
    """Rows by slices without a step: float32 ``(n, k)`` as a tensor is, or from a store."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, k)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> torch.Tensor: ...


class StoredRows:
    """The first ``count`` rows of an open store, read from the disk at every look.

    Observations of a large model under a wide projection may be larger than the memory.
    """

    def __init__(self, store: GradientStore, count: int) -> None:
        self._store, self._count = store, count

    @property
    def shape(self) -> tuple[int, ...]:
        """``(count, k)``."""
        return self._count, self._store.dim

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """Return rows, float32.

        Raises:
            LTIError: a file of the store was damaged since it was opened.
        """
        start, stop, _ = rows.indices(self._count)
        return self._store.rows(start, max(start, stop))
