"""The shapes of requests and answers over HTTP: OpenAI's, and one key `softmask` beside them.

A field that is not implemented is refused by name; one that says what happens anyway (a penalty
of 0, null) is let through. Types are checked strictly: "5" is no number.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    create_model,
    field_validator,
    model_validator,
)

from ..config import TOP_K_OFF, SamplingConfig, SoftMaskConfig, from_mapping, require
from ..decoding.control_names import half_character

# What OpenAI's parameters are when they change nothing.
NEUTRAL: dict[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "best_of": 1,
    "echo": False,
    "store": False,
    "tools": [],
    "modalities": ["text"],
    "response_format": {"type": "text"},
}
MOST_TEXTS = 64  # n times prompts
MOST_STOPS = 4
MOST_FIELDS = 100  # of one object
MOST_TOP = 20
MOST_SEED = 2**63 - MOST_TEXTS  # text i draws from seed + i
# Settings of the loop that have a field of OpenAI's.
OPENAI_SAMPLING = ("temperature", "top_p")


def _require_few(values: dict[str, Any]) -> None:
    """One sentence on a hundred thousand unknown fields, not one on each."""
    require(len(values) <= MOST_FIELDS, f"{len(values)} fields are too many: at most {MOST_FIELDS}")


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, values: Any) -> Any:
        """Leaves out what changes nothing; another value of the same field is refused by name."""
        if not isinstance(values, dict):
            return values
        _require_few(values)
        return {
            name: value
            for name, value in values.items()
            if value is not None
            and (name in cls.model_fields or name not in NEUTRAL or value != NEUTRAL[name])
        }


def _soft_mask(value: Any) -> Any:
    """As `choose_soft_mask` takes it; a mapping is checked here, where errors name the field."""
    if isinstance(value, dict):
        from_mapping(SoftMaskConfig, value, "softmask.soft_mask")
    else:
        plain = isinstance(value, bool | SoftMaskConfig)
        known = value is None or plain or value == "checkpoint"
        require(known, "soft_mask must be true, false, 'checkpoint', null or parameters")
    return value


SoftMaskField = Annotated[
    Any,
    PlainValidator(
        _soft_mask, json_schema_input_type=Literal["checkpoint"] | bool | SoftMaskConfig | None
    ),
]


_sampling_fields: Any = {
    field.name: (
        typing.get_type_hints(SamplingConfig)[field.name] | None,
        Field(None, description=field.metadata["help"]),
    )
    for field in dataclasses.fields(SamplingConfig)
    if field.name not in OPENAI_SAMPLING
}


class _Extension(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    soft_mask: SoftMaskField = Field(
        "checkpoint",
        description="the checkpoint's parameters, those that change, or null: plain decoding",
    )
    deadline: float | None = Field(
        None, gt=0, le=86400, description="seconds after which the request is given up"
    )

    @model_validator(mode="before")
    @classmethod
    def _few(cls, values: Any) -> Any:
        if isinstance(values, dict):
            _require_few(values)
        return values


if TYPE_CHECKING:
    Extension = _Extension
else:
    # The settings of decoding, read off the dataclass that explains them.
    Extension = create_model("Extension", __base__=_Extension, **_sampling_fields)


def _whole_characters(text: str) -> str:
    """JSON can name half a character (a lone surrogate), which is no text."""
    place = half_character(text)
    require(place is None, f"character {place} is half of one (a lone surrogate)")
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]


class StreamOptions(Strict):
    include_usage: bool = False


Stop = Annotated[Text, Field(min_length=1, max_length=256)]


class Shared(Strict):
    """What all requests have."""

    model: Text | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=MOST_SEED)
    softmask: Extension = Field(default_factory=Extension)

    @model_validator(mode="before")
    @classmethod
    def _without_top_k(cls, values: Any) -> Any:
        """A top_k that is off, where other servers have it, turns off the checkpoint's too."""
        top_k = values.get("top_k") if isinstance(values, dict) else None
        if type(top_k) is int and top_k in TOP_K_OFF:
            softmask = values.get("softmask") or {}
            if isinstance(softmask, dict):
                values = {**values, "softmask": {"top_k": None, **softmask}}
            values = {name: value for name, value in values.items() if name != "top_k"}
        return values


class OpenAIRequest(Shared):
    """What chat and completions share."""

    n: int = Field(1, ge=1, le=MOST_TEXTS)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] = Field(default_factory=list)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    @property
    def sends_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> OpenAIRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream")
        return self


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def text(self) -> str:
        """All of the content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)

    def as_template(self) -> dict[str, str]:
        """As chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


# One fault is enough: of a long list there could be a hundred thousand.
Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class ChatRequest(OpenAIRequest):
    """POST /v1/chat/completions."""

    messages: Messages
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs need logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise ValueError("max_tokens and max_completion_tokens are the same: give one of them")
        return self

    @property
    def new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def top(self) -> int | None:
        """How many leading tokens to report; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]


class CompletionRequest(OpenAIRequest):
    """POST /v1/completions. With `suffix` the text between the two is filled in."""

    prompt: Text | TokenIds | Texts | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
    suffix: Text | None = None
    max_tokens: int | None = Field(None, ge=1)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    @field_validator("prompt", mode="before")
    @classmethod
    def _few(cls, prompt: Any) -> Any:
        """Counted before each is looked at."""
        if isinstance(prompt, list) and len(prompt) > MOST_TEXTS and not isinstance(prompt[0], int):
            raise ValueError(f"{len(prompt)} prompts are too many texts: at most {MOST_TEXTS}")
        return prompt

    @property
    def prompts(self) -> list[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item,return-value]

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """How many leading tokens to report; None: no log-probabilities at all."""
        return self.logprobs


class DenoiseRequest(Shared):
    """POST /v1/denoise: every step of one text; one of the first three fields.

    `messages` and `infill` together are a conversation, and its next answer but for the holes.
    """

    prompt: Text | None = None
    messages: Messages | None = None
    infill: Text | None = Field(None, description="a text in which [[n]] is a hole of n tokens")
    max_tokens: int | None = Field(None, ge=1)
    candidates: int = Field(5, ge=1, le=MOST_TOP)
    stream: bool = True

    @model_validator(mode="after")
    def _one_text(self) -> DenoiseRequest:
        given = [name for name in ("prompt", "messages", "infill") if getattr(self, name)]
        if len(given) != 1 and given != ["messages", "infill"]:
            raise ValueError(
                "give exactly one of prompt, messages and infill, or messages and their answer as "
                "infill"
            )
        if self.infill and self.max_tokens is not None:
            raise ValueError("the holes of infill say how long they are: leave out max_tokens")
        return self
