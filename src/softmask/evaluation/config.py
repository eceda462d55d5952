"""Settings of an evaluation, under the names that lm-evaluation-harness users write.

`--model_args` of the harness and the options of `softmask eval` both end here. Imports neither
torch nor lm_eval.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config import (
    ESTIMATORS,
    FEEDBACK_HELP,
    FEEDBACK_PRESETS,
    PUBLISHED_KEYS,
    PUBLISHED_MODES,
    SamplingConfig,
    SoftMaskConfig,
    from_mapping,
    require,
    require_choice,
    require_positive,
    setting,
    soft_mask_from_published,
    soft_mask_to_published,
)
from ..sampling import HOLE_BEGINS_WITH, merged

# The files of an evaluation's record; the second marks it as finished.
RUN, RESULTS = "run.json", "results.json"
# The harness's own default where a task says nothing.
MAX_GEN_TOKS = 256
# A batch size that `auto_batch.py` finds.
AUTO = "auto"
# Lengths of a hole: that of the reference, the one that the model finds itself, and those that are
# tried where nothing is said.
ORACLE, OWN, HOLES = "oracle", "own", "4/8/16/32/64"
OWN_FROM = re.compile(rf"{OWN}(:(?P<masks>[1-9][0-9]{{0,8}}))?")
# What a sweep sets, so that it cannot be set for all of its points.
SWEPT = ("diffusion_steps", "nfe", "threshold", "entropy_threshold", "feedback", "softmasking")
TOKEN_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
STEP_NAMES = ("diffusion_steps", "steps")
# This package's own names of settings, by which `--model_args` and `softmask eval` know them too.
OWN_NAMES = {
    "diffusion_steps": "steps",
    **{published: f"soft_mask_{own}" for published, own in PUBLISHED_KEYS.items()},
}


@dataclass(frozen=True)
class ModelArgs:
    """What `--model_args` may say; the published evaluation's names, plus what it lacked.

    What is given here wins over a task's own generation arguments. A checkpoint's
    sampling_config.json is not read: a score depends on nothing that the record does not name.
    """

    pretrained: str | None = setting(None, "folder or Hub id: a model, or an adapter alone")
    adapter: str | None = setting(None, "folder or Hub id of an adapter to merge in")
    revision: str | None = setting(None, "branch, tag or commit of the model on the Hub")
    family: str | None = setting(None, "of models whose files do not say: opendcoder, ...")
    device: str | None = setting(None, "cpu, cuda, cuda:1, mps; default: the best there is")
    dtype: str | None = setting(None, "float32, bfloat16, float16, auto; default: by device")
    device_map: str | None = setting(None, "spread over devices: auto")
    load_in_4bit: bool = setting(False, "linear layers in 4 bits")
    quantize: str | None = setting(None, "int8 or int4: linear layers, the adapter merged in")
    trust_remote_code: bool = setting(False, "accepted and not needed: no remote code runs")
    batch_size: int | str = setting(1, "rows of one forward; auto: as many as fit and pay")
    max_batch_size: int | None = setting(None, "most rows of one forward with batch_size auto")
    seed: int = setting(0, "of the random choices; each request has its own stream")
    add_bos_token: bool = setting(False, "begin every prompt with the tokenizer's bos token")
    max_length: int | None = setting(None, "window in tokens; default: the model's own")
    max_new_tokens: int | None = setting(None, "masks to fill; default: the task's max_gen_toks")
    escape_until: bool = setting(False, "answers go on behind the tasks' stop strings")
    diffusion_steps: int | None = setting(None, "denoising steps; default: one per mask")
    nfe: float | None = setting(None, "denoising steps per mask, in place of steps")
    alg: str | None = setting(None, "unmasking rule: its name")
    alg_options: dict[str, Any] | None = setting(None, "options of a commit rule of your own")
    temperature: float | None = setting(None, "sampling temperature")
    top_p: float | None = setting(None, "nucleus")
    top_k: int | None = setting(None, "likeliest tokens kept")
    min_p: float | None = setting(None, "least share of the likeliest token's probability")
    alg_temp: float | None = setting(None, "randomness of the choice of positions")
    eps: float | None = setting(None, "last time of the schedule")
    block_length: int | None = setting(None, "block-wise decoding")
    next_block_at: float | None = setting(None, "decided share at which the next block opens")
    lookahead: int | None = setting(None, "masks behind a block that take part; default: all")
    end_penalty: float | None = setting(None, "subtracted from the end tokens' logits")
    threshold: float | None = setting(None, "commit every token likelier than this")
    threshold_end: float | None = setting(None, "where the threshold moves to")
    factor: float | None = setting(None, "commit n tokens while (n + 1)(1 - p_n) is below this")
    entropy_bound: float | None = setting(None, "commit while entropies sum to at most this")
    entropy_threshold: float | None = setting(None, "commit every position of less entropy")
    surest_anywhere: bool | None = setting(None, "and the surest position of all open blocks")
    agreement: int | None = setting(None, "forwards running that a token has to lead in")
    commit_from: str | None = setting(None, "soft, or plain: confidence of a second forward")
    score_temperature: float | None = setting(None, "of the confidence of a commit")
    step_schedule: str | None = setting(None, "tokens a step: linspace, even or rounded")
    raw_scores: bool | None = setting(None, "confidence before temperature and filters")
    late_ends: str | None = setting(None, "commit end tokens last: no, yes or published")
    suppress_eos: bool | None = setting(None, "never write the end-of-text token")
    guidance: float | None = setting(None, "classifier-free guidance; a forward counts as two")
    noise: str | None = setting(None, "of drawn tokens: float32 or float64")
    stop_rule: str | None = setting(None, "when a text gives up its last masks: a rule's name")
    stop_options: dict[str, Any] | None = setting(None, "options of a stopping rule")
    cache: str | None = setting(None, "none, prefix, dual, or exact")
    refresh_every: int | None = setting(None, "steps between refreshes of the cache in a block")
    refresh_window: int | None = setting(None, "tokens around the block that it refreshes")
    softmasking: bool | None = setting(None, "True requires it, False turns it off")
    feedback: str | None = setting(None, FEEDBACK_HELP)
    transparency_alg: str | None = setting(None, "topk, temperature, none, or your own rule")
    transparency_scale: float | None = setting(None, "largest weight of the feedback")
    transparency_centre: float | None = setting(None, "negative entropy at half the scale")
    transparency_steepness: float | None = setting(None, "how sharply confidence counts")
    mixinputs_k: int | None = setting(None, "tokens mixed in")
    mixture_temp: float | None = setting(None, "softmax temperature of the mixture")
    mixture: str | None = setting(None, "linear, norm_kept, spherical, additive")
    mixture_weight: str | None = setting(None, "sigmoid, constant, entropy")
    mixture_entropy_temp: float | None = setting(None, "temperature of the weight's entropy")
    mixture_token_temp: float | None = setting(None, "temperature of the shares mixed in")
    mixture_options: dict[str, Any] | None = setting(None, "options of a feedback rule")
    transparency_scheduling: str | None = setting(None, "none, linear, stepwise")
    mc_num: int = setting(128, "likelihood tasks: Monte-Carlo samples of a request")
    mc_batch_size: int | None = setting(
        None, "likelihood tasks: rows of one forward; default: 16, or as batch_size auto finds"
    )
    hole: int | str | None = setting(
        None,
        "infilling tasks: tokens of a hole: a number, oracle (as the reference has), own or own:N "
        "(the model finds it, from N masks on), or several, of which the likeliest stays; default: "
        "4/8/16/32/64",
    )
    token_healing: bool = setting(
        False, "infilling tasks: write the tokens at both ends of a hole anew with it"
    )
    estimator: str = setting(
        "masks",
        "likelihood tasks: masks; chain (exact); llada (as its own evaluation); one_step (one "
        "forward a choice)",
    )

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        require_positive(
            self, "max_batch_size", "max_length", "max_new_tokens", "mc_num", "mc_batch_size"
        )
        require_choice("estimator", self.estimator, ESTIMATORS)
        _ = self.hole_lengths
        planned = self.nfe is not None or self.diffusion_steps is not None
        require(
            self.hole_begins is None or not (planned or self.token_healing),
            f"hole={self.hole} commits one token a step to a text of any form: leave out steps, "
            "nfe and token healing",
        )
        require(0 <= self.seed < 2**63, f"seed must lie between 0 and 2**63, not {self.seed}")
        require(self.nfe is None or 0 < self.nfe <= 1, f"nfe must lie in (0, 1], not {self.nfe}")
        require(
            self.nfe is None or self.diffusion_steps is None,
            "give diffusion_steps or nfe, not both",
        )
        require(
            self.softmasking is not False or not self.soft_mask_changes,
            "softmasking=False and a soft-mask setting contradict each other",
        )
        if self.feedback is not None:
            require_choice("feedback", self.feedback, tuple(FEEDBACK_PRESETS))
            on = self.softmasking is True or bool(self.soft_mask_changes)
            require(
                not (self.feedback == "off" and on)
                and not (self.feedback != "off" and self.softmasking is False),
                f"feedback={self.feedback} and softmasking={self.softmasking} or a soft-mask "
                "setting contradict each other",
            )
        self.sampling(1, {})  # refuses what is out of range before a model is loaded
        soft_mask_from_published(
            {"transparency_alg": "mixinputs_with_topk"} | self.soft_mask_changes, "model_args"
        )

    @property
    def hole_lengths(self) -> tuple[int, ...] | None:
        """The lengths that a hole is tried at, in tokens; None: that of the reference, or the one
        that the model finds.

        Raises:
            ValueError: no such length.
        """
        if self.hole == ORACLE or self.hole_begins is not None:
            return None
        words = (HOLES if self.hole is None else str(self.hole)).split("/")
        require(
            all(word.isascii() and word.isdecimal() and int(word) for word in words),
            f"hole must be a number of tokens, several as in {HOLES}, {ORACLE}, {OWN} or {OWN}:16, "
            f"not {self.hole!r}",
        )
        return tuple(sorted({int(word) for word in words}))

    @property
    def hole_begins(self) -> int | None:
        """With how many masks a hole begins whose length the model finds; None: its length is
        given."""
        own = OWN_FROM.fullmatch(str(self.hole))
        return None if own is None else int(own["masks"] or HOLE_BEGINS_WITH)

    @property
    def to_load(self) -> dict[str, Any]:
        """The arguments of `hub.load`."""
        names = ("adapter", "device", "dtype", "device_map", "revision", "family", "quantize")
        values = {name: getattr(self, name) for name in (*names, "load_in_4bit")}
        return {"name": self.pretrained, **values}

    @property
    def soft_mask_changes(self) -> dict[str, Any]:
        """The soft-mask settings that are given, under their published names."""
        given = {name: getattr(self, name) for name in PUBLISHED_KEYS}
        return {name: value for name, value in given.items() if value is not None}

    def soft_mask(self, own: SoftMaskConfig | None, where: str) -> SoftMaskConfig | None:
        """The parameters that run: the checkpoint's `own` with what is given here.

        Raises:
            ValueError: soft-masking is asked for, and there are no parameters for it.
        """
        changes = self.soft_mask_changes
        preset = FEEDBACK_PRESETS[self.feedback or "published"]
        if preset is not True:
            own = preset
        if self.softmasking is False or changes.get("transparency_alg") == "none":
            return None
        wanted = self.softmasking is True or self.feedback == "published" or bool(changes)
        if own is None and wanted and "transparency_scale" not in changes:
            raise ValueError(
                f"soft-masking is asked for, but {where} has no transparency_config.json: give an "
                "adapter or model with one, or transparency_scale=... and its like, or "
                "softmasking=False (of a suite --modes plain, of a sweep --feedback off)"
            )
        if not changes:
            return own
        base = soft_mask_to_published(own) if own else {"transparency_alg": "mixinputs_with_topk"}
        return soft_mask_from_published(base | changes, "model_args")

    def sampling(self, new_tokens: int, task: Mapping[str, Any]) -> SamplingConfig:
        """How one request is decoded: these settings over the task's.

        Raises:
            ValueError: a setting out of range.
        """
        names = [f.name for f in dataclasses.fields(SamplingConfig) if f.name != "steps"]
        own = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in own.items() if value is not None}
        values = {"steps": new_tokens, **merged(task, given)}
        if self.diffusion_steps is not None:
            values["steps"] = self.diffusion_steps
        elif self.nfe is not None:
            values["steps"] = max(1, round(self.nfe * new_tokens))
        return from_mapping(SamplingConfig, values, "generation settings")


def model_args(values: Mapping[str, Any]) -> ModelArgs:
    """Reads `--model_args`, as the harness hands them over.

    Raises:
        ValueError: an unknown name (the nearest one is named), a wrong type or a bad value.
    """
    values = field_names(values)
    for name in ("pretrained", "adapter", "revision", "family", "device", "dtype"):
        if name in values:  # the harness turns what looks like a number into one
            values[name] = str(values[name])
    if "batch_size" in values:
        values["batch_size"] = read_batch_size(values["batch_size"])
    return from_mapping(ModelArgs, values, "model_args")


def read_batch_size(value: Any) -> Any:
    """What was typed for `batch_size`: digits as a number, and the harness' `auto:N` as `auto`."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        return int(value)
    # auto:N looks N times how many rows fit; here that is known beforehand.
    return AUTO if isinstance(value, str) and re.fullmatch(r"auto(:\d+)?", value) else value


def check_batch_size(value: Any) -> None:
    """Raises ValueError unless it is a number of rows or `auto`."""
    require(
        value == AUTO or isinstance(value, int),
        f"batch_size must be a whole number or auto, not {value!r}",
    )
    require(value == AUTO or value >= 1, f"batch_size must be at least 1, not {value}")


def field_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given, our own names of settings and modes made published ones."""
    fields = {own: published for published, own in OWN_NAMES.items()}
    found: dict[str, Any] = {}
    for name, value in values.items():
        field = fields.get(name, name)
        if value is not None:
            own = OWN_NAMES.get(field, field)
            require(field not in found, f"give {own} or {field}, not both: they are the same")
            found[field] = value
    modes = {mode: published for published, mode in PUBLISHED_MODES.items() if mode is not None}
    alg = found.get("transparency_alg")
    if alg in modes:
        found["transparency_alg"] = modes[alg]
    return found


@dataclass(frozen=True)
class TaskArgs:
    """What a task (or --gen_kwargs) says of one request's generation.

    `suffix`: what stands behind the hole that is to be filled; None: the prompt is answered.
    `reference`: what was there, by which an oracle knows its length.
    """

    new_tokens: int
    until: tuple[str, ...]
    sampling: Mapping[str, Any]
    suffix: str | None = None
    reference: str = ""


def task_args(kwargs: Mapping[str, Any]) -> TaskArgs:
    """Reads the generation arguments of a request.

    `do_sample: false` is temperature 0, as everywhere in the harness; `do_sample: true` without a
    temperature is temperature 1.

    Raises:
        ValueError: an argument that this model does not have, or a malformed `until`.
    """
    rest = dict(kwargs)
    until = _stop_strings(rest.pop("until", None))
    # The last of several names: the harness puts those of the command line behind a task's.
    tokens = [rest.pop(name) for name in kwargs if name in TOKEN_NAMES][-1:]
    steps = [rest.pop(name) for name in kwargs if name in STEP_NAMES][-1:]
    suffix, reference = rest.pop("suffix", None), rest.pop("reference", "")
    do_sample = rest.pop("do_sample", None)
    if do_sample not in (None, False, True):  # 0 and 1 among them, as they equal these
        raise ValueError(f"do_sample must be true or false, not {do_sample!r}")
    if do_sample:
        rest.setdefault("temperature", 1.0)
    elif do_sample is not None:
        rest["temperature"] = 0.0
    if steps:
        rest["steps"] = steps[0]
    # Written for causal models; here they cannot mean anything but their neutral value.
    for name, neutral in (("num_beams", 1), ("repetition_penalty", 1.0), ("use_cache", None)):
        if name in rest and (neutral is None or rest[name] == neutral):
            del rest[name]
    new_tokens = tokens[0] if tokens else MAX_GEN_TOKS
    if not isinstance(new_tokens, int) or isinstance(new_tokens, bool) or new_tokens < 1:
        raise ValueError(f"max_gen_toks must be a whole number above 0, not {new_tokens!r}")
    from_mapping(SamplingConfig, rest, "the task's generation arguments")
    return TaskArgs(new_tokens, until, rest, suffix, reference)


def _stop_strings(until: Any) -> tuple[str, ...]:
    if until is None:
        return ()
    stops = [until] if isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise ValueError(
            f"until must be a text or a list of texts, none of them empty, not {until!r}"
        )
    return tuple(stops)


def cut(text: str, until: tuple[str, ...]) -> str:
    """The text before the first of the stop strings."""
    return text[: min([text.find(stop) for stop in until if stop in text], default=len(text))]


@dataclass(frozen=True)
class EvalConfig:
    """What is evaluated, apart from the model."""

    tasks: tuple[str, ...] = setting((), "names of the harness' tasks and groups, or of ours")
    num_fewshot: int | None = setting(None, "examples in the prompt; default: the task's own")
    limit: int | None = setting(None, "only the first so many of each task: a test, no result")
    apply_chat_template: bool = setting(False, "each prompt through the chat template")
    fewshot_as_multiturn: bool = setting(True, "with a chat template, examples as turns of a chat")
    system_instruction: str | None = setting(None, "a system message")
    template: str | None = setting(None, "of several that are compared: its name")
    chat_template: str | None = setting(None, "Jinja, in place of the tokenizer's own template")
    until: tuple[str, ...] = setting((), "stop strings beside the tasks' own")
    gen_kwargs: dict[str, Any] = setting({}, "generation arguments, over the tasks' own")
    confirm_run_unsafe_code: bool = setting(False, "allow tasks that run what the model writes")
    data_dir: str | None = setting(None, "read the tasks' data from files in this folder")
    include_path: str | None = setting(None, "a folder with further tasks, in the harness' YAML")

    def __post_init__(self) -> None:
        require(bool(self.tasks), "name at least one task")
        require(self.limit is None or self.limit >= 1, f"limit must be >= 1, not {self.limit}")
        require(
            self.num_fewshot is None or self.num_fewshot >= 0,
            f"num_fewshot must be at least 0, not {self.num_fewshot}",
        )
        task_args(self.gen_kwargs)
