"""How close a reconstruction is to the truth, per victim and per cell of an experiment."""

from lti.metrics.base import METRICS, Metric

__all__ = ["METRICS", "Metric"]
