"""IG: Inverting Gradients, by gradient matching with a total-variation prior."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from lti.attacks.base import ATTACKS, Attack, Observations
from lti.attacks.matching import matching_distance
from lti.checkpoint import Checkpoint
from lti.errors import LTIError
from lti.files import digest_arrays
from lti.gradients.per_sample import per_sample_gradient_function
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.compute import Compute
    from lti.progress import Progress

__all__ = ["InvertingGradients", "total_variation"]

DECAY_AT = (3 / 8, 5 / 8, 7 / 8)  # of all iterations; Geiping et al. 2020, public code


def total_variation(image: torch.Tensor) -> torch.Tensor:
    """Return the anisotropic total variation of ``(b, c, h, w)`` images, ``(b,)``.

    The mean absolute difference of vertical neighbours plus that of horizontal ones
    (Geiping et al. 2020, public code), summed so that images are independent.
    """
    down = (image[:, :, 1:, :] - image[:, :, :-1, :]).abs().mean(dim=(1, 2, 3))
    right = (image[:, :, :, 1:] - image[:, :, :, :-1]).abs().mean(dim=(1, 2, 3))
    return down + right


@ATTACKS.register("ig", source="Geiping et al. 2020; Wu et al. 2023, supplement A")
class InvertingGradients(Attack):
    """Adam on the sign of the objective's gradient, from noise, inside the box [0, 1].

    Objective: the defense's matching distance + ``tv`` x total variation. Labels are
    given. All victims run at once as one batch of independent problems; each keeps the
    iterate with its lowest objective.
    """

    iterations: int = Field(24_000, ge=2, description="Steps of Adam.")
    learning_rate: float = Field(0.1, gt=0, description="Of Adam; x 0.1 at 3/8, 5/8, 7/8.")
    tv: float = Field(1e-4, ge=0, description="Weight of the total variation.")
    victims_at_once: int = Field(256, ge=1, description="Problems in one batch; bounds memory.")
    checkpoint_seconds: float = Field(60.0, ge=0, description="Time between checkpoints.")

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
        """Return the iterates of lowest objective (see :class:`lti.attacks.Attack`).

        Raises:
            LTIError: labels unknown, or batches of more than one sample.
        """
        import torch

        if observations.label is None or observations.batch_size != 1:
            raise LTIError(
                f"attack ig got batch size {observations.batch_size} and labels "
                f"{'unknown' if observations.label is None else 'known'}; expected batch size 1 "
                f"and known labels."
            )
        count = len(observations.gradient)
        progress.start(total=self.iterations * count, unit="victim-steps")
        generator = torch_generator(seed, "ig", "start")
        start = torch.randn((count, *observations.sample_shape), generator=generator)
        parts = []
        for first in range(0, count, self.victims_at_once):
            rows = slice(first, min(first + self.victims_at_once, count))
            observed = observations.gradient[rows]
            parts.append(
                self._solve(
                    observations,
                    rows,
                    start[rows],
                    compute=compute,
                    progress=progress,
                    checkpoint=Checkpoint(
                        checkpoints / f"victims-{rows.start}-{rows.stop}.safetensors",
                        {**self.canonical(), "seed": seed, "observed": _digest(observed)},
                        every_seconds=self.checkpoint_seconds,
                    ),
                )
            )
        return torch.cat(parts)[:, None]

    def _solve(
        self,
        observations: Observations,
        rows: slice,
        start: torch.Tensor,
        *,
        compute: Compute,
        progress: Progress,
        checkpoint: Checkpoint,
    ) -> torch.Tensor:
        import torch

        assert observations.label is not None
        device = compute.device
        observed = observations.gradient[rows].to(device)
        label = observations.label[rows, 0].to(device)
        gradients = per_sample_gradient_function(observations.model, observations.network)
        distance = matching_distance(observations.defense.matching)

        x = start.to(device, copy=True).requires_grad_()
        best = x.detach().clone().clamp_(0, 1)
        lowest = torch.full((len(x),), torch.inf, device=device)
        adam = torch.optim.Adam([x], lr=self.learning_rate, foreach=False)
        done = 0
        if (saved := checkpoint.load()) is not None:
            tensors, done = saved
            with torch.no_grad():
                x.copy_(tensors["x"])
            best, lowest = tensors["best"].to(device), tensors["lowest"].to(device)
            adam.state[x] = {key: tensors[key].to(device) for key in ("exp_avg", "exp_avg_sq")}
            adam.state[x]["step"] = tensors["step"]
        progress.skip(done * len(x))

        for step in range(done, self.iterations):
            decays = sum(step >= share * self.iterations for share in DECAY_AT)
            adam.param_groups[0]["lr"] = self.learning_rate * 0.1**decays
            objective = distance(gradients(x, label), observed) + self.tv * total_variation(x)
            (x.grad,) = torch.autograd.grad(objective.sum(), [x])
            with torch.no_grad():
                # The start lies outside the box, so its objective is not that of an image.
                improved = (objective < lowest) & (step > 0)
                lowest = torch.where(improved, objective, lowest)
                best = torch.where(improved[:, None, None, None], x.clamp(0, 1), best)
                x.grad.sign_()
                adam.step()
                x.clamp_(0, 1)
            progress.advance(len(x), objective=objective.detach())
            if checkpoint.due():
                state = adam.state[x]
                checkpoint.save(
                    {"x": x, "best": best, "lowest": lowest, **state}, position=step + 1
                )
        if not torch.isfinite(lowest).all():
            raise LTIError(
                f"the objective of {int((~torch.isfinite(lowest)).sum())} victims was never a "
                f"finite number. Lower the learning rate ({self.learning_rate:g})."
            )
        return best.cpu()


def _digest(observed: torch.Tensor) -> str:
    return digest_arrays({"gradient": observed.numpy()})
