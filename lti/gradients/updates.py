"""What a client computes before it defends it: a gradient, or an update of its own kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lti.fl_models import attacked
from lti.gradients import per_sample
from lti.gradients.layout import ParameterLayout

if TYPE_CHECKING:
    from torch import nn

    from lti.defenses.base import Defense
    from lti.fl_models import FLModel
    from lti.gradients.per_sample import GradientFunction, PartsFunction

__all__ = ["client_update_function", "sample_parts_function", "sample_update_function"]


def client_update_function(
    defense: Defense, model: FLModel, network: nn.Module
) -> GradientFunction:
    """Return ``f(x, label) -> update``, one client's a row.

    ``x`` is ``(n, B, ...)``, ``label`` ``(n, B)`` or what else the model's loss takes, the result
    ``(n, p)``; otherwise as :func:`lti.gradients.per_sample.group_gradient_function`.
    """
    own = defense.update_function(model, network)
    if own is None:
        return per_sample.group_gradient_function(model, network)
    layout = ParameterLayout.of(attacked(model, network))
    return lambda x, label: layout.join(own(x, label))


def sample_update_function(
    defense: Defense, model: FLModel, network: nn.Module
) -> GradientFunction:
    """Return ``f(x, label) -> update``, ``(b, p)``, of clients with one sample each."""
    if defense.update_function(model, network) is None:
        return per_sample.per_sample_gradient_function(model, network)
    updates = client_update_function(defense, model, network)
    return lambda x, label: updates(x[:, None], label[:, None])


def sample_parts_function(defense: Defense, model: FLModel, network: nn.Module) -> PartsFunction:
    """Return :func:`sample_update_function` without the joining to rows."""
    own = defense.update_function(model, network)
    if own is None:
        return per_sample.per_sample_parts_function(model, network)
    return lambda x, label: own(x[:, None], label[:, None])
