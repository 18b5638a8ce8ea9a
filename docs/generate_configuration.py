"""Write docs/configuration.md from the configuration's schema.

Run ``python docs/generate_configuration.py`` after a change of a setting. A test fails while
the page and the schema differ.
"""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lti.auditing.spec import AuditSpec, AuxiliaryData, VictimData
from lti.config import (
    SECTIONS,
    Auxiliary,
    Config,
    Experiment,
    MetricRules,
    Page,
    Pool,
    Report,
    Shift,
    Utility,
    Variation,
    Victims,
)
from lti.gradients.store_format import StoreSettings
from lti.metrics import METRICS

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

<!-- Written by docs/generate_configuration.py. Change the schema, not this page. -->

`config.yaml` says what is computed. How and where (cores, memory, GPUs, clusters) is said on
the command line or in a profile, see [running](running.md). The whole configuration is
checked before the first job. A wrong key or value stops the run with the key, the value and
what is allowed.

Change a value in `config.yaml`, or give another file with
`uv run snakemake --configfile mine.yaml --cores all TARGET`. Keys of a second file replace
those of `config.yaml` one by one.

These sections map identifiers to entries:
{sections}.
An identifier is yours: it becomes part of paths and tables, and consists of lower-case letters,
digits, and single dots, dashes and underscores between them. The key `use` of an entry names
the registered implementation. The other keys are its settings:

```yaml
defenses:
  prune: {{use: prune, rate: 0.99}}
  prune-weak: {{use: prune, rate: 0.9}}
```

## Settings that depend on the cell

A cell is one FL model, batch size, defense and attack. `overrides` gives an attack other
settings on some cells. `when` names FL models, batch sizes or defenses, one or a list each; all
that it names must fit. Entries are applied from first to last, so later ones win:

```yaml
attacks:
  lti:
    use: lti
    inverter: tuned
    overrides:
      - {{when: {{defense: [sign, prune]}}, inverter: tuned-dropout}}
      - {{when: {{batch_size: 4}}, inverter: tuned-batch}}
      - {{when: {{fl_model: resnet20}}, projection: early}}
```

`inverter`, `projection` and `generator` of an attack are identifiers of the sections
`inverters`, `projections` and `generators`. A rule sees the settings of its cell alone: a change
of an override computes only the cells again that it touches.
"""

COMPARISONS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
LENGTHS = {"min_length": "at least", "max_length": "at most"}


def _type(annotation: Any) -> str:
    """Return a type as a reader of YAML knows it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else _type(a) for a in arguments)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        limits = _limits(annotation.__metadata__[0].metadata)
        return f"{_type(arguments[0])} ({limits})" if limits else _type(arguments[0])
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple and arguments[1:] == (...,):
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)}, each: {_type(arguments[0])}"
    if arguments == (str, Any):
        return "settings"
    if origin is dict:
        return f"map from {_type(arguments[0])} to {_type(arguments[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}
    if annotation in names:
        return names[annotation]
    raise SystemExit(f"no words for the type {annotation}. Add them to _type.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "all defaults"
    value = field.default
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """Return a value as it stands in the configuration."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(part)}' for key, part in value.items())}}}"
    if value == "*":  # means something else in YAML
        return f'"{value}"'
    return f"{value:g}" if isinstance(value, float) else str(value)


def _limits(constraints: list[Any]) -> str:
    parts = []
    for constraint in constraints:
        for key, words in COMPARISONS.items():
            if (value := getattr(constraint, key, None)) is not None:
                parts.append(f"{words} {value:g}")
        for key, words in LENGTHS.items():
            if (value := getattr(constraint, key, None)) is not None:
                parts.append(f"{words} {value} item{'' if value == 1 else 's'}")
    return ", ".join(parts)


def _description(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    if field.description:
        return field.description
    # Some entries describe their fields in the docstring's section `Attributes`.
    found = re.search(rf"^\s+{name}: (.+?)\.?$", inspect.cleandoc(model.__doc__ or ""), re.M)
    if found:
        return (found[1][0].upper() + found[1][1:] + ".").replace("``", "`")
    annotation = field.annotation
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return _summary(annotation)
    raise SystemExit(f"{model.__name__}.{name}: no description. Give its Field one.")


def _summary(model: type[BaseModel]) -> str:
    text = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
    return " ".join(text.split()).replace("``", "`")


def _table(model: type[BaseModel]) -> list[str]:
    if not model.model_fields:
        return ["No settings.", ""]
    lines = ["| key | type | default | allowed | meaning |", "| :-- | :-- | :-- | :-- | :-- |"]
    for name, field in model.model_fields.items():
        cells = (
            f"`{name}`",
            _type(field.annotation),
            _default(field),
            _limits(field.metadata) or "any",
            _description(model, name, field).replace("|", "\\|"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def render() -> str:
    """Return the page."""
    *sections, last = (f"`{section}`" for section in SECTIONS)
    introduction = INTRODUCTION.format(sections=f"{', '.join(sections)} and {last}")
    lines = [introduction, "## Top level", "", *_table(Config)]
    experiments = (Experiment, Auxiliary, Variation, Victims, Page, Utility, Shift, Pool, Report)
    audit = (AuditSpec, AuxiliaryData, VictimData)
    for model in (StoreSettings, MetricRules, *experiments, *audit):
        lines += [f"## {model.__name__}", "", _summary(model), "", *_table(model)]
    for section, registry in SECTIONS.items():
        lines += [f"## Entries of `{section}`", ""]
        for name in registry:
            entry = registry[name]
            if entry.__module__.split(".")[0] != "lti":
                continue  # what another package registers, it describes itself
            lines += [f"### `{section}`: `use: {name}`", "", _summary(entry), ""]
            lines += [f"Source: {entry.source}.", "", *_table(entry)]
    lines += [
        "## Metrics",
        "",
        "Named in `metrics` of an experiment and in `metrics.require`; see [metrics](metrics.md).",
        "",
    ]
    lines += ["| name | meaning |", "| :-- | :-- |"]
    for name in METRICS:
        if METRICS[name].__module__.split(".")[0] == "lti":
            lines.append(f"| `{name}` | {_summary(METRICS[name])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
