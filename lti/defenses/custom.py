"""A defense that is any class with a method ``defend``: what it takes to run one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import ConfigDict, model_validator

from lti.defenses.base import Defense, Matching
from lti.errors import LTIError
from lti.registry import described
from lti.seeding import restored_global_generators, seed_global_generators

if TYPE_CHECKING:
    import torch

__all__ = ["CustomDefense", "entry_of"]


class CustomDefense(Defense):
    """Calls a class with ``defend(self, gradient)``: one flattened gradient ``(p,)``, on the CPU.

    Its settings are the keywords of the class's constructor. Before every call, Python's, numpy's
    and torch's global generators are set from the gradient's seed: what a class draws from them
    is repeated, and frozen in the gradient store.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    of: ClassVar[type]

    @cached_property
    def made(self) -> Any:
        """The object of the class."""
        return type(self).of(**(self.model_extra or {}))

    @model_validator(mode="after")
    def _check_constructor(self) -> Self:
        try:
            inspect.signature(type(self).of).bind(**(self.model_extra or {}))
        except TypeError as error:
            given = ", ".join(sorted(self.model_extra or {})) or "none"
            line = (
                f"use: {self.name} got the settings {given}; its constructor says: {error}. Give "
                f"what it needs beside `use`, and nothing else."
            )
            raise described([line]) from None
        except ValueError:
            pass  # a constructor that does not tell what it takes
        try:
            _ = self.made
        except Exception as error:
            line = f"use: {self.name} refuses its settings: {type(error).__name__}: {error}"
            raise described([" ".join(line.split())]) from None
        return self

    @property
    def log_likelihood(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """The class's own ``log_likelihood(observation, gradient)``; None: it has none."""
        found: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
        found = getattr(self.made, "log_likelihood", None)
        return found

    def stochastic(self, gradient: torch.Tensor, *, seeds: Sequence[int]) -> torch.Tensor:
        """Return what the class makes of each row, ``(b, p)`` float32.

        Raises:
            LTIError: it returns something else than p finite numbers, or fails.
        """
        import torch

        rows = []
        with restored_global_generators():
            # On the CPU, where a class draws unless it says otherwise.
            for row, seed in zip(gradient.cpu(), seeds, strict=True):
                seed_global_generators(seed)
                rows.append(self._defended(row.clone()))
        return torch.stack(rows).to(gradient.device)

    def _defended(self, gradient: torch.Tensor) -> torch.Tensor:
        import torch

        shape = tuple(gradient.shape)
        try:
            result = self.made.defend(gradient)
        except Exception as error:
            raise LTIError(
                f"defense {self.name} failed on a gradient of shape {shape}: "
                f"{type(error).__name__}: {error}. Correct its method defend."
            ) from error
        if not isinstance(result, torch.Tensor) or tuple(result.shape) != shape:
            got = (
                f"a tensor of shape {tuple(result.shape)}"
                if isinstance(result, torch.Tensor)
                else f"{type(result).__name__}"
            )
            raise LTIError(
                f"defense {self.name} returned {got}; expected a tensor of the gradient's shape, "
                f"{shape}. Correct its method defend."
            )
        result = result.detach().to(gradient)
        if not bool(result.isfinite().all()):
            raise LTIError(
                f"defense {self.name} returned {int((~result.isfinite()).sum())} NaN or infinite "
                f"entries of {shape[0]}; expected finite ones. Correct its method defend."
            )
        return result


def entry_of(cls: type) -> type[Defense]:
    """Return a class as an entry of the defenses.

    Its attributes ``source`` and ``matching``, where it has them, are taken over.

    Raises:
        LTIError: it has no method ``defend``, or one of these attributes is wrong.
    """
    if not callable(getattr(cls, "defend", None)):
        raise LTIError(
            f"{cls.__module__}:{cls.__qualname__} has no method defend; expected defend(self, "
            f"gradient), which returns what is sent of a flattened gradient. Add it."
        )
    matching = getattr(cls, "matching", Defense.matching)
    if matching not in get_args(Matching):
        raise LTIError(
            f"{cls.__module__}:{cls.__qualname__}.matching is {matching!r}; expected one of "
            f"{', '.join(get_args(Matching))}. Correct it."
        )
    facts = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "of": cls,
        "matching": matching,
        "source": str(getattr(cls, "source", "")),
    }
    return type(cls.__name__, (CustomDefense,), facts)
