"""LTI-MAP's hyperparameters, chosen on auxiliary samples that no inverter has learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lti.attacks.likelihood import likelihood_of
from lti.attacks.prior import Covariance
from lti.attacks.refinement import Client, Refinement
from lti.gradients.layout import ParameterLayout
from lti.inverters.ordering import best_order, squared_distance

if TYPE_CHECKING:
    from lti.attacks.likelihood import Likelihood
    from lti.attacks.lti_map import PriorKind
    from lti.progress import Progress

__all__ = ["Calibration", "HeldOut", "calibrate", "psnr"]

SURE = 2.0  # standard errors by which a refinement must help
WORTH = 0.02  # dB by which other settings must be better
FLAT = 1e4  # times the errors' variance: next to no prior
BEYOND = 1.5  # times the farthest held-out result: a victim's beyond that is refused


@dataclass(frozen=True)
class HeldOut:
    """Held-out auxiliary samples, as victims: m client batches."""

    sample: torch.Tensor
    """``(m, B, c, h, w)`` in [0, 1]."""
    label: torch.Tensor
    """int64 ``(m, B)``."""
    start: torch.Tensor
    """``(m, B, c, h, w)``, the inverter's reconstructions, in the order of the labels."""
    observed: torch.Tensor
    """``(k, p)`` of the first k batches, on which settings are compared."""


@dataclass(frozen=True)
class Calibration:
    """What was chosen, and all that was tried."""

    refinement: Refinement
    helps: bool
    """Whether refining is better than not refining, beyond doubt."""
    reason: str
    """Why, in a sentence."""
    tried: list[dict[str, Any]]
    """A record for each: prior, width, evidence, psnr_before, psnr_after, better (the share of
    samples), farthest (the greatest squared coordinates), converged (the share of batches)."""


@dataclass(frozen=True)
class Attempt:
    """Settings, and the PSNR that they reach on each sample."""

    refinement: Refinement
    after: torch.Tensor

    def score(self) -> float:
        """Return the mean."""
        return float(self.after.mean())


def psnr(output: torch.Tensor, target: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return the PSNR in dB of each sample, ``(n B,)``, of ``(n, B, ...)`` in [0, 1].

    Samples of equal labels are told apart by the least error.
    """
    output = output.clamp(0, 1)
    matched = _matched(target, output, label)
    error = (output - matched).square().flatten(2).mean(dim=2)
    return -10 * error.flatten().clamp_min(1e-12).log10()


def _matched(target: torch.Tensor, output: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Return targets in the order of the outputs; both have their labels'."""
    order = best_order(squared_distance(output, target), label)
    return target[torch.arange(len(target), device=order.device)[:, None], order]


def calibrate(
    client: Client,
    held_out: HeldOut,
    images: torch.Tensor,
    *,
    layout: ParameterLayout,
    priors: Sequence[PriorKind],
    rank: int,
    iterations: int,
    inner: int,
    progress: Progress,
) -> Calibration:
    """Choose prior, width and evidence by the mean PSNR.

    With each prior, width and evidence begin in the middle of what the defense offers and move to
    neighbours as long as that helps.

    Args:
        client: whose gradients are received.
        held_out: auxiliary samples that the inverter has not learned from.
        images: other auxiliary samples, ``(n, c, h, w)`` in [0, 1].
        layout: of the gradient.
        priors: those to try.
        rank: of covariances, at most.
        iterations: see :meth:`Refinement.refine`.
        inner: see there.
        progress: told of what is tried.
    """
    few = len(held_out.observed)
    target, label, start = (
        part[:few] for part in (held_out.sample, held_out.label, held_out.start)
    )
    before = psnr(start, target, label)
    off = _off(client, start, _matched(target, start, label), label, layout)
    made = (
        Refinement(kind, covariance, mean, off, width=1.0, evidence=1.0)
        for kind, covariance, mean in _priors(held_out, images, priors, rank, few)
    )
    likelihood = likelihood_of(client.defense, batch_size=client.batch_size, width=off)
    if likelihood is None:
        reason = f"defense {client.defense.name} states no likelihood"
        return Calibration(next(made), False, reason, [])

    tried: list[dict[str, Any]] = []
    at_once = client.at_once(start.device)

    def attempt(refinement: Refinement) -> Attempt:
        parts = [
            refinement.refine(client, *given, iterations=iterations, inner=inner)
            for given in zip(
                *(part.split(at_once) for part in (start, held_out.observed, label)), strict=True
            )
        ]
        after = psnr(torch.cat([part[0] for part in parts]), target, label)
        lengths = [part[2].z.flatten(1).square().sum(dim=1) for part in parts]
        farthest = float(torch.cat(lengths).max())
        active = torch.cat([part[2].active for part in parts])
        record = {
            "prior": refinement.prior,
            "width": refinement.width,
            "evidence": refinement.evidence,
            "psnr_before": float(before.mean()),
            "psnr_after": float(after.mean()),
            "better": float((after > before).float().mean()),
            "farthest": farthest,
            "converged": float((~active).float().mean()),
        }
        tried.append(record)
        progress.say(
            f"{refinement.prior}, width {refinement.width:g}, evidence {refinement.evidence:g}: "
            f"{record['psnr_before']:.2f} -> {record['psnr_after']:.2f} dB"
        )
        return Attempt(replace(refinement, farthest=BEYOND * farthest), after)

    best = max((_climb(attempt, likelihood, prior) for prior in made), key=Attempt.score)
    gain = best.after - before
    sure = float(gain.mean()) - SURE * float(gain.std()) / len(gain) ** 0.5
    reason = f"{float(gain.mean()):+.2f} dB on {len(gain)} held-out samples, {sure:+.2f} for sure"
    return Calibration(best.refinement, sure > 0, reason, tried)


def _climb(
    attempt: Callable[[Refinement], Attempt], likelihood: Likelihood, prior: Refinement
) -> Attempt:
    """Return the best attempt that neighbours in width and evidence lead to."""
    widths, weights = likelihood.widths, likelihood.weights
    place = (len(widths) // 2, len(weights) // 2)
    best = attempt(replace(prior, width=widths[place[0]], evidence=weights[place[1]]))
    known = {place}
    moved = True
    while moved:
        moved = False
        for step in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            i, j = place[0] + step[0], place[1] + step[1]
            if (i, j) in known or not (0 <= i < len(widths) and 0 <= j < len(weights)):
                continue
            known.add((i, j))
            now = attempt(replace(prior, width=widths[i], evidence=weights[j]))
            if now.score() > best.score() + WORTH:
                best, place, moved = now, (i, j), True
                break
    return best


def _priors(
    held_out: HeldOut, images: torch.Tensor, kinds: Sequence[PriorKind], rank: int, few: int
) -> Iterator[tuple[PriorKind, Covariance, torch.Tensor]]:
    """Yield each prior's covariance and mean; errors are those of batches not compared on."""
    target, start = held_out.sample[few:], held_out.start[few:]
    error = (_matched(target, start, held_out.label[few:]) - start).flatten(0, 1)
    nothing = torch.zeros_like(error[0])
    for kind in kinds:
        if kind == "errors":
            yield kind, Covariance.fit(error, rank=rank), nothing
        elif kind == "images":
            mean = images.mean(dim=0)
            yield kind, Covariance.fit(images - mean, rank=rank), mean
        else:
            variance = float(error.square().mean()) * (FLAT if kind == "flat" else 1.0)
            yield kind, Covariance.isotropic(tuple(nothing.shape), variance), nothing


def _off(
    client: Client,
    start: torch.Tensor,
    target: torch.Tensor,
    label: torch.Tensor,
    layout: ParameterLayout,
) -> torch.Tensor:
    """Return :attr:`Refinement.off`."""
    squares = torch.zeros(layout.total, device=start.device)
    with torch.no_grad():
        for x, y, k in zip(*(part.split(1) for part in (start, target, label)), strict=True):
            apart = client.gradients(x, k) - client.gradients(y, k)
            squares += apart.square().mean(dim=(0, 1)) / len(start)
    result = torch.empty_like(squares)
    for place in layout.slices.values():
        result[place] = squares[place].mean().sqrt()
    return result.clamp_min(1e-12)
