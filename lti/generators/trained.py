"""A trained generator: writing and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lti.compute import Compute
from lti.errors import LTIError
from lti.files import read_tensors, write_tensors
from lti.fl_models import network_digest
from lti.generators.base import GENERATORS, Generator
from lti.generators.network import GeneratorNetwork

__all__ = ["TrainedGenerator"]


class TrainedGenerator:
    """A network ready to be searched: in evaluation mode, its weights fixed.

    Args:
        settings: how it was built and trained.
        sample_shape: of the samples that it makes.
        network: from ``(b, settings.latent)`` to ``(b, *sample_shape)``.
        compute: where to run.
    """

    def __init__(
        self,
        settings: Generator,
        sample_shape: Sequence[int],
        *,
        network: GeneratorNetwork,
        compute: Compute,
    ) -> None:
        self.settings, self.sample_shape = settings, tuple(sample_shape)
        self.network = network.to(compute.device).eval().requires_grad_(False)
        self.digest = network_digest(network)

    def check_shape(self, sample_shape: Sequence[int]) -> None:
        """Check that the samples are of this shape.

        Raises:
            LTIError: they are not.
        """
        if tuple(sample_shape) != self.sample_shape:
            raise LTIError(
                f"this generator makes samples of shape {self.sample_shape}; expected "
                f"{tuple(sample_shape)}. Train one on this data set."
            )

    def save(self, path: Path | str) -> None:
        """Write weights and settings to a safetensors file, atomically."""
        card = {
            "generator": self.settings.canonical(),
            "sample_shape": list(self.sample_shape),
        }
        write_tensors(path, self.network.state_dict(), card)

    @classmethod
    def load(cls, path: Path | str, *, compute: Compute) -> TrainedGenerator:
        """Read what :meth:`save` wrote.

        Raises:
            LTIError: the file is missing, damaged or not a generator.
        """
        state, card = read_tensors(path)
        try:
            settings = GENERATORS.parse_stored(card["generator"], where=str(path))
            network = settings.generator(card["sample_shape"])
            network.load_state_dict(state)
        except (KeyError, RuntimeError) as error:
            raise LTIError(
                f"{path}: not a generator of this version ({error}). Delete it and run the same "
                f"command again."
            ) from None
        return cls(settings, card["sample_shape"], network=network, compute=compute)
