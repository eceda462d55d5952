"""Objects of requests, checked strictly: "5" is no number, and no field is passed over unsaid.

A field that says what happens anyway (a penalty of 0, null) is let through, any other value of it
is refused by name: `fields.py` has them all.
"""

from __future__ import annotations

import json
import time
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from ..config import require
from ..decoding.control_names import half_character
from .fields import Kind, known, refusal

MOST_FIELDS = 100  # of one object
MOST_DEPTH = 100  # of JSON that a request brings
NAMED = "named_field"  # the type of `wrong`


def require_few(values: dict[str, Any]) -> None:
    """One sentence on a hundred thousand unknown fields, not one on each.

    Raises:
        ValueError: there are more than a request could have.
    """
    require(len(values) <= MOST_FIELDS, f"{len(values)} fields are too many: at most {MOST_FIELDS}")


def wrong(name: str, why: str) -> PydanticCustomError:
    """The error on a field, by a check of the whole object, whose place is the object's."""
    return PydanticCustomError(NAMED, "{why}", {"name": name, "why": why})


def _describe(schema: dict[str, Any], cls: type[Strict]) -> None:
    """Adds to a model's schema what each field does, and the fields that it leaves out."""
    properties = schema.setdefault("properties", {})
    for field in known(cls.kind).values():
        if field.does in ("implemented", "logged"):
            properties[field.name]["description"] = field.meaning
        elif field.does == "ignored":
            properties[field.name] = {"description": f"ignored: {field.meaning}"}
        else:
            values = {"enum": [None, *field.neutral]}
            properties[field.name] = {**values, "description": f"else: {field.meaning}"}


class Strict(BaseModel):
    """An object whose fields are those of the table in `fields.py`."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra=_describe)
    kind: ClassVar[Kind]

    @classmethod
    def _names(cls) -> set[str]:
        """The fields' names in requests, which may be words that Python keeps."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, values: Any) -> Any:
        """Leaves out what changes nothing; another value of the same field is refused by name."""
        if not isinstance(values, dict):
            return values
        require_few(values)
        fields, kept = known(cls.kind), {}
        for name, value in values.items():
            if value is None or (name in fields and fields[name].is_dropped(value)):
                continue
            if name not in cls._names() and half_character(name) is None:
                raise wrong(name, refusal(cls.kind, name))
            kept[name] = value
        return kept


class Asked(Strict):
    """A whole request."""

    _arrived: float = PrivateAttr(default_factory=time.monotonic)

    @property
    def arrived(self) -> float:
        """When it was read, in seconds of the monotonic clock: deadlines count from here."""
        return self._arrived


def _whole_characters(text: str) -> str:
    """JSON can name half a character (a lone surrogate), which is no text."""
    place = half_character(text)
    require(place is None, f"character {place} is half of one (a lone surrogate)")
    return text


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """The object: its texts are all of whole characters, at depths that one can walk through.

    Raises:
        ValueError: they are not, or it is nested too deeply.
    """
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        parts = [one.values() if isinstance(one, dict) else one for one in level]
        level = [part for inside in parts for part in inside if isinstance(part, dict | list)]
    require(not level, f"it is nested deeper than {MOST_DEPTH} levels")
    _whole_characters(json.dumps(value, ensure_ascii=False))
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]


def text_or_more(value: Any) -> str:
    """Which of two types a value is to be, so that an error is one of that type alone.

    The names have spaces: they are no part of a field's place.
    """
    return "a text" if isinstance(value, str) else "more than a text"


Text = Annotated[str, AfterValidator(_whole_characters)]
