"""LTI-MAP's hyperparameters, chosen on auxiliary samples that no inverter has learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Self

import torch

from lti.attacks.likelihood import likelihood_of
from lti.attacks.prior import Covariance
from lti.attacks.refinement import Client, Refinement
from lti.gradients.layout import ParameterLayout
from lti.interruption import saving_first
from lti.inverters.ordering import best_order, squared_distance
from lti.seeding import torch_generator

if TYPE_CHECKING:
    from lti.attacks.lti_map import MaximumAPosteriori, PriorKind
    from lti.checkpoint import Checkpoint
    from lti.progress import Progress

__all__ = ["TRIED", "Calibration", "HeldOut", "calibrate", "psnr"]

SURE = 2.0  # standard errors by which a refinement must help
WORTH = 0.02  # dB by which other settings must be better
FLAT = 1e4  # times the errors' variance: next to no prior
BEYOND = 1.5  # times the farthest held-out result: a victim's beyond that is refused

SOFTENINGS = (0.003, 0.01, 0.03)
"""Widths by which rectifiers may be softened, besides not at all."""

TRIED = (
    *("prior", "width", "weight", "softening"),
    *("psnr_before", "psnr_after", "better", "farthest", "converged"),
)
"""Columns of what was tried: PSNR in dB, shares of samples and batches in [0, 1]."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out auxiliary samples, as victims: m client batches."""

    sample: torch.Tensor
    """``(m, B, c, h, w)`` in [0, 1]."""
    label: torch.Tensor
    """int64 ``(m, B)``."""
    start: torch.Tensor
    """``(m, B, c, h, w)``, the inverter's reconstructions."""
    ordered: bool
    """Whether these are in the order of the labels."""
    observed: torch.Tensor
    """``(2 k, p)``: on the first k batches settings are compared, on the next k confirmed."""

    def part(self, first: int, last: int | None) -> HeldOut:
        """Return some of the batches, with what was observed of them."""
        rows = slice(first, last)
        cut = (self.sample[rows], self.label[rows], self.start[rows])
        return HeldOut(*cut, self.ordered, self.observed[rows])


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and all that was tried."""

    refinement: Refinement
    helps: bool
    """Whether refining is better than not refining, beyond doubt."""
    reason: str
    """Why, in a sentence."""
    tried: list[dict[str, Any]]
    """A record (:data:`TRIED`) of each attempt; the last one confirms the best on other batches."""


@dataclass(frozen=True)
class Attempt:
    """Settings, and the PSNR before and after on each sample."""

    refinement: Refinement
    before: torch.Tensor
    after: torch.Tensor
    record: dict[str, Any]

    @classmethod
    def of(
        cls,
        refinement: Refinement,
        held_out: HeldOut,
        after: torch.Tensor,
        farthest: torch.Tensor,
        converged: torch.Tensor,
    ) -> Self:
        """Return the attempt with this outcome."""
        before = psnr(held_out.start, held_out.sample)
        values = (
            *(refinement.prior, refinement.width, refinement.weight, refinement.softening),
            *(float(before.mean()), float(after.mean()), float((after > before).float().mean())),
            *(float(farthest), float(converged)),
        )
        return cls(refinement, before, after, dict(zip(TRIED, values, strict=True)))

    def score(self) -> float:
        """Return the mean PSNR after."""
        return float(self.after.mean())


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the PSNR in dB of each sample, ``(n, B)``, of ``(n, B, ...)``.

    Clamped to [0, 1], and matched inside a batch by the least error, as the metrics are.
    """
    output = output.clamp(0, 1)
    error = (output - _matched(target, output)).square().flatten(2).mean(dim=2)
    return -10 * error.clamp_min(1e-10).log10()


def _matched(target: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Return targets in the order of the outputs."""
    order = best_order(squared_distance(output, target))
    return target[torch.arange(len(target), device=order.device)[:, None], order]


def calibrate(
    attack: MaximumAPosteriori,
    client: Client,
    held_out: HeldOut,
    images: torch.Tensor,
    *,
    layout: ParameterLayout,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Calibration:
    """Choose prior, width, weight and softening of rectifiers by the mean PSNR.

    With each prior, the others begin in the middle of what is offered and move to neighbours as
    long as that helps. The best is then confirmed on batches that were not looked at.

    Args:
        attack: what refines.
        client: whose gradients are received.
        held_out: auxiliary samples that the inverter has not learned from.
        images: other auxiliary samples, ``(n, c, h, w)`` in [0, 1].
        layout: of the gradient.
        checkpoint: of what was tried.
        progress: told of what is tried.
    """
    few = len(held_out.observed) // 2
    compared, confirming = held_out.part(0, few), held_out.part(few, 2 * few)
    off = _off(client, held_out.part(0, 2 * few), layout)
    made = (
        Refinement(kind, covariance, mean, off, width=1.0, weight=1.0)
        for kind, covariance, mean in _priors(attack, held_out.part(2 * few, None), images)
    )
    likelihood = likelihood_of(client.defense, batch_size=client.batch_size, width=off)
    if likelihood is None:
        reason = f"defense {client.defense.name} states no likelihood"
        return Calibration(replace(next(made), farthest=0.0), False, reason, [])
    tried: list[dict[str, Any]] = []
    saved = checkpoint.load()
    outcomes = {} if saved is None else saved[0]

    def attempt(refinement: Refinement, on: HeldOut = compared) -> Attempt:
        prefix = f"{len(tried)}/"
        if f"{prefix}after" not in outcomes:
            for key, value in _outcome(attack, client, refinement, on).items():
                outcomes[prefix + key] = value
            with saving_first():
                checkpoint.save(outcomes, position=len(tried) + 1)
        after, farthest, converged = (
            outcomes[prefix + key] for key in ("after", "farthest", "converged")
        )
        result = Attempt.of(refinement, on, after.to(on.start.device), farthest, converged)
        tried.append(record := result.record)
        progress.say(
            f"{refinement.prior}, width {refinement.width:g}, weight {refinement.weight:g}, "
            f"softening {refinement.softening:g}: "
            f"{record['psnr_before']:.2f} -> {record['psnr_after']:.2f} dB"
        )
        return result

    first = compared.part(0, 1)
    softenings = (0.0, *SOFTENINGS) if client.has_rectifiers(first.sample, first.label) else (0.0,)
    offered = (likelihood.widths, likelihood.weights, softenings)
    best = max((_climb(attempt, offered, prior) for prior in made), key=Attempt.score)
    chosen = replace(best.refinement, farthest=BEYOND * best.record["farthest"])
    confirmed = attempt(chosen, confirming)
    gain = (confirmed.after - confirmed.before).mean(dim=1)  # samples of a batch go together
    sure = float(gain.mean()) - SURE * float(gain.std()) / len(gain) ** 0.5
    reason = (
        f"{float(gain.mean()):+.2f} dB on {len(gain)} other held-out batches, {sure:+.2f} for sure"
    )
    return Calibration(chosen, sure > 0, reason, tried)


def _outcome(
    attack: MaximumAPosteriori, client: Client, refinement: Refinement, held_out: HeldOut
) -> dict[str, torch.Tensor]:
    """Refine held-out batches; return the PSNR, how far it went and the share that converged."""
    count, size = held_out.label.shape
    begin: torch.Tensor | None = None
    if attack.from_noise:
        shape = (count, size, refinement.covariance.dimension)
        begin = torch.randn(shape, generator=torch_generator(attack.seed, "prior", "begin"))
        begin = begin.to(held_out.start.device)
    parts = []
    at_once = client.at_once(held_out.start.device)
    for first in range(0, count, at_once):
        cut = held_out.part(first, first + at_once)
        parts.append(
            refinement.refine(
                client,
                cut.start,
                cut.observed,
                cut.label,
                ordered=held_out.ordered,
                begin=None if begin is None else begin[first : first + at_once],
                iterations=attack.iterations,
                inner=attack.inner,
            )
        )
    lengths = torch.cat([part[2].z.flatten(1).norm(dim=1) for part in parts])
    return {
        "after": psnr(torch.cat([part[0] for part in parts]), held_out.sample),
        "farthest": lengths.max(),
        "converged": torch.cat([part[2].converged for part in parts]).float().mean(),
    }


def _climb(
    attempt: Callable[[Refinement], Attempt],
    offered: tuple[tuple[float, ...], ...],
    prior: Refinement,
) -> Attempt:
    """Return the best attempt that neighbours in width, weight and softening lead to."""

    def at(place: tuple[int, ...]) -> Attempt:
        width, weight, softening = (choice[i] for choice, i in zip(offered, place, strict=True))
        return attempt(replace(prior, width=width, weight=weight, softening=softening))

    place = tuple(len(choice) // 2 for choice in offered)
    best = at(place)
    known = {place}
    moved = True
    while moved:
        moved = False
        for axis, step in product(range(len(offered)), (-1, 1)):
            near = (*place[:axis], place[axis] + step, *place[axis + 1 :])
            if near in known or not 0 <= near[axis] < len(offered[axis]):
                continue
            known.add(near)
            now = at(near)
            if now.score() > best.score() + WORTH:
                best, place, moved = now, near, True
                break
    return best


def _priors(
    attack: MaximumAPosteriori, held_out: HeldOut, images: torch.Tensor
) -> Iterator[tuple[PriorKind, Covariance, torch.Tensor]]:
    """Yield each prior's covariance and mean."""
    error = (_matched(held_out.sample, held_out.start) - held_out.start).flatten(0, 1)
    nothing = torch.zeros_like(error[0])
    for kind in attack.priors:
        if kind == "errors":
            yield kind, Covariance.fit(error, rank=attack.rank), nothing
        elif kind == "images":
            mean = images.mean(dim=0)
            yield kind, Covariance.fit(images - mean, rank=attack.rank), mean
        else:
            variance = float(error.square().mean()) * (FLAT if kind == "flat" else 1.0)
            isotropic = Covariance.isotropic(tuple(nothing.shape), variance)
            yield kind, isotropic.to(error.device), nothing


def _off(client: Client, held_out: HeldOut, layout: ParameterLayout) -> torch.Tensor:
    """Return :attr:`Refinement.off`."""
    sample = held_out.sample
    start = held_out.start
    if not held_out.ordered:  # the samples' labels go with them
        start = _matched(start, sample)
    squares = torch.zeros(layout.total, device=start.device)
    with torch.no_grad():
        for x, y, k in zip(
            *(part.split(1) for part in (start, sample, held_out.label)), strict=True
        ):
            apart = client.gradients(x, k) - client.gradients(y, k)
            squares += apart.square().mean(dim=(0, 1)) / len(start)
    result = torch.empty_like(squares)
    for place in layout.slices.values():
        result[place] = squares[place].mean().sqrt()
    return result.clamp_min(1e-12)
