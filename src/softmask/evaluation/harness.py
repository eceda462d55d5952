"""lm-evaluation-harness runs this model: `--model softmask`, on the released lm_eval, unpatched.

    softmask lm_eval --model softmask --tasks gsm8k_cot --apply_chat_template \\
        --model_args pretrained=BASE,adapter=ADAPTER,max_new_tokens=256,temperature=0.1,top_p=0.9

The harness finds models in a registry that other packages fill by being imported; it has no entry
points. `softmask lm_eval` is its own command line, with this module imported first.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import lm_eval.models  # noqa: F401, or the harness would know no model beside this one
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model

from ..config import soft_mask_to_published
from ..decoding.chat_template import render_chat
from ..decoding.generation import Generation
from ..decoding.prompts import encode, first_ids
from ..hub.load import load
from ..models.checkpoint import Checkpoint
from .batching import Row, make_batches
from .config import ModelArgs, TaskArgs, cut, model_args, task_args
from .harness_texts import TextScores
from .infilling import fill, opened
from .ranks import Ranks
from .responses import Responses, key_of, request_key


@register_model("softmask")
class SoftMaskLM(TextScores):
    """A masked diffusion model for the harness, plain or soft-masked.

    This class divides the requests among the processes of a launch. The harness does not, as it
    would pad the last shares with copies: in each process it takes that for the only one, and gets
    all answers.

    Args:
        **args: the fields of `ModelArgs`.

    Raises:
        ValueError: an unknown or contradictory argument, a checkpoint that cannot be loaded, or
            soft-masking asked for where no parameters are to be found.
    """

    # Set by `using`.
    _chat_template: str | None = None
    _until: tuple[str, ...] = ()
    # Whether prompts went through a chat template, which writes all that they begin with.
    _chats: bool = False

    def __init__(self, **args: Any) -> None:
        settings, ranks = model_args(args), Ranks()
        arguments = settings.to_load
        if settings.device in (None, "cuda") and settings.device_map is None:
            arguments["device"] = ranks.device or settings.device
        self._set_up(load(**arguments), settings, Responses(), ranks)

    @classmethod
    def around(cls, checkpoint: Checkpoint, args: ModelArgs, responses: Responses) -> SoftMaskLM:
        """The class around a model that is loaded already."""
        lm = cls.__new__(cls)
        lm._set_up(checkpoint, args, responses, Ranks())
        return lm

    def using(
        self,
        args: ModelArgs,
        responses: Responses,
        *,
        chat_template: str | None = None,
        until: tuple[str, ...] = (),
        chats: bool = False,
    ) -> SoftMaskLM:
        """The same loaded model under other settings, with answers of its own.

        Args:
            chat_template: Jinja, in place of the tokenizer's own template.
            until: stop strings beside the tasks' own.
            chats: prompts are texts of a chat template, though this class did not render them.
        """
        lm = self.around(self.checkpoint, args, responses)
        lm._chat_template, lm._until, lm._chats = chat_template, until, chats
        return lm

    # The interface of every model of the harness.

    @property
    def eot_token_id(self) -> int:
        return self.checkpoint.end_ids[0]

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.checkpoint.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        ids = encode(self.checkpoint, string)
        if add_special_tokens is False:
            return ids
        if self.args.add_bos_token:
            first = [self.tokenizer.bos_token_id]
        else:
            first = [] if self._chats else first_ids(self.checkpoint)
        return ids if ids[:1] == first else [*first, *ids]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as one text; without a generation prompt its last turn stays open.

        Raises:
            ValueError: the tokenizer has no chat template.
        """
        if self._chat_template is None and not self.tokenizer.chat_template:
            raise ValueError(
                f"{self.checkpoint.name} has no chat template: leave out the chat template, or "
                "take an Instruct model"
            )
        self._chats = True
        return render_chat(
            self.tokenizer,
            chat_history,
            template=self._chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template that the harness writes into its results."""
        # With requests that it keeps on disk the harness asks for this alone.
        self._chats = self._chats or bool(chat_template)
        return self._chat_template or super().chat_template(chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results beside the arguments."""
        soft = soft_mask_to_published(self.soft_mask) if self.soft_mask else None
        return {
            "model_num_parameters": self.checkpoint.model.num_parameters(),
            "model_dtype": str(self.checkpoint.model.dtype),
            "soft_mask": soft,
        }

    # Generation.

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, cut before the first stop string.

        A prompt that leaves no room for its answer loses tokens at its left end; how many is in
        the answer's record, and a warning says so.

        Raises:
            ValueError: generation arguments that this model does not have.
        """
        # The harness repeats a request as the same object. Equal requests of two tasks, or of two
        # rows of one, are no repeats: they get one answer.
        seen: Counter[int] = Counter()
        rows = []
        for request in requests:
            context, kwargs = request.args
            rows.append(self._row(context, kwargs, seen[id(request)]))
            seen[id(request)] += 1
        self.warn_of_cuts([row.cut_tokens for row in rows])
        self._answer(rows, disable_tqdm)
        return [self._text(row) for row in rows]

    def _text(self, row: Row) -> str:
        return cut(self.responses[row.key]["text"], row.task.until)

    def _row(self, context: str, kwargs: dict[str, Any], repeat: int) -> Row:
        task = task_args(kwargs)
        new_tokens = self.args.max_new_tokens or task.new_tokens
        until = () if self.args.escape_until else (*task.until, *self._until)
        task = dataclasses.replace(task, new_tokens=new_tokens, until=until)
        # The same random numbers for a prompt whether soft or plain, in few steps or many.
        seed = int(key_of(self.args.seed, context, repeat)[:15], 16)
        key = request_key((context, kwargs), repeat)
        if task.suffix is not None:
            return self._hole_row(key, (context, kwargs), task, seed)
        sampling = self.args.sampling(new_tokens, task.sampling)
        ids = self.tok_encode(context) or [self.prefix_token_id]
        room = self.max_length - new_tokens
        if room < 1:
            raise ValueError(
                f"{new_tokens} new tokens leave no room for a prompt in a window of "
                f"{self.max_length}: ask for fewer by max_new_tokens"
            )
        excess = max(0, len(ids) - room)
        return Row(key, (context, kwargs), tuple(ids[excess:]), task, sampling, seed, excess)

    def _hole_row(
        self, key: str, arguments: tuple[str, dict[str, Any]], task: TaskArgs, seed: int
    ) -> Row:
        hole, ids, lengths, excess, grows_to = opened(
            self.checkpoint,
            self.args,
            arguments[0],
            task,
            first_ids=self.tok_encode(""),
            window=self.max_length,
        )
        sampling = self.args.sampling(lengths[-1], task.sampling)
        return Row(key, arguments, ids, task, sampling, seed, excess, hole, lengths, grows_to)

    def _answer(self, rows: Sequence[Row], quiet: bool) -> None:
        """Fills `responses`; each process does its share of the batches."""
        asked = self.shared.union({row.key: row for row in rows})

        def update_cache(batch: Sequence[Row], _answers: Any) -> None:
            for row in batch:
                self.cache_hook.add_partial("generate_until", row.arguments, self._text(row))

        auto = self.auto_batch()
        size = int(self.args.batch_size) if auto is None else auto.of_rows(self.soft_mask)
        self.shared.fill(
            make_batches(asked.values(), size, self.ranks.count),
            self._generate_in_parts,
            key_of=lambda row: row.key,
            on_saved=update_cache,
            description="writing answers",
            quiet=quiet,
        )

    def generation(self, context: str, kwargs: dict[str, Any]) -> Generation | None:
        """The generation of one request, not begun: as `generate_until` would run it alone.

        None: it fills a hole, perhaps at several lengths.
        """
        row = self._row(context, kwargs, 0)
        return None if row.hole is not None else self._generation([row])

    def _generation(self, batch: Sequence[Row]) -> Generation:
        return Generation(
            self.checkpoint,
            [row.ids for row in batch],
            max_new_tokens=batch[0].task.new_tokens,
            sampling=batch[0].sampling,
            soft_mask=self.soft_mask,
            seed=[row.seed for row in batch],
            chat=False,
        )

    def _generate_in_parts(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        parts = self.memory.run(batch, lambda row: row.positions, self._generate)
        return list(chain.from_iterable(parts))

    def _generate(self, batch: Sequence[Row]) -> list[dict[str, Any]]:
        if batch[0].hole is not None:
            return fill(
                self.checkpoint,
                batch,
                self.soft_mask,
                lambda row, masks: self.args.sampling(masks, row.task.sampling),
            )
        started = time.perf_counter()
        run = self._generation(batch)
        completions = run.completions()
        seconds = (time.perf_counter() - started) / len(batch)
        return [
            {
                "key": row.key,
                "text": completion.text,
                "finish_reason": completion.finish_reason,
                "prompt_tokens": len(row.ids),
                "prompt_tokens_cut": row.cut_tokens,
                "tokens": len(completion.token_ids),
                "steps": row.sampling.steps,
                "forwards": completion.forwards,
                "seconds": round(seconds, 4),
                "seed": row.seed,
            }
            for row, completion in zip(batch, completions, strict=True)
        ]
