"""How close a reconstruction is to the truth, per victim and per cell of an experiment."""

from lti.metrics.base import METRICS, Metric
from lti.metrics.matching import match_batches, match_victims
from lti.metrics.measure import measure, read_metrics, write_metrics
from lti.metrics.summary import bootstrap_interval, summarise

__all__ = [
    "METRICS",
    "Metric",
    "bootstrap_interval",
    "match_batches",
    "match_victims",
    "measure",
    "read_metrics",
    "summarise",
    "write_metrics",
]
