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

from .rules import Chosen, added, find
from .sampling import SamplingConfig, check_temperature, take_rule
from .settings import (
    convert_fields,
    from_mapping,
    require,
    require_choice,
    require_positive,
    setting,
    shown,
    unknown_setting,
)
from .shipped_rules import SOFT_MASK_MODES

SOFT_MASK_SCHEDULES = ("none", "linear", "stepwise")
# Of `mixtures.py`, which computes them.
FEEDBACK_MIXTURES = ("linear", "norm_kept", "spherical", "additive")
FEEDBACK_WEIGHTS = ("sigmoid", "constant", "entropy")
# The name of the bundled model, and of its folder in this package.
BUNDLED = "default"
# How the likelihood of a given text is estimated, see decoding/likelihood.py.
ESTIMATORS = ("masks", "chain", "llada", "one_step")
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
        take_rule(self, "feedback", "mode", "options", SOFT_MASK_MODES)
        convert_fields("soft-mask ", self)
        require_choice("soft-mask schedule", self.schedule, SOFT_MASK_SCHEDULES)
        require(self.k >= 1, f"soft-mask k must be at least 1, not {self.k}")
        require(0 <= self.scale <= 1, f"soft-mask scale must lie in [0, 1], not {self.scale}")
        require(self.offset <= 0, f"soft-mask offset must be <= 0, not {self.offset}")
        require(self.steepness >= 0, f"soft-mask steepness must be >= 0, not {self.steepness}")
        require_choice("soft-mask mixture", self.mixture, FEEDBACK_MIXTURES)
        require_choice("soft-mask weight", self.weight, FEEDBACK_WEIGHTS)
        for name in ("temperature", "entropy_temperature", "token_temperature"):
            check_temperature(f"soft-mask {name}", getattr(self, name))

    @property
    def feedback(self) -> Chosen:
        """The rule that says what is fed back."""
        return Chosen(find("feedback", self.mode), self.options)


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


def soft_mask_to_published(config: SoftMaskConfig | None) -> dict[str, Any]:
    """The mapping to write as `transparency_config.json`; inverse of the reader above."""
    if config is None:
        return {"transparency_alg": "none"}
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
    return sampling_mapping(values, kinds)


def sampling_mapping(values: dict[str, Any], kinds: Sequence[PromptKind]) -> dict[str, Any]:
    """The mapping of these settings and kinds of prompts; inverse of `sampling_from`."""
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
    return sampling_from(read_json(path), str(path))


def sampling_from(values: Any, where: str) -> tuple[dict[str, Any], tuple[PromptKind, ...]]:
    """What `read_sampling_file` reads, of what the file holds; `where` names it.

    Raises:
        ValueError: as `read_sampling_file`.
    """
    require(
        isinstance(values, dict),
        f"{where}: expected a mapping of settings, found {type(values).__name__}",
    )
    found = values.pop(PROMPT_KINDS, [])
    require(isinstance(found, list), f"{where}: {PROMPT_KINDS} must be a list of kinds")
    known = [PROMPT_KINDS, *(field.name for field in dataclasses.fields(SamplingConfig))]
    for key in values:
        if key not in known:
            raise unknown_setting(where, key, known)
    from_mapping(SamplingConfig, values, where)
    kinds = tuple(from_mapping(PromptKind, kind, f"{where}: {PROMPT_KINDS}") for kind in found)
    check_kinds(kinds, f"{where}: ")
    return values, kinds
