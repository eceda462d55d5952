"""From a checked HTTP request to requests of the engine.

No HTTP here: `server.py` answers, `ray_serve.py` makes replicas.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import (
    BUNDLED,
    PromptKind,
    SamplingConfig,
    SoftMaskConfig,
    from_mapping,
    kinds_to_json,
    require,
)
from ..constraints.constraint import Constraint
from ..decoding.forms import binding
from ..decoding.generation import SoftMaskChoice, choose_soft_mask
from ..decoding.growing import Room
from ..decoding.healing import without_space
from ..decoding.prompts import (
    encode,
    encode_chat,
    encode_holes,
    encode_turn_end,
    first_ids,
    has_chat_template,
    last_ids,
    rules_of,
    with_chat_template,
)
from ..decoding.tool_syntax import ToolSyntax, tool_syntax
from ..models.checkpoint import Checkpoint
from ..rules import KINDS, names
from ..sampling import HOLE_BEGINS_WITH, merged
from .config import ServeConfig
from .encoder import Encoder
from .engine import Engine, Request, RequestHandle
from .errors import BeyondContext
from .messages import Message
from .protocol import (
    MOST_TEXTS,
    MOST_TOP,
    TOP_SAMPLING,
    ChatRequest,
    CompletionRequest,
    DenoiseRequest,
    OpenAIRequest,
    Shared,
)
from .tool_calls import Offered
from .tools import Tool, tools_constraint

LATE = 1e-6  # seconds of one that is late: the engine says so at once
OPTIONAL = {f.name for f in dataclasses.fields(SamplingConfig) if f.default is None}


@dataclass(frozen=True)
class Job:
    """A request of the engine, and what its text is.

    Args:
        start: where a text with holes begins.
        spaced: the text begins with the space at the prompt's end.
        tools: what may be called in it, where there may be calls.
    """

    request: Request
    infill: bool
    prompt_tokens: int
    start: int = 0
    spaced: bool = False
    tools: Offered | None = None


class Service:
    """A checkpoint on an engine, and how requests are put to it."""

    def __init__(self, checkpoint: Checkpoint, config: ServeConfig) -> None:
        if config.chat_template is not None:
            checkpoint = with_chat_template(checkpoint, config.chat_template)
        self.checkpoint, self.config = checkpoint, config
        self.soft_mask_of("checkpoint")  # refuses what the checkpoint does not have
        self.name = config.name or _name_of(checkpoint)
        self.engine = Engine(
            checkpoint.model,
            memory_mb=config.memory_mb,
            running=config.running,
            queue=config.queue,
            k=MOST_TOP,
            prefix_cache_mb=config.prefix_cache_mb,
        )
        self.encoder = Encoder(self.engine)  # calls `jobs` and `trace_job` in its thread

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return min(
            self.checkpoint.model.config.max_position_embeddings, self.engine.limits.positions
        )

    @property
    def description(self) -> dict[str, Any]:
        """What a client may want to know of the model."""
        soft_mask = self.soft_mask_of("checkpoint")
        return {
            "context": self.context,
            "chat": has_chat_template(self.checkpoint),
            "grows_holes": self.checkpoint.grows_holes,
            "soft_mask": None if soft_mask is None else dataclasses.asdict(soft_mask),
            "sampling": dict(self.checkpoint.sampling),
            "prompt_kinds": kinds_to_json(self.checkpoint.prompt_kinds),
            "rules": {kind: names(kind) for kind in KINDS},
            "max_tokens": self.config.max_tokens,
            "bundled": self.checkpoint.name == BUNDLED,
            "keyed": bool(self.config.api_keys),
        }

    def soft_mask_of(self, asked: SoftMaskChoice) -> SoftMaskConfig | None:
        """The feedback of a request: as asked, and else as this server's own settings say.

        Raises:
            ValueError: see `choose_soft_mask`.
        """
        usual = self.config.feedback or "checkpoint"
        return choose_soft_mask(asked, self.checkpoint.soft_mask, usual)

    def jobs(self, asked: OpenAIRequest) -> list[Job]:
        """The texts asked for: `n` of each prompt, next to each other.

        Raises:
            ValueError: one sentence on what cannot be done, and the field's name where it is one.
        """
        suffix: list[int] = []
        constraint, tools = asked.constraint, None
        if isinstance(asked, ChatRequest):
            self._check_count(1, asked.n)
            how = asked.template_options
            prompts = [self.conversation(asked.messages, asked.offered, **how)]
            if asked.offered:
                names = tuple(one.function.name for one in asked.allowed)
                tools = Offered(self._tools, names, is_formed=constraint is not None)
                constraint = tools_constraint(
                    self._tools,
                    asked.allowed,
                    required=asked.must_call,
                    parallel=asked.calls_several,
                    text=constraint,
                )
            kinds, spaced = [self.checkpoint.kind_of(asked.question)], [False]
        else:
            assert isinstance(asked, CompletionRequest)
            self._check_count(len(asked.prompts), asked.n)
            if asked.suffix:
                suffix = [*self._encode(asked.suffix, "suffix"), *last_ids(self.checkpoint)]
            texts = [self._heal(prompt) if suffix else (prompt, False) for prompt in asked.prompts]
            prompts = [self._prompt(prompt, suffix) for prompt, _ in texts]
            spaced = [moved for _, moved in texts]
            kinds = [self.checkpoint.kind_of(prompt) for prompt in asked.prompts]
        infill = bool(suffix)
        seed = self.seed_of(asked)
        top_logprobs = 0 if asked.top is None else max(1, asked.top)
        jobs = []
        alike = zip(prompts, kinds, spaced, strict=True)
        for index, (prompt, kind, moved) in enumerate(one for one in alike for _ in range(asked.n)):
            most = self._masks(asked.new_tokens, len(prompt) + len(suffix), kind)
            grows = infill and self.checkpoint.grows_holes
            masks = min(most, HOLE_BEGINS_WITH) if grows else most
            ids = (*prompt, *[self.checkpoint.model.mask_id] * masks, *suffix)
            request = self._request(
                asked,
                ids,
                kind,
                seed + index,
                constraint=constraint,
                infill=infill,
                most=most,
                endless=asked.ignore_eos,
                top_logprobs=top_logprobs,
                spaced=(len(prompt),) if moved else (),
            )
            jobs.append(Job(request, infill, len(prompt) + len(suffix), spaced=moved, tools=tools))
        return jobs

    def trace_job(self, asked: DenoiseRequest) -> Job:
        """The one text of a step-by-step request.

        Raises:
            ValueError: one sentence on what cannot be done.
        """
        ids: list[int] = []
        if asked.messages:
            ids = self.conversation(asked.messages, **asked.template_options)
        start, most = len(ids), 0
        spaced: tuple[int, ...] = ()
        if asked.infill:
            require(
                self.checkpoint.grows_holes or asked.max_tokens is None,
                "the holes of infill say how long they are: leave out max_tokens",
            )
            self._check_size(len(asked.infill.encode()), "infill")
            formed = asked.constraint is not None
            holed = encode_holes(
                self.checkpoint, asked.infill, control=False, formed=formed, raw=not asked.messages
            )
            ids += holed.ids
            spaced = tuple(start + column for column in holed.spaced)
            ids += encode_turn_end(self.checkpoint) if asked.messages else []
        elif not asked.messages:
            assert asked.prompt is not None  # one of the three is there
            ids = self._prompt(asked.prompt)
        said = asked.question if asked.messages else asked.infill or asked.prompt
        kind = self.checkpoint.kind_of(said or "")
        masks = ids.count(self.checkpoint.model.mask_id)
        if not asked.infill:
            masks = self._masks(asked.max_tokens, len(ids), kind)
            ids = [*ids, *[self.checkpoint.model.mask_id] * masks]
        elif self.checkpoint.grows_holes:
            most = self._masks(asked.max_tokens, len(ids) - masks, kind)
            most = max(most, masks) if asked.max_tokens is None else most
        infill, top_logprobs = bool(asked.infill), asked.candidates
        request = self._request(
            asked,
            tuple(ids),
            kind,
            self.seed_of(asked),
            constraint=asked.constraint,
            infill=infill,
            most=most,
            top_logprobs=top_logprobs,
            trace=True,
            spaced=spaced,
        )
        return Job(request, infill, len(ids) - masks, start)

    def submit(self, requests: Iterable[Request]) -> list[RequestHandle]:
        """Puts all of them into the engine's waiting queue, or none.

        Raises:
            ValueError, QueueFull, EngineClosed: see `Engine.submit`.
        """
        handles: list[RequestHandle] = []
        try:
            for request in requests:
                handles.append(self.engine.submit(request))
        except Exception:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    @functools.cached_property
    def _tools(self) -> ToolSyntax:
        return tool_syntax(self.checkpoint)

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), **how: Any
    ) -> list[int]:
        """Token ids of a conversation; `how`: more arguments of `encode_chat`.

        Raises:
            ValueError: it is too long or has no template, or what `encode_chat` refuses.
        """
        require(
            has_chat_template(self.checkpoint),
            f"{self.name} has no chat template: ask /v1/completions to go on with a text, or start "
            "the server with --chat-template FILE",
        )
        said, offered = ([one.as_template() for one in group] for group in (messages, tools))
        size = sum(len(message["content"].encode()) for message in said)
        calls = [message["tool_calls"] for message in said if "tool_calls" in message]
        if beside := [part for part in (calls, offered, how.get("variables")) if part]:
            size += len(json.dumps(beside, ensure_ascii=False).encode())
        self._check_size(size, "conversation")
        return encode_chat(self.checkpoint, said, offered or None, **how)

    def _prompt(self, prompt: str | Sequence[int], suffix: Sequence[int] = ()) -> list[int]:
        mask_id = self.checkpoint.model.mask_id
        if isinstance(prompt, str):
            prompt = [*first_ids(self.checkpoint), *self._encode(prompt, "prompt")]
        require(bool(prompt or suffix), "the prompt is empty: say something to go on from")
        require(mask_id not in prompt, "prompt: holes come through the field infill of /v1/denoise")
        size = self.checkpoint.model.config.vocab_size
        require(
            all(0 <= token < size for token in prompt),
            f"prompt: a token id lies outside of the model's vocabulary of {size}",
        )
        return list(prompt)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that a request brings."""
        return self._encode(text, "text")

    def _heal(self, prompt: str | list[int]) -> tuple[str | list[int], bool]:
        """A prompt before a hole without the space at its end, and whether it had one."""
        if isinstance(prompt, str):
            return without_space(self.checkpoint, prompt)
        return prompt, False

    def _encode(self, text: str, what: str) -> list[int]:
        self._check_size(len(text.encode()), what)
        return encode(self.checkpoint, text, control=False)

    def _check_count(self, prompts: int, n: int) -> None:
        """Looked at before anything is encoded: more could never be accepted."""
        most = min(MOST_TEXTS, self.engine.queue)
        require(
            prompts * n <= most,
            f"{prompts} prompts times n = {n} are too many texts: at most {most}",
        )

    def _check_size(self, size: int, what: str) -> None:
        """Refuses a text that cannot fit, however it is encoded, before that takes seconds."""
        most = self.context * self._longest
        require(
            size <= most,
            f"the {what} has {size} bytes, more than the context of {self.context} tokens can hold "
            f"({most} bytes at most)",
        )

    @functools.cached_property
    def _longest(self) -> int:
        """Bytes of text that a token may stand for: the normal form of a character has a quarter
        of another form's bytes at the least."""
        return 4 * max(len(token.encode()) for token in self.checkpoint.tokenizer.get_vocab())

    def _masks(self, asked: int | None, taken: int, kind: PromptKind) -> int:
        """How many masks a request gets; looked at before there are so many."""
        room = self.context - taken
        if asked == 0:  # the prompt alone is echoed
            if room < 0:
                raise self._beyond(f"the prompt has {taken}")
            return 0
        if room <= 0:
            raise self._beyond(f"the prompt has {taken}, and there is none left to fill")
        if asked is None:
            return min(kind.max_new_tokens or self.config.max_tokens, room)
        if asked > room:
            asks = f"the prompt has {taken}, and max_tokens is {asked}: ask for at most {room}"
            raise self._beyond(asks)
        return asked

    def _beyond(self, what: str) -> BeyondContext:
        # In OpenAI's words, by which clients know what they have to shorten.
        return BeyondContext(
            f"this model's maximum context length is {self.context} tokens; {what}"
        )

    def seed_of(self, asked: Shared) -> int:
        """The seed that is asked for, or one that is drawn."""
        return secrets.randbelow(2**31) if asked.seed is None else asked.seed

    def _request(
        self,
        asked: OpenAIRequest | DenoiseRequest,
        ids: tuple[int, ...],
        kind: PromptKind,
        seed: int,
        *,
        constraint: Constraint | None,
        infill: bool,
        top_logprobs: int,
        endless: bool = False,
        trace: bool = False,
        spaced: tuple[int, ...] = (),
        most: int = 0,
    ) -> Request:
        """A request; `most` tokens may have a hole whose length the model finds."""
        room, mask_id = None, self.checkpoint.model.mask_id
        steps = ids.count(mask_id)
        if infill and self.checkpoint.grows_holes:
            room = Room.for_hole(ids, mask_id, most, self.context)
            steps = room.rounds(ids, mask_id)
        extension = asked.softmask
        automaton, holes = binding(self.checkpoint, constraint, spaced, infill=infill or endless)
        request = Request(
            ids,
            self.sampling_of(asked, kind, steps),
            soft_mask=self.soft_mask_of(extension.soft_mask),
            # No end may be written: as in a hole.
            rules=rules_of(self.checkpoint, infill=infill or endless),
            seed=seed,
            deadline=self.seconds_left(asked.arrived, extension.deadline),
            top_logprobs=top_logprobs,
            trace=trace,
            constraint=automaton,
            holes=holes,
            room=room,
            cache_salt=asked.cache_salt or "",
        )
        self.engine.limits.check_form(request)  # here, as `submit` runs on the event loop
        return request

    def seconds_left(self, arrived: float, asked: float | None) -> float:
        """Seconds until a request is given up.

        Args:
            arrived: when it came, by the monotonic clock.
            asked: the seconds that it asks for.
        """
        limit = self.config.deadline
        left = min(asked or limit, limit) - (time.monotonic() - arrived)
        return max(left, LATE)

    def sampling_of(self, asked: Shared, kind: PromptKind, steps: int) -> SamplingConfig:
        """How a text is decoded that needs so many steps at most: as asked, and else as suits the
        kind of prompt."""
        given = asked.softmask.model_dump(exclude_unset=True, exclude={"soft_mask", "deadline"})
        # A null turns off what the checkpoint brings, where it can be off.
        given = {n: value for n, value in given.items() if value is not None or n in OPTIONAL}
        top = {name: getattr(asked, name) for name in TOP_SAMPLING}
        top = {name: value for name, value in top.items() if value is not None}
        for name, value in top.items():
            require(
                given.get(name) in (None, value),
                f"{name} and softmask.{name} are the same setting: give one of them",
            )
        given |= top
        values = {"steps": max(1, steps), **merged(kind.sampling, given)}
        return from_mapping(SamplingConfig, values, "softmask")


def _name_of(checkpoint: Checkpoint) -> str:
    """A name for clients, without the path of a folder on this machine."""
    if checkpoint.name == BUNDLED:
        return f"softmask-{BUNDLED}"
    return checkpoint.name.rstrip("/").rsplit("/", 1)[-1]
