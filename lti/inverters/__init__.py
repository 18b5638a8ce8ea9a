"""Inverters: networks that map a defended gradient back to the data."""

from lti.inverters.base import INVERTERS, Inverter

__all__ = ["INVERTERS", "Inverter"]
