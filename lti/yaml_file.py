"""YAML files, in which no key may stand twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lti.errors import LTIError

__all__ = ["read_yaml"]

# Of libyaml where it is there: several times as fast, and every start of the workflow waits for it.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file of plain values.

    YAML's own rule for a key that stands twice is an error; its readers let the second one replace
    the first, and what stood there is lost without a word.

    Raises:
        LTIError: the file cannot be read, is no YAML, or has a key twice in one place.
    """
    try:
        loader = _Loader(Path(path).read_text(encoding="utf-8"))
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            for key, first in _repeated(node, set()):
                raise LTIError(
                    f"{path}, line {key.start_mark.line + 1}: got the key {key.value!r} again, "
                    f"which line {first.start_mark.line + 1} has already; expected each key once. "
                    f"Join what stands under both."
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LTIError(f"{path}: cannot be read as YAML ({error}). Correct it.") from None


def _repeated(node: yaml.Node, seen: set[int]) -> Iterator[tuple[yaml.ScalarNode, yaml.ScalarNode]]:
    """Yield keys that stand in a mapping a second time, each with the first."""
    if id(node) in seen:  # an alias, perhaps to a node that holds it
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _repeated(value, seen)
    elif isinstance(node, yaml.MappingNode):
        first: dict[tuple[str, str], yaml.ScalarNode] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                name = (key.tag, key.value)
                if name in first:
                    yield key, first[name]
                first.setdefault(name, key)
            yield from _repeated(value, seen)
