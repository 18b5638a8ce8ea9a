"""QSGD: magnitudes are rounded to levels by chance, without bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense, standard_uniform

if TYPE_CHECKING:
    import torch

__all__ = ["QSGD"]


@DEFENSES.register("qsgd", source="Alistarh et al. 2017, section 3.1; buckets: section 4")
class QSGD(Defense):
    """Send ``|v|_2 sign(v_i) xi_i``, xi_i one of the two levels k / s around ``|v_i| / |v|_2``.

    The upper level has the probability that makes the expectation ``v_i``.
    """

    compress = True

    levels: int = Field(4, ge=1, description="s, levels above zero.")
    bucket: int | None = Field(
        None,
        ge=1,
        description=(
            "Consecutive coordinates that are quantised by a norm of their own; null: the whole "
            "flattened gradient."
        ),
    )

    def stochastic(self, gradient: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Return the quantised gradients, ``(b, p)`` float32."""
        import torch
        from torch.nn import functional

        drawn = standard_uniform(gradient, seeds=seeds)
        count, size = gradient.shape[1], self.bucket or gradient.shape[1]
        short = -count % size
        v = functional.pad(gradient, (0, short)).unflatten(1, (-1, size))
        norm = torch.linalg.vector_norm(v, dim=2, keepdim=True)
        place = v.abs() / norm.clamp_min(torch.finfo(v.dtype).tiny) * self.levels
        lower = place.floor()
        up = functional.pad(drawn, (0, short)).unflatten(1, (-1, size)) < place - lower
        sent = norm * v.sign() * ((lower + up) / self.levels)
        return sent.flatten(1)[:, :count]
