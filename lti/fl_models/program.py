"""Saved programs: networks without the code that made them."""

from __future__ import annotations

import ast
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lti.errors import LTIError
from lti.fl_models.second_derivatives import replace_in_program

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

__all__ = ["load_program"]

FUNCTIONS = {
    *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs"),
    *("FloorDiv", "CeilDiv", "PythonMod", "IntTrueDiv", "CleanDiv", "ModularIndexing", "Where"),
}
"""What a size may be made of, of sympy and torch."""

PLAIN = (
    *(ast.Expression, ast.Name, ast.Load, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator),
    *(ast.unaryop, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop),
)

SIDE = 32  # of the image that a TorchScript program is converted with


def load_program(path: Path, *, side: int | None = None) -> nn.Module:
    """Read a program of ``torch.export.save`` or of TorchScript.

    What would be unpickled or evaluated is refused, as far as torch's own reader is known to do so;
    it was not written for hostile files.

    A TorchScript program is converted to an exported one: its parameters cannot be exchanged,
    which gradients of single samples need.

    Args:
        path: the file.
        side: height and width of its images; None: the project's.

    Returns:
        the network, float32, on the CPU, in evaluation mode.

    Raises:
        LTIError: the file is missing, no such program, holds Python objects or machine code, or
            cannot be converted.
    """
    if not path.is_file():
        raise LTIError(f"{path}: no such file; expected a saved program. Correct the path.")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise LTIError(f"{path}: {error}. {_EXPECTED}") from None
    if any("aotinductor" in name or name.endswith((".so", ".dll")) for name in names):
        raise LTIError(f"{path}: holds machine code, which is not run here. {_EXPECTED}")
    if any("custom_obj" in name or "opaque" in name for name in names):
        raise LTIError(f"{path}: holds objects of other classes, which are not read. {_EXPECTED}")
    _check_expressions(path)
    is_script = any(name.endswith("/constants.pkl") for name in names)
    try:
        with _only_tensors(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = _converted(path, side or SIDE) if is_script else _exported(path)
    except LTIError:
        raise
    except Exception as error:
        kind = "a TorchScript program" if is_script else "an exported program"
        line = str(error).strip().split("\n")[0]
        raise LTIError(
            f"{path}: cannot be read as {kind} ({type(error).__name__}: {line}). {_EXPECTED}"
        ) from error
    program.float()
    replace_in_program(program)
    # The mode of what was exported is part of the program.
    program.train = lambda mode=True: program  # type: ignore[method-assign]
    program.training = False
    return program


_EXPECTED = (
    "Expected a file of torch.export.save, made with a dynamic batch dimension from a network in "
    "evaluation mode, or of torch.jit.save. Save the network anew, or name the function that "
    "makes it (`use: factory`)."
)


def _check_expressions(path: Path) -> None:
    """Refuse sizes that are more than sums and products: torch evaluates their text.

    Raises:
        LTIError: one is, or a part of the program is no JSON.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if not name.endswith(".json"):
                continue
            try:
                pending = [json.loads(archive.read(name))]
            except ValueError as error:
                raise LTIError(f"{path}: {name} is no JSON ({error}). {_EXPECTED}") from None
            while pending:
                value = pending.pop()
                if isinstance(value, dict):
                    pending += value.values()
                    expressions = [value.get("expr_str"), value.get("as_expr")]
                    for text in (e for e in expressions if isinstance(e, str)):
                        if not _is_plain(text):
                            raise LTIError(
                                f"{path}: has the size {text[:80]!r}, which is not evaluated. "
                                f"{_EXPECTED}"
                            )
                elif isinstance(value, list):
                    pending += value


def _is_plain(text: str) -> bool:
    """Whether an expression is made of symbols, numbers, arithmetic and sympy's functions alone."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
                return False
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, int | float | str | bool) or (
                isinstance(node.value, str) and not re.fullmatch(r"[A-Za-z]\w{0,20}", node.value)
            ):
                return False
        elif not isinstance(node, PLAIN):
            return False
    return True


def _exported(path: Path) -> GraphModule:
    import torch

    return torch.export.load(path).module()


def _converted(path: Path, side: int) -> GraphModule:
    import torch

    # Of torch's own; there is no public name for it.
    from torch._export.converter import TS2EPConverter

    script = torch.jit.load(path, map_location="cpu").eval()
    # Two samples: an example of one would fix the batch.
    program = TS2EPConverter(script, (torch.zeros(2, 3, side, side),)).convert().module()
    # Parameters come as buffers, and modules in the order of their names.
    for name, parameter in script.named_parameters():
        owner = program.get_submodule(name.rpartition(".")[0])
        del owner._buffers[name.rpartition(".")[2]]
        owner.register_parameter(name.rpartition(".")[2], torch.nn.Parameter(parameter.detach()))
    places = {
        name: [key for key, _ in module.named_children()] for name, module in script.named_modules()
    }
    for name, module in program.named_modules():
        for key in places.get(name, []):
            if key in module._modules:
                module._modules[key] = module._modules.pop(key)
    return program


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Let ``torch.load`` read tensors alone: torch's own reader of programs falls back to pickle.

    Raises:
        LTIError: inside, where a file holds other objects.
    """
    import torch

    load = torch.load

    def tensors(*args: Any, **kwargs: Any) -> Any:
        try:
            return load(*args, **{**kwargs, "weights_only": True})
        except Exception as error:
            raise LTIError(
                f"the program holds Python objects besides tensors, which are not read "
                f"({type(error).__name__}). {_EXPECTED}"
            ) from None

    torch.load = tensors
    try:
        yield
    finally:
        torch.load = load
