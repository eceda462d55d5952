"""How a canvas of masks becomes text: the settings of the loop, and which of them go together.

Imports neither torch nor transformers, so that `softmask --help` answers at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .rules import Chosen, Options, Rule, find, order_of
from .settings import convert_fields, require, require_choice, require_positive, setting
from .shipped_rules import COMMIT_RULES, STOP_RULES, UNMASK_RULES

# How other programs say that top_k filters nothing: transformers by 0, vLLM by -1.
TOP_K_OFF = (0, -1)
CACHES = ("none", "prefix", "dual", "exact")
COMMIT_SOURCES = ("soft", "plain")
STEP_SCHEDULES = ("linspace", "even", "rounded")
LATE_ENDS = ("no", "yes", "published")
NOISES = ("float32", "float64")
# Masks of a hole whose length the model finds, where nobody says how many: as DreamOn's own
# demonstration.
HOLE_BEGINS_WITH = 4
# The times of all steps are computed together, as published: their rounding depends on the CPU.
MOST_STEPS = 10**6
# Logits over a lower temperature, or plus a larger penalty, would be infinite. Over a higher one
# what must not be written would be likely: in float16 it lies 16,000 below.
COLDEST, HOTTEST, LARGEST_PENALTY, LARGEST_GUIDANCE = 1e-6, 100.0, 1e6, 1e3


def check_temperature(name: str, value: float, also: str = "") -> None:
    """Raises ValueError for a temperature of logits out of range.

    Args:
        also: what else it may be, as an error says it.
    """
    require(
        COLDEST <= value <= HOTTEST,
        f"{name} must {also}lie between {COLDEST} and {HOTTEST:g}, not be {value}",
    )


def check_guidance(weight: float) -> None:
    """Raises ValueError for a weight out of range."""
    require(
        0 <= weight <= LARGEST_GUIDANCE,
        f"guidance must lie in [0, {LARGEST_GUIDANCE:g}], not {weight}",
    )


def take_rule(config: Any, kind: Any, field: str, options: str, plain: tuple[str, ...]) -> None:
    """Checks the field of a config that names a rule, and the rule's options.

    Args:
        plain: shipped rules without options, which need not be looked up.

    Raises:
        ValueError: there is no such rule, or its options are wrong.
    """
    name, given = getattr(config, field), getattr(config, options)
    if isinstance(name, Rule) or given or name not in plain:
        rule = find(kind, name)
        require(
            not rule.is_setting, f"{rule.name} is a setting of its own: give {rule.name} a value"
        )
        name, given = rule.name, rule.parse(given, options)
    object.__setattr__(config, field, name)
    object.__setattr__(config, options, Options(given))


# What adds to another setting, and means nothing without it.
ADDS_TO = {
    "threshold_end": "threshold",
    "surest_anywhere": "entropy_threshold",
    "lookahead": "block_length",
    "next_block_at": "block_length",
    "refresh_every": "cache",
    "refresh_window": "refresh_every",
}
# What says how far a forward sees behind the block that is written.
OF_BLOCK = ("lookahead", "next_block_at")
# What compares positions by confidence, and means nothing where they commit by chance.
BY_CONFIDENCE = ("next_block_at", "agreement", "commit_from", "score_temperature")


def merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings over those that suit a model or a prompt.

    What is given wins over what contradicts it, too: of the defaults another commit rule is left
    out, the options of another rule, what compares by confidence where masks commit by chance, and
    what adds to a setting that is left out or switched off.
    """
    decides = {name for name in COMMIT_RULES if given.get(name) is not None}
    alg, before = given.get("alg"), defaults.get("alg")
    left_out = set()
    if decides or given.get("alg_temp") or _commits(alg) in ("rows", "chances"):
        left_out |= {*COMMIT_RULES} - decides
    if decides:
        left_out.add("alg_temp")
    if (decides and _commits(before) in ("rows", "chances")) or (
        given.get("alg_temp") and _commits(before) == "rows"
    ):
        left_out |= {"alg", "alg_options"}
    if _commits(alg) == "chances":
        left_out |= {*BY_CONFIDENCE}
    if alg is not None and alg != before:
        left_out.add("alg_options")
    if given.get("stop_rule") not in (None, defaults.get("stop_rule")):
        left_out.add("stop_options")
    off = {name for name, value in given.items() if value is None}
    if given.get("cache") in ("none", "exact"):  # neither of them is refreshed
        off.add("cache")
    while more := {name for name, other in ADDS_TO.items() if other in left_out | off} - left_out:
        left_out |= more
    return {n: value for n, value in defaults.items() if n not in left_out} | dict(given)


def against_blocks(settings: Mapping[str, Any], size: int) -> dict[str, str]:
    """The settings that a block-causal model with blocks of `size` rules out, and why."""
    length, cache = settings.get("block_length"), settings.get("cache", "none")
    found = {}
    if length is not None and size % length:
        found["block_length"] = (
            f"this model writes blocks of {size} tokens: block_length must divide that, not be "
            f"{length}"
        )
    if cache not in ("none", "exact"):
        found["cache"] = (
            f"what a block-causal model keeps is exact: give cache exact or none, not {cache}"
        )
    for name in OF_BLOCK:
        if settings.get(name) is not None:
            found[name] = f"a block-causal model never sees a later block: leave out {name}"
    return found


def _commits(alg: Any) -> str | None:
    """What a commit rule returns; None: no rule is named, which SamplingConfig refuses."""
    try:
        return None if alg is None else find("commit", alg).returns
    except ValueError:
        return None


@dataclass(frozen=True)
class SamplingConfig:
    """How a canvas of masks becomes text. Names follow Dream's `diffusion_generate`."""

    steps: int = setting(512, "denoising steps: one forward pass each")
    alg: str = setting(
        "entropy", f"which positions are committed first: {', '.join(UNMASK_RULES)}, or your own"
    )
    alg_options: dict[str, Any] = setting({}, "options of a commit rule of your own")
    temperature: float = setting(0.0, "sampling temperature; 0 takes the likeliest token")
    top_p: float | None = setting(None, "keep the smallest set of tokens with this total mass")
    top_k: int | None = setting(None, "keep only this many likeliest tokens; 0: all of them")
    min_p: float | None = setting(
        None, "keep tokens at least this share as likely as the likeliest; 0: all of them"
    )
    alg_temp: float | None = setting(None, "randomness of the choice of positions; 0 or null: none")
    step_schedule: str = setting(
        "linspace",
        "how many tokens each step commits: linspace (Dream's), even, with one more in the first "
        "steps of a block where they do not divide (LLaDA's), or rounded (Tiny-A2D's)",
    )
    eps: float = setting(1e-3, "last time of the published schedule linspace(1, eps, steps + 1)")
    block_length: int | None = setting(None, "decode left to right in blocks of this many tokens")
    next_block_at: float | None = setting(
        None,
        "with blocks: open the next one once this share of a block is decided, in (0, 1]; null or "
        "1: once all of it is",
    )
    lookahead: int | None = setting(
        None,
        "with blocks: how many masks behind the current block take part in a forward, of those "
        "that end the text; null: all, as published",
    )
    end_penalty: float = setting(0.0, "subtracted from the logits of the end tokens, before mixing")
    threshold: float | None = setting(
        None, "commit every token that is likelier than this, at least one a forward"
    )
    threshold_end: float | None = setting(
        None, "let the threshold move here, in step with the share of masks that are decided"
    )
    factor: float | None = setting(
        None, "commit the n likeliest tokens while (n + 1)(1 - p_n) is below this"
    )
    entropy_bound: float | None = setting(
        None, "commit the surest tokens while the entropies before them sum to at most this (nats)"
    )
    entropy_threshold: float | None = setting(
        None, "commit every position whose entropy (nats) is below this, at least one a forward"
    )
    surest_anywhere: bool = setting(
        False,
        "with entropy_threshold: commit also the surest position of all open blocks, and not of "
        "the first alone, as d3LLM does with LLaDA",
    )
    agreement: int | None = setting(
        None, "commit a token that has led in this many forwards running; null or 1: at once"
    )
    commit_from: str = setting(
        "soft",
        "what the confidence is read off: soft, the forward that says the tokens, or plain, a "
        "second one without feedback",
    )
    score_temperature: float = setting(
        1.0, "temperature at which the confidence of a commit is read, tokens untouched; > 0"
    )
    raw_scores: bool = setting(
        False, "read the confidence before temperature, top_p, top_k and min_p, as LLaDA does"
    )
    late_ends: str = setting(
        "no",
        "commit end tokens last (LLaDA's confidence_eos_eot_inf): no, yes, or published, which "
        "with a temperature means the end of a turn alone",
    )
    suppress_eos: bool = setting(
        False,
        "never write the end-of-text token, unless a form leaves nothing else (LLaDA's "
        "logits_eos_inf)",
    )
    guidance: float = setting(
        0.0,
        "classifier-free guidance w: a second branch sees no prompt, logits are u + (w + 1)(c - u) "
        "of both; 0: off; a forward then counts as two",
    )
    noise: str = setting(
        "float32", "of drawn tokens: float32, or float64, drawn for the whole canvas as in LLaDA"
    )
    stop_rule: str = setting(
        "end",
        "when a text gives up its last masks: end (behind an end token, once all before it is "
        "decided), first_end (at once), or your own",
    )
    stop_options: dict[str, Any] = setting({}, "options of a stopping rule of your own")
    cache: str = setting(
        "none",
        "keys and values kept within a block: none, prefix or dual; with a block-causal model: "
        "exact, those of all earlier blocks, or none",
    )
    refresh_every: int | None = setting(
        None, "with a cache: look beyond the block every so many steps, and not at its start alone"
    )
    refresh_window: int | None = setting(
        None, "by this many tokens on both sides of the block; null: over the whole text"
    )

    def __post_init__(self) -> None:
        take_rule(self, "commit", "alg", "alg_options", UNMASK_RULES)
        take_rule(self, "stopping", "stop_rule", "stop_options", STOP_RULES)
        convert_fields("", self)
        self._check_rules()
        self._check_trust()
        self._check_cache()
        require(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        require(self.steps <= MOST_STEPS, f"steps must be at most {MOST_STEPS}, not {self.steps}")
        if self.temperature != 0:
            check_temperature("temperature", self.temperature, also="be 0 or ")
        self._switch_off_filters()
        if self.top_p is not None:
            require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k is not None:
            require(self.top_k >= 1, f"top_k must be at least 1, not {self.top_k}")
        if self.min_p is not None:
            require(0 < self.min_p <= 1, f"min_p must lie in [0, 1], not {self.min_p}")
        if self.alg_temp is not None:
            require(
                self.alg_temp == 0 or self.alg_temp >= COLDEST,
                f"alg_temp must be 0 or at least {COLDEST}, not {self.alg_temp}",
            )
        require(0 < self.eps < 1, f"eps must lie between 0 and 1, not {self.eps}")
        if self.block_length is not None:
            require(
                self.block_length >= 1,
                f"block_length must be at least 1, not {self.block_length}",
            )
        require(
            self.lookahead is None or self.lookahead >= 0,
            f"lookahead must be >= 0, not {self.lookahead}",
        )
        require(
            self.lookahead is None or self.block_length is not None,
            "lookahead counts masks behind a block: give block_length too",
        )
        require(
            abs(self.end_penalty) <= LARGEST_PENALTY,
            f"end_penalty must lie within {LARGEST_PENALTY:g}, not be {self.end_penalty}",
        )

    @property
    def adaptive(self) -> bool:
        """Whether confidence, not the schedule, decides how many tokens are committed."""
        return self.deciding is not None

    @property
    def ordering(self) -> Chosen:
        """The commit rule that says which positions go first, or with what chance."""
        rule = find("commit", self.alg)
        if rule.returns == "rows":
            return Chosen(order_of(rule), Options())
        return Chosen(rule, self.alg_options)

    @property
    def deciding(self) -> Chosen | None:
        """The commit rule that says how many positions a step commits; None: the schedule does."""
        rule = find("commit", self.alg)
        if rule.returns == "rows":
            return Chosen(rule, self.alg_options)
        for name in COMMIT_RULES:
            if getattr(self, name) is not None:
                rule = find("commit", name)
                fields = dataclasses.fields(rule.options)
                return Chosen(rule, {one.name: getattr(self, one.name) for one in fields})
        return None

    @property
    def opens_early(self) -> bool:
        """Whether a block opens before the one in front of it is full."""
        return self.next_block_at is not None and self.next_block_at < 1

    @property
    def needs_agreement(self) -> bool:
        """Whether a token has to lead in several forwards before it commits."""
        return self.agreement is not None and self.agreement > 1

    @property
    def stopping(self) -> Chosen:
        """The rule that says when a text gives up its last masks."""
        return Chosen(find("stopping", self.stop_rule), self.stop_options)

    @property
    def by_chance(self) -> bool:
        """Whether each mask commits by a coin of its own, and tokens are drawn afterwards."""
        return self.ordering.rule.returns == "chances"

    @property
    def rules_draw(self) -> bool:
        """Whether a commit rule reads random numbers."""
        rules = (self.ordering, self.deciding)
        return any(chosen.rule.draws for chosen in rules if chosen)

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn."""
        drawn = self.by_chance or self.rules_draw
        return self.temperature > 0 or bool(self.alg_temp) or drawn

    def _switch_off_filters(self) -> None:
        # top_p 0 is off beside temperature 0 alone: where tokens are drawn it may also mean the
        # likeliest one.
        if self.top_k in TOP_K_OFF:
            object.__setattr__(self, "top_k", None)
        if self.min_p == 0:
            object.__setattr__(self, "min_p", None)
        if self.top_p == 0 and self.temperature == 0:
            object.__setattr__(self, "top_p", None)

    def _check_rules(self) -> None:
        rules = [name for name in COMMIT_RULES if getattr(self, name) is not None]
        if find("commit", self.alg).returns == "rows":
            rules.append(f"alg {self.alg}")
        require(len(rules) <= 1, f"{' and '.join(rules)} are different rules: give one of them")
        for name in ("threshold", "threshold_end"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{name} must lie in [0, 1], not {value}")
        for name in ("factor", "entropy_bound", "entropy_threshold"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} must be >= 0, not {value}")
        require(
            self.threshold is not None or self.threshold_end is None,
            "threshold_end is where a threshold moves to: give threshold too",
        )
        require(
            self.entropy_threshold is not None or not self.surest_anywhere,
            "surest_anywhere adds to what entropy_threshold commits: give entropy_threshold too",
        )
        if rules:
            require(
                not self.by_chance and not self.alg_temp,
                f"{rules[0]} commits by confidence, alg origin and alg_temp by chance: give one",
            )

    def _check_trust(self) -> None:
        """What a commit trusts beside the rule that orders or decides."""
        require_choice("commit_from", self.commit_from, COMMIT_SOURCES)
        require_positive(self, "agreement")
        check_temperature("score_temperature", self.score_temperature)
        require_choice("step_schedule", self.step_schedule, STEP_SCHEDULES)
        require_choice("late_ends", self.late_ends, LATE_ENDS)
        require_choice("noise", self.noise, NOISES)
        check_guidance(self.guidance)
        require(
            not (self.guidance and self.commit_from == "plain"),
            "guidance and commit_from plain are both a second forward: give one of them",
        )
        share = self.next_block_at
        require(share is None or 0 < share <= 1, f"next_block_at must lie in (0, 1], not {share}")
        require(
            share is None or self.block_length is not None,
            "next_block_at says when the next block opens: give block_length too",
        )
        trusting = {
            "next_block_at": self.opens_early,
            "agreement": self.needs_agreement,
            "commit_from": self.commit_from == "plain",
            "score_temperature": self.score_temperature != 1,
        }
        require(
            not (self.noise == "float64" and self.by_chance),
            f"noise float64 is drawn for all of the canvas, alg {self.alg} for what commits alone: "
            "give another alg",
        )
        for name, is_set in trusting.items():
            require(
                not (is_set and self.by_chance),
                f"{name} compares what is confident, and alg {self.alg} commits by chance: give "
                "another alg",
            )

    def _check_cache(self) -> None:
        require_choice("cache", self.cache, CACHES)
        require_positive(self, "refresh_every")
        window = self.refresh_window
        require(window is None or window >= 0, f"refresh_window must be >= 0, not {window}")
        if self.cache in ("none", "exact"):
            unused = self.refresh_every is None and window is None
            require(
                unused,
                "refresh_every and refresh_window refresh a cache: give cache too, prefix or dual",
            )
        else:
            require(
                self.block_length is not None,
                f"cache {self.cache} keeps what lies outside of a block: give block_length too",
            )
            require(
                window is None or self.refresh_every is not None,
                "refresh_window says how far refresh_every looks: give that too",
            )
