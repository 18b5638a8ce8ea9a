"""Training the network that corrects what the inverter ``kernel`` gives back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lti.checkpoint import Checkpoint
from lti.compute import Compute, peak_memory_mib
from lti.interruption import saving_first
from lti.inverters.inputs import held_out_error
from lti.inverters.kernel import KernelInverter
from lti.inverters.kernel_network import KernelDecoder
from lti.seeding import torch_generator
from lti.training_state import TrainingState, copy_of

if TYPE_CHECKING:
    from lti.progress import Progress

__all__ = ["refine"]

CLIP = 0.05  # of the refining network's gradient, by norm
WARM_UP = 0.05  # share of its steps


@saving_first()
def refine(
    settings: KernelInverter,
    decoder: KernelDecoder,
    pairs: tuple[torch.Tensor, torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    solved: dict[str, Any],
    *,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train the refining network on pairs of images, the blurred and the true one.

    The epoch that is best on held-out data is kept; if none is better than no correction, that.

    Args:
        settings: the preset.
        decoder: whose ``refiner`` is trained.
        pairs: blurred and true images, float32 ``(n, c, h, w)`` each.
        held_out: encoded inputs and samples, for choosing the epoch.
        solved: the record of the solution, as of an epoch before the first.
        compute: where to run.
        checkpoint: state for resuming, at any step.
        progress: told of every step.

    Returns:
        a record per epoch, with the keys of ``solved``.

    Raises:
        Interrupted: the process was asked to leave, and has saved.
    """
    refiner = decoder.refiner
    assert refiner is not None
    count, steps = len(pairs[0]), -(-len(pairs[0]) // settings.batch_size)
    in_all = settings.refine * steps
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=settings.learning_rate)
    state = TrainingState(
        checkpoint,
        networks={"refiner": refiner},
        optimizers={"optimizer": optimizer},
        columns=tuple(solved),
        device=compute.device,
    )
    best, kept = solved["held_out_loss"], copy_of(refiner)
    if state.restore():
        best, kept = float(state.kept.pop("best")), state.kept
    history = state.history
    progress.start(total=settings.refine * count, unit="images")
    progress.skip(state.step * count // steps)
    for epoch in range(state.step // steps, settings.refine):
        began = time.monotonic()
        order = torch_generator(settings.seed, "refine", epoch)
        flips = torch.rand(steps, generator=order) < 0.5
        refiner.train()
        batches = torch.randperm(count, generator=order).split(settings.batch_size)
        skip = state.step - epoch * steps  # 0, unless resumed inside the epoch
        sums = state.kept.pop("sums") if skip else torch.zeros(2, dtype=torch.float64)
        for step, index in enumerate(batches[skip:], start=skip):
            done = state.step / in_all
            factor = (1 + math.cos(math.pi * done)) / 2 * min(1.0, (done + 1 / in_all) / WARM_UP)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            x, y = (part[index].to(compute.device) for part in pairs)
            if flips[step]:
                x, y = x.flip(3), y.flip(3)
            enabled = compute.dtype != torch.float32
            with torch.autocast(compute.device.type, dtype=compute.dtype, enabled=enabled):
                output = refiner(x.contiguous(memory_format=torch.channels_last))
            loss = (output.float() - y).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(refiner.parameters(), CLIP)
            optimizer.step()
            sums[0] += float(loss.detach()) * len(index)
            state.step += 1
            progress.advance(len(index), epoch=epoch + 1, loss=loss.detach())
            if state.step < (epoch + 1) * steps:
                state.save_if_due(partial(_resumable, best, kept, sums, began))
        error = held_out_error(decoder.eval(), held_out)
        total, earlier = sums.tolist()
        seconds = earlier + time.monotonic() - began
        history.append(
            {
                "epoch": epoch + 2,
                "train_loss": total / count,
                "held_out_loss": error,
                "learning_rate": settings.learning_rate * factor,
                "seconds": seconds,
                "samples_per_second": count / seconds,
                "peak_memory_mib": peak_memory_mib(compute),
            }
        )
        if error < best:
            best, kept = error, copy_of(refiner)
        if epoch + 1 < settings.refine:
            state.save_if_due(partial(_resumable, best, kept))
    refiner.load_state_dict(kept)
    return history


def _resumable(
    best: float,
    kept: Mapping[str, torch.Tensor],
    sums: torch.Tensor | None = None,
    began: float = 0.0,
) -> dict[str, torch.Tensor]:
    """Return what resuming needs beside the training's state: inside an epoch its ``sums``."""
    tensors = {"best": torch.tensor(best, dtype=torch.float64), **kept}
    if sums is not None:
        tensors["sums"] = sums + sums.new_tensor([0, time.monotonic() - began])
    return tensors
