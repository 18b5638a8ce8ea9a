"""Federated training under a defense: what a defense costs in accuracy."""

from lti.federated.settings import FederatedTraining

__all__ = ["FederatedTraining"]
