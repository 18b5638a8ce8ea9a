"""An audit from Python: objects are written to files, and the same workflow runs."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from lti.auditing.result import AuditResult
from lti.errors import LTIError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Data", "DefenseLike", "ModelLike", "run_audit"]

ModelLike: TypeAlias = "nn.Module | Callable[..., nn.Module] | str | Mapping[str, Any]"
Data: TypeAlias = "str | Path | Mapping[str, Any]"
DefenseLike: TypeAlias = "type | str | Mapping[str, Any]"


def run_audit(
    *,
    model: ModelLike,
    data: Data,
    defense: DefenseLike | Mapping[str, DefenseLike],
    folder: Path | str | None = None,
    cores: int | None = None,
    **settings: Any,
) -> AuditResult:
    """Audit a model, data and one or several defenses; see ``lti audit`` (docs/audit.md).

    Args:
        model: a network for images, ``(b, 3, 32, 32)`` to ``(b, classes)`` logits, which is saved
            with ``torch.export``; a function at the top of a module that returns one, or its name
            ``package.module:function``; or an entry of ``fl_models``.
        data: a folder with one folder of images a class, or an entry of ``datasets``.
        defense: a class with ``defend(self, gradient)`` at the top of a module, its name
            ``module:Class``, a registered name or an entry of ``defenses``; or several of these by
            names of the caller's own.
        folder: where files and results go; one that is there goes on. None: a new temporary one.
        cores: processor cores; None: all.
        settings: the file's other keys: ``auxiliary``, ``victims``, ``effort``, ``attacks``, ...

    Returns:
        what was found; its ``frame`` is a pandas table, and ``audit.html`` is in the folder's
        ``results/experiments/audit``.

    Raises:
        LTIError: something cannot be used, or the workflow failed.
    """
    import yaml

    from lti.auditing.expand import expand_audit
    from lti.auditing.result_json import read_result
    from lti.auditing.workflow import results_folder, run_workflow
    from lti.config import parse_config
    from lti.files import atomic_path

    where = Path(tempfile.mkdtemp(prefix="lti-audit-") if folder is None else folder)
    where.mkdir(parents=True, exist_ok=True)
    values = {
        "audit": {
            "model": _model(model, where),
            "data": _data(data),
            "defenses": _defenses(defense),
            **settings,
        }
    }
    parse_config(expand_audit(values))  # before anything is written
    with atomic_path(where / "audit.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    run_workflow(where / "audit.yaml", folder=where, cores="all" if cores is None else str(cores))
    return read_result(where / results_folder(values) / "audit.json")


def _model(model: ModelLike, folder: Path) -> dict[str, Any]:
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, str):
        return {"use": "factory", "factory": model} if ":" in model else {"use": model}
    from torch import nn

    if isinstance(model, nn.Module):
        return {"use": "program", "file": str(_exported(model, folder / "model.pt2"))}
    return {"use": "factory", "factory": _name_of(model, "model")}


def _exported(network: nn.Module, path: Path) -> Path:
    """Save a network with a batch of any size.

    Raises:
        LTIError: ``torch.export`` cannot.
    """
    import torch

    from lti.data.samples import IMAGE_SHAPE
    from lti.files import atomic_path

    example = torch.zeros(2, *IMAGE_SHAPE)
    batch = torch.export.Dim("batch", min=1)
    was_training = network.training
    try:
        program = torch.export.export(
            network.eval(), (example,), dynamic_shapes=({0: batch},), strict=False
        )
    except Exception as error:
        raise LTIError(
            f"model: torch.export cannot save it for images {tuple(example.shape)} "
            f"({type(error).__name__}: {str(error).splitlines()[0]}). Give the function that makes "
            f"it instead."
        ) from error
    finally:
        network.train(was_training)
    with atomic_path(path) as temporary:
        torch.export.save(program, temporary)
    return path.resolve()


def _data(data: Data) -> dict[str, Any]:
    if isinstance(data, Mapping):
        return dict(data)
    return {"use": "image-folder", "folder": str(Path(data).resolve())}


def _defenses(defense: Any) -> dict[str, dict[str, Any]]:
    if isinstance(defense, Mapping) and "use" not in defense:
        return {str(name): _defense(entry) for name, entry in defense.items()}
    entry = _defense(defense)
    return {str(entry["use"]).rpartition(":")[2].lower(): entry}


def _defense(defense: DefenseLike) -> dict[str, Any]:
    if isinstance(defense, Mapping):
        return dict(defense)
    return {"use": defense if isinstance(defense, str) else _name_of(defense, "defense")}


def _name_of(thing: Any, what: str) -> str:
    """Return ``module:name`` of something that other processes can import.

    Raises:
        LTIError: they cannot.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    importable = (inspect.isfunction(thing) or inspect.isclass(thing)) and "<" not in name
    if not importable or module in (None, "__main__", "builtins"):
        raise LTIError(
            f"{what}: got {thing!r} of module {module}; expected a function or class at the top of "
            f"a module that other processes can import, not of a notebook or script. Move it into "
            f"a file, and import it from there."
        )
    return f"{module}:{name}"
