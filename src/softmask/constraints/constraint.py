"""What form an answer has to have, as asked for: a kind and its source."""

import dataclasses
from typing import Literal, get_args

from .controls import MOST

Kind = Literal["regex", "json_schema", "json_object", "choice", "grammar", "tools"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclasses.dataclass(frozen=True)
class Constraint:
    """The form that an answer has to have. It is hashable, and checked when it is compiled.

    Attributes:
        kind: "regex": the whole answer matches, as by `re.fullmatch`. "json_schema": JSON that
            validates. "json_object": any JSON object. "choice": one of the given texts.
            "grammar": a text of a grammar in GBNF or Lark. "tools": calls of functions, as
            `tools.py` has them.
        source: The pattern, the schema as JSON, the texts as a JSON list, the grammar. Empty for
            "json_object".
        controls: Names of the control tokens that the source has marks for (`controls.py`).

    Raises:
        ValueError: There is no such kind, the source is no text, a "json_object" has one, or there
            are more control tokens than there are marks.
    """

    kind: Kind
    source: str = ""
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is no kind of constraint, choose from {KINDS}")
        if not isinstance(self.source, str):
            raise ValueError(
                f"the source of a constraint is a text, not of type {type(self.source).__name__}: "
                "json.dumps makes one of a schema or a list of choices"
            )
        if self.kind == "json_object" and self.source:
            raise ValueError("a constraint of kind 'json_object' takes no source")
        if len(self.controls) > MOST:
            raise ValueError(f"a form holds at most {MOST} different control tokens")
