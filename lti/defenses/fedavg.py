"""Federated averaging: a client sends how several local steps changed its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from lti.defenses.base import DEFENSES, Defense

if TYPE_CHECKING:
    from torch import nn

    from lti.fl_models import FLModel
    from lti.gradients.per_sample import PartsFunction

__all__ = ["FederatedAveraging"]


@DEFENSES.register("fedavg", source="McMahan et al. 2017, algorithm 1 (FederatedAveraging)")
class FederatedAveraging(Defense):
    """Take E steps of gradient descent on the client's batch, and send the update.

    The update is divided by E times the learning rate: it is the mean of the steps' gradients, and
    with one step the gradient. A batch is trained on as a whole (McMahan's B of infinity).
    """

    of_batch = True

    steps: int = Field(5, ge=1, description="E, local steps.")
    rate: float = Field(0.1, gt=0.0, description="Learning rate of the local steps.")

    def update_function(self, model: FLModel, network: nn.Module) -> PartsFunction:
        """Return the updates of clients (see the base)."""
        from lti.gradients.local_steps import local_update_function

        return local_update_function(model, network, steps=self.steps, rate=self.rate)
