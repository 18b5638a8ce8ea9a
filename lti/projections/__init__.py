"""Projections: how a gradient too large for an inverter is made smaller, linearly."""

from lti.projections.base import PROJECTIONS, Projection

__all__ = ["PROJECTIONS", "Projection"]
