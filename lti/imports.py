"""A user's own objects, named as ``package.module:name``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lti.errors import LTIError

__all__ = [
    "ALLOWED",
    "OBJECT_PATTERN",
    "allow_objects",
    "check_allowed",
    "import_class",
    "import_object",
    "named_objects",
    "object_module",
    "search_modules",
]

ALLOWED = "LTI_USER_OBJECTS"
"""Environment variable: the objects that files may name, with commas between. The workflow sets
it to those of its configuration."""

OBJECT_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
"""What the name of an object looks like."""


def import_object(name: str, *, where: str) -> Any:
    """Return an object of a module that Python finds, in the working folder last of all.

    Args:
        name: ``package.module:name``.
        where: the setting, for the error message.

    Raises:
        LTIError: it is no such name, the module is not found or fails while it is imported, or
            has no such object.
    """
    if not re.fullmatch(OBJECT_PATTERN, name):
        raise LTIError(f"{where}: got {name!r}; expected package.module:name. Correct it.")
    module_name, _, path = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise LTIError(f"{where}: importing {module_name!r} failed: {error}.") from error
        python = (sys.prefix, sys.base_prefix)  # whose folders hold what is installed
        kept = [folder or "." for folder in sys.path if not folder.startswith(python)]
        searched = ", ".join(dict.fromkeys([*kept, "what is installed"]))
        raise LTIError(
            f"{where}: got {name!r}, and there is no module {module_name!r}; searched {searched}. "
            f"Put it into the working folder, beside the configuration's file, or into a folder of "
            f"PYTHONPATH."
        ) from None
    except LTIError:
        raise
    except Exception as error:
        raise LTIError(
            f"{where}: importing {module_name!r} failed with {type(error).__name__}: {error}. "
            f"Mend the module."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            own = (k for k, v in vars(found).items() if _is_of(module_name, v))
            names = ", ".join(sorted(own)) or "nothing of its own"
            raise LTIError(
                f"{where}: got {name!r}, and {module_name!r} has no {part!r}; it has {names}. "
                f"Correct the name."
            )
        found = getattr(found, part)
    return found


def _is_of(module: str, value: Any) -> bool:
    return getattr(value, "__module__", None) == module


def import_class(name: str, *, where: str) -> type:
    """Return a class of a module that Python finds (see :func:`import_object`).

    Raises:
        LTIError: it cannot be imported, or is no class.
    """
    found = import_object(name, where=where)
    if not isinstance(found, type):
        raise LTIError(
            f"{where}: got {name!r}, which is {type(found).__name__}; expected a class. Name one."
        )
    return found


def named_objects(settings: Any) -> Iterator[str]:
    """Yield the user's classes, ``module:Class``, that settings use, those of parts included."""
    if isinstance(settings, Mapping):
        use = settings.get("use")
        if isinstance(use, str) and ":" in use:
            yield use
        for value in settings.values():
            yield from named_objects(value)
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from named_objects(value)


def search_modules(folders: Iterable[Path | str]) -> None:
    """Let this process and those that it starts find modules in folders, last of all."""
    for folder in (str(Path(folder).resolve()) for folder in folders):
        if folder not in sys.path:
            sys.path.append(folder)
            known = os.environ.get("PYTHONPATH")
            os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (known, folder)))


def allow_objects(names: Iterable[str]) -> None:
    """Let files that this process and those that it starts read name these objects, and no others.

    Args:
        names: as of :func:`import_object`: those of the configuration.
    """
    os.environ[ALLOWED] = ",".join(names)


def check_allowed(names: Iterable[str], *, where: str) -> None:
    """Refuse objects that a file names and the configuration does not: files run no code.

    Args:
        names: as of :func:`import_object`.
        where: the file, for the error message.

    Raises:
        LTIError: one is not in :data:`ALLOWED`.
    """
    allowed = {name for name in os.environ.get(ALLOWED, "").split(",") if name}
    for name in names:
        if name not in allowed:
            raise LTIError(
                f"{where}: names the object {name!r}, which is not run unless the configuration "
                f"names it too. If the file is your own, set {ALLOWED}={name}."
            )


def object_module(name: str) -> str | None:
    """Return the file of the module in ``package.module:name``; None where there is none."""
    try:
        spec = find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None and spec.has_location else None
