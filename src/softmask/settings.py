"""What a settings class is: a frozen dataclass whose fields explain themselves, parsed strictly.

A setting that is unknown, of the wrong type or out of range is an error that names the
nearest known one: at the command line, in YAML, in JSON files and over HTTP.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import reprlib
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from dataclasses import field
from types import SimpleNamespace
from typing import Any, Literal, TypeVar

T = TypeVar("T")

# Models compute in float32, where a larger number is infinite; torch counts in 64 bits.
LARGEST_FLOAT, LARGEST_INT = 3.4028234e38, 2**63 - 1


def setting(default: Any, help: str) -> Any:
    """A dataclass field with the sentence that explains it (command line help, docs)."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def _matches(value: Any, annotation: Any) -> bool:
    if type(value) is annotation:
        return True
    options = _options(annotation)
    if len(options) > 1:
        return any(_matches(value, option) for option in options)
    if annotation is Any:
        return True
    if annotation in (float, int):  # numpy's numbers too
        kind = numbers.Real if annotation is float else numbers.Integral
        return isinstance(value, kind) and not isinstance(value, bool)
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return any(
            _matches(value, type(one)) and value == one for one in typing.get_args(annotation)
        )
    if origin is tuple:
        (item, _ellipsis) = typing.get_args(annotation)
        return isinstance(value, list | tuple) and all(_matches(v, item) for v in value)
    if origin is dict:
        key, item = typing.get_args(annotation)
        return isinstance(value, dict) and all(
            _matches(k, key) and _matches(v, item) for k, v in value.items()
        )
    if dataclasses.is_dataclass(annotation):
        return isinstance(value, dict | annotation)
    return isinstance(value, annotation)


@functools.cache
def _options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; anything else alone."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


def can_be_set(annotation: Any) -> bool:
    """Whether values of this type can be told from others: `_matches` knows it."""
    options, origin = _options(annotation), typing.get_origin(annotation)
    if len(options) > 1:
        return all(map(can_be_set, options))
    args = typing.get_args(annotation)
    if origin is Literal:
        return all(isinstance(one, bool | int | str | None) for one in args)
    if origin is tuple:
        return len(args) == 2 and args[1] is Ellipsis and can_be_set(args[0])
    if origin is dict:
        return all(map(can_be_set, args))
    is_plain = annotation in (Any, bool, int, float, str, dict, types.NoneType)
    return is_plain or (isinstance(annotation, type) and dataclasses.is_dataclass(annotation))


def converted(name: str, value: Any, annotation: Any, *, finite: bool = True) -> Any:
    """A value as a setting of this type keeps it: a number of numpy becomes Python's.

    Args:
        finite: whether numbers have to be ones that models compute with.

    Raises:
        ValueError: it is of another type, or has a number that is out of range.
    """
    _check_type(name, value, annotation)
    if finite:
        check_numbers(name, value)
    return _convert(value, annotation, name)


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """A value that matches its annotation, with nested mappings made into their dataclasses."""
    annotation = next(a for a in _options(annotation) if _matches(value, a))
    is_settings = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
    if is_settings and isinstance(value, dict):
        return from_mapping(annotation, value, where)
    if annotation in (float, int):
        return annotation(value)
    if typing.get_origin(annotation) is Literal:
        return next(one for one in typing.get_args(annotation) if one == value)
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        return tuple(_convert(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    return value


def plain(given: Any) -> Any:
    """An array or a tensor as numbers in lists; anything else as it is."""
    return given.tolist() if hasattr(given, "tolist") else given


def shown(value: Any, most: int = 100) -> str:
    """A value as an error shows it: not all of a long one, or of one that is nested deeply."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = most
    text = short.repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def unknown_setting(where: str, key: Any, known: Sequence[str]) -> ValueError:
    """The error that a key is not among the `known` ones, with the nearest of them."""
    near = difflib.get_close_matches(str(key)[:100], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return ValueError(f"{where}: unknown setting {shown(key)}; {hint}")


def _type_name(annotation: Any) -> str:
    options = _options(annotation)
    if len(options) > 1:
        return " | ".join(map(_type_name, options))
    if typing.get_origin(annotation) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    is_class = typing.get_origin(annotation) is None and isinstance(annotation, type)
    name = annotation.__name__ if is_class else str(annotation)
    return name.replace("NoneType", "null").replace("None", "null")


def _check_type(name: str, value: Any, annotation: Any) -> None:
    if not _matches(value, annotation):
        raise ValueError(f"{name} must be {_type_name(annotation)}, not {shown(value)}")


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def convert_fields(prefix: str, settings: Any) -> None:
    """Brings settings that were made directly to the types that parsed ones have.

    Args:
        prefix: what an error puts before a setting's name.

    Raises:
        ValueError: a setting is of another type, or has a number that is out of range.
    """
    for name, annotation in _hints(settings.__class__).items():
        value = converted(f"{prefix}{name}", getattr(settings, name), annotation)
        object.__setattr__(settings, name, value)


def needed_fields(cls: Any) -> list[str]:
    """Settings of a class that have no default."""
    unset = (dataclasses.MISSING, dataclasses.MISSING)
    return [f.name for f in dataclasses.fields(cls) if (f.default, f.default_factory) == unset]


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """Builds the frozen dataclass `cls` from a mapping, nested dataclasses included.

    Raises:
        ValueError: not a mapping, an unknown key (the nearest known one is named), a value of
            the wrong type, or one that the class itself refuses. `where` names the source.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping of settings, found {type(values).__name__}")
    assert dataclasses.is_dataclass(cls)
    hints = _hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise unknown_setting(where, key, sorted(known))
        name = f"{where}: {key}"
        parsed[key] = converted(name, value, hints[key])
    missing = [name for name in needed_fields(cls) if name not in parsed]
    if missing:
        raise ValueError(f"{where}: {' and '.join(missing)} must be given")
    try:
        return cls(**parsed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def settable_hints(
    where: str, annotated: Any, names: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The types of options by name.

    Args:
        annotated: what has the annotations.
        names: those that the annotations may use; default: of a class its module's.

    Raises:
        ValueError: a type is unknown, or one whose values cannot be set.
    """
    try:
        hints = typing.get_type_hints(annotated, globalns=names)
    except NameError as error:
        raise ValueError(f"{where}: a type of its options is unknown ({error})") from error
    for name, hint in hints.items():
        require(
            can_be_set(hint),
            f"{where}: its option {name} cannot be set: give it one of the types bool, int, float, "
            "str, Literal, tuple[X, ...], dict[str, X], or a union of them",
        )
    return hints


def class_of_parameters(where: str, function: Callable[..., Any]) -> type:
    """A frozen dataclass of a function's keyword parameters behind its first one.

    Raises:
        ValueError: one may be given without its name, has no type or one that cannot be set, or a
            default of another type.
    """
    parameters = [*inspect.signature(function).parameters.values()][1:]
    for one in parameters:
        good = one.kind is inspect.Parameter.KEYWORD_ONLY and one.annotation is not one.empty
        require(good, f"{where}: {one.name} must be keyword-only, with a type: *, x: int")
    # Types of the other annotations may be names that the module imports for a type checker alone.
    own = SimpleNamespace(__annotations__={one.name: one.annotation for one in parameters})
    hints = settable_hints(where, own, function.__globals__)
    fields: list[Any] = []
    for one in parameters:
        parts: tuple[Any, ...] = (one.name, hints[one.name])
        if one.default is not one.empty:
            name = f"{where}: the default of {one.name}"
            parts += (setting(converted(name, one.default, hints[one.name], finite=False), ""),)
        fields.append(parts)
    return dataclasses.make_dataclass(f"{function.__name__}_options", fields, frozen=True)


def changed(settings: T, name: str, value: Any, typed: str) -> T:
    """Settings with one of them changed by what somebody typed.

    Args:
        typed: how an error names the setting: `--iters`, not the `steps` that it stands for.

    Raises:
        ValueError: the class refuses the value.
    """
    check_numbers(typed, value)
    try:
        return dataclasses.replace(settings, **{name: value})  # type: ignore[type-var]
    except ValueError as error:
        reason = str(error)
        own = reason.startswith(f"{name} ")
        said = f"{typed}{reason.removeprefix(name)}" if own else f"{typed} {value}: {reason}"
        raise ValueError(said) from error


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_numbers(name: str, value: Any) -> None:
    """Raises ValueError unless every number in a setting's value is one that models compute with.

    Args:
        value: of any type; settings, lists and mappings are looked into.
    """
    if isinstance(value, numbers.Integral):
        too_large = f"{name} is too large a number: at most {LARGEST_INT}"
        require(abs(int(value)) <= LARGEST_INT, too_large)
    elif isinstance(value, numbers.Real):  # NaN is not below anything
        require(
            abs(float(value)) <= LARGEST_FLOAT,
            f"{name} must be a finite number within {LARGEST_FLOAT:.2g} (float32), not {value}",
        )
    elif isinstance(value, list | tuple):
        for item in value:
            check_numbers(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_numbers(f"{name} {shown(key)}", item)
    elif dataclasses.is_dataclass(value):
        for one in dataclasses.fields(value):
            check_numbers(f"{name} {one.name}".lstrip(), getattr(value, one.name))


def require_positive(config: Any, *names: str) -> None:
    """Raises ValueError unless each of these fields is unset or at least 1."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 1, f"{name} must be at least 1, not {value}")


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    known = ", ".join(choices)
    require(value in choices, f"{name} must be one of {known}, not {shown(value)}")
