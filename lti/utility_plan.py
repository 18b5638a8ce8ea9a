"""Which federated trainings experiments ask for, and by which metric leakage is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lti.federated import FederatedTraining
from lti.files import digest_json

if TYPE_CHECKING:
    from lti.plan import Plan

__all__ = ["leakage_metric", "training_id", "trainings"]

USUAL = ("psnr", "token_accuracy")


def training_id(plan: Plan, experiment: str) -> str | None:
    """Return the digest of an experiment's training settings; None: it asks for none."""
    settings = _settings(plan, experiment)
    return None if settings is None else digest_json(settings.model_dump(mode="json"))


def trainings(plan: Plan) -> dict[str, FederatedTraining]:
    """Return all training settings by their :func:`training_id`."""
    named = {name: _settings(plan, name) for name in plan.config.experiments}
    return {
        str(training_id(plan, name)): settings
        for name, settings in named.items()
        if settings is not None
    }


def leakage_metric(plan: Plan, experiment: str) -> str:
    """Return the metric of leakage of an experiment that asks for a training."""
    utility, metrics = plan.experiment(experiment).utility, plan.metrics_of_experiment(experiment)
    if utility is not None and utility.metric is not None:
        return utility.metric
    return next((name for name in USUAL if name in metrics), metrics[0])


def _settings(plan: Plan, experiment: str) -> FederatedTraining | None:
    utility = plan.experiment(experiment).utility
    if utility is None:
        return None
    return FederatedTraining(**utility.model_dump(exclude={"metric"}))
