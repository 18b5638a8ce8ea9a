"""DCGAN for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from lti.errors import LTIError
from lti.generators.base import GENERATORS, Generator

if TYPE_CHECKING:
    from torch import nn

    from lti.generators.network import GeneratorNetwork

__all__ = ["DCGAN"]


@GENERATORS.register("dcgan", source="Radford et al. 2016; Jeon et al. 2021 (GI-GIP), CIFAR-10")
class DCGAN(Generator):
    """Transposed convolutions from a latent to an image, against convolutions back.

    4x4 with 4 ``width`` channels, 8x8 with 2 ``width``, 16x16 with ``width``, then the image:
    1,068,931 parameters at width 64 and latent 100.
    """

    epochs: int = Field(12, ge=1, description="Passes over the auxiliary set.")
    width: int = Field(64, ge=1, description="Channels at 16x16; doubled at every halving.")

    def generator(self, sample_shape: Sequence[int]) -> GeneratorNetwork:
        """Return the generator, without a BatchNorm after the last layer (see the base)."""
        from lti.generators.dcgan_networks import DCGANGenerator

        return DCGANGenerator(_channels(sample_shape), latent=self.latent, width=self.width)

    def discriminator(self, sample_shape: Sequence[int]) -> nn.Module:
        """Return the discriminator (see the base)."""
        from lti.generators.dcgan_networks import dcgan_discriminator

        return dcgan_discriminator(_channels(sample_shape), width=self.width)


def _channels(sample_shape: Sequence[int]) -> int:
    if len(sample_shape) != 3 or tuple(sample_shape[1:]) != (32, 32):
        raise LTIError(
            f"dcgan got samples of shape {tuple(sample_shape)}; expected (channels, 32, 32). Use "
            f"a generator for this data set."
        )
    return sample_shape[0]
