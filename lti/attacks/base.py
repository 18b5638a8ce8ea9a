"""What every attack is given and gives back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from lti.errors import LTIError
from lti.registry import Registry, Settings

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.compute import Compute
    from lti.defenses import Defense
    from lti.fl_models import FLModel
    from lti.progress import Progress

__all__ = ["ATTACKS", "Attack", "Observations"]


@dataclass(frozen=True)
class Observations:
    """All that an attacker knows of the victims: what the server received."""

    gradient: torch.Tensor
    """``(n, p)`` float32, one defended gradient a victim batch."""
    label: torch.Tensor | None
    """int64 ``(n, batch_size)``, or None where labels are not known."""
    batch_size: int
    model: FLModel
    network: nn.Module
    defense: Defense
    sample_shape: tuple[int, ...]
    """Shape of one sample, e.g. ``(3, 32, 32)``."""

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            LTIError: a gradient of another model, or labels of another batch size.
        """
        parameters = sum(p.numel() for p in self.network.parameters())
        if self.gradient.ndim != 2 or self.gradient.shape[1] != parameters:
            raise LTIError(
                f"observations have shape {tuple(self.gradient.shape)}; expected (n, {parameters}) "
                f"for {self.model.name}. They were made with another FL model: delete them and "
                f"run the same command again."
            )
        expected = (len(self.gradient), self.batch_size)
        if self.label is not None and tuple(self.label.shape) != expected:
            raise LTIError(
                f"labels have shape {tuple(self.label.shape)}; expected {expected}. Delete the "
                f"observations and run the same command again."
            )


class Attack(Settings):
    """Base of all attacks."""

    needs_inverter: ClassVar[bool] = False
    """True where the attack needs a network trained on auxiliary data."""

    victims: int | None = Field(
        None, ge=1, description="Attack only the first so many victim batches; null: all."
    )

    def against(self, defense: str) -> Attack:
        """Return the attack with the settings that it uses against a defense (its key)."""
        return self

    def load_inverter(self, path: Path, *, compute: Compute) -> Any:
        """Read the inverter; only where ``needs_inverter``.

        Here rather than in the stage, so that other attacks do not depend on inverters' code.
        """
        raise NotImplementedError(f"attack {self.name} needs no inverter")

    @abstractmethod
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
        """Return the reconstructions.

        Args:
            observations: what the server received, already cut to ``victims``.
            compute: where to run.
            seed: root of the attack's own draws.
            progress: told of every step.
            checkpoints: a folder for resuming; need not exist.
            inverter: a :class:`lti.inverters.TrainedInverter` where ``needs_inverter``.

        Returns:
            ``(n, batch_size, *sample_shape)`` float32 in [0, 1], on the CPU; the order
            inside a batch is the attack's own.
        """


ATTACKS: Registry[Attack] = Registry(
    "attacks", modules={"ig": "lti.attacks.ig", "lti": "lti.attacks.lti"}
)
