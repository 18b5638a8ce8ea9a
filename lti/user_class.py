"""A class of the user's own, named ``module:Class`` in the configuration."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

from lti.errors import LTIError

__all__ = ["load_class"]

NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def load_class(name: str) -> type:
    """Return the class that ``module:Class`` names.

    The module is looked for where Python looks, and last in the working folder, which is that of
    the configuration unless told otherwise.

    Raises:
        LTIError: no such module or class, or the module cannot be imported.
    """
    if not NAME.fullmatch(name):
        raise LTIError(f"got {name!r}; expected module:Class, names of Python. Correct it.")
    module_name, _, class_name = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # One that the module itself imports is said as it is.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise LTIError(f"module {module_name!r} cannot be imported: {error}.") from error
        raise LTIError(
            f"module {module_name!r} was not found in {here} or where else Python looks; expected "
            f"one that can be imported. Put {module_name.partition('.')[0]}.py there, or its "
            f"folder (that of the configuration, say) on PYTHONPATH."
        ) from None
    except Exception as error:
        raise LTIError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}."
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        there = sorted(
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module_name
        )
        raise LTIError(
            f"no class {class_name!r} in {module.__file__}; its classes are "
            f"{', '.join(there) or 'none'}. Name one of them."
        )
    return found
