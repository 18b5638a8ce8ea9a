"""BatchNorm's running statistics, made from samples."""

from __future__ import annotations

import torch
from torch import nn

from lti.gradients.per_sample import even_blocks

__all__ = ["batch_norms", "set_statistics"]

BLOCK = 256  # samples at once


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return a network's layers with running statistics."""
    norms = (m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.running_mean is not None]


@torch.no_grad()
def set_statistics(network: nn.Module, x: torch.Tensor) -> int:
    """Set BatchNorm's means and variances to those of samples, under the current weights.

    An untrained network's are 0 and 1, under which the signal, and with it the gradient, fades
    from layer to layer; in a client's they follow the data. Of many samples they are the mean of
    the blocks' statistics.

    Args:
        network: in evaluation mode, and left in it.
        x: ``(n, ...)`` in the network's input range, two samples or more.

    Returns:
        the number of layers.
    """
    norms = batch_norms(network)
    if not norms:
        return 0
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()  # type: ignore[operator]
        norm.momentum = None  # type: ignore[assignment]  # the mean over all blocks
        norm.train()
    for start, stop in even_blocks(0, len(x), BLOCK):
        network(x[start:stop])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return len(norms)
