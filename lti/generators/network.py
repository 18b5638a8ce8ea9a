"""What a generator's network can do, whatever its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call, vmap

__all__ = ["GeneratorNetwork"]


class GeneratorNetwork(nn.Module, ABC):
    """A network from latents to samples."""

    @abstractmethod
    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """Map ``(b, latent)`` to samples ``(b, *sample_shape)`` in [0, 1]."""

    def forward_each(
        self, weights: Mapping[str, torch.Tensor], latent: torch.Tensor
    ) -> torch.Tensor:
        """Map latents through n generators that differ in their weights.

        Args:
            weights: by the names of ``named_parameters``, ``(n, *shape)`` each.
            latent: ``(n, b, latent)``, b for each generator.

        Returns:
            ``(n, b, *sample_shape)`` in [0, 1]. The network must be in evaluation mode, so
            that samples do not see one another.
        """

        def one(own: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
            return functional_call(self, own, (z,))

        return vmap(one)(dict(weights), latent)
