"""Projections: how a gradient too large for an inverter is made smaller, linearly."""

from lti.projections.base import (
    PROJECTIONS,
    FitSample,
    FittedProjection,
    Projection,
    load_projection,
)

__all__ = ["PROJECTIONS", "FitSample", "FittedProjection", "Projection", "load_projection"]
