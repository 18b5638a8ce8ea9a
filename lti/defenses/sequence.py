"""Defenses one after another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from lti.defenses.base import DEFENSES, Defense, Matching
from lti.errors import LTIError
from lti.gradients.encoding import Encoding
from lti.registry import described
from lti.seeding import derive_seed, torch_generator

if TYPE_CHECKING:
    import torch

__all__ = ["DefenseSequence"]


@DEFENSES.register("sequence", source="This project; each of its defenses has its own source")
class DefenseSequence(Defense):
    """Apply several defenses, each to what the one before it sent.

    Noise after which nothing but noise follows is drawn like that of a single defense. Noise
    before, such as that of ``[gauss, sign]``, cannot be told apart from what follows: it is part
    of the stochastic part, and drawn for each sample.
    """

    of: list[dict[str, Any]] = Field(
        min_length=1,
        description="Settings of the defenses, first to last. `defense_at` is the sequence's.",
    )

    @model_validator(mode="before")
    @classmethod
    def _canonical_members(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = values.get("of")
        if not isinstance(given, list) or not all(isinstance(part, dict) for part in given):
            return values  # said by the type of the field
        members, problems = [], []
        for number, settings in enumerate(given):
            where = f"of[{number}]"
            if "defense_at" in settings:
                problems.append(f"{where}.defense_at: unknown key; allowed: beside `of`")
                continue
            try:
                member = DEFENSES.parse(settings, where=where)
            except LTIError as error:
                problems += str(error).splitlines()
                continue
            if type(member).update_function is not Defense.update_function:
                problems.append(
                    f"{where}: got {member.name!r}, which defends no gradient; allowed: others"
                )
            members.append({k: v for k, v in member.canonical().items() if k != "defense_at"})
        if problems:
            raise described(problems)
        return {**values, "of": members}

    @cached_property
    def members(self) -> tuple[Defense, ...]:
        """The defenses, first to last."""
        return tuple(DEFENSES.parse(settings) for settings in self.of)

    @cached_property
    def _whole(self) -> int:
        """How many first members are applied whole; -1: there is nothing but noise."""
        before = [n for n, part in enumerate(self.members) if not part.is_deterministic_identity]
        return max(before, default=-1)

    @property
    def _noise(self) -> tuple[Defense, ...]:
        """The members whose noise is the sequence's."""
        return self.members[max(0, self._whole) :]

    @property
    def _last(self) -> Defense | None:
        """The last member with a part before the projection."""
        return None if self._whole < 0 else self.members[self._whole]

    @property
    def encoding(self) -> Encoding:  # type: ignore[override]
        """That of the last member with a part before the projection."""
        return Defense.encoding if self._last is None else self._last.encoding

    @property
    def compress(self) -> bool:  # type: ignore[override]
        """As ``encoding``."""
        return self._last is not None and self._last.compress

    @property
    def matching(self) -> Matching:  # type: ignore[override]
        """That of the last member which asks for another than the cosine, unless noise follows."""
        result: Matching = Defense.matching
        for member in self.members:
            if member.is_random:
                result = Defense.matching
            elif member.matching != Defense.matching:
                result = member.matching
        return result

    @property
    def is_deterministic_identity(self) -> bool:
        """Whether there is nothing but noise."""
        return self._last is None

    @property
    def is_stochastic(self) -> bool:
        """Whether there is chance before the last part that comes before the projection."""
        whole = self.members[: max(0, self._whole)]
        if any(member.is_random or member.is_stochastic for member in whole):
            return True
        return self._last is not None and self._last.is_stochastic

    @property
    def is_random(self) -> bool:
        """Whether the last part before the projection, or what follows it, adds noise."""
        return any(member.is_random for member in self._noise)

    def registered_names(self) -> tuple[str, ...]:
        """Return the sequence's name and those of its members."""
        return self.name, *(name for member in self.members for name in member.registered_names())

    def deterministic(self, gradient: torch.Tensor) -> torch.Tensor:
        """Apply all that comes before the projection, where nothing of it is stochastic."""
        if not self.is_stochastic:
            for member in self.members[: self._whole + 1]:
                gradient = member.deterministic(gradient)
        return gradient

    def stochastic(self, gradient: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Apply all that comes before the projection."""
        import torch

        for number, member in enumerate(self.members[: self._whole + 1]):
            own = [derive_seed(seed, "sequence", number) for seed in seeds]
            gradient = member.before_projection(gradient, seeds=own)
            if number == self._whole or not member.is_random:
                continue
            noisy = []
            for row, seed in zip(gradient.split(1), own, strict=True):
                generator = torch_generator(seed, "noise", device=row.device)
                row = member.randomise(row.clone(), generator=generator)
                noisy.append(member.randomise_mean(row, generator=generator, averaged=1))
            gradient = torch.cat(noisy)
        return gradient

    def randomise(
        self,
        gradient: torch.Tensor,
        *,
        generator: torch.Generator,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add the noise that samples get, ``(b, k)``."""
        for member in self._noise:
            gradient = member.randomise(gradient, generator=generator, counts=counts)
        return gradient

    def randomise_mean(
        self,
        mean: torch.Tensor,
        *,
        generator: torch.Generator,
        averaged: int,
        counts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add the noise that a batch gets once, ``(b, k)``."""
        for member in self._noise:
            mean = member.randomise_mean(
                mean, generator=generator, averaged=averaged, counts=counts
            )
        return mean
