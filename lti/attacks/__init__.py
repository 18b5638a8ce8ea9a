"""Attacks: from what the server observes back to the client's data."""

from lti.attacks.base import ATTACKS, Attack, Observations, Reconstruction

__all__ = ["ATTACKS", "Attack", "Observations", "Reconstruction"]
