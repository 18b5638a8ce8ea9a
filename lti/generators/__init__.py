"""Generators: image priors trained on auxiliary data, for attacks that search in them."""

from lti.generators.base import GENERATORS, Generator

__all__ = ["GENERATORS", "Generator"]
