"""Learning To Invert: does a gradient defense hide the data it is meant to protect?

The package is one folder a stage of the attack chain: :mod:`lti.data`,
:mod:`lti.fl_models`, :mod:`lti.defenses`, :mod:`lti.gradients`,
:mod:`lti.inverters`, :mod:`lti.attacks`, :mod:`lti.metrics` and
:mod:`lti.report`; :mod:`lti.cli` is the command that the workflow's rules run.
"""

__version__ = "0.1.0"
