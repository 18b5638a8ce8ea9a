"""Descent on many independent problems at once, each with its best iterate kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from lti.checkpoint import Checkpoint
from lti.interruption import saving_first

if TYPE_CHECKING:
    import torch

    from lti.progress import Progress

__all__ = [
    "Minimum",
    "Optimiser",
    "Schedule",
    "adam",
    "evenly_spaced",
    "minimise",
    "tenfold_decay",
    "warm_up",
]

DECAY_AT = (3 / 8, 5 / 8, 7 / 8)  # of all iterations; Geiping et al. 2020, public code
RECORDED = 100  # steps at which the objective is recorded

Evaluate: TypeAlias = "Callable[[list[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]"

Optimiser: TypeAlias = "Callable[[Sequence[torch.Tensor]], torch.optim.Optimizer]"
"""From the variables to what steps them, coordinate by coordinate."""

Schedule: TypeAlias = "Callable[[int], float]"
"""From a step, 0 the first, to its learning rate."""


@dataclass(frozen=True)
class Minimum:
    """Where the objective of each of n problems was lowest."""

    kept: torch.Tensor
    """``(n, ...)``, what was evaluated there."""
    lowest: torch.Tensor
    """``(n,)``; infinite where the objective never was a finite number."""
    objective: torch.Tensor
    """``(n, t)``, the objective at the recorded steps."""


def adam(variables: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """Return Adam with its authors' settings."""
    import torch

    return torch.optim.Adam(variables, fused=True)


def tenfold_decay(learning_rate: float, *, iterations: int) -> Schedule:
    """Return ``learning_rate``, which falls tenfold at 3/8, 5/8 and 7/8 of the iterations."""

    def rate(step: int) -> float:
        return learning_rate * 0.1 ** sum(step >= share * iterations for share in DECAY_AT)

    return rate


def warm_up(learning_rate: float, *, steps: int, iterations: int) -> Schedule:
    """Return a linear rise to ``learning_rate`` in ``steps`` steps, then a linear fall to 0.

    Step s of the rise has (s + 1) / ``steps`` of it, so that the first one moves; 0 would be
    reached at the step behind the last one.
    """

    def rate(step: int) -> float:
        if step < steps:
            return learning_rate * (step + 1) / steps
        return learning_rate * (iterations - step) / (iterations - steps)

    return rate


@saving_first()
def minimise(
    evaluate: Evaluate,
    variables: Sequence[torch.Tensor],
    *,
    iterations: int,
    schedule: Schedule,
    record: torch.Tensor,
    checkpoint: Checkpoint,
    progress: Progress,
    optimiser: Optimiser = adam,
    boxed: bool = False,
    clip: float | None = None,
) -> Minimum:
    """Descend on n independent problems at once and keep each one's best iterate.

    A run that was interrupted resumes from its checkpoint to the same result, bit for bit.

    Args:
        evaluate: from the variables to the objective ``(n,)`` and what to keep of the
            iterate, ``(n, ...)``.
        variables: starting points ``(n, ...)``; not written to.
        iterations: steps of descent.
        schedule: of the learning rate.
        record: int64 ``(t,)``, increasing, the steps at which the objective is recorded.
        checkpoint: of this work.
        progress: told of every step.
        optimiser: of Adam's kind: its state has the variables' shapes, or is a count.
        boxed: step by the sign of the objective's gradient and clamp to [0, 1] after every
            step (Geiping et al. 2020). The start may lie outside and is then no iterate.
        clip: the greatest norm of a problem's gradient; longer ones are scaled down to it.
    """
    import torch

    variables = [v.clone(memory_format=torch.contiguous_format) for v in variables]
    for variable in variables:
        variable.requires_grad_()
    count, device = len(variables[0]), variables[0].device
    stepper = optimiser(variables)
    kept: torch.Tensor | None = None
    lowest = torch.full((count,), torch.inf, device=device)
    objectives = torch.full((count, len(record)), torch.nan, device=device)
    column = {step: number for number, step in enumerate(record.tolist())}
    done = 0
    if (saved := checkpoint.load()) is not None:
        tensors, done = {key: value.to(device) for key, value in saved[0].items()}, saved[1]
        kept, lowest, objectives = tensors["kept"], tensors["lowest"], tensors["objectives"]
        if done < iterations:
            _restore(tensors, variables, stepper)
    progress.skip(done * count)

    for step in range(done, iterations):
        stepper.param_groups[0]["lr"] = schedule(step)
        objective, iterate = evaluate(variables)
        gradients = torch.autograd.grad(objective.sum(), variables)
        with torch.no_grad():
            objective, iterate = objective.detach(), iterate.detach()
            if kept is None:
                kept = iterate.clone()
            improved = objective < lowest
            if boxed and step == 0:
                improved = torch.zeros_like(improved)
            lowest = torch.where(improved, objective, lowest)
            kept = torch.where(improved.view(-1, *[1] * (kept.ndim - 1)), iterate, kept)
            if step in column:
                objectives[:, column[step]] = objective
            if clip is not None:
                gradients = _clipped(gradients, clip)
            for variable, gradient in zip(variables, gradients, strict=True):
                # The fused step goes through memory in order, whatever the strides are.
                variable.grad = (gradient.sign() if boxed else gradient).contiguous()
            stepper.step()
            if boxed:
                for variable in variables:
                    variable.clamp_(0, 1)
        progress.advance(count, objective=objective)
        if step + 1 < iterations and checkpoint.due():
            outcome = {"kept": kept, "lowest": lowest, "objectives": objectives}
            checkpoint.save(outcome | _state(variables, stepper), position=step + 1)
    assert kept is not None
    if done < iterations:  # so that a later part's interruption does not cost this one
        outcome = {"kept": kept, "lowest": lowest, "objectives": objectives}
        checkpoint.save(outcome, position=iterations)
    return Minimum(kept, lowest, objectives)


def _clipped(gradients: Sequence[torch.Tensor], most: float) -> tuple[torch.Tensor, ...]:
    """Scale each problem's gradient, over all variables, to a norm of at most ``most``."""
    import torch

    norm = torch.stack([g.flatten(1).square().sum(dim=1) for g in gradients]).sum(dim=0).sqrt()
    scale = (most / norm).clamp_max(1.0)
    return tuple(g * scale.view(-1, *[1] * (g.ndim - 1)) for g in gradients)


def _state(
    variables: Sequence[torch.Tensor], stepper: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    state = {f"variable/{number}": value for number, value in enumerate(variables)}
    for number, value in enumerate(variables):
        state |= {f"optimiser/{number}/{key}": slot for key, slot in stepper.state[value].items()}
    return state


def _restore(
    tensors: dict[str, torch.Tensor],
    variables: Sequence[torch.Tensor],
    stepper: torch.optim.Optimizer,
) -> None:
    import torch

    with torch.no_grad():
        for number, value in enumerate(variables):
            value.copy_(tensors[f"variable/{number}"])
            prefix = f"optimiser/{number}/"
            stepper.state[value] = {
                key.removeprefix(prefix): slot
                for key, slot in tensors.items()
                if key.startswith(prefix)
            }


def evenly_spaced(iterations: int) -> torch.Tensor:
    """Return up to 100 evenly spaced steps, int64, from 0 to the last, ``iterations - 1``."""
    import torch

    count = min(RECORDED, iterations)
    return torch.linspace(0, iterations - 1, count, dtype=torch.float64).round().long()
