"""Text in, text out: prompts and holes become a canvas, denoise() fills it, tokens become text."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ..config import (
    FEEDBACK_PRESETS,
    PromptKind,
    SamplingConfig,
    SoftMaskConfig,
    from_mapping,
    require,
    require_choice,
    shown,
)
from ..constraints.constraint import Constraint
from ..constraints.token_automaton import TokenAutomaton
from ..models.checkpoint import Checkpoint
from ..rules import by_name
from ..sampling import merged
from .arguments import as_count, check_keywords, row_seeds
from .forms import binding
from .growing import Room
from .prompts import (
    Prompt,
    decode_answer,
    encode,
    encode_chat,
    encode_holes,
    first_ids,
    has_chat_template,
    is_token_ids,
    known_ids,
    read_prompts,
    rules_of,
)
from .sampler import DenoiseStep, denoise

# Far more than one forward holds, and few enough for a list of each row's tokens.
MOST_ROWS = 4096
NEW_TOKENS = 128  # masks behind a prompt where nothing is said
# A str is "checkpoint" or a name of FEEDBACK_PRESETS.
SoftMaskChoice = SoftMaskConfig | Mapping[str, Any] | str | bool | None


def choose_soft_mask(
    asked: SoftMaskChoice, own: SoftMaskConfig | None, usual: SoftMaskChoice = "checkpoint"
) -> SoftMaskConfig | None:
    """The soft-mask settings that are meant; None: plain decoding.

    Args:
        asked: "checkpoint": its own, where it has some; True: its own; False or None: plain; a
            mapping: its own with these fields of SoftMaskConfig changed, or where it has a key
            `feedback` those of this preset; the name of a preset; or all settings.
        own: the checkpoint's.
        usual: what stands for the checkpoint's own where no preset is named.

    Raises:
        ValueError: the checkpoint has none where some are needed, or an unknown or wrong setting.
    """
    if asked is None or asked is False:
        return None
    if isinstance(asked, SoftMaskConfig):
        return asked
    if isinstance(asked, str) and asked in FEEDBACK_PRESETS:
        return choose_soft_mask(FEEDBACK_PRESETS[asked], own)
    base = own if usual == "checkpoint" else choose_soft_mask(usual, own)
    if isinstance(asked, Mapping):
        changes = by_name(asked)
        preset = changes.pop("feedback", None)
        if preset is not None:
            require_choice("feedback", preset, tuple(FEEDBACK_PRESETS))
            base = choose_soft_mask(preset, own)
            if not changes:
                return base
            require(
                base is not None,
                f"feedback {preset} and {', '.join(changes)} of soft_mask contradict each other",
            )
        if base is None and "scale" not in changes:
            raise ValueError("this checkpoint has no soft-mask parameters: give a scale too")
        values = {} if base is None else dataclasses.asdict(base)
        return from_mapping(SoftMaskConfig, values | changes, "soft_mask")
    require(
        asked is True or asked == "checkpoint",
        f"soft_mask must be True, False, 'checkpoint', a preset ({', '.join(FEEDBACK_PRESETS)}), a "
        f"mapping or SoftMaskConfig, not {asked!r}",
    )
    require(
        base is not None or asked is not True,
        "this checkpoint has no soft-mask parameters: give another preset of feedback, such as "
        "spherical, or load an adapter with some",
    )
    return base


@dataclass(frozen=True)
class Completion:
    """One finished row. `text` ends before the end token; of an infilling it is the whole text.

    `steps` and `forwards` are those that the row took part in: what it would have cost alone.
    `mean_lambda` is the weight of the feedback over its steps and the masks that took part; None:
    plain decoding.
    """

    text: str
    prompt: str
    seed: int
    token_ids: tuple[int, ...]
    finish_reason: Literal["stop", "length"]
    steps: int
    forwards: int
    seconds: float
    mean_lambda: float | None


class Generation:
    """One call: iterate for the steps, then read `completions()`.

    Args:
        prompts: one prompt or a list of them. A prompt is a text, a conversation (a list of
            messages `{"role": ..., "content": ...}`, or one message), or token ids (a list, an
            array or a tensor), which are taken as they are.
        max_new_tokens: masks behind each prompt; the answer may end before. None: what suits the
            kind of prompt by the checkpoint's file, else 128. Of `infill` the most tokens of a hole
            whose length the model finds; other holes have the length that is written.
        sampling: a SamplingConfig, or some of its fields; the others are the checkpoint's own
            for this kind of prompt (`Checkpoint.kind_of`), and steps default to one for each mask
            of a row.
        soft_mask: "checkpoint" takes the checkpoint's parameters; False or None decodes plainly; a
            mapping changes some of them; "spherical" and "rcd" are presets for any checkpoint. See
            `choose_soft_mask`.
        seed: row i draws from seed + i, whatever stands beside it; None picks one; several: one
            for each row.
        num_return_sequences: rows per prompt, next to each other.
        chat: whether the prompts pass through the chat template; None: if the tokenizer has one.
        system: a system message for the chat template.
        infill: the prompts are whole texts with holes `[[n]]` of n tokens. A model that
            `grows_holes` takes one, which begins with n masks.
        constraint: the form that each answer must have, or, of an infilling, the text from its
            first hole to its last.

    Raises:
        ValueError: an empty prompt, no hole to fill, a system message without a chat template,
            prompts of kinds that want different settings, a count below 1, a seed out of range,
            a form that is malformed or too large, or what `denoise` refuses.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        soft_mask: SoftMaskChoice = "checkpoint",
        seed: int | Sequence[int] | None = None,
        num_return_sequences: int = 1,
        chat: bool | None = None,
        system: str | None = None,
        infill: bool = False,
        constraint: Constraint | None = None,
    ) -> None:
        num_return_sequences = as_count("num_return_sequences", num_return_sequences)
        self.checkpoint = checkpoint
        self.tokenizer = checkpoint.tokenizer
        self.mask_id = checkpoint.model.mask_id
        self.infill, self.form = infill, constraint
        require(
            constraint is None or isinstance(constraint, Constraint),
            f"constraint must be a softmask.Constraint, not {shown(constraint)}",
        )
        rows: Any
        rows, is_single = read_prompts(prompts)
        self.is_single = is_single and num_return_sequences == 1
        has_template = has_chat_template(checkpoint)
        chat = has_template and not infill if chat is None else chat
        require(
            not (infill and chat), "holes are filled in where they stand: leave out chat, or infill"
        )
        if chat and not has_template:
            raise ValueError("this tokenizer has no chat template: pass the prompt as raw text")
        if system is not None and not chat:
            raise ValueError("a system message needs the chat template")
        # Whether a text goes on where its prompt ends, in place of answering it.
        self.continues = not chat and not infill
        kind = PromptKind()
        if not isinstance(sampling, SamplingConfig) or max_new_tokens is None:
            kind = self._kind(rows)
        grows, says_most = infill and checkpoint.grows_holes, max_new_tokens is not None
        if max_new_tokens is None:
            max_new_tokens = kind.max_new_tokens or NEW_TOKENS
        max_new_tokens = as_count("max_new_tokens", max_new_tokens)
        # Before there are so many: what follows holds every token of every row.
        context = checkpoint.model.config.max_position_embeddings
        require(
            infill or max_new_tokens <= context,
            f"max_new_tokens is {max_new_tokens}, but the model's context is {context}",
        )
        require(
            len(rows) * num_return_sequences <= MOST_ROWS,
            f"at most {MOST_ROWS} texts at once, not {len(rows) * num_return_sequences}: ask again "
            "for the others",
        )
        self.prompts = [prompt for prompt in rows for _ in range(num_return_sequences)]
        self._spaced: list[tuple[int, ...]] = []  # of each prompt, the holes behind a space
        rows = [self._row(prompt, chat, system) for prompt in rows]
        self._spaced = [one for one in self._spaced for _ in range(num_return_sequences)]
        if not infill:
            rows = [row + [self.mask_id] * max_new_tokens for row in rows]
        self.rows: list[list[int]] = [row for row in rows for _ in range(num_return_sequences)]
        self.soft_mask = choose_soft_mask(soft_mask, checkpoint.soft_mask)
        masks_B = [row.count(self.mask_id) for row in self.rows]
        self.rooms, steps_B = list[Room](), masks_B
        if grows:
            for row, masks in zip(self.rows, masks_B, strict=True):
                most = max_new_tokens if says_most else max(max_new_tokens, masks)
                self.rooms.append(Room.for_hole(row, self.mask_id, most, context))
            rooms = zip(self.rooms, self.rows, masks_B, strict=True)
            steps_B = [max(masks, room.rounds(row, self.mask_id)) for room, row, masks in rooms]
        self._steps_B = None
        if not isinstance(sampling, SamplingConfig):
            require(
                sampling is None or isinstance(sampling, Mapping),
                f"sampling must be a mapping or a SamplingConfig, not {shown(sampling)}",
            )
            settings = merged(kind.sampling, by_name(sampling or {}))
            if "steps" not in settings:  # as many as each row needs
                settings["steps"], self._steps_B = max(steps_B), steps_B
            sampling = from_mapping(SamplingConfig, settings, "sampling")
        self.sampling, self.suited = sampling, kind.sampling
        self.seeds = row_seeds(seed, len(self.rows))
        self._constrain()
        self._make_canvas()
        self.last: DenoiseStep | None = None
        self._failure: str | None = None
        self.seconds = 0.0
        self._lambda_B = torch.zeros(
            len(self.rows), dtype=torch.float32, device=self.canvas_BL.device
        )
        self._fed_B = [0] * len(self.rows)
        self._full_B: list[int | None] = [None] * len(self.rows)  # steps until a row was full
        self._steps = self._denoise()

    def _kind(self, prompts: Sequence[Prompt]) -> PromptKind:
        """What suits all these prompts."""
        first, *others = [self.checkpoint.kind_of(prompt) for prompt in prompts]
        require(
            all(other == first for other in others),
            "this checkpoint decodes these kinds of prompts differently: ask for each kind by "
            "itself, or give max_new_tokens and sampling as a SamplingConfig",
        )
        return first

    def _constrain(self) -> None:
        """The form of each row: what is asked for, or what begins with the space before a hole."""
        self.constraints: list[TokenAutomaton | None] = []
        self.holes: list[tuple[int, ...] | None] = []
        for columns in self._spaced or [()] * len(self.prompts):
            automaton, holes = binding(self.checkpoint, self.form, columns, infill=self.infill)
            self.constraints.append(automaton)
            self.holes.append(holes)

    def _row(self, prompt: Any, chat: bool, system: str | None) -> list[int]:
        if is_token_ids(prompt):
            require(not self.infill, "token ids have no holes: give texts, or fill in by `denoise`")
            require(system is None, "token ids are taken as they are: put the system message there")
            return known_ids(self.checkpoint, prompt)
        if isinstance(prompt, str) and self.infill:
            holed = encode_holes(self.checkpoint, prompt, formed=self.form is not None)
            self._spaced.append(holed.spaced)
            return holed.ids
        if isinstance(prompt, str) and not chat:
            return [*first_ids(self.checkpoint), *encode(self.checkpoint, prompt)]
        require(
            not self.infill and chat,
            "a conversation is answered through the chat template: no holes, no raw text",
        )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if system is not None:
            messages = [{"role": "system", "content": system}, *messages]
        return encode_chat(self.checkpoint, messages)

    def _make_canvas(self) -> None:
        """Left-pads the rows, so that new tokens stand in the same columns; those that may grow
        have their padding on the right."""
        device, rows = self.checkpoint.model.device, self.rows
        longest = max([*map(len, rows), *(room.columns for room in self.rooms)])
        pads = [longest - len(row) for row in rows]
        self.starts = [0] * len(rows) if self.rooms else pads
        end = self.checkpoint.end_ids[0] if self.checkpoint.end_ids else 0
        canvas = [[end] * start + row for start, row in zip(self.starts, rows, strict=True)]
        canvas = [row + [end] * (longest - len(row)) for row in canvas]
        self.canvas_BL = torch.tensor(canvas, device=device)
        self.attention_mask_BL = None
        if any(pads):
            columns = torch.arange(longest, device=device)
            first_B, length_B = (
                torch.tensor(values, device=device)[:, None]
                for values in (self.starts, [len(row) for row in rows])
            )
            real_BL = (columns >= first_B) & (columns < first_B + length_B)
            self.attention_mask_BL = real_BL.long()

    def _denoise(self) -> Iterator[DenoiseStep]:
        generators = None
        if self.sampling.is_random:
            generators = [
                torch.Generator(self.canvas_BL.device).manual_seed(seed) for seed in self.seeds
            ]
        return denoise(
            self.checkpoint.model,
            self.canvas_BL,
            self.sampling,
            steps_B=self._steps_B,
            attention_mask_BL=self.attention_mask_BL,
            soft_mask=self.soft_mask,
            rules=rules_of(self.checkpoint, infill=self.infill),
            generators=generators,
            constraint=self.constraints,
            holes_B=self.holes,
            room_B=self.rooms or None,
        )

    def __iter__(self) -> Iterator[DenoiseStep]:
        while (step := self._next()) is not None:
            yield step
            if not any(step.left_B):
                break

    def _next(self) -> DenoiseStep | None:
        """The next step; None: there is none.

        Raises:
            RuntimeError: an earlier one failed.
        """
        if self._failure is not None:
            raise RuntimeError(f"this run has ended with an error ({self._failure}): begin anew")
        started = time.perf_counter()
        try:
            step = next(self._steps, None)
            if step is not None:
                self.last = step
                self._add_lambda(step)
                for row, left in enumerate(step.left_B):
                    if not left and self._full_B[row] is None:
                        self._full_B[row] = step.index + 1
        except BaseException as error:
            # In words: the error would keep the tensors of its frames, which may fill the memory.
            self._failure = f"{type(error).__name__}: {error}"
            raise
        self.seconds += time.perf_counter() - started
        return step

    def _add_lambda(self, step: DenoiseStep) -> None:
        """Sums lambda, on the device, where nothing waits for it, and counts its masks."""
        if step.lambda_BL is not None:
            # Not in place: the sum may have begun within inference_mode, and goes on behind it.
            self._lambda_B = self._lambda_B + step.lambda_BL.sum(1)
            self._fed_B = [fed + more for fed, more in zip(self._fed_B, step.open_B, strict=True)]

    def decided(self, step: DenoiseStep, row: int = 0) -> str:
        """The row's text as far as everything before it is decided; it only ever grows.

        A character whose bytes are not all there yet is left out.
        """
        ids = self._ids(step, row)
        open_at = ids.index(self.mask_id) if self.mask_id in ids else len(ids)
        text, _ids = self._text(ids[:open_at])
        return text.rstrip("\ufffd")

    def sampling_of(self, row: int) -> SamplingConfig:
        """The settings of a row by itself."""
        if self._steps_B is None:
            return self.sampling
        return dataclasses.replace(self.sampling, steps=self._steps_B[row])

    def text_start(self, row: int) -> int:
        """Column where the row's text begins: behind the prompt, or of an infilling its start."""
        if self.infill:
            return self.starts[row]
        return self.canvas_BL[row].tolist().index(self.mask_id)

    def generated(self, step: DenoiseStep, row: int = 0) -> list[bool]:
        """Of each column of the canvas, whether what stands there after a step was written."""
        masked = (self.canvas_BL[row] == self.mask_id).tolist()
        if not self.rooms:
            return masked
        first, more = masked.index(True), step.stop_B[row] - len(self.rows[row])
        stop = first + sum(masked) + more
        return [first <= column < stop for column in range(len(masked))]

    def _ids(self, step: DenoiseStep, row: int) -> list[int]:
        """The tokens of the row's text after a step."""
        return step.canvas_BL[row].tolist()[self.text_start(row) : step.stop_B[row]]

    def _text(self, ids: list[int]) -> tuple[str, list[int]]:
        return decode_answer(self.checkpoint, ids, infill=self.infill)

    def completions(self) -> list[Completion]:
        """The finished rows; runs the steps that have not been iterated over.

        Raises:
            RuntimeError: a step has failed or was interrupted.
        """
        if self._failure is not None or self.last is None or any(self.last.left_B):
            for _ in self:
                pass
        return [self._completion(row) for row in range(len(self.canvas_BL))]

    def _completion(self, row: int) -> Completion:
        assert self.last is not None
        ids = self._ids(self.last, row)
        text, chosen = self._text(ids)
        stopped = self.infill or self.form is not None or len(chosen) < len(ids)
        if self.rooms:
            stopped = not self.rooms[row].is_cut(self.last.stop_B[row], self.last.left_B[row])
        prompt = self.prompts[row]
        fed = self._fed_B[row]
        return Completion(
            text=text,
            prompt=self._prompt_text(prompt),
            seed=self.seeds[row],
            token_ids=tuple(chosen),
            finish_reason="stop" if stopped else "length",
            steps=self._full_B[row] or self.last.index + 1,
            forwards=self.last.forwards_B[row],
            seconds=self.seconds,
            mean_lambda=self._lambda_B[row].item() / fed if fed else None,
        )

    def _prompt_text(self, prompt: Any) -> str:
        if isinstance(prompt, str):
            return prompt
        if is_token_ids(prompt):
            return self.checkpoint.decode(prompt)
        return prompt[-1]["content"]


def generate(
    checkpoint: Checkpoint,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_new_tokens: int | None = None,
    soft_mask: SoftMaskChoice = "checkpoint",
    seed: int | Sequence[int] | None = None,
    num_return_sequences: int = 1,
    chat: bool | None = None,
    system: str | None = None,
    infill: bool = False,
    constraint: Constraint | None = None,
    **sampling: Any,
) -> Completion | list[Completion]:
    """Generates and returns the completion of one prompt, or the list for a list of them.

    `sampling` are the fields of SamplingConfig; `steps` defaults to one per new token. The rest
    is explained at `Generation`.

    Raises:
        ValueError: an unknown or impossible setting, an empty prompt, a prompt that is too long.
    """
    check_keywords(generate, sampling)
    run = Generation(
        checkpoint,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        soft_mask=soft_mask,
        seed=seed,
        num_return_sequences=num_return_sequences,
        chat=chat,
        system=system,
        infill=infill,
        constraint=constraint,
    )
    completions = run.completions()
    return completions[0] if run.is_single else completions
