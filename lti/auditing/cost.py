"""What an audit takes, before it is run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lti.auditing.expand import EXPERIMENT

if TYPE_CHECKING:
    from lti.plan import Plan

__all__ = ["stated_cost"]


def stated_cost(plan: Plan, seconds: float, coordinates: int) -> str:
    """Return what the gradients of an audit take, in words.

    Args:
        plan: of the audit.
        seconds: that one gradient took here.
        coordinates: that are stored of a gradient.
    """
    experiment = plan.experiment(EXPERIMENT)
    stores = {plan.stored_defense(name, experiment.batch_sizes[0]) for name in experiment.defenses}
    rows = experiment.auxiliary.size
    hours = seconds * rows * len(stores) / 3600
    size = 2 * rows * coordinates * len(stores) / 2**30
    return (
        f"{rows:,} gradients for each of {len(stores)} stores: {_duration(3600 * hours)} on "
        f"{os.cpu_count()} cores as measured here, {size:.1f} GiB of disk; attacks come on top"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
