"""LTI: one forward pass of an inverter trained on auxiliary data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import ATTACKS, Attack, Observations, Reconstruction
from lti.attacks.parts import WHOLE, Part
from lti.errors import LTIError
from lti.fl_models import network_digest

if TYPE_CHECKING:
    from lti.compute import Compute
    from lti.defenses import Defense
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress
    from lti.projections import Projection

__all__ = ["LearningToInvert"]

# Observations inverted at once: so many, or what of them is below 256 MiB.
ROWS = 512
BLOCK_BYTES = 256 * 2**20


@ATTACKS.register("lti", source="Wu et al. 2023, section 4")
class LearningToInvert(Attack):
    """Apply the inverter to what the server received."""

    needs = ("inverter",)

    inverter: str = Field(description="A key of `inverters`.")
    projection: str = Field("identity", description="A key of `projections`.")

    def load(self, files: Mapping[str, Path], *, compute: Compute) -> TrainedInverter:
        """Read the inverter."""
        from lti.inverters.trained import TrainedInverter

        return TrainedInverter.load(files["inverter"], compute=compute)

    def reconstruct(
        self,
        observations: Observations,
        *,
        compute: Compute,
        seed: int,
        progress: Progress,
        checkpoints: Path,
        knowledge: Any = None,
        part: Part = WHOLE,
    ) -> Reconstruction:
        """Return the inverter's output (see :class:`lti.attacks.Attack`).

        Raises:
            LTIError: the inverter was trained against another defense, FL model, batch size or
                projection.
        """
        import torch

        inverter: TrainedInverter = knowledge
        got = (
            inverter.defense,
            inverter.fl_model_digest,
            inverter.batch_size,
            inverter.projection,
            inverter.projection_digest,
        )
        expected = (
            observations.defense,
            network_digest(observations.network),
            observations.batch_size,
            observations.projection,
            observations.projection_digest,
        )
        if got != expected:
            raise LTIError(
                f"the inverter was trained against {_told(*got)}; the observations are of "
                f"{_told(*expected)}. Train one for them."
            )

        count, width = observations.gradient.shape
        step = max(1, min(ROWS, BLOCK_BYTES // (4 * width)))
        progress.start(total=count, unit="batches")
        parts = []
        for start in range(0, count, step):
            rows = slice(start, start + step)
            label = None if observations.label is None else observations.label[rows]
            output = inverter.invert(observations.gradient[rows], label)
            parts.append(output.cpu())
            progress.advance(len(output))
        return Reconstruction(torch.cat(parts))


def _told(
    defense: Defense,
    digest: str | None,
    batch_size: int,
    projection: Projection,
    projection_digest: str | None,
) -> str:
    made_of = "" if projection_digest is None else f" made of {projection_digest}"
    return (
        f"{defense.canonical()} on FL model {digest} with batches of {batch_size} under "
        f"projection {projection.canonical()}{made_of}"
    )
