"""This project's inverter without training: ridge regression with a neural tangent kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lti.inverters.base import INVERTERS, Inverter, Task
from lti.process_group import ALONE, ProcessGroup

if TYPE_CHECKING:
    import torch

    from lti.checkpoint import Checkpoint
    from lti.compute import Compute
    from lti.inverters.auxiliary_data import AuxiliaryData
    from lti.inverters.network import InverterNetwork
    from lti.inverters.trained import TrainedInverter
    from lti.progress import Progress

__all__ = ["KernelInverter"]


@INVERTERS.register("kernel", source="this project; Jacot et al. 2018; docs/inverters.md")
class KernelInverter(Inverter):
    """What an infinitely wide network would learn, solved for: kernel ridge regression.

    Inputs and kernel: :mod:`lti.inverters.kernel_network`. Outputs are the leading principal
    components of the images. For client batches of one sample; noise is drawn once for each
    auxiliary sample.

    With ``refine`` a convolutional network then learns to correct the reconstructions of the
    auxiliary samples, each as it comes out where the others alone are learned from. A run that
    is interrupted begins anew until these are there, and goes on from them.
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

    refine: int = Field(
        0, ge=0, description="Passes over leave-one-out reconstructions, to refine them; 0: none."
    )
    channels: int = Field(32, ge=8, multiple_of=8, description="Of the refining network.")
    batch_size: int = Field(64, ge=1, description="Reconstructions a step.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate of AdamW.")

    @model_validator(mode="after")
    def _can_leave_one_out(self) -> KernelInverter:
        if self.refine and self.use_mirrored:
            raise ValueError(
                "refine and use_mirrored: a sample that is left out would leave its mirror image "
                "in; use one of them"
            )
        return self

    @property
    def length(self) -> str:
        """That it is solved, and how long it is refined."""
        solved = "Solved by kernel ridge regression."
        return f"{solved} Refined for {self.refine} epochs." if self.refine else solved

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
            channels=self.channels if self.refine else 0,
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
        group: ProcessGroup = ALONE,
    ) -> tuple[TrainedInverter, list[dict[str, Any]]]:
        """Solve for the images, and refine: :func:`lti.inverters.kernel_fit.fit_kernel`."""
        from lti.inverters.kernel_fit import fit_kernel

        return fit_kernel(self, data, compute=compute, checkpoint=checkpoint, progress=progress)
