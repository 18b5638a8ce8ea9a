"""Turn docstrings into the reference's Markdown: roles become links, entries say their names.

Docstrings point to other objects by roles, ``:func:`measure```, as Sphinx and editors read them.
Here a role becomes the name as code, linked where the reference has the object.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe
from mkdocs.plugins import get_plugin_logger

__all__ = ["Docstrings"]

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`([^`]+)`")
logger = get_plugin_logger(__name__)


class Docstrings(griffe.Extension):
    """What is done to the package before it is rendered."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Change the docstrings of a package, when all of it is known."""
        _rewrite(pkg)
        _show_once(pkg)


def _rewrite(item: griffe.Object) -> None:
    if item.docstring:
        item.docstring.value = ROLE.sub(lambda role: _link(item, role[1]), item.docstring.value)
    if isinstance(item, griffe.Class) and (note := _registration(item)):
        item.docstring = item.docstring or griffe.Docstring("", parent=item)
        item.docstring.value = f"{item.docstring.value}\n\n{note}"
    for member in item.members.values():
        if isinstance(member, griffe.Object):
            _rewrite(member)


def _show_once(module: griffe.Module) -> None:
    """Leave out what a package takes from its own modules: they are shown below it."""
    for name, member in list(module.members.items()):
        if isinstance(member, griffe.Alias) and member.target_path.startswith(f"{module.path}."):
            member.resolve_target()  # so that links to the shorter path lead to the object
            del module.members[name]
        elif isinstance(member, griffe.Module):
            _show_once(member)


def _link(item: griffe.Object, name: str) -> str:
    """Return the name that a role in an item's docstring has, linked to what it stands for."""
    target = _find(item, name)
    if target is None:
        logger.warning(f"{item.path}: `{name}` in its docstring is no object. Correct the name.")
        return f"`{name}`"
    return _reference(target, name)


def _reference(target: str, name: str) -> str:
    """Return a name as code, linked if the site has the target: what is private it has not."""
    return f'<autoref identifier="{target}" optional><code>{name}</code></autoref>'


def _find(item: griffe.Object, name: str) -> str | None:
    """Return the full path of what a docstring means by a name, from the inside out, or None."""
    scopes = [f"{item.path}."]
    while scopes[-1]:
        scopes.append("".join(f"{part}." for part in scopes[-1].split(".")[:-2]))
    for scope in scopes:
        try:
            return str(item.modules_collection[scope + name].canonical_path)
        except (KeyError, griffe.AliasResolutionError):
            continue
    return None


def _registration(item: griffe.Class) -> str | None:
    """Return what the decorator of a registry's entry says."""
    for decorator in item.decorators:
        call = ast.parse(str(decorator.value), mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
            continue
        if call.func.attr == "register" and isinstance(call.args[0], ast.Constant):
            (source,) = (keyword.value for keyword in call.keywords)
            if isinstance(source, ast.Name):  # a constant of the module
                source = ast.parse(str(item.module.members[source.id].value), mode="eval").body
            name, axis = call.args[0].value, ast.unparse(call.func.value).lower()
            # The configuration's page has a heading for each entry with settings.
            link = _reference(f"{axis}-use-{name}", name)
            return f"Registered as {link}. Source: {ast.literal_eval(source)}."
    return None
