"""What an experiment's curves run along, and what their caption says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lti.plan import Plan

__all__ = ["curve_note", "curve_of"]


def curve_of(plan: Plan, experiment: str) -> str | None:
    """Return what an experiment's auxiliary sets differ in, ``aux_size`` or ``beta``.

    None: there is one, or they differ in their seeds alone.
    """
    sets = [plan.auxiliary[name] for name in plan.auxiliary_of(experiment)]
    if len({chosen.size for chosen in sets}) > 1:
        return "aux_size"
    return "beta" if len({chosen.beta for chosen in sets}) > 1 else None


def curve_note(plan: Plan, experiment: str) -> str:
    """Return how long the inverters behind an experiment's curves are trained, in words."""
    notes: dict[str, None] = {}
    for cell in plan.cells(experiment):
        cell = plan.start_of(cell) or cell  # an inverter is behind what is refined, too
        attack = plan.attack_on(
            cell.attack.partition("@")[0],
            fl_model=cell.fl_model,
            batch_size=cell.batch_size,
            defense=cell.defense,
        )
        if (name := getattr(attack, "inverter", None)) is not None:
            notes[plan.inverters[name].length] = None
    return " ".join(notes)
