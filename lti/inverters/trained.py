"""A trained inverter: applying, writing and reading it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lti.compute import Compute
from lti.defenses import DEFENSES, Defense
from lti.errors import LTIError
from lti.files import read_tensors, write_tensors
from lti.gradients.layout import ParameterLayout
from lti.inverters.base import INVERTERS, Inverter, Task
from lti.inverters.network import InverterNetwork
from lti.projections import PROJECTIONS, Projection

if TYPE_CHECKING:
    from lti.inverters.auxiliary_data import AuxiliaryData

__all__ = ["TrainedInverter", "precision_of"]


class TrainedInverter:
    """A network ready to invert.

    Args:
        settings: its preset.
        task: of its network.
        layout: of the gradients that it takes, before projection.
        network: with parts ``encoder`` and ``decoder``.
        defense: what it was trained against.
        projection: what its gradients went through.
        projection_digest: of what that is made of; None where its settings say all.
        fl_model_digest: of the FL model whose gradients it was trained on, where known.
        compute: where to run.
    """

    def __init__(
        self,
        settings: Inverter,
        task: Task,
        layout: ParameterLayout,
        *,
        network: InverterNetwork,
        defense: Defense,
        projection: Projection,
        projection_digest: str | None,
        fl_model_digest: str | None,
        compute: Compute,
    ) -> None:
        self.settings, self.task, self.layout = settings, task, layout
        self.network = network.to(compute.device).eval()
        self.defense, self.projection = defense, projection
        self.projection_digest = projection_digest
        self.fl_model_digest = fl_model_digest
        self.compute = compute

    @classmethod
    def of(
        cls, settings: Inverter, data: AuxiliaryData, *, network: InverterNetwork, compute: Compute
    ) -> TrainedInverter:
        """Return the inverter that a network, fitted to auxiliary data, is."""
        return cls(
            settings,
            data.task,
            data.layout,
            network=network,
            defense=data.defense,
            projection=data.projection,
            projection_digest=data.store.attributes.get("projection_digest"),
            fl_model_digest=data.store.attributes.get("fl_model_digest"),
            compute=compute,
        )

    @property
    def batch_size(self) -> int:
        """Samples of a client batch."""
        return self.task.batch_size

    @torch.no_grad()
    def invert(self, rows: torch.Tensor, label: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstruct client batches.

        Args:
            rows: ``(b, k)`` float32 defended gradients under ``projection``.
            label: int64 ``(b, B)``, where known.

        Returns:
            ``(b, B, *sample_shape)``: float32 images in [0, 1], or int32 tokens.

        Raises:
            LTIError: gradients of another size, or labels missing or of another shape.
        """
        expected, width = (len(rows), self.batch_size), self.task.layout.total
        if rows.ndim != 2 or rows.shape[1] != width:
            raise LTIError(
                f"gradients of shape {tuple(rows.shape)}; this inverter takes (b, {width}): "
                f"{self.layout.total} coordinates under {self.projection.canonical()}. Project "
                f"them so, or train one for this FL model."
            )
        needed = self.settings.ordered_by_label and self.batch_size > 1
        if needed and (label is None or tuple(label.shape) != expected):
            got = "none" if label is None else f"shape {tuple(label.shape)}"
            raise LTIError(
                f"labels: got {got}; inverter {self.settings.name} takes them as given where "
                f"B > 1, {expected}. Give them, or use an inverter that needs none."
            )
        device = self.compute.device
        inputs = self.network.encoder(rows.to(device), None if label is None else label.to(device))
        with precision_of(self.settings, self.compute):
            return self.network.decoder.reconstruct(inputs)

    def save(self, path: Path | str) -> None:
        """Write weights, statistics and settings to a safetensors file, atomically."""
        card = {
            "inverter": self.settings.canonical(),
            "layout": self.layout.to_json(),
            "projected": self.task.layout.to_json(),
            "sample_shape": list(self.task.sample_shape),
            "batch_size": self.task.batch_size,
            "classes": self.task.classes,
            "vocabulary": self.task.vocabulary,
            "defense": self.defense.canonical(),
            "projection": self.projection.canonical(),
            "projection_digest": self.projection_digest,
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
            settings = INVERTERS.parse_stored(card["inverter"], where=str(path))
            layout = ParameterLayout.from_json(card["layout"])
            projection = PROJECTIONS.parse_stored(card["projection"], where=str(path))
            task = Task(
                ParameterLayout.from_json(card["projected"]),
                tuple(card["sample_shape"]),
                card["batch_size"],
                card["classes"],
                card["vocabulary"],
            )
            network = settings.network(task, state)
            network.load_state_dict(state)
            defense = DEFENSES.parse_stored(card["defense"], where=str(path))
        except (KeyError, RuntimeError) as error:
            raise LTIError(
                f"{path}: not an inverter of this version ({error}). Delete it and run the same "
                f"command again."
            ) from None
        return cls(
            settings,
            task,
            layout,
            network=network,
            defense=defense,
            projection=projection,
            projection_digest=card.get("projection_digest"),
            fl_model_digest=card.get("fl_model_digest"),
            compute=compute,
        )


def precision_of(settings: Inverter, compute: Compute) -> AbstractContextManager[object]:
    """Return the context in which a decoder runs in the format that its preset asks for."""
    if settings.precision == "float32" or compute.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(compute.device.type, dtype=compute.dtype)
