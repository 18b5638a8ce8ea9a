"""Which source files a stage runs, found by following its imports.

Snakemake does not see a change of Python code behind a shell command, so every rule lists
these files as inputs. Registries import an entry's module only when it is named, so a
stage depends on just the entries that it uses, which are added by name.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lti.errors import LTIError
from lti.files import digest_json
from lti.registry import Registry

__all__ = ["source_digest", "source_files"]

PACKAGE = "lti"
ROOT = Path(__file__).parent


def source_files(stage: str, *entries: tuple[Registry[Any], str | Iterable[str]]) -> list[str]:
    """Return the files that a stage runs, sorted.

    Args:
        stage: module name below ``lti.stages``.
        entries: pairs of a registry and the names of entries that the stage uses
            (:meth:`lti.registry.Settings.registered_names`), or one name.

    Returns:
        Paths, relative to the working directory where they lie below it; only this
        package's own files, data that a module names included, and of entries of other
        packages their module.
    """
    files: set[str] = set()
    pending = [f"{PACKAGE}.stages.{stage}"]
    for registry, names in entries:
        for name in [names] if isinstance(names, str) else names:
            entry = registry[name]
            # Bases too: an entry may be made of a class of another package.
            lineage = (cls.__module__ for cls in entry.__mro__)
            pending += [entry.__module__, *(m for m in lineage if m.split(".")[0] == PACKAGE)]
    seen: set[str] = set()
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        path = _path(module)
        if path is None:
            continue
        here = Path.cwd()
        for file in (path, *_data_files(path)):
            files.add(str(file.relative_to(here) if file.is_relative_to(here) else file))
        if module.split(".")[0] == PACKAGE:
            pending.extend(_imports(module, path))
    return sorted(files)


def source_digest(stage: str, *entries: tuple[Registry[Any], str | Iterable[str]]) -> str:
    """Return a digest of :func:`source_files`' contents, for checkpoints of the stage."""
    files = source_files(stage, *entries)
    return digest_json([Path(file).read_text(encoding="utf-8") for file in files])


@cache
def _path(module: str) -> Path | None:
    """Return a module's file; None for what is not a module (a function, say)."""
    parts = module.split(".")
    if parts[0] != PACKAGE:
        spec = find_spec(module)
        return Path(spec.origin) if spec is not None and spec.origin else None
    base = ROOT.joinpath(*parts[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _data_files(path: Path) -> tuple[Path, ...]:
    """Return the files beside a module that it names in a string, such as a table."""
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    beside = {file.name: file for file in path.parent.iterdir() if file.suffix != ".py"}
    return tuple(beside[name] for name in sorted(strings & beside.keys()) if beside[name].is_file())


@cache
def _imports(module: str, path: Path) -> tuple[str, ...]:
    return tuple(_walk(ast.parse(path.read_text()), module))


def _walk(tree: ast.AST, module: str) -> Iterator[str]:
    """Yield the package's modules that a module imports, parents of each included.

    Imports for type checking alone are left out: they do not run.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level or node.module is None:
                raise LTIError(f"{module}: relative import; expected an absolute one.")
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == PACKAGE:
                parts = name.split(".")
                yield from (".".join(parts[: end + 1]) for end in range(len(parts)))
        yield from _walk(node, module)
