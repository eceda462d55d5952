"""The messages that the judge and the candidate exchange: frames with a length, holding JSON.

A container is a list headed by a tag, and an object that is no plain data is a number that only
its owner can resolve. Both processes import this file by its own name, without the package, so it
needs the standard library only.
"""

from __future__ import annotations

import _collections
import builtins
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from types import NoneType

TYPE_CHECKING = False  # typing is not loaded beside a candidate
if TYPE_CHECKING:
    from typing import Any

REQUESTS_FD, REPLIES_FD = 3, 4
MAX_FRAME = 64 * 2**20
MAX_DEPTH = 100

# The program may patch the builtins of all others; functions keep those of their definition.
__builtins__ = dict(vars(builtins))  # type: ignore[assignment]

_dumps = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_DIRECT = {NoneType, bool, float, str}
_EMPTY: dict = {}
_KEYS, _ITEMS, _VALUES = (type(v) for v in (_EMPTY.keys(), _EMPTY.items(), _EMPTY.values()))


class NotPlain(ValueError):
    """A value that no message can hold."""


def write_frame(fd: int, message: object) -> None:
    """Send a message of JSON types.

    Raises NotPlain when it is too large, MemoryError, and OSError when the reader is gone.
    """
    # JSON would read two lone surrogates as one character if they were escaped.
    body = _dumps(message).encode("utf-8", "surrogatepass")
    if len(body) > MAX_FRAME:
        raise NotPlain(f"A value of {len(body)} bytes is too large.")
    data = memoryview(len(body).to_bytes(4, "big") + body)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> object:
    """Receive a message of JSON types.

    Raises EOFError when the other side is gone, ValueError or RecursionError for what is no
    message.
    """
    size = int.from_bytes(_read(fd, 4), "big")
    if size > MAX_FRAME:
        raise ValueError("The message is too large.")
    return json.loads(_read(fd, size).decode("utf-8", "surrogatepass"))


def _read(fd: int, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(fd, min(size - len(data), 2**20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def encode(value: Any, opaque: Callable[[object], int], depth: int = 0) -> object:
    """Return a value in JSON types: plain data as such, subclasses as their base.

    `opaque` numbers any other object, or raises. Raises NotPlain for data nested too deeply,
    such as a list that holds itself.
    """
    kind = type(value)
    if kind in _DIRECT:
        return value
    if depth > MAX_DEPTH:
        raise NotPlain("The value is nested too deeply.")

    def inner(parts: Iterable) -> list:
        return [p if type(p) in _DIRECT else encode(p, opaque, depth + 1) for p in parts]

    # By the type alone: an object can lie about its class, but then not pass as that class.
    if issubclass(kind, int):
        number = int.__int__(value)
        return number if -(2**63) < number < 2**63 else ["i", hex(number)]
    if issubclass(kind, float):
        return float.__float__(value)
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, list):
        return ["l", *inner(list.__iter__(value))]
    if issubclass(kind, tuple):
        return ["t", *inner(tuple.__iter__(value))]
    if issubclass(kind, dict):
        return ["d", *inner(part for item in dict.items(value) for part in item)]
    if issubclass(kind, set):
        return ["s", *inner(set.__iter__(value))]
    if issubclass(kind, frozenset):
        return ["f", *inner(frozenset.__iter__(value))]
    return _encode_rarer(value, kind, inner) or ["o", opaque(value)]


def _encode_rarer(value: Any, kind: type, inner: Callable[[Iterable], list]) -> object:
    if issubclass(kind, complex):
        return ["c", complex.real.__get__(value), complex.imag.__get__(value)]
    if issubclass(kind, bytes):
        return ["b", bytes.decode(value, "latin-1")]
    if issubclass(kind, bytearray):
        return ["B", bytearray.decode(value, "latin-1")]
    if kind is range:
        return ["r", *inner((value.start, value.stop, value.step))]
    if kind is _KEYS:
        return ["K", *inner(value)]
    if kind is _ITEMS:
        return ["I", *inner(part for item in value for part in item)]
    if kind is _VALUES:
        return ["V", *inner(value)]
    if issubclass(kind, _collections.deque):
        return ["q", *inner((value.maxlen, *_collections.deque.__iter__(value)))]
    # Only a program that uses these has imported them.
    if _is(kind, "fractions", "Fraction"):
        return ["F", *inner((value.numerator, value.denominator))]
    if _is(kind, "decimal", "Decimal"):
        return ["D", str(value)]
    if _is(kind, "numpy", "ndarray") and value.dtype.kind in "biufcU":
        return ["N", value.dtype.str, *inner([value.tolist()])]
    if _is(kind, "numpy", "generic") and value.dtype.kind in "biufcU":
        return inner([value.item()])[0] if value.dtype.itemsize <= 16 else None
    return None


def _is(kind: type, module: str, name: str) -> bool:
    known = getattr(sys.modules.get(module), name, None)
    return isinstance(known, type) and issubclass(kind, known)


def decode(data: object, resolve: Callable[[object], object]) -> object:
    """Return the value that `encode` was given; `resolve` finds an object by its number.

    Raises ValueError, TypeError, ArithmeticError, LookupError, RecursionError or ImportError
    (an array, and no numpy here) for what `encode` cannot have made.
    """
    if type(data) is not list:
        return data
    tag, *parts = data
    if tag == "o":
        return resolve(parts[0])
    plain = [decode(p, resolve) if type(p) is list else p for p in parts]
    return plain if tag == "l" else _DECODERS[tag](plain)


def _pairs(parts: Sequence) -> dict:
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _deque(parts: Sequence) -> object:
    return _collections.deque(parts[1:], parts[0])


def _fraction(parts: Sequence) -> object:
    from fractions import Fraction

    return Fraction(*parts)


def _decimal(parts: Sequence) -> object:
    from decimal import Decimal

    return Decimal(parts[0])


def _array(parts: Sequence) -> object:
    import numpy

    dtype = numpy.dtype(str(parts[0]))
    if dtype.kind not in "biufcU":
        raise ValueError("An array of this kind cannot have been sent.")
    return numpy.array(parts[1], dtype)


_DECODERS: dict[str, Callable[[Sequence], object]] = {
    "i": lambda parts: int(parts[0], 16),
    "t": tuple,
    "d": _pairs,
    "s": set,
    "f": frozenset,
    "c": lambda parts: complex(*parts),
    "b": lambda parts: parts[0].encode("latin-1"),
    "B": lambda parts: bytearray(parts[0], "latin-1"),
    "r": lambda parts: range(*parts),
    "K": lambda parts: dict.fromkeys(parts).keys(),
    "I": lambda parts: _pairs(parts).items(),
    "V": lambda parts: dict(enumerate(parts)).values(),
    "q": _deque,
    "F": _fraction,
    "D": _decimal,
    "N": _array,
}
