"""Feature hashing: every coordinate falls into one of fewer bins, and bins are summed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field

from lti.errors import LTIError
from lti.projections.base import PROJECTIONS, Projection
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.gradients.layout import LinearBlock, ParameterLayout

__all__ = ["FeatureHashing"]


@PROJECTIONS.register("hash", source="Wu et al. 2023, section 4; Weinberger et al. 2009")
class FeatureHashing(Projection):
    """Sum the coordinates of each of ``round(p * ratio)`` bins (at least one).

    Every coordinate falls into one bin, drawn once from the seed. As in the paper's code,
    coordinates keep their signs. ``p`` leaves out a head that is kept.
    """

    ratio: float = Field(0.5, gt=0.0, le=1.0, description="Bins per hashed coordinate.")
    seed: int = Field(0, description="Root seed of the bins.")
    keep_head: bool = Field(
        False,
        description="Leave the last linear layer (its weight and bias) unhashed, behind the bins.",
    )

    def bins(self, layout: ParameterLayout) -> torch.Tensor:
        """Return each coordinate's place in the result, int64 ``(p,)``.

        Raises:
            LTIError: the head is to be kept, and no linear layer has a bias.
        """
        return _bins(self, layout, "cpu")

    def project_parts(
        self, parts: Mapping[str, torch.Tensor], *, layout: ParameterLayout
    ) -> torch.Tensor:
        """Return the bins' sums; behind them the head as it is, if it is kept."""
        # The fastest of what was measured on the processor (0.3 ms for a row of 269,722
        # entries): sorting, transposing or a sparse product take 2 to 10 times as long, and
        # indices of 32 bits 20 times. It adds each row's entries in order, whatever the number
        # of threads. A GPU adds them in any order, so that last bits may differ from run to run.
        some = next(iter(parts.values()))
        bins = _bins(self, layout, str(some.device))
        result = some.new_zeros(len(some), self.layout(layout).total)
        for name, place in layout.slices.items():
            result.index_add_(1, bins[place], parts[name].flatten(1))
        return result

    def layout(self, layout: ParameterLayout) -> ParameterLayout:
        """Return one block: a bin mixes coordinates of all parameters; then the kept head."""
        from lti.gradients.layout import ParameterLayout

        hashed, names = layout.total, list[str]()
        if self.keep_head:
            head = _head(layout)
            hashed -= head.outputs * (head.inputs + 1)
            place = {part.start: name for name, part in layout.slices.items()}
            names = [place[head.weight.start], place[head.bias.start]]
        shape = dict(zip(layout.names, layout.shapes, strict=True))
        size = max(1, round(hashed * self.ratio))
        return ParameterLayout(("hashed", *names), ((size,), *(shape[name] for name in names)))

    def counts(self, layout: ParameterLayout) -> torch.Tensor | None:
        """Return the number of coordinates in each bin; one for each of the head's."""
        import torch

        return torch.bincount(self.bins(layout), minlength=self.layout(layout).total)


def _head(layout: ParameterLayout) -> LinearBlock:
    blocks = layout.linear_blocks()
    if not blocks:
        raise LTIError(
            f"keep_head: the FL model has no linear layer with a bias; its parameters are "
            f"{', '.join(layout.names)}. Set keep_head to false."
        )
    return blocks[-1]


@cache
def _bins(hashing: FeatureHashing, layout: ParameterLayout, device: str) -> torch.Tensor:
    import torch

    size = hashing.layout(layout).sizes[0]
    head = _head(layout) if hashing.keep_head else None
    parameters = layout.total - (head.outputs * (head.inputs + 1) if head else 0)
    generator = torch_generator(hashing.seed, "projection", "hash", parameters, size)
    drawn = torch.randint(size, (parameters,), generator=generator)
    if head is None:
        return drawn.to(device)
    is_hashed = torch.ones(layout.total, dtype=torch.bool)
    is_hashed[head.weight] = is_hashed[head.bias] = False
    result = torch.empty(layout.total, dtype=torch.int64)
    result[is_hashed] = drawn
    place = size + torch.arange(layout.total - parameters)
    result[head.weight], result[head.bias] = place[: -head.outputs], place[-head.outputs :]
    return result.to(device)
