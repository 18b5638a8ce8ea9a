"""Solving for the inverter ``kernel``."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lti.checkpoint import Checkpoint
from lti.compute import Compute, peak_memory_mib
from lti.errors import LTIError
from lti.interruption import saving_first
from lti.inverters.auxiliary_data import AuxiliaryData, targets
from lti.inverters.cholesky import inverse_diagonal, solve_in_place
from lti.inverters.decoder import image_components
from lti.inverters.inputs import held_out_error, held_out_inputs
from lti.inverters.kernel import KernelInverter
from lti.inverters.kernel_network import BLOCK, KernelDecoder, KernelEncoder, Landmarks
from lti.inverters.kernel_refine import refine
from lti.inverters.network import InverterNetwork
from lti.inverters.trained import TrainedInverter
from lti.seeding import derive_seed, torch_generator

if TYPE_CHECKING:
    from lti.progress import Progress

__all__ = ["fit_kernel"]

READ_ROWS = 1024  # of the store at once
ROWS = 4096  # of the kernel matrix at once
IMAGES = 8192  # that the principal components are those of


def fit_kernel(
    settings: KernelInverter,
    data: AuxiliaryData,
    *,
    compute: Compute,
    checkpoint: Checkpoint,
    progress: Progress,
) -> tuple[TrainedInverter, list[dict[str, Any]]]:
    """Solve the regression and train the refining network.

    Args:
        settings: the preset.
        data: the auxiliary set with its stored gradients.
        compute: where to run.
        checkpoint: state for resuming: what was solved for. That of refining is beside it.
        progress: told of every step.

    Returns:
        the inverter, and a record (:data:`lti.inverters.train.HISTORY`) of the solution and of
        each epoch of refining. What is best on held-out data is kept.

    Raises:
        LTIError: client batches of several samples, too few samples, or a kernel matrix
            that the memory cannot hold or that is not positive definite.
    """
    if data.batch_size != 1:
        raise LTIError(
            f"inverter {settings.name} got client batches of {data.batch_size} samples; expected "
            f"1. Use another inverter."
        )
    began = time.monotonic()
    torch.manual_seed(derive_seed(settings.seed, "weights"))
    first, held = data.split(settings.holdout)
    first = range(min(settings.samples or first.stop, first.stop))
    views = data.views if settings.use_mirrored else 1
    target = targets(data.value, _rows_of(first, views, data.views)[:, None], data.views)[:, 0]
    mean, components = image_components(target[:IMAGES], settings.components)
    count = len(target)

    signs = data.store.encoding == "sign" and not data.defense.is_random
    landmarks = Landmarks(count, data.task.layout.total, signs=signs).to(compute.device)
    encoder = KernelEncoder(landmarks)
    decoder = KernelDecoder(
        count,
        sample_shape=data.task.sample_shape,
        mean=mean,
        components=components,
        channels=settings.channels if settings.refine else 0,
    ).to(compute.device)
    progress.start(total=count, unit="gradients")
    start = 0
    for rows in _observed(data, first, views, settings.seed):
        landmarks.write(start, rows.to(compute.device))
        start += len(rows)
        progress.advance(len(rows))

    coefficients = ((target.flatten(1) - mean) @ components.T).to(compute.device)
    if (saved := checkpoint.load()) is not None:
        solved = {key: value.to(compute.device) for key, value in saved[0].items()}
    else:
        solved = _solve(settings, encoder, coefficients, progress)
        if settings.refine:
            with saving_first():
                checkpoint.save(solved, position=0)
    decoder.dual.data.copy_(solved["dual"])
    held_out = held_out_inputs(
        settings, data, held, encoder=encoder, compute=compute, dtype=torch.float32
    )
    record = {
        "epoch": 1,
        "train_loss": math.nan,
        "held_out_loss": held_out_error(decoder.eval(), held_out),
        "learning_rate": math.nan,
        "seconds": time.monotonic() - began,
        "samples_per_second": count / (time.monotonic() - began),
        "peak_memory_mib": peak_memory_mib(compute),
    }
    history = [record]
    if settings.refine:
        blurred = decoder.images(coefficients - solved["residual"])
        history += refine(
            settings,
            decoder,
            (blurred, target),
            held_out,
            record,
            compute=compute,
            checkpoint=checkpoint.beside("refining"),
            progress=progress,
        )
    network = InverterNetwork(encoder, decoder)
    trained = TrainedInverter.of(settings, data, network=network, compute=compute)
    return trained, history


def _solve(
    settings: KernelInverter,
    encoder: KernelEncoder,
    coefficients: torch.Tensor,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Return the ``dual`` weights and, for refining, the leave-one-out ``residual``.

    The latter is what is missing where a sample is left out: its dual weights over the inverse
    matrix's diagonal entry.
    """
    matrix = _kernel_matrix(encoder, progress)
    matrix.diagonal().add_(settings.ridge * float(matrix.diagonal().mean()))
    progress.start(total=len(matrix), unit="columns")
    try:
        dual = solve_in_place(matrix, coefficients.clone(), advance=progress.advance)
    except torch.linalg.LinAlgError:
        raise LTIError(
            f"inverter {settings.name}: the kernel matrix of {len(matrix)} gradients with ridge "
            f"{settings.ridge:g} is not positive definite; expected it to be. Raise the ridge."
        ) from None
    if not settings.refine:
        return {"dual": dual}
    progress.start(total=len(matrix), unit="columns")
    diagonal = inverse_diagonal(matrix, advance=progress.advance)
    return {"dual": dual, "residual": dual / diagonal[:, None]}


def _rows_of(samples: range, views: int, stored: int) -> torch.Tensor:
    """Return the rows of the store of the samples' first views, int64 ``(n * views,)``."""
    sample = torch.arange(samples.start, samples.stop)
    return (sample[:, None] * stored + torch.arange(views)).flatten()


def _observed(data: AuxiliaryData, samples: range, views: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield defended gradients of samples, views together."""
    noise = torch_generator(seed, "noise")
    step = max(1, READ_ROWS // views)
    for start in range(samples.start, samples.stop, step):
        part = range(start, min(start + step, samples.stop))
        rows = data.store.rows(part.start * data.views, part.stop * data.views)
        rows = rows.unflatten(0, (len(part), data.views))[:, :views].flatten(0, 1)
        yield data.observe(rows, noise)


def _kernel_matrix(encoder: KernelEncoder, progress: Progress) -> torch.Tensor:
    """Return the landmarks' kernel matrix, float32 ``(n, n)``: its lower triangle alone.

    Raises:
        LTIError: there is no memory for it.
    """
    device, count = encoder.landmarks.packed.device, encoder.landmarks.count
    try:
        matrix = torch.empty((count, count), device=device)
    except RuntimeError:
        raise LTIError(
            f"inverter kernel: no memory for the kernel matrix of {count} gradients, "
            f"{4 * count**2 / 1e9:.1f} GB; expected as much. Set `samples` to fewer."
        ) from None
    progress.start(total=count * (count + 1) // 2, unit="pairs")
    for top in range(0, count, ROWS):
        stop = min(top + ROWS, count)
        rows, norm = encoder.landmarks.read(top, stop), encoder.landmarks.norm[top:stop]
        for start in range(0, stop, BLOCK):
            places = range(start, min(start + BLOCK, stop))
            matrix[top:stop, places.start : places.stop] = encoder.values(rows, norm, places)
            progress.advance(len(places) * (stop - max(top, places.start)))
    return matrix
