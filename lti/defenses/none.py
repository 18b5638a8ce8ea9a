"""No defense: the gradient as it is."""

from __future__ import annotations

from lti.defenses.base import DEFENSES, Defense

__all__ = ["NoDefense"]


@DEFENSES.register("none", source="Wu et al. 2023, section 5")
class NoDefense(Defense):
    """Send the gradient as it is."""
