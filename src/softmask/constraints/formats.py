"""Formats of strings, each a regex over characters that need no escape.

Each is a part of what the standard allows, without rare forms, so that every validator takes it.
What a schema names itself, a constant, may have the rare ones too.
"""

import datetime
import functools
import ipaddress
import re

from .forms import Form
from .regex import regex_form

_YEAR = r"[1-9]\d{3}"
# Divisible by four, and not by a hundred.
_LEAP = r"[1-9]\d(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    rf"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_HEX = "[0-9a-f]"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
# Two hyphens in a row mean an encoded name, which validators decode.
_LABEL = "[a-zA-Z0-9]{1,12}(?:-[a-zA-Z0-9]{1,12})?"
_HOST = rf"(?:{_LABEL}\.){{1,3}}[a-zA-Z]{{2,12}}"
_URI = (
    rf"https?://{_HOST}(?::[1-9]\d{{0,3}})?(?:/[\w.~!$&'()*+,;=:@-]+)*/?"
    r"(?:\?[\w.~!$&'()*+,;=:@/?-]+)?(?:#[\w.~!$&'()*+,;=:@/?-]+)?"
)


def _uuid(version: str) -> str:
    return rf"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ab]{_HEX}{{3}}-{_HEX}{{12}}"


_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    # Of a part alone, as `timedelta` writes days, or hours, minutes and seconds.
    "duration": r"P(?:\d{1,4}D|(?:\d{1,4}D)?T(?:\d{1,2}H(?:\d{1,2}M(?:\d{1,2}S)?)?"
    r"|\d{1,2}M(?:\d{1,2}S)?|\d{1,4}S))",
    "uuid": rf"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    **{f"uuid{version}": _uuid(version) for version in "1345678"},
    "email": rf"[\w+-]{{1,24}}(?:\.[\w+-]{{1,24}})?@{_HOST}",
    "hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": rf"{_HEX}{{1,4}}(?::{_HEX}{{1,4}}){{7}}|::1|{_HEX}{{1,4}}(?::{_HEX}{{1,4}}){{0,2}}::",
    "uri": _URI,
    "json-pointer": r"(?:/[\w.:@+-]*)*",
}
_SAME = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "uri-reference": "uri",
    "iri-reference": "uri",
}
# Those of the standard that nothing here writes. Others say nothing, as the standard has it.
_REFUSED = frozenset({"regex", "uri-template", "relative-json-pointer"})


_NO_URI = r"\s<>\"{}|\\^`"
# Where more is of a format than is written freely.
_ALSO = {
    "date": r"\d{4}-\d\d-\d\d",
    "time": r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(z|[+-]([01]\d|2[0-3]):[0-5]\d)",
    "duration": r"P(?=.)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?)",
    "email": r".+@[^@\s]+",
    "hostname": r"(?=.{1,253}$)(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*",
    "idn-hostname": r"[^\s@/]+",
    "uri": rf"[a-z][a-z0-9+.-]*:[^{_NO_URI}]*",
    "uri-reference": rf"[^{_NO_URI}]*",
    "iri-reference": rf"[^{_NO_URI}]*",
    "json-pointer": r"(/([^~/]|~[01])*)*",
}


def format_form(name: str) -> Form | None:
    """The strings of a format, without quotes; None where the name restricts nothing.

    Raises:
        ValueError: The format is one of the standard's that are not supported.
    """
    _check(name)
    name = _SAME.get(name, name)
    # Names are what clients make up: nothing is kept of those that restrict nothing.
    return _form(name) if name in _PATTERNS else None


def _check(name: str) -> None:
    if name in _REFUSED:
        raise ValueError(f"format {name!r} is not supported")


@functools.cache
def _form(name: str) -> Form:
    return regex_form(f"(?a:{_PATTERNS[name]})")


def is_of_format(text: str, name: str) -> bool:
    """Whether a text is of a format, rare forms included; any is of one that restricts nothing.

    Raises:
        ValueError: as for `format_form`.
    """
    _check(name)
    name = name if name in _ALSO else _SAME.get(name, name)
    if name == "date-time":
        date, _, time = text.upper().partition("T")
        return is_of_format(date, "date") and is_of_format(time, "time")
    if name == "ipv6":
        return _is_ipv6(text)
    pattern = _ALSO.get(name, _PATTERNS.get(name))
    if pattern is None:
        return True
    if re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE) is None:
        return False
    return name != "date" or _is_day(text)


def _is_day(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text.replace("0000-", "2000-", 1))  # as long a year
    except ValueError:
        return False
    return True


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return "%" not in text
