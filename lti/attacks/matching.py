"""How gradient matching compares dummy samples with what was received, per defense.

Source: Wu et al. 2023, supplement A, on top of Geiping et al. 2020 (cosine distance). A
problem is one victim batch. The distances take a dummy gradient and an observation, both
``(n, p)``, and return ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from lti.gradients.per_sample import group_gradient_function
from lti.gradients.updates import client_update_function

if TYPE_CHECKING:
    import torch
    from torch import nn

    from lti.defenses import Defense
    from lti.defenses.base import Matching
    from lti.fl_models import FLModel

__all__ = [
    "COSINE",
    "Distance",
    "Distances",
    "MatchingObjective",
    "cosine_distance",
    "matching_objective",
    "nonzero_cosine_distance",
    "sign_hinge",
]

Distance: TypeAlias = "Callable[[torch.Tensor, torch.Tensor], torch.Tensor]"
"""From dummy gradients and observations, both ``(n, p)``, to ``(n,)``."""

Distances: TypeAlias = "Mapping[Matching, Distance]"
"""An attack's own distances, by what a defense asks for: ``cosine`` is the plain one."""

MatchingObjective: TypeAlias = "Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]"
"""From samples ``(n, B, ...)``, labels ``(n, B)`` and observations ``(n, p)`` to ``(n,)``."""


def cosine_distance(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine, in [0, 2]."""
    from torch.nn import functional

    return 1.0 - functional.cosine_similarity(gradient, observed, dim=1)


def sign_hinge(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return sum_i l_i^2 with l_i = max(-g_i s_i, 0): 0 where all signs agree."""
    return (-gradient * observed).clamp_min(0.0).square().sum(dim=1)


def nonzero_cosine_distance(gradient: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Return 1 - cosine over the coordinates where the observation is not zero."""
    return cosine_distance(gradient * (observed != 0), observed)


COSINE: Distances = {
    "cosine": cosine_distance,
    "sign": sign_hinge,
    "nonzero-cosine": nonzero_cosine_distance,
}
"""Geiping et al. 2020, as modified by Wu et al. 2023."""


def matching_objective(
    model: FLModel,
    network: nn.Module,
    *,
    defense: Defense,
    batch_size: int,
    distances: Distances = COSINE,
) -> MatchingObjective:
    """Return what gradient matching minimises for a defense and a batch size.

    The distance that ``defense.matching`` names, of the dummy batch's mean gradient. Signs
    that were taken per sample and averaged over B > 1 samples are compared otherwise: the
    plain distance of the mean of each dummy sample's tanh(gradient).
    """
    gradients = group_gradient_function(model, network)
    if defense.of_batch:  # local steps are simulated: Geiping et al. 2020, section 6
        gradients = client_update_function(defense, model, network)
    if defense.matching == "sign" and batch_size > 1 and defense.defense_at == "sample":
        plain = distances["cosine"]

        def mean_of_tanh(
            x: torch.Tensor, label: torch.Tensor, observed: torch.Tensor
        ) -> torch.Tensor:
            each = gradients(x.flatten(0, 1)[:, None], label.flatten(0, 1)[:, None])
            return plain(each.tanh().unflatten(0, label.shape[:2]).mean(dim=1), observed)

        return mean_of_tanh

    distance = distances[defense.matching]
    return lambda x, label, observed: distance(gradients(x, label), observed)
