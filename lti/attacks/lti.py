"""LTI: one forward pass of an inverter trained on auxiliary data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import ATTACKS, Attack, Observations
from lti.errors import LTIError
from lti.fl_models import network_digest

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress

__all__ = ["LearningToInvert"]


@ATTACKS.register("lti", source="Wu et al. 2023, section 4")
class LearningToInvert(Attack):
    """Apply the inverter to what the server received."""

    needs_inverter = True

    inverter: str = Field(description="A key of `inverters`.")
    inverter_for: dict[str, str] = Field(
        default={}, description="Keys of `inverters` for some defenses, by the defense's key."
    )

    def against(self, defense: str) -> LearningToInvert:
        """Return the attack with the inverter that it uses against a defense."""
        inverter = self.inverter_for.get(defense, self.inverter)
        return self.model_copy(update={"inverter": inverter, "inverter_for": {}})

    def load_inverter(self, path: Path, *, compute: Compute) -> TrainedInverter:
        """Read the inverter."""
        from lti.inverters.trained import TrainedInverter

        return TrainedInverter.load(path, compute=compute)

    def reconstruct(
        self,
        observations: Observations,
        *,
        compute: Compute,
        seed: int,
        progress: Progress,
        checkpoints: Path,
        inverter: Any = None,
    ) -> torch.Tensor:
        """Return the inverter's output (see :class:`lti.attacks.Attack`).

        Raises:
            LTIError: the inverter was trained against another defense or FL model.
        """
        import torch

        expected = (observations.defense, network_digest(observations.network))
        if (inverter.defense, inverter.fl_model_digest) != expected:
            raise LTIError(
                f"the inverter was trained against {inverter.defense.canonical()} on FL model "
                f"{inverter.fl_model_digest}; the observations are of "
                f"{expected[0].canonical()} and {expected[1]}. Train one for them."
            )

        progress.start(total=len(observations.gradient), unit="victims")
        parts = []
        for rows in observations.gradient.split(512):
            parts.append(inverter.invert(rows.to(compute.device)).clamp(0, 1).cpu())
            progress.advance(len(rows))
        return torch.cat(parts)
