"""The shapes of requests and answers over HTTP: OpenAI's, and one key `softmask` beside them.

The types of what is implemented; `fields.py` says what each field does, and has all others that
clients send.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from ..config import (
    FEEDBACK_HELP,
    FEEDBACK_PRESETS,
    SamplingConfig,
    SoftMaskConfig,
    from_mapping,
    require,
    require_choice,
    setting,
)
from ..decoding.control_names import half_character
from ..sampling import TOP_K_OFF
from .fields import known, unknown
from .messages import Messages
from .strict import Asked, Strict, Text, check_json, require_few, wrong
from .structured import Structured
from .tools import Choice, NamedTool, Tool, Tools, check_choice, choice_of

MOST_TEXTS = 64  # n times prompts
MOST_STOPS = 16
MOST_TOP = 20
MOST_VARIABLES = 32  # of a chat template
MOST_LOGGED = 256  # characters of a name that a client has for something
MOST_SEED = 2**63 - MOST_TEXTS  # text i draws from seed + i
# Settings of the loop that have a field of OpenAI's or vLLM's.
TOP_SAMPLING = ("temperature", "top_p", "top_k", "min_p")


@dataclass(frozen=True)
class SoftMaskChanges(SoftMaskConfig):
    """Parameters of a request: those that change, of a preset or of the server's own settings."""

    # In place of the property of this name, which is of whole settings.
    feedback: str | None = setting(None, FEEDBACK_HELP)  # type: ignore[assignment]


def _soft_mask(value: Any) -> Any:
    """As `choose_soft_mask` takes it; a mapping is checked here, where errors name the field."""
    if isinstance(value, dict):
        where = "softmask.soft_mask"
        asked = from_mapping(SoftMaskChanges, value, where)
        if asked.feedback is not None:
            require_choice(f"{where}: feedback", asked.feedback, tuple(FEEDBACK_PRESETS))
    else:
        plain = isinstance(value, bool | SoftMaskConfig)
        known = value is None or plain or value in ("checkpoint", *FEEDBACK_PRESETS)
        require(
            known,
            "soft_mask must be true, false, null, 'checkpoint', a preset "
            f"({', '.join(FEEDBACK_PRESETS)}) or parameters",
        )
    return value


SoftMaskField = Annotated[
    Any,
    PlainValidator(
        _soft_mask,
        json_schema_input_type=Literal["checkpoint", *FEEDBACK_PRESETS]
        | bool
        | SoftMaskChanges
        | None,
    ),
]


_sampling_fields: Any = {
    field.name: (
        typing.get_type_hints(SamplingConfig)[field.name] | None,
        Field(None, description=field.metadata["help"]),
    )
    for field in dataclasses.fields(SamplingConfig)
    if field.name not in ("temperature", "top_p")
}


class _Extension(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    soft_mask: SoftMaskField = Field(
        "checkpoint",
        description="the checkpoint's parameters, a preset's by its name, those that change (of "
        "the preset `feedback`), or null: plain decoding",
    )
    deadline: float | None = Field(
        None, gt=0, le=86400, description="seconds after which the request is given up"
    )

    @model_validator(mode="before")
    @classmethod
    def _known_alone(cls, values: Any) -> Any:
        if isinstance(values, dict):
            require_few(values)
            for name in values:
                if name not in cls.model_fields and half_character(name) is None:
                    raise wrong(name, unknown(name, cls.model_fields))
        return values


if TYPE_CHECKING:
    Extension = _Extension
else:
    # The settings of decoding, read off the dataclass that explains them.
    Extension = create_model("Extension", __base__=_Extension, **_sampling_fields)


Logged = Annotated[Text, Field(max_length=MOST_LOGGED)]


class StreamOptions(Strict):
    kind = "stream_options"

    include_usage: bool = False
    continuous_usage_stats: bool = False


# Counted before they are walked through.
Variables = Annotated[dict[str, Any], Field(max_length=MOST_VARIABLES), AfterValidator(check_json)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


Stops = Annotated[
    list[Stop],
    Field(max_length=MOST_STOPS, fail_fast=True),
    BeforeValidator(_as_list, json_schema_input_type=Stop | list[Stop]),
]


class Shared(Asked):
    """What all requests have."""

    model: Text | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=min(TOP_K_OFF))
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=0, lt=MOST_SEED)
    cache_salt: Annotated[Text, Field(min_length=1, max_length=MOST_LOGGED)] | None = None
    softmask: Extension = Field(default_factory=Extension)


class OpenAIRequest(Shared, Structured):
    """What chat and completions share."""

    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n_predict: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1, le=MOST_TEXTS)
    stop: Stops = Field(default_factory=list)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Logged | None = None
    safety_identifier: Logged | None = None
    request_id: Logged | None = None
    session_id: Logged | None = None

    @property
    def new_tokens(self) -> int | None:
        """How many tokens are to be written; None: the server's default."""
        names = (self.max_tokens, self.max_completion_tokens, self.n_predict)
        return next((one for one in names if one is not None), None)

    @property
    def sends_usage(self) -> bool:
        """Whether a stream ends with the count of its tokens."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def counts_along(self) -> bool:
        """Whether each event of a stream counts tokens."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def log_fields(self) -> dict[str, str]:
        """What the client says of itself, for the log."""
        names = [one.name for one in known(self.kind).values() if one.does == "logged"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _agrees(self) -> OpenAIRequest:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options need stream")
        names = ("max_tokens", "max_completion_tokens", "n_predict")
        given = [name for name in names if getattr(self, name) is not None]
        if len({getattr(self, name) for name in given}) > 1:
            raise ValueError(f"{' and '.join(given)} are the same: give one of them")
        return self


TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class Conversed(Asked):
    """What may begin with a conversation, and how the chat template writes it."""

    messages: Messages | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Variables = Field(default_factory=dict)

    @property
    def question(self) -> str:
        """What is to be answered: the last message but for one that the answer goes on with."""
        assert self.messages is not None
        own = self.continue_final_message and len(self.messages) > 1
        return self.messages[-2 if own else -1].text

    @property
    def template_options(self) -> dict[str, Any]:
        """As `Service.conversation` takes them."""
        return {
            "begins_answer": self.add_generation_prompt,
            "continues": self.continue_final_message,
            "variables": self.chat_template_kwargs,
        }

    @model_validator(mode="after")
    def _is_open(self) -> Self:
        if self.messages is None:
            for name in ("add_generation_prompt", "continue_final_message", "chat_template_kwargs"):
                usual = Conversed.model_fields[name].get_default(call_default_factory=True)
                if getattr(self, name) != usual:
                    raise wrong(name, "it says how messages are written, and there are none")
        elif self.continue_final_message:
            last = self.messages[-1]
            require(
                last.role == "assistant" and not last.tool_calls,
                "continue_final_message goes on with what the assistant said last: end with a "
                "message of role assistant, without calls",
            )
            # Its default is true, so whoever leaves it out has not asked for it.
            begins = self.add_generation_prompt and "add_generation_prompt" in self.model_fields_set
            require(
                not begins,
                "add_generation_prompt begins another message than the one that "
                "continue_final_message goes on with: give one of them",
            )
        return self


class ChatRequest(OpenAIRequest, Conversed):
    """POST /v1/chat/completions."""

    kind = "chat"

    messages: Messages
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    reasoning_effort: Text | None = None
    tools: Tools = Field(default_factory=list)
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool = True

    @property
    def template_options(self) -> dict[str, Any]:
        """As `Service.conversation` takes them."""
        own = {} if self.reasoning_effort is None else {"reasoning_effort": self.reasoning_effort}
        return super().template_options | {"variables": own | self.chat_template_kwargs}

    @property
    def must_call(self) -> bool:
        """Whether a tool has to be called."""
        return choice_of(self.tool_choice)[0] == "required"

    @property
    def offered(self) -> list[Tool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools

    @property
    def allowed(self) -> list[Tool]:
        """Those of them that it may call."""
        _, chosen = choice_of(self.tool_choice)
        return [one for one in self.offered if not chosen or one.function.name in chosen]

    @property
    def calls_several(self) -> bool:
        """Whether it may call more than once; who names one function wants one call of it."""
        return self.parallel_tool_calls and not isinstance(self.tool_choice, NamedTool)

    @model_validator(mode="after")
    def _has_tools(self) -> ChatRequest:
        check_choice([tool.function.name for tool in self.tools], self.tool_choice)
        return self

    @model_validator(mode="after")
    def _has_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs need logprobs")
        return self

    @property
    def top(self) -> int | None:
        """How many leading tokens to report; None: no log-probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _form(prompt: Any) -> str | None:
    """Which of its forms a prompt has, by its beginning: an error is then one of that form."""
    if isinstance(prompt, str):
        return "a text"
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    forms = {str: "some texts", int: "token ids", list: "lists of token ids"}
    return forms.get(type(first))


Texts = Annotated[list[Text], Field(min_length=1, fail_fast=True)]
ManyIds = Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)]
PromptField = Annotated[
    Annotated[Text, Tag("a text")]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[Texts, Tag("some texts")]
    | Annotated[ManyIds, Tag("lists of token ids")],
    Discriminator(
        _form,
        custom_error_type="prompt_form",
        custom_error_message="a prompt is a text, a list of texts, token ids or lists of them",
    ),
]


class CompletionRequest(OpenAIRequest):
    """POST /v1/completions. With `suffix` the text between the two is filled in."""

    kind = "completions"

    prompt: PromptField
    suffix: Text | None = None
    # None but the echo.
    max_tokens: int | None = Field(None, ge=0)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)

    @field_validator("prompt", mode="before")
    @classmethod
    def _few(cls, prompt: Any) -> Any:
        """Counted before each is looked at."""
        if isinstance(prompt, list) and len(prompt) > MOST_TEXTS and not isinstance(prompt[0], int):
            raise ValueError(f"{len(prompt)} prompts are too many texts: at most {MOST_TEXTS}")
        return prompt

    @model_validator(mode="after")
    def _says_something(self) -> CompletionRequest:
        if self.new_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0 with echo alone: else nothing is written")
        if self.new_tokens == 0 and self.constraint is not None:
            raise ValueError("max_tokens is 0, so nothing is written that could have the form")
        if self.echo and self.suffix:
            raise ValueError("echo and suffix do not go together: put the texts together yourself")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # type: ignore[list-item,return-value]

    @property
    def top(self) -> int | None:
        """How many leading tokens to report; None: no log-probabilities at all."""
        return self.logprobs


class DenoiseRequest(Shared, Structured, Conversed):
    """POST /v1/denoise: every step of one text; one of the first three fields.

    `messages` and `infill` together are a conversation, and its next answer but for the holes.
    """

    kind = "denoise"

    prompt: Text | None = None
    infill: Text | None = None
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
        return self
