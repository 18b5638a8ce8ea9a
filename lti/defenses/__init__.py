"""Gradient defenses: what a client does to its gradient before it sends it."""

from lti.defenses.base import DEFENSES, Defense

__all__ = ["DEFENSES", "Defense"]
