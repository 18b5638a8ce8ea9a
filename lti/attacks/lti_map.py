"""LTI-MAP: the inverter's reconstruction, refined to the most probable one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lti.attacks.base import ATTACKS, Attack, Observations, Reconstruction
from lti.attacks.parts import WHOLE, Part
from lti.checkpoint import Checkpoint
from lti.errors import LTIError
from lti.files import digest_arrays, digest_json, read_tensors
from lti.fl_models import network_digest
from lti.interruption import saving_first
from lti.seeding import torch_generator

if TYPE_CHECKING:
    import torch

    from lti.attacks.refinement import Refinement
    from lti.compute import Compute
    from lti.progress import Progress

__all__ = ["MaximumAPosteriori", "PriorKind"]

FACTS = ("attack", "batch_size", "defense", "fl_model_digest", "helps", "ordered", "reason")

PriorKind = Literal["errors", "images", "identity", "flat"]
"""What a sample is expected to be like: the first reconstruction, with the covariance of its
errors, with the same variance in every pixel, or with next to no bounds; or any image, with the
covariance of images."""


@dataclass(frozen=True)
class Known:
    """What is made before the attack."""

    refinement: Refinement
    facts: Mapping[str, Any]
    start: torch.Tensor
    """``(n, B, c, h, w)``."""
    start_facts: Mapping[str, Any]
    digest: str


@ATTACKS.register("lti-map", source="This project; docs/lti-map.md")
class MaximumAPosteriori(Attack):
    """Refine another attack's reconstructions by what the defense's likelihood says.

    Minimises ``-log p(observation | gradient(x), defense) + (x - mu)' C^-1 (x - mu) / 2`` by
    Gauss-Newton steps. Prior, width and weight of the likelihood were chosen on held-out
    auxiliary data (``lti fit-prior``). A victim's refinement that is implausible under the prior
    is refused, and where refining did not help on held-out data, or the defense states no
    likelihood, the result is that of the other attack.
    """

    needs = ("prior", "start")
    modality = "image"
    is_divisible = True

    start: str = Field(description="A key of `attacks` that uses lti: what is refined.")
    priors: list[PriorKind] = Field(
        ["errors", "images"],
        min_length=1,
        description=(
            "Priors to choose from: about the first reconstruction, `errors` has the covariance "
            "of its errors, `identity` their variance and `flat` ten thousand times that; `images` "
            "is of any image."
        ),
    )
    from_noise: bool = Field(
        False, description="Begin at a draw from the prior, not at the first reconstruction."
    )
    rank: int = Field(
        512, ge=0, description="Most directions of a covariance beyond its frequencies' variances."
    )
    tuning: int = Field(
        32,
        ge=2,
        description=(
            "Held-out client batches on which settings are compared; as many others confirm that "
            "the best ones help."
        ),
    )
    held_out: int = Field(
        1000, ge=8, description="Held-out auxiliary samples, at most, that the prior is taken from."
    )
    images: int = Field(
        4096, ge=2, description="Auxiliary images, at most, whose covariance is that of any image."
    )
    seed: int = Field(0, description="Root seed of the noise on held-out gradients.")
    iterations: int = Field(15, ge=1, description="Most Gauss-Newton steps.")
    inner: int = Field(40, ge=1, description="Most iterations of conjugate gradients a step.")

    def load(self, files: Mapping[str, Path], *, compute: Compute) -> Known:
        """Read the prior and the first reconstructions.

        Raises:
            LTIError: a file is missing, damaged or something else.
        """
        from lti.attacks.refinement import Refinement

        refinement, facts = Refinement.load(files["prior"], device=compute.device)
        tensors, start_facts = read_tensors(files["start"])
        missing = {*FACTS} - facts.keys()
        if missing:
            raise LTIError(
                f"{files['prior']}: not a prior of this version ({sorted(missing)[0]} is missing). "
                f"Delete it and run the same command again."
            )
        if "reconstruction" not in tensors:
            raise LTIError(
                f"{files['start']}: got {', '.join(sorted(tensors)) or 'nothing'}; expected "
                f"reconstructions. Give what `lti run-attack` wrote."
            )
        start = tensors["reconstruction"]
        digest = digest_json(
            [refinement.digest, facts, digest_arrays({"reconstruction": start.numpy()})]
        )
        return Known(refinement, facts, start, start_facts, digest)

    @saving_first()
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
        """Return the most probable samples (see :class:`lti.attacks.Attack`).

        Raises:
            LTIError: labels unknown, a prior or reconstructions of something else, or a defense
                that states no likelihood after all.
        """
        import torch

        from lti.attacks.refinement import Client

        known: Known = knowledge
        self._check(observations, known, seed)
        count = len(observations.gradient)
        start = known.start[:count]
        client = Client(
            observations.model, observations.network, observations.defense, observations.batch_size
        )
        blocks = part.blocks(count, client.at_once(compute.device))
        if not known.facts["helps"]:
            progress.say(f"not refined: {known.facts['reason']}")
            none = torch.zeros(count, dtype=torch.bool)
            return Reconstruction.joined(
                [Reconstruction(start[r], diagnostics={"refined": none[r]}) for r in blocks]
            )
        label = observations.label
        if label is None:
            raise LTIError(
                f"attack {self.name} got unknown labels; expected known ones: it explains the "
                f"gradient of the loss at the labels. Use {self.start}."
            )
        draw = None
        if self.from_noise:
            shape = (count, observations.batch_size, known.refinement.covariance.dimension)
            draw = torch.randn(shape, generator=torch_generator(seed, self.name, "begin"))
        own = sum(rows.stop - rows.start for rows in blocks)
        progress.start(total=own * self.iterations, unit="steps")
        parts = []
        for rows in blocks:
            observed = observations.gradient[rows]
            received = {"gradient": observed.numpy(), "label": label[rows].numpy()}
            settings = {
                **self.canonical(),
                "seed": seed,
                "observed": digest_arrays(received),
                "knowledge": known.digest,
            }
            checkpoint = Checkpoint(
                checkpoints / f"victims-{rows.start}-{rows.stop}.safetensors", settings
            )
            sample, kept, found = known.refinement.refine(
                client,
                *(given.to(compute.device) for given in (start[rows], observed, label[rows])),
                ordered=known.facts["ordered"],
                begin=None if draw is None else draw[rows].to(compute.device),
                iterations=self.iterations,
                inner=self.inner,
                checkpoint=checkpoint,
                progress=progress,
            )
            outcome = {"slope": found.slope, "converged": found.converged, "refined": kept}
            parts.append(
                Reconstruction(
                    sample.cpu(),
                    found.objective.cpu(),
                    torch.arange(self.iterations + 1),
                    {key: value.cpu() for key, value in outcome.items()},
                )
            )
        whole = Reconstruction.joined(parts)
        refined, converged = (
            int(whole.diagnostics[key].sum()) if parts else 0 for key in ("refined", "converged")
        )
        progress.say(f"{refined:,} of {own:,} batches refined, {converged:,} converged")
        return whole

    @property
    def tuned(self) -> dict[str, Any]:
        """Return the settings that the prior depends on: all but how many victims there are."""
        return {**self.canonical(), "victims": None}

    def _check(self, observations: Observations, known: Known, seed: int) -> None:
        expected = {
            "attack": self.tuned,
            "defense": observations.defense.canonical(),
            "fl_model_digest": network_digest(observations.network),
            "batch_size": observations.batch_size,
        }
        if (got := {key: known.facts[key] for key in expected}) != expected:
            raise LTIError(
                f"the prior is of {got}; expected {expected}. Delete the prior and run the same "
                f"command again."
            )
        self.check_whole(observations)
        asked = len(observations.gradient)
        shape = (asked, observations.batch_size, *observations.sample_shape)
        if known.start[:asked].shape != shape:
            raise LTIError(
                f"{self.start}: got reconstructions of shape {tuple(known.start.shape)}; expected "
                f"{shape} or more. Lower `victims` to what {self.start} attacks."
            )
        same = {
            "defense_settings": expected["defense"],
            "fl_model_settings": observations.model.canonical(),
            "seed": seed,
        }
        if (made := {key: known.start_facts.get(key) for key in same}) != same:
            raise LTIError(
                f"{self.start}: got reconstructions of {made}; expected {same}. Give those of the "
                f"same observations."
            )
