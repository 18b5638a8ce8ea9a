"""This project's inverter without training: ridge regression with a neural tangent kernel."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from lti.errors import LTIError
from lti.inverters.base import INVERTERS, Inverter, Task

if TYPE_CHECKING:
    import torch

    from lti.checkpoint import Checkpoint
    from lti.compute import Compute
    from lti.inverters.inputs import AuxiliaryData
    from lti.inverters.kernel_network import KernelEncoder
    from lti.inverters.network import InverterNetwork
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress

__all__ = ["KernelInverter"]

IMAGES = 8192  # that the principal components are those of
READ_ROWS = 1024  # of the store at once
ROWS = 4096  # of the kernel matrix at once


@INVERTERS.register("kernel", source="this project; Jacot et al. 2018; docs/inverters.md")
class KernelInverter(Inverter):
    """What an infinitely wide network would learn, solved for: kernel ridge regression.

    Inputs and kernel: :mod:`lti.inverters.kernel_network`. Outputs are the leading principal
    components of the images. For client batches of one sample; noise is drawn once for each
    auxiliary sample. An interrupted run begins anew.
    """

    # The images are sums over all landmarks that nearly cancel.
    precision: ClassVar[Literal["float32", "fastest"]] = "float32"
    single: ClassVar[bool] = True

    ridge: float = Field(
        0.01, gt=0, description="Added to the kernel matrix's diagonal, as a share of its mean."
    )
    components: int = Field(768, ge=1, description="Principal components of the images.")
    samples: int | None = Field(
        None,
        ge=16,
        description="Auxiliary samples to learn from, the first ones; null: all that are not held "
        "out. The kernel matrix takes 4 bytes for each pair: 10 GB for 50,000.",
    )

    @property
    def length(self) -> str:
        """That it is solved."""
        return "Solved by kernel ridge regression."

    def memory_mib(self, samples: int) -> float:
        """Return what the kernel matrix takes, and as much as other inverters."""
        count = (self.samples or samples) * (2 if self.use_mirrored else 1)
        return 4 * count**2 / 2**20 + 4000

    def network(self, task: Task, statistics: Mapping[str, torch.Tensor]) -> InverterNetwork:
        """Return the network (see :class:`lti.inverters.Inverter`)."""
        import torch

        from lti.inverters.kernel_network import KernelDecoder, KernelEncoder, Landmarks
        from lti.inverters.network import InverterNetwork

        packed = statistics["encoder.landmarks.packed"]
        signs = packed.dtype == torch.uint8
        landmarks = Landmarks(len(packed), task.layout.total, signs=signs)
        decoder = KernelDecoder(
            len(packed),
            sample_shape=task.sample_shape,
            mean=statistics["decoder.mean"],
            components=statistics["decoder.components"],
        )
        return InverterNetwork(KernelEncoder(landmarks), decoder)

    def fit(
        self,
        data: AuxiliaryData,
        *,
        compute: Compute,
        checkpoint: Checkpoint,
        progress: Progress,
        memory_mib: float,
    ) -> tuple[TrainedInverter, list[dict[str, Any]]]:
        """Compute the kernel matrix and solve for the images (see :class:`Inverter`).

        Raises:
            LTIError: client batches of several samples, too few samples, or a kernel matrix
                that the memory cannot hold or that is not positive definite.
        """
        import torch

        from lti.compute import peak_memory_mib
        from lti.inverters.cholesky import solve_in_place
        from lti.inverters.decoder import image_components
        from lti.inverters.inputs import held_out_error, held_out_inputs, targets
        from lti.inverters.kernel_network import KernelDecoder, KernelEncoder, Landmarks
        from lti.inverters.network import InverterNetwork
        from lti.inverters.trained import TrainedInverter

        if data.batch_size != 1:
            raise LTIError(
                f"inverter {self.name} got client batches of {data.batch_size} samples; expected "
                f"1. Use another inverter."
            )
        began = time.monotonic()
        first, held = data.split(self.holdout)
        first = range(min(self.samples or first.stop, first.stop))
        views = data.views if self.use_mirrored else 1
        count = len(first) * views
        index = _rows_of(first, views, data.views)
        target = targets(data.value, index[:, None], data.views)[:, 0]
        mean, components = image_components(target[:IMAGES], self.components)

        signs = data.store.encoding == "sign" and not data.defense.is_random
        landmarks = Landmarks(count, data.task.layout.total, signs=signs).to(compute.device)
        encoder = KernelEncoder(landmarks).to(compute.device)
        shape = data.task.sample_shape
        decoder = KernelDecoder(count, sample_shape=shape, mean=mean, components=components)
        decoder.to(compute.device)
        progress.start(total=count, unit="gradients")
        start = 0
        for rows in _observed(data, first, views, self.seed):
            landmarks.write(start, rows.to(compute.device))
            start += len(rows)
            progress.advance(len(rows))

        matrix = _kernel_matrix(encoder, progress)
        dual = (target.flatten(1) - mean) @ components.T
        dual = dual.to(compute.device)
        matrix.diagonal().add_(self.ridge * float(matrix.diagonal().mean()))
        progress.start(total=count, unit="columns")
        try:
            solve_in_place(matrix, dual, advance=progress.advance)
        except torch.linalg.LinAlgError:
            raise LTIError(
                f"inverter {self.name}: the kernel matrix of {count} gradients with ridge "
                f"{self.ridge:g} is not positive definite; expected it to be. Raise the ridge."
            ) from None
        del matrix
        decoder.dual.data.copy_(dual)
        values, images = held_out_inputs(
            self, data, held, encoder=encoder, compute=compute, dtype=torch.float32
        )
        seconds = time.monotonic() - began
        record = {
            "epoch": 1,
            "train_loss": float("nan"),
            "held_out_loss": held_out_error(decoder, (values, images)),
            "learning_rate": float("nan"),
            "seconds": seconds,
            "samples_per_second": count / seconds,
            "peak_memory_mib": peak_memory_mib(compute),
        }
        network = InverterNetwork(encoder, decoder)
        trained = TrainedInverter.of(self, data, network=network, compute=compute)
        return trained, [record]


def _rows_of(samples: range, views: int, stored: int) -> torch.Tensor:
    """Return the rows of the store of the samples' first views, int64 ``(n * views,)``."""
    import torch

    sample = torch.arange(samples.start, samples.stop)
    return (sample[:, None] * stored + torch.arange(views)).flatten()


def _observed(data: AuxiliaryData, samples: range, views: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield defended gradients of samples, views together."""
    from lti.seeding import torch_generator

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
    import torch

    from lti.inverters.kernel_network import BLOCK

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
