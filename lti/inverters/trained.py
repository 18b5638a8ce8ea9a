"""A trained inverter: applying, writing and reading it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lti.compute import Compute
from lti.defenses import DEFENSES, Defense
from lti.errors import LTIError
from lti.files import read_tensors, write_tensors
from lti.gradients.layout import ParameterLayout
from lti.inverters.base import INVERTERS, Inverter
from lti.inverters.network import InverterNetwork
from lti.projections import PROJECTIONS, Projection

__all__ = ["TrainedInverter", "decode"]


class TrainedInverter:
    """A network ready to invert.

    Args:
        settings: its preset.
        layout: of the gradients that it takes, before projection.
        sample_shape: of the samples that it returns.
        network: with parts ``encoder`` and ``decoder``.
        defense: what it was trained against.
        projection: what its gradients go through.
        fl_model_digest: of the FL model whose gradients it was trained on, where known.
        compute: where to run.
    """

    def __init__(
        self,
        settings: Inverter,
        layout: ParameterLayout,
        sample_shape: Sequence[int],
        *,
        network: InverterNetwork,
        defense: Defense,
        projection: Projection,
        fl_model_digest: str | None,
        compute: Compute,
    ) -> None:
        self.settings, self.layout = settings, layout
        self.sample_shape = tuple(sample_shape)
        self.network = network.to(compute.device).eval()
        self.defense, self.projection = defense, projection
        self.fl_model_digest = fl_model_digest
        self.compute = compute

    @torch.no_grad()
    def invert(self, rows: torch.Tensor) -> torch.Tensor:
        """Map ``(b, p)`` float32 gradients to ``(b, 1, *sample_shape)`` float32 images."""
        if rows.ndim != 2 or rows.shape[1] != self.layout.total:
            raise LTIError(
                f"gradients of shape {tuple(rows.shape)}; this inverter takes (b, "
                f"{self.layout.total}). Train one for this FL model."
            )
        inputs = self.network.encoder(self.projection.project(rows.to(self.compute.device)))
        return decode(self.network.decoder, inputs, self.compute, self.settings.precision)[:, None]

    def save(self, path: Path | str) -> None:
        """Write weights, statistics and settings to a safetensors file, atomically."""
        card = {
            "inverter": self.settings.canonical(),
            "layout": self.layout.to_json(),
            "sample_shape": list(self.sample_shape),
            "defense": self.defense.canonical(),
            "projection": self.projection.canonical(),
            "fl_model_digest": self.fl_model_digest,
        }
        write_tensors(path, self.network.state_dict(), card)

    @classmethod
    def load(cls, path: Path | str, *, compute: Compute) -> TrainedInverter:
        """Read what :meth:`save` wrote.

        Raises:
            LTIError: the file is missing, damaged or not an inverter.
        """
        state, card = read_tensors(path)
        try:
            settings = INVERTERS.parse(card["inverter"], where=str(path))
            layout = ParameterLayout.from_json(card["layout"])
            projection = PROJECTIONS.parse(card["projection"], where=str(path))
            network = settings.network(projection.layout(layout), card["sample_shape"], state)
            network.load_state_dict(state)
            defense = DEFENSES.parse(card["defense"], where=str(path))
        except (KeyError, RuntimeError) as error:
            raise LTIError(
                f"{path}: not an inverter of this version ({error}). Delete it and run the same "
                f"command again."
            ) from None
        return cls(
            settings,
            layout,
            card["sample_shape"],
            network=network,
            defense=defense,
            projection=projection,
            fl_model_digest=card.get("fl_model_digest"),
            compute=compute,
        )


def decode(
    decoder: nn.Module, inputs: torch.Tensor, compute: Compute, precision: str
) -> torch.Tensor:
    """Apply a decoder in the format that its preset asks for; the result is float32."""
    if precision == "float32" or compute.dtype == torch.float32:
        return decoder(inputs.float())
    with torch.autocast(compute.device.type, dtype=compute.dtype):
        output = decoder(inputs)
    return output.float()
