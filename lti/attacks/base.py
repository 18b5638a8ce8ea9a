"""What every attack is given and gives back."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationError, model_validator

from lti.attacks.parts import WHOLE, Part
from lti.data.samples import Modality
from lti.errors import LTIError
from lti.fl_models import attacked
from lti.gradients.layout import ParameterLayout
from lti.registry import Registry, Settings, describe_validation_error, described

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.compute import Compute
    from lti.defenses import Defense
    from lti.fl_models import FLModel
    from lti.gradients.rows import Rows
    from lti.progress import Progress
    from lti.projections import Projection

__all__ = ["ATTACKS", "AXES", "Attack", "Need", "Observations", "Reconstruction", "as_list"]

Need = Literal["inverter", "generator", "gradients", "prior", "start"]
"""What is made from auxiliary data: a network, an image prior, the gradients themselves, or what
is expected of errors; and another attack's reconstructions."""

AXES = ("fl_model", "batch_size", "defense")
"""What settings may depend on."""


@dataclass(frozen=True)
class Observations:
    """All that an attacker knows of the victims: what the server received."""

    gradient: Rows
    """``(n, k)`` float32, one defended and then projected gradient a victim batch; a tensor, or
    rows that are read where they are asked for."""
    label: torch.Tensor | None
    """int64 ``(n, batch_size)``, the classes, or None where they are not known."""
    batch_size: int
    model: FLModel
    network: nn.Module
    defense: Defense
    sample_shape: tuple[int, ...]
    """Shape of one sample: ``(3, 32, 32)`` of an image, ``(length,)`` of tokens."""
    projection: Projection
    """What the gradient went through after the defense."""
    projection_digest: str | None = None
    """Of what the projection is made of; None where its settings say all."""
    tokens: torch.Tensor | None = None
    """int64 ``(n, batch_size, length)``: what a language model's loss compares with, for attacks
    that are given all labels (gradient matching); None where the classes are the labels."""

    @property
    def target(self) -> torch.Tensor | None:
        """What the loss compares with, ``(n, batch_size, ...)``, or None where not known."""
        return self.label if self.tokens is None else self.tokens

    @property
    def layout(self) -> ParameterLayout:
        """Where parameters lie in a gradient before projection."""
        return ParameterLayout.of(attacked(self.model, self.network))

    def __post_init__(self) -> None:
        """Check the shapes.

        Raises:
            LTIError: a gradient of another model or projection, or labels of another batch size.
        """
        shape = tuple(self.gradient.shape)
        # Of a projection that is fitted the digest vouches, which attacks compare.
        fitted = self.projection.is_fitted
        width = shape[-1] if fitted else self.projection.layout(self.layout).total
        if len(shape) != 2 or shape[1] != width:
            raise LTIError(
                f"observations have shape {shape}; expected (n, {width}) for {self.model.name} "
                f"under {self.projection.canonical()}. They were made with another FL model or "
                f"projection: delete them and run the same command again."
            )
        expected = (len(self.gradient), self.batch_size)
        if self.label is not None and tuple(self.label.shape) != expected:
            raise LTIError(
                f"labels have shape {tuple(self.label.shape)}; expected {expected}. Delete the "
                f"observations and run the same command again."
            )


@dataclass(frozen=True)
class Reconstruction:
    """What an attack made of the observations."""

    sample: torch.Tensor
    """``(n, batch_size, *sample_shape)``, images float32 in [0, 1] or tokens int32, on the CPU;
    the order inside a batch is the attack's own."""
    objective: torch.Tensor | None = None
    """``(n, t)`` float32: what an optimisation attack minimised, over time."""
    step: torch.Tensor | None = None
    """``(t,)`` int64: the steps at which the objective was recorded."""
    diagnostics: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """What else is known of each victim batch, ``(n, ...)``, by name."""

    @classmethod
    def joined(cls, blocks: Sequence[Reconstruction]) -> Reconstruction:
        """Return one block after another, all of the same kind; of none, nothing."""
        import torch

        if not blocks:
            return cls(torch.empty(0))
        objectives = [block.objective for block in blocks if block.objective is not None]
        return cls(
            torch.cat([block.sample for block in blocks]),
            torch.cat(objectives) if objectives else None,
            blocks[0].step,
            {
                name: torch.cat([block.diagnostics[name] for block in blocks])
                for name in blocks[0].diagnostics
            },
        )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, as it is written."""
        tensors = {"reconstruction": self.sample}
        if self.objective is not None and self.step is not None:
            tensors |= {"objective": self.objective, "objective_step": self.step}
        return {**tensors, **self.diagnostics} if len(self.sample) else {}


class Attack(Settings):
    """Base of all attacks.

    One with a setting ``projection`` (a key of the configuration's ``projections``) is given
    observations under that projection, any other whole gradients.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    modality: ClassVar[Modality | None] = None
    """What it reconstructs; None: whatever there is."""
    is_divisible: ClassVar[bool] = False
    """Whether several jobs can attack blocks of many victim batches, each its own."""

    victims: int | None = Field(
        None, ge=1, description="Attack only the first so many victim batches; null: all."
    )
    overrides: list[dict[str, Any]] = Field(
        default=[],
        description=(
            "Other settings for some cells: `when` names FL models, batch sizes or defenses (one "
            "or a list each), the other keys are settings. Later entries win."
        ),
    )

    @model_validator(mode="after")
    def _check_overrides(self) -> Attack:
        if problems := list(self._override_problems()):
            raise described(problems)
        return self

    def _override_problems(self) -> Iterator[str]:
        allowed = sorted({"when", *type(self).model_fields} - {"overrides"})
        for number, override in enumerate(self.overrides):
            where = f"overrides[{number}]"
            unknown = sorted(override.keys() - set(allowed))
            for key in unknown:
                yield (
                    f"{where}.{key}: unknown key (value {override[key]!r}); allowed: "
                    f"{', '.join(allowed)}"
                )
            yield from _when_problems(f"{where}.when", override.get("when"))
            try:
                self._changed({k: v for k, v in override.items() if k not in unknown})
            except ValidationError as error:
                yield describe_validation_error(error, where=where, model=type(self))

    def _changed(self, override: Mapping[str, Any]) -> Attack:
        settings = {key: value for key, value in override.items() if key != "when"}
        return type(self).model_validate({**self.model_dump(), "overrides": [], **settings})

    def on(self, *, fl_model: str, batch_size: int, defense: str) -> Attack:
        """Return the attack with the settings that it uses on a cell, overrides applied.

        Args:
            fl_model: its key in the configuration.
            batch_size: samples per client batch.
            defense: its key in the configuration.
        """
        cell = {"fl_model": fl_model, "batch_size": batch_size, "defense": defense}
        result = self.model_copy(update={"overrides": []})
        for override in self.overrides:
            if all(cell[axis] in as_list(value) for axis, value in override["when"].items()):
                result = result._changed(override)
        return result

    def load(self, files: Mapping[str, Path], *, compute: Compute) -> Any:
        """Read what the attack ``needs``, for ``reconstruct``.

        Here rather than in the stage, so that other attacks do not depend on this one's code.

        Args:
            files: ``inverter``; ``generator``; ``prior``; ``start``; ``gradients``, ``manifest``
                and ``auxiliary``.
            compute: where to run.
        """
        return None

    def check_whole(self, observations: Observations) -> None:
        """Refuse projected observations, where an attack explains whole gradients.

        Raises:
            LTIError: they are projected.
        """
        if observations.projection.name != "identity":
            raise LTIError(
                f"attack {self.name} got observations under {observations.projection.canonical()}; "
                f"expected whole gradients. Give the observations of an identity projection."
            )

    @abstractmethod
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
        """Return the reconstructions.

        Args:
            observations: what the server received, already cut to ``victims``.
            compute: where to run.
            seed: root of the attack's own draws.
            progress: told of every step.
            checkpoints: a folder for resuming; need not exist.
            knowledge: what ``load`` returned.
            part: whose victim batches to attack, where this ``is_divisible``. Every draw is at the
                place of its victim batch among all.
        """


def _when_problems(where: str, when: Any) -> Iterator[str]:
    if not isinstance(when, dict) or not when:
        got = "missing" if when is None else f"got {when!r}"
        yield f"{where}: {got}; expected a map from some of {', '.join(AXES)} to one or a list each"
        return
    for key in sorted(when.keys() - set(AXES), key=str):
        yield f"{where}.{key}: unknown key (value {when[key]!r}); allowed: {', '.join(AXES)}"
    for value in as_list(when.get("batch_size", [])):
        if type(value) is not int or value < 1:
            yield f"{where}.batch_size: got {value!r}; allowed: integers of at least 1"


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and any other value as a list of one."""
    return value if isinstance(value, list) else [value]


ATTACKS: Registry[Attack] = Registry(
    "attacks",
    modules={
        "gi-gip": "lti.attacks.gi_gip",
        "ig": "lti.attacks.ig",
        "lti": "lti.attacks.lti",
        "lti-map": "lti.attacks.lti_map",
        "nearest": "lti.attacks.nearest",
        "tag": "lti.attacks.tag",
    },
)
