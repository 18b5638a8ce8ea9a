"""Training a generator against its discriminator."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from lti.checkpoint import Checkpoint
from lti.compute import Compute
from lti.data.samples import to_float
from lti.errors import LTIError
from lti.generators.base import Generator
from lti.generators.trained import TrainedGenerator
from lti.interruption import saving_first
from lti.seeding import derive_seed, torch_generator
from lti.training_state import TrainingState

if TYPE_CHECKING:
    from lti.progress import Progress

__all__ = ["HISTORY", "train_generator"]

HISTORY = ("epoch", "generator_loss", "discriminator_loss", "seconds", "samples_per_second")


@saving_first()
def train_generator(
    settings: Generator,
    image: torch.Tensor,
    *,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[TrainedGenerator, list[dict[str, Any]]]:
    """Train a GAN and keep its generator.

    The discriminator minimises the cross-entropy of telling real samples from made ones, the
    generator that of made ones being taken for real (Goodfellow et al. 2014, section 3; the
    non-saturating form), in turns of one step each. Products of matrices are in
    ``compute.dtype``. Every random draw comes from a stream named after the epoch, so a run
    that was interrupted and resumed ends with the same weights, bit for bit, as one that was
    not.

    Args:
        settings: the networks and the training settings.
        image: uint8 ``(n, c, h, w)``, the auxiliary set.
        compute: where to run.
        checkpoint: state for resuming, at any step.
        progress: told of every step.

    Returns:
        the trained generator, and one record per epoch: ``epoch``, ``generator_loss``,
        ``discriminator_loss`` (means), ``seconds``, ``samples_per_second``.

    Raises:
        LTIError: fewer samples than ``batch_size``, a checkpoint of other settings, or a
            loss that is not finite.
        Interrupted: the process was asked to leave, and has saved.
    """
    size, shape = settings.batch_size, tuple(image.shape[1:])
    steps = len(image) // size  # the last, smaller batch is left out
    if not steps:
        raise LTIError(
            f"{len(image)} auxiliary samples; expected at least a batch of {size}. Use more, or "
            f"lower the generator's batch_size."
        )
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    generator = settings.generator(shape).to(compute.device).train()
    discriminator = settings.discriminator(shape).to(compute.device).train()
    networks: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
    adams = {
        name: torch.optim.Adam(network.parameters(), settings.learning_rate, settings.betas)
        for name, network in networks.items()
    }
    state = TrainingState(
        checkpoint,
        networks=networks,
        optimizers=adams,
        columns=HISTORY,
        device=compute.device,
    )
    state.restore()
    history = state.history
    progress.start(total=settings.epochs * steps * size, unit="samples")
    progress.skip(state.step * size)

    def judge(sample: torch.Tensor) -> torch.Tensor:
        with _autocast(compute):
            return discriminator(sample).float()

    for epoch in range(state.step // steps, settings.epochs):
        began = time.monotonic()
        draw = torch_generator(settings.seed, "epoch", epoch)
        order = torch.randperm(len(image), generator=draw)[: steps * size]
        sums = torch.zeros(3, dtype=torch.float64, device=compute.device)  # losses and seconds
        skip = state.step - epoch * steps  # 0, unless resumed inside the epoch
        if skip:
            sums = state.kept["sums"]
            draw.set_state(state.kept["draw"].cpu())
        for index in order.split(size)[skip:]:
            real = to_float(image[index].to(compute.device))
            latent = torch.randn(size, settings.latent, generator=draw).to(compute.device)
            with _autocast(compute):
                made = generator(latent)

            loss = functional.softplus(-judge(real)) + functional.softplus(judge(made.detach()))
            _step(adams["discriminator"], loss.mean())
            fooled = functional.softplus(-judge(made))
            _step(adams["generator"], fooled.mean())

            both = torch.stack([fooled.detach().mean(), loss.detach().mean()])
            sums[:2] += both
            state.step += 1
            progress.advance(size, epoch=epoch + 1, generator=both[0], discriminator=both[1])
            if state.step < (epoch + 1) * steps:
                state.save_if_due(partial(_within_epoch, sums, began, draw))
        *totals, earlier = sums.tolist()
        losses = [total / steps for total in totals]
        seconds = earlier + time.monotonic() - began
        if not all(math.isfinite(value) for value in losses):
            raise LTIError(
                f"the losses of epoch {epoch + 1} are {losses}; expected finite numbers. Lower "
                f"the learning rate ({settings.learning_rate:g})."
            )
        row = (epoch + 1, *losses, seconds, steps * size / seconds)
        history.append(dict(zip(HISTORY, row, strict=True)))
        if epoch + 1 < settings.epochs:
            state.save_if_due(dict)
    trained = TrainedGenerator(settings, shape, network=generator, compute=compute)
    return trained, history


def _autocast(compute: Compute) -> Any:
    if compute.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(compute.device.type, dtype=compute.dtype)


def _step(adam: torch.optim.Adam, loss: torch.Tensor) -> None:
    """Take one step; the other network's gradients that arise on the way are not used."""
    parameters = adam.param_groups[0]["params"]
    for parameter, value in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = value
    adam.step()


def _within_epoch(
    sums: torch.Tensor, began: float, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return what resuming inside an epoch needs beside the training's state."""
    passed = sums + sums.new_tensor([0, 0, time.monotonic() - began])
    return {"sums": passed, "draw": draw.get_state()}
