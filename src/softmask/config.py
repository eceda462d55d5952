"""Every setting of decoding that a user can write down, as frozen dataclasses.

`settings.py` parses them, as it does the settings of other rooms. Imports neither torch nor
transformers, so that `softmask --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .rules import Chosen, Options, Rule, added, find
from .settings import (
    check_numbers,
    from_mapping,
    require,
    require_choice,
    require_positive,
    setting,
    shown,
    unknown_setting,
)
from .shipped_rules import COMMIT_RULES, SOFT_MASK_MODES, UNMASK_RULES, end

# How other programs say that top_k filters nothing: transformers by 0, vLLM by -1.
TOP_K_OFF = (0, -1)
CACHES = ("none", "prefix", "dual")
# Logits over a lower temperature, or plus a larger penalty, would be infinite.
COLDEST, LARGEST_PENALTY = 1e-6, 1e6
SOFT_MASK_SCHEDULES = ("none", "linear", "stepwise")
# Of `mixtures.py`, which computes them.
FEEDBACK_MIXTURES = ("linear", "norm_kept", "spherical", "additive")
FEEDBACK_WEIGHTS = ("sigmoid", "constant", "entropy")
# The name of the bundled model, and of its folder in this package.
BUNDLED = "default"
# Settings that a checkpoint brings: the published file, and ours.
SOFT_MASK_FILE = "transparency_config.json"
SAMPLING_FILE = "sampling_config.json"
PROMPT_KINDS = "prompt_kinds"  # the key there of settings for some prompts alone
# Beside the published file where a run wrote it: the raw parameters, fp32, before their transforms.
SOFT_MASK_WEIGHTS = "soft_mask.safetensors"


@dataclass(frozen=True)
class SoftMaskConfig:
    """How strongly, and with what, a position that stays masked is fed back (arXiv 2510.17206).

    lambda = scale * r(t) * sigmoid(steepness * (-H - offset)), H in nats over the whole
    vocabulary; see `soft_mask.py` for the mixture. Defaults are the published training's
    initial values but for `scale`, which a trained checkpoint has to bring.
    """

    mode: str = setting("topk", "what is mixed in: 'topk' tokens, or all at a 'temperature'")
    k: int = setting(1, "mode topk: how many of the leading tokens are mixed in")
    scale: float = setting(0.0, "largest weight of the feedback, in [0, 1]; 0 turns it off")
    offset: float = setting(-0.75, "negative entropy (nats, <= 0) at half of the scale")
    steepness: float = setting(6.66, "how sharply confidence raises the weight, >= 0")
    temperature: float = setting(1.0, "mode temperature: softmax temperature of the mixture, > 0")
    schedule: str = setting("none", "weight over time: none, linear (masks left), stepwise (half)")
    mixture: str = setting(
        "linear",
        "between mask and prediction: linear, norm_kept (stretched to its parts' mean norm), "
        "spherical (on an arc, at the mask's norm), additive (the mask is not lessened)",
    )
    weight: str = setting(
        "sigmoid",
        "what the scale is multiplied with: sigmoid (confidence), constant (1), or entropy (its "
        "share of the largest one)",
    )
    entropy_temperature: float = setting(
        1.0, "softmax temperature of the entropy that the weight is read off, > 0"
    )
    token_temperature: float = setting(
        1.0, "softmax temperature of the shares in which tokens are mixed in, > 0"
    )
    options: dict[str, Any] = setting({}, "options of a mode that is a feedback rule of your own")

    def __post_init__(self) -> None:
        _take_rule(self, "feedback", "mode", "options", SOFT_MASK_MODES)
        require_choice("soft-mask schedule", self.schedule, SOFT_MASK_SCHEDULES)
        require(self.k >= 1, f"soft-mask k must be at least 1, not {self.k}")
        check_numbers("soft-mask", self)
        require(0 <= self.scale <= 1, f"soft-mask scale must lie in [0, 1], not {self.scale}")
        require(self.offset <= 0, f"soft-mask offset must be <= 0, not {self.offset}")
        require(self.steepness >= 0, f"soft-mask steepness must be >= 0, not {self.steepness}")
        require_choice("soft-mask mixture", self.mixture, FEEDBACK_MIXTURES)
        require_choice("soft-mask weight", self.weight, FEEDBACK_WEIGHTS)
        for name in ("temperature", "entropy_temperature", "token_temperature"):
            value = getattr(self, name)
            require(value >= COLDEST, f"soft-mask {name} must be at least {COLDEST}, not {value}")

    @property
    def feedback(self) -> Chosen:
        """The rule that says what is fed back."""
        return Chosen(find("feedback", self.mode), self.options)


def _take_rule(config: Any, kind: Any, field: str, options: str, plain: tuple[str, ...]) -> None:
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


# Settings of the feedback that have a name, each as `soft_mask` takes it: the checkpoint's own (an
# error where it has none), all settings, or None, plain decoding. All but the first are for any
# checkpoint, trained with feedback or not.
FEEDBACK_PRESETS: dict[str, SoftMaskConfig | Literal[True] | None] = {
    "published": True,
    "spherical": SoftMaskConfig(k=2, scale=0.3, mixture="spherical", weight="constant"),
    "rcd": SoftMaskConfig(mode="temperature", scale=1.0, weight="entropy"),
    "off": None,
}
FEEDBACK_HELP = (
    "soft-mask settings by name: published (the checkpoint's own, arXiv 2510.17206), spherical (an "
    "arc towards the two likeliest tokens, lambda 0.3, for models as they are, arXiv 2609.37391), "
    "rcd (all tokens, the more the less sure, arXiv 2601.22954, whose models are trained for it; "
    "its T is entropy_temperature), off; further soft-mask settings change a preset's"
)


def is_on(soft_mask: SoftMaskConfig | None) -> bool:
    """Whether soft-masking changes anything."""
    return soft_mask is not None and soft_mask.scale > 0


# The published names (arguments of diffusion_generate, keys of transparency_config.json).
PUBLISHED_MODES = {
    "none": None,
    "mixinputs_with_topk": "topk",
    "mixinputs_with_temp": "temperature",
}
PUBLISHED_KEYS = {
    "transparency_alg": "mode",
    "transparency_scale": "scale",
    "transparency_centre": "offset",
    "transparency_steepness": "steepness",
    "mixinputs_k": "k",
    "mixture_temp": "temperature",
    "transparency_scheduling": "schedule",
    # Ours; written only where they are used, so that the published code can read the file.
    "mixture": "mixture",
    "mixture_weight": "weight",
    "mixture_entropy_temp": "entropy_temperature",
    "mixture_token_temp": "token_temperature",
    "mixture_options": "options",
}
# Keys of ours: those from here on.
OURS = tuple(PUBLISHED_KEYS)[tuple(PUBLISHED_KEYS).index("mixture") :]


def soft_mask_from_published(values: Any, where: str) -> SoftMaskConfig | None:
    """Reads settings under their published names; None for `transparency_alg: none`.

    Keys with value null count as absent, as the published writer leaves unused ones.

    Raises:
        ValueError: unknown key, wrong type or a value out of range, naming `where`.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping of settings, found {type(values).__name__}")
    own: dict[str, Any] = {}
    values = dict(values)
    if values.pop("mixture_norm", None) is True:  # how files said it before there were others
        values.setdefault("mixture", "norm_kept")
    for key, value in values.items():
        if key not in PUBLISHED_KEYS:
            raise unknown_setting(where, key, list(PUBLISHED_KEYS))
        if value is not None:
            own[PUBLISHED_KEYS[key]] = value
    alg = own.pop("mode", "none")
    known = list(PUBLISHED_MODES)
    if alg not in known:
        known += [rule.name for rule in added("feedback")]
    require(
        alg in known,
        f"{where}: transparency_alg must be one of {', '.join(known)}, not {shown(alg)}",
    )
    mode = PUBLISHED_MODES.get(alg, alg)
    # The other values are checked even where the algorithm is "none": a typo is a typo.
    config = from_mapping(SoftMaskConfig, own | {"mode": mode or "topk"}, where)
    return config if mode else None


def soft_mask_to_published(config: SoftMaskConfig) -> dict[str, Any]:
    """The mapping to write as `transparency_config.json`; inverse of the reader above."""
    by_mode = {mode: alg for alg, mode in PUBLISHED_MODES.items()}
    values = {key: getattr(config, name) for key, name in PUBLISHED_KEYS.items()}
    default = SoftMaskConfig()
    for key in OURS:
        if values[key] == getattr(default, PUBLISHED_KEYS[key]):
            del values[key]
    return values | {"transparency_alg": by_mode.get(config.mode, config.mode)}


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not valid JSON, not UTF-8, nested too deeply or with endless numbers.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again from its source") from error


def read_soft_mask_file(path: Path) -> SoftMaskConfig | None:
    """Reads `transparency_config.json`.

    Raises:
        ValueError: the file is not valid JSON or holds anything but the published settings.
    """
    return soft_mask_from_published(read_json(path), str(path))


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
    alg_temp: float | None = setting(None, "randomness of the choice of positions; 0 or null: none")
    eps: float = setting(1e-3, "last time of the published schedule linspace(1, eps, steps + 1)")
    block_length: int | None = setting(None, "decode left to right in blocks of this many tokens")
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
    stop_rule: str = setting(
        "end", "when a text gives up its last masks: end (at an end token), or your own"
    )
    stop_options: dict[str, Any] = setting({}, "options of a stopping rule of your own")
    cache: str = setting("none", "keys and values kept within a block: " + ", ".join(CACHES))
    refresh_every: int | None = setting(
        None, "with a cache: look beyond the block every so many steps, and not at its start alone"
    )
    refresh_window: int | None = setting(
        None, "by this many tokens on both sides of the block; null: over the whole text"
    )

    def __post_init__(self) -> None:
        _take_rule(self, "commit", "alg", "alg_options", UNMASK_RULES)
        _take_rule(self, "stopping", "stop_rule", "stop_options", (end.name,))
        check_numbers("", self)
        self._check_rules()
        self._check_cache()
        require(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
        require(
            self.temperature == 0 or self.temperature >= COLDEST,
            f"temperature must be 0 or at least {COLDEST}, not {self.temperature}",
        )
        self._switch_off_filters()
        if self.top_p is not None:
            require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        if self.top_k is not None:
            require(self.top_k >= 1, f"top_k must be at least 1, not {self.top_k}")
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
            return Chosen(find("commit", rule.order), Options())
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
    def stopping(self) -> Chosen:
        """The rule that says when a text gives up its last masks."""
        return Chosen(find("stopping", self.stop_rule), self.stop_options)

    @property
    def by_chance(self) -> bool:
        """Whether each mask commits by a coin of its own, and tokens are drawn afterwards."""
        return self.ordering.rule.returns == "chances"

    @property
    def is_random(self) -> bool:
        """Whether anything is drawn."""
        return self.temperature > 0 or bool(self.alg_temp) or self.by_chance

    def _switch_off_filters(self) -> None:
        # top_p 0 is off beside temperature 0 alone: where tokens are drawn it may also mean the
        # likeliest one.
        if self.top_k in TOP_K_OFF:
            object.__setattr__(self, "top_k", None)
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
        for name in ("factor", "entropy_bound"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} must be >= 0, not {value}")
        require(
            self.threshold is not None or self.threshold_end is None,
            "threshold_end is where a threshold moves to: give threshold too",
        )
        if rules:
            require(
                not self.by_chance and not self.alg_temp,
                f"{rules[0]} commits by confidence, alg origin and alg_temp by chance: give one",
            )

    def _check_cache(self) -> None:
        require_choice("cache", self.cache, CACHES)
        require_positive(self, "refresh_every")
        window = self.refresh_window
        require(window is None or window >= 0, f"refresh_window must be >= 0, not {window}")
        if self.cache == "none":
            unused = self.refresh_every is None and window is None
            require(unused, "refresh_every and refresh_window refresh a cache: give cache too")
        else:
            require(
                self.block_length is not None,
                f"cache {self.cache} keeps what lies outside of a block: give block_length too",
            )
            require(
                window is None or self.refresh_every is not None,
                "refresh_window says how far refresh_every looks: give that too",
            )


@dataclass(frozen=True)
class PromptKind:
    """What suits prompts of one kind, which is known by how they begin."""

    prompt_starts_with: tuple[str, ...] = setting((), "beginnings of this kind's prompts")
    sampling: dict[str, Any] = setting({}, "settings of decoding, in place of all general ones")
    max_new_tokens: int | None = setting(None, "masks behind such a prompt; null: as for any other")

    def __post_init__(self) -> None:
        from_mapping(SamplingConfig, self.sampling, "sampling")
        require_positive(self, "max_new_tokens")


def kind_of(
    prompt: str, kinds: Sequence[PromptKind], general: Mapping[str, Any] | None = None
) -> PromptKind:
    """What suits this prompt: the first of the kinds that it belongs to, else what is general."""
    for kind in kinds:
        if prompt.startswith(kind.prompt_starts_with):
            return kind
    return PromptKind(sampling=dict(general or {}))


def check_kinds(kinds: Sequence[PromptKind], where: str = "") -> None:
    """Raises ValueError for a kind that no prompt, or every one, would belong to."""
    for kind in kinds:
        named = bool(kind.prompt_starts_with) and all(kind.prompt_starts_with)
        require(
            named, f"{where}a kind of prompts is known by how they begin: give prompt_starts_with"
        )


def sampling_to_file(config: SamplingConfig, kinds: Sequence[PromptKind] = ()) -> dict[str, Any]:
    """The mapping to write as `sampling_config.json`: what differs from the defaults."""
    default = dataclasses.asdict(SamplingConfig())
    values = {k: v for k, v in dataclasses.asdict(config).items() if v != default[k]}
    return values | ({PROMPT_KINDS: kinds_to_json(kinds)} if kinds else {})


def kinds_to_json(kinds: Sequence[PromptKind]) -> list[dict[str, Any]]:
    """Kinds of prompts as a file and the server's description of a model have them."""
    return [
        dataclasses.asdict(kind) | {"prompt_starts_with": [*kind.prompt_starts_with]}
        for kind in kinds
    ]


def read_sampling_file(path: Path) -> tuple[dict[str, Any], tuple[PromptKind, ...]]:
    """Reads `sampling_config.json`: what suits the checkpoint beside it, where nothing is said.

    Returns:
        Fields of SamplingConfig for any prompt, and the kinds of prompts that have others. Not
        `generation_config.json`: what older transformers left there (top_k=50) was never meant for
        this model (finding B2).

    Raises:
        ValueError: the file is not valid JSON or holds anything but settings in their range.
    """
    values = read_json(path)
    require(
        isinstance(values, dict),
        f"{path}: expected a mapping of settings, found {type(values).__name__}",
    )
    found = values.pop(PROMPT_KINDS, [])
    require(isinstance(found, list), f"{path}: {PROMPT_KINDS} must be a list of kinds")
    known = [PROMPT_KINDS, *(field.name for field in dataclasses.fields(SamplingConfig))]
    for key in values:
        if key not in known:
            raise unknown_setting(str(path), key, known)
    from_mapping(SamplingConfig, values, str(path))
    kinds = tuple(from_mapping(PromptKind, kind, f"{path}: {PROMPT_KINDS}") for kind in found)
    check_kinds(kinds, f"{path}: ")
    return values, kinds
