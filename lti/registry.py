"""Named, typed, extensible choices: one registry per axis of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from lti.errors import LTIError
from lti.imports import check_allowed, import_class, named_objects

__all__ = ["Registry", "Settings", "describe_validation_error", "described"]

DESCRIBED = "described"
"""Type of an error whose lines say all but where the value is."""


class Settings(BaseModel):
    """Base of every registered entry: frozen, typed, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def canonical(self) -> dict[str, Any]:
        """Return the settings as a plain sorted dict that names the entry under ``use``."""
        return dict(sorted({"use": self.name, **self.model_dump(mode="json")}.items()))

    def registered_names(self) -> tuple[str, ...]:
        """Return the names of the axis's entries whose code runs: its own, and of its parts."""
        return (self.name,)


T = TypeVar("T", bound=Settings)


class Registry(Generic[T]):
    """The known entries of one axis (defenses, attacks, ...), by name.

    The project's own entries live in one module each, which is imported when the entry
    is first looked up: a stage runs, and so depends on, only the entries that it uses.
    Entries of other packages are found through the entry-point group ``lti.<axis>``;
    the entry point's name is the entry's name and its object a :class:`Settings`
    subclass. A name ``module:Class`` is that of such a class itself, with no package.

    Args:
        axis: what is chosen, in the plural (also the configuration's section).
        modules: the module of each of the project's own entries.
        plain: module whose function ``entry_of`` makes an entry of a user's class that is no
            :class:`Settings`; None: such classes are refused.
    """

    def __init__(
        self,
        axis: str,
        modules: Mapping[str, str] | None = None,
        *,
        plain: str | None = None,
    ) -> None:
        self.axis = axis
        self._plain = plain
        self._modules = dict(modules or {})
        self._entries: dict[str, type[T]] = {}
        self._points: dict[str, EntryPoint] | None = None

    def register(self, name: str, *, source: str) -> Callable[[type[T]], type[T]]:
        """Return a class decorator that registers under ``name``.

        Args:
            name: the name used in configurations, paths and tables.
            source: where the method is described (paper and section).

        Raises:
            LTIError: the name is taken.
        """

        def decorate(cls: type[T]) -> type[T]:
            self._add(name, cls)
            cls.name = name
            cls.source = source
            return cls

        return decorate

    def _add(self, name: str, cls: type[T]) -> None:
        known = self._entries.get(name)
        if known is not None and known is not cls:
            raise LTIError(
                f"{self.axis} {name!r} is registered twice: by {known.__module__} and by "
                f"{cls.__module__}. Rename one of them."
            )
        self._entries[name] = cls

    def _entry_points(self) -> dict[str, EntryPoint]:
        if self._points is None:
            self._points = {}
            for point in entry_points(group=f"lti.{self.axis}"):
                if point.name in self._modules or point.name in self._points:
                    raise LTIError(
                        f"{self.axis} {point.name!r} is registered twice: by this project or "
                        f"another package and by {point.value}. Rename one of them."
                    )
                self._points[point.name] = point
        return self._points

    def _add_users(self, name: str) -> None:
        """Add a class ``module:Class``; as a class of its own, which may have another name too."""
        cls = import_class(name, where=self.axis)
        if issubclass(cls, Settings):
            entry: Any = type(cls.__name__, (cls,), {"__module__": cls.__module__})
        elif self._plain is not None:
            entry = import_module(self._plain).entry_of(cls)
        else:
            raise LTIError(
                f"{name} is {cls!r}; expected a subclass of the base of all {self.axis}. Derive "
                f"it from that."
            )
        self.register(name, source=entry.source or name)(entry)

    def _names(self) -> list[str]:
        """Return the names that anyone may use: without the users' classes, found by their own."""
        own = (name for name in self._entries if ":" not in name)
        return sorted({*self._modules, *own, *self._entry_points()})

    def __getitem__(self, name: str) -> type[T]:
        """Return an entry's class.

        Raises:
            LTIError: no entry has this name, another package's is not a Settings class, or a
                user's cannot be imported or used.
        """
        if name not in self._entries and ":" in name:
            self._add_users(name)
        if name not in self._entries and name in self._modules:
            import_module(self._modules[name])
        if name not in self._entries and name in self._entry_points():
            point = self._entry_points()[name]
            cls = point.load()
            if not (isinstance(cls, type) and issubclass(cls, Settings)):
                raise LTIError(
                    f"entry point {point.value!r} in group lti.{self.axis} is {cls!r}; expected "
                    f"a subclass of lti.registry.Settings. Fix or uninstall that package."
                )
            self.register(name, source=cls.source or point.value)(cls)  # type: ignore[arg-type]
        if name not in self._entries:
            raise LTIError(
                f"unknown name {name!r} in {self.axis}; known: {', '.join(self._names())}. "
                f"Use one of these or register your own."
            )
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __contains__(self, name: object) -> bool:
        return name in self._names()

    def parse_stored(self, settings: Mapping[str, Any], *, where: str) -> T:
        """Build an entry from settings that a file holds: :meth:`parse`, but for a user's code.

        Raises:
            LTIError: as of :meth:`parse`, or a class of the user's that the configuration does not
                name (:func:`lti.imports.check_allowed`).
        """
        check_allowed(named_objects(settings), where=where)
        return self.parse(settings, where=where)

    def parse(self, settings: Mapping[str, Any], *, where: str | None = None) -> T:
        """Build an entry from plain settings such as ``{"use": "prune", "rate": 0.99}``.

        Args:
            settings: a mapping whose key ``use`` names the entry.
            where: the place in the configuration, for the error message.

        Raises:
            LTIError: unknown name, unknown key, or a value out of range.
        """
        values = dict(settings)
        where = where or self.axis
        name = values.pop("use", None)
        if not isinstance(name, str):
            raise LTIError(f"{where}: no key 'use'; expected one of {', '.join(self)}. Add it.")
        try:
            cls = self[name]
        except LTIError as error:
            raise LTIError(f"{where}.use: {error}") from None
        try:
            return cls(**values)
        except ValidationError as error:
            raise LTIError(describe_validation_error(error, where=where, model=cls)) from None


def described(problems: Iterable[str]) -> PydanticCustomError:
    """Return an error for a validator to raise: lines that begin with the key inside the value."""
    return PydanticCustomError(DESCRIBED, "{lines}", {"lines": "\n".join(problems)})


def describe_validation_error(error: ValidationError, *, where: str, model: type[BaseModel]) -> str:
    """One line per problem: the key, the value that was got, what is allowed."""
    lines = []
    for problem in error.errors():
        steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
        key = "".join([where, *steps]).strip(".")
        if problem["type"] == DESCRIBED:
            lines += [f"{key}.{line}" for line in problem["msg"].splitlines()]
        elif problem["type"] == "extra_forbidden":
            allowed = ", ".join(_allowed_keys(model, problem["loc"])) or "no keys"
            lines.append(f"{key}: unknown key (value {problem['input']!r}); allowed: {allowed}")
        elif problem["type"] == "missing":
            lines.append(f"{key}: missing; it has no default")
        else:
            lines.append(f"{key}: got {problem['input']!r}; {_as_clause(problem['msg'])}")
    return "\n".join(lines)


def _allowed_keys(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """Return the keys that the section around an unknown key may have."""
    section: Any = model
    for part in place[:-1]:
        if isinstance(section, type) and issubclass(section, BaseModel):
            section = section.model_fields[str(part)].annotation
        else:
            section = get_args(section)[-1]  # of a list or of a dict's values
    return sorted(section.model_fields)


def _as_clause(message: str) -> str:
    """Return pydantic's message as the second part of a sentence."""
    own = message.removeprefix("Value error, ")  # of a validator of this project
    return own if own != message else message.lower()
