"""Learning To Invert: does a gradient defense hide the data it is meant to protect?

The package is one folder a stage of the attack chain: :mod:`lti.data`,
:mod:`lti.fl_models`, :mod:`lti.defenses`, :mod:`lti.gradients`,
:mod:`lti.inverters`, :mod:`lti.attacks`, :mod:`lti.metrics` and
:mod:`lti.report`; :mod:`lti.federated` trains under a defense, :mod:`lti.auditing` puts
all of it together for a user's own model, data and defense, and :mod:`lti.cli` is the
command that the workflow's rules run.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lti.auditing.api import run_audit as audit

__all__ = ["__version__", "audit"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "audit":
        # By name: what this module imports, every stage depends on (`lti.modules`).
        return import_module("lti.auditing.api").run_audit
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
