"""Soteria: the representation before a fully connected layer is perturbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.fl_models import FLModel
    from lti.gradients.per_sample import PartsFunction

__all__ = ["Soteria"]


@DEFENSES.register("soteria", source="Sun et al. 2021 (CVPR), algorithm 1")
class Soteria(Defense):
    """Set to zero what of a representation r tells most of the sample x.

    These are the share ``rate`` of entries with the largest ``|r_i| / |d r_i / d x|_2``. The
    weight's gradient of the layer that takes r is that of the perturbed one: its columns there are
    zero. All other gradients are as they were.
    """

    matching = "nonzero-cosine"

    rate: float = Field(0.8, gt=0.0, lt=1.0, description="Share of the representation set to zero.")
    layer: str | None = Field(
        None, description="Name of the linear layer that takes r; null: the network's last."
    )

    def update_function(self, model: FLModel, network: nn.Module) -> PartsFunction:
        """Return the updates of clients (see the base).

        Raises:
            LTIError: there is no such layer, its weight is not attacked, it sees sequences, or the
                samples are text.
        """
        from lti.gradients.representation import perturbed_representation_function

        return perturbed_representation_function(
            model, network, layer=self.layer, dropped=self._dropped
        )

    def _dropped(self, representation: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        """Return which entries are set to zero, bool ``(n, d)``.

        Args:
            representation: r, ``(n, d)``.
            slope: ``|d r_i / d x|_2``, ``(n, d)``.
        """
        import torch

        count = max(1, round(self.rate * representation.shape[1]))
        tiny = torch.finfo(slope.dtype).tiny
        place = (representation.abs() / slope.clamp_min(tiny)).topk(count, dim=1).indices
        return torch.zeros_like(representation, dtype=torch.bool).scatter_(1, place, True)
