"""What every generator states: how its networks are built and how they are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lti.registry import Registry, Settings

if TYPE_CHECKING:
    from torch import nn

    from lti.generators.network import GeneratorNetwork

__all__ = ["GENERATORS", "Generator"]

Beta = Annotated[float, Field(ge=0, lt=1)]


class Generator(Settings):
    """Base of all generators: the two networks of a GAN and their training settings."""

    seed: int = Field(0, description="Root seed of weights, order and latents.")
    epochs: int = Field(ge=1, description="Passes over the auxiliary set.")
    batch_size: int = Field(128, ge=2, description="Samples a step.")
    learning_rate: float = Field(2e-4, gt=0, description="Of Adam, for both networks.")
    betas: tuple[Beta, Beta] = Field((0.5, 0.999), description="Of Adam, for both networks.")
    latent: int = Field(100, ge=1, description="Length of a latent, drawn from N(0, 1).")

    @abstractmethod
    def generator(self, sample_shape: Sequence[int]) -> GeneratorNetwork:
        """Return the generator with initial weights, drawn from torch's global stream.

        Raises:
            LTIError: it cannot make samples of this shape.
        """

    @abstractmethod
    def discriminator(self, sample_shape: Sequence[int]) -> nn.Module:
        """Return the network from ``(b, *sample_shape)`` in [0, 1] to ``(b,)`` logits of real.

        Its initial weights are drawn from torch's global stream.
        """


GENERATORS: Registry[Generator] = Registry("generators", modules={"dcgan": "lti.generators.dcgan"})
