"""What the programs of the clients share. They print what they got and fail by themselves."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel, Field

URL, MODEL, KEY = os.environ["URL"], os.environ["MODEL"], "none"
TEXT = "Name an animal."
TOOL = {
    "type": "function",
    "function": {
        "name": "legs_of",
        "description": "How many legs an animal has.",
        "parameters": {
            "type": "object",
            "properties": {"animal": {"type": "string", "enum": ["dog", "hen"]}},
            "required": ["animal"],
            "additionalProperties": False,
        },
    },
}


class Animal(BaseModel):
    """An animal, short enough for a small answer."""

    name: str = Field(max_length=8)
    legs: int = Field(ge=0, le=8)


def legs_of(animal: str) -> int:
    """How many legs an animal has.

    Args:
        animal: its name
    """
    return {"dog": 4, "hen": 2}.get(animal, 0)


def say(what: str, value: Any) -> None:
    """One line for the log; an empty value is a failure."""
    if value is None:
        raise SystemExit(f"{what}: nothing came back")
    print(f"{what}: {str(value)[:60]!r}", flush=True)
