"""Projections: how a gradient too large for an inverter is made smaller, linearly."""

from lti.projections.base import PROJECTIONS, FittedProjection, Projection, load_projection

__all__ = ["PROJECTIONS", "FittedProjection", "Projection", "load_projection"]
