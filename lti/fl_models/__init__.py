"""Federated-learning models: the networks whose gradients clients send."""

from lti.fl_models.base import (
    FL_MODELS,
    FLModel,
    FLTask,
    attacked,
    load_fl_model,
    network_digest,
    save_fl_model,
)

__all__ = [
    "FL_MODELS",
    "FLModel",
    "FLTask",
    "attacked",
    "load_fl_model",
    "network_digest",
    "save_fl_model",
]
