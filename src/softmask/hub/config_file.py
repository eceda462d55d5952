"""config.json of a model: which keys of it count, in which range, and what is refused.

The file comes from elsewhere, and transformers sets whatever it names. So only the keys below are
taken, each checked, under the names of its family; what would make another network is refused by
its name.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import from_mapping, require, require_choice, shown
from ..families.family import Family
from ..families.registry import FAMILY_KEY, as_family, by_name, family_of, is_own_layout
from ..models import DreamConfig
from .folder import NETWORK_FILE, read_mapping

ARCHITECTURE = "DreamModel"
# What models of a known family may have that this network has not, and what that is.
FOREIGN = {
    "block_size": "is block-causal",
    "bd_size": "is block-causal",
    "expand_token_id": "grows its canvas by <|expand|>, as DreamOn",
    "num_experts": "has experts",
}
# Each with what it needs. Not "dynamic" and "longrope": their frequencies follow the longest
# sequence of a forward, so an answer would depend on what is computed beside it.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu")
BLOCK_ORIGINS = ("start", "prompt")
SCORE_FUNCTIONS = ("sigmoid", "softmax")
DTYPES = ("float32", "bfloat16", "float16", "float64")
# More of each than any model has: a damaged number ends in a sentence, not in all of the memory.
LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": 2**17,
    "intermediate_size": 2**19,
    "num_hidden_layers": 2**10,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**13,
    "max_position_embeddings": 2**31 - 1,
    "block_size": 2**16,
    "num_experts_per_tok": 2**12,
    "moe_intermediate_size": 2**19,
    "n_group": 2**12,
    "topk_group": 2**12,
}


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; None: as transformers derives it."""

    rope_type: str = "default"
    rope_theta: float = DreamConfig.default_theta
    factor: float | None = None
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    partial_rotary_factor: float | None = None

    @property
    def turned(self) -> float:
        """Which part of a head is rotated."""
        return 1.0 if self.partial_rotary_factor is None else self.partial_rotary_factor

    def __post_init__(self) -> None:
        require_choice("rope_type", self.rope_type, tuple(ROPE_TYPES))
        require(
            1 < self.rope_theta <= 1e12, f"rope_theta must be in (1, 1e12], not {self.rope_theta}"
        )
        require(
            self.partial_rotary_factor in (None, 1.0)
            or (0 < self.partial_rotary_factor < 1 and self.rope_type == "default"),
            "partial_rotary_factor must be in (0, 1], and 1 with a rope_type that scales",
        )
        for name, value in vars(self).items():
            if name in ("rope_type", "rope_theta", "truncate") or value is None:
                continue
            least = 1 if name in ("factor", "original_max_position_embeddings") else 1e-6
            require(
                least <= value <= 2**31, f"{name} must be in [{least}, 2^31], not {shown(value)}"
            )
        for name in ROPE_TYPES[self.rope_type]:
            require(getattr(self, name) is not None, f"rope_type {self.rope_type} needs {name}")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            below, above = getattr(self, low), getattr(self, high)
            if below is not None and above is not None:
                require(below < above, f"{low} must be below {high}")


@dataclass(frozen=True)
class ConfigFile:
    """The keys of config.json that count; the defaults are DreamConfig's own."""

    vocab_size: int = DreamConfig.vocab_size
    hidden_size: int = DreamConfig.hidden_size
    intermediate_size: int = DreamConfig.intermediate_size
    num_hidden_layers: int = DreamConfig.num_hidden_layers
    num_attention_heads: int = DreamConfig.num_attention_heads
    num_key_value_heads: int | None = DreamConfig.num_key_value_heads
    head_dim: int | None = None
    hidden_act: str = DreamConfig.hidden_act
    max_position_embeddings: int = DreamConfig.max_position_embeddings
    initializer_range: float = DreamConfig.initializer_range
    rms_norm_eps: float = DreamConfig.rms_norm_eps
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    rope_parameters: Rope | None = None
    mask_token_id: int | None = DreamConfig.mask_token_id
    pad_token_id: int | None = DreamConfig.pad_token_id
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    logit_shift: bool = True
    attention_bias: bool = True
    qk_norm: bool = False
    expand_token_id: int | None = None
    block_size: int | None = None
    block_origin: str = DreamConfig.block_origin
    num_experts: int = 0
    num_experts_per_tok: int = DreamConfig.num_experts_per_tok
    moe_intermediate_size: int = DreamConfig.moe_intermediate_size
    first_k_dense_replace: int = 0
    n_shared_experts: int = DreamConfig.n_shared_experts
    score_function: str = DreamConfig.score_function
    n_group: int = DreamConfig.n_group
    topk_group: int = DreamConfig.topk_group
    routed_scaling_factor: float = DreamConfig.routed_scaling_factor
    family: str = DreamConfig.family
    dtype: str | None = None
    transparency_config: dict[str, Any] | None = None
    quantization_config: dict[str, Any] | None = None
    # Read to be refused where they say something else; without a meaning where they do not.
    is_causal: bool = False
    use_cache: bool = False
    use_mrope: bool = False
    use_sliding_window: bool = False
    sliding_window: int | None = None
    max_window_layers: int = DreamConfig.max_window_layers
    layer_types: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in LARGEST:
            _check_size(name, getattr(self, name))
        for name in ("initializer_range", "rms_norm_eps", "attention_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must be in [0, 1), not {value}")
        heads, pairs = self.num_attention_heads, self.num_key_value_heads or 1
        require(heads % pairs == 0, f"{heads} attention heads cannot share {pairs} of keys")
        whole = self.head_dim is not None or self.hidden_size % heads == 0
        require(whole, f"hidden_size {self.hidden_size} is no multiple of {heads} heads")
        width = self.head_dim or self.hidden_size // heads
        require(width % 2 == 0, f"a head is {width} wide: rotary embedding needs pairs")
        turned = width * (self.rope_parameters or Rope()).turned
        require(turned % 2 == 0, f"{turned} numbers of a head cannot turn in pairs")
        require(turned == width or self.qk_norm, "partial_rotary_factor is for heads with qk_norm")
        self._check_experts()
        kinds, layers = self.layer_types, self.num_hidden_layers
        whole = kinds is None or len(kinds) == layers
        require(whole, f"layer_types must be null, or name the kind of each of {layers} layers")
        require_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        require_choice("block_origin", self.block_origin, BLOCK_ORIGINS)
        if self.dtype is not None:
            require_choice("dtype", self.dtype, DTYPES)
        require(not self.use_mrope, "use_mrope is true: Dream has text alone")
        for name in (
            "mask_token_id",
            "pad_token_id",
            "bos_token_id",
            "eos_token_id",
            "expand_token_id",
        ):
            self._check_ids(name)

    def _check_experts(self) -> None:
        experts, groups = self.num_experts, self.n_group
        require(0 <= experts <= 2**16, f"num_experts must be in [0, 65536], not {experts}")
        if not experts:
            return
        even = self.hidden_size % 8 == 0 and self.moe_intermediate_size % 8 == 0
        require(even, "with experts, 8 must divide hidden_size and moe_intermediate_size")
        dense, scale = self.first_k_dense_replace, self.routed_scaling_factor
        require_choice("score_function", self.score_function, SCORE_FUNCTIONS)
        shared = self.n_shared_experts
        if self.score_function == "sigmoid":
            require(1 <= shared <= 256, f"n_shared_experts must be in [1, 256], not {shared}")
        else:
            require(
                (shared, groups, scale) == (0, 1, 1),
                "a score_function softmax has no n_shared_experts, one n_group and the "
                "routed_scaling_factor 1",
            )
        require(dense >= 0, f"first_k_dense_replace must be 0 or more, not {dense}")
        require(0 < scale < 1e6, f"routed_scaling_factor must be in (0, 1e6), not {scale}")
        # The two best of a group say how good it is.
        fits = experts % groups == 0 and experts // groups >= 2 and self.topk_group <= groups
        require(
            fits and self.num_experts_per_tok <= experts // groups * self.topk_group,
            f"{experts} experts in {groups} groups, of which {self.topk_group} are taken, cannot "
            f"give {self.num_experts_per_tok} to a token",
        )

    def _check_ids(self, name: str) -> None:
        value = getattr(self, name)
        ids = value if isinstance(value, tuple) else () if value is None else (value,)
        inside = all(0 <= i < self.vocab_size for i in ids)
        # The mask's may be found by its token, see `Family.mask_token`.
        missing = value is None and name == "mask_token_id" and not by_name(self.family).mask_token
        require(
            inside and not missing,
            f"{name} {shown(value)} is not in the vocabulary of {self.vocab_size}: correct it",
        )


@dataclass(frozen=True)
class NetworkFile:
    """The keys of an adapter's network_config.json: what its base is since it was trained.

    `family` where the base's own files do not say it.
    """

    block_size: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        _check_size("block_size", self.block_size)


def network_of(adapter: Path | None) -> NetworkFile:
    """What an adapter's folder says of its base; None: there is no adapter.

    Raises:
        ValueError: the folder's network_config.json is damaged.
    """
    if adapter is None or not (adapter / NETWORK_FILE).is_file():
        return NetworkFile()
    path = adapter / NETWORK_FILE
    return from_mapping(NetworkFile, read_mapping(path), str(path))


def adapted(config: DreamConfig, network: NetworkFile) -> DreamConfig:
    """The base's config with what an adapter changes of it."""
    if network.block_size is None:
        return config
    changed = copy.deepcopy(config)
    changed.block_size = network.block_size
    return changed


def _check_size(name: str, value: int | None) -> None:
    inside = value is None or 1 <= value <= LARGEST[name]
    require(inside, f"{name} must be in [1, {LARGEST[name]}], not {shown(value)}")


# What an exported config.json keeps: these, and names that say where the model comes from.
CONFIG_KEYS = (
    *(f.name for f in dataclasses.fields(ConfigFile)),
    "architectures",
    "auto_map",
    "model_type",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_theta",
    "torch_dtype",
    "transformers_version",
)


def config_from_file(
    values: Mapping[str, Any], path: Path, chosen: Family | None = None
) -> DreamConfig:
    """The config that the mapping in config.json stands for.

    Args:
        path: of the file, for errors.
        chosen: the family that it is known to be of.

    Raises:
        ValueError: the model is of no known family, or a value has the wrong type or range.
    """
    family = family_of(values, str(path.parent), chosen)
    own = is_own_layout(values)
    for key, what in FOREIGN.items():
        known = {*family.renamed, *family.usual, family.mark}
        is_known = key in (CONFIG_KEYS if own else known)
        if not values.get(key) or is_known:  # 0 experts are none
            continue
        if key not in family.fixed:
            raise ValueError(f"{path} has {key}: that model {what}, which softmask does not")
        if values[key] != family.fixed[key]:
            raise ValueError(
                f"{path} says {key} {shown(values[key])}: softmask loads {family.title} with "
                f"{family.fixed[key]} there"
            )
    if not own:
        values = family.settings(values, str(path)) | {FAMILY_KEY: family.name}
    elif chosen is not None:
        values = as_family(values, chosen)
    known = {f.name for f in dataclasses.fields(ConfigFile)}
    given = {key: value for key, value in values.items() if key in known}
    if family.mask_token is not None:  # the defaults are Dream's
        given = {"mask_token_id": None, "pad_token_id": None} | given
    if given.get("dtype") is None and values.get("torch_dtype") is not None:
        given["dtype"] = values["torch_dtype"]
    if isinstance(given.get("dtype"), str):
        given["dtype"] = given["dtype"].removeprefix("torch.")
    given["rope_parameters"] = _rope(values, path)
    read = from_mapping(ConfigFile, given, str(path))
    settings = {key: getattr(read, key) for key in given}
    settings |= {key: list(value) for key, value in settings.items() if isinstance(value, tuple)}
    assert read.rope_parameters is not None
    rope = {k: v for k, v in vars(read.rope_parameters).items() if v is not None}
    if read.rope_parameters.turned == 1:
        rope.pop("partial_rotary_factor", None)
    if settings.get("head_dim", 0) is None:
        del settings["head_dim"]
    try:
        return DreamConfig(**settings | {"rope_parameters": rope, "architectures": [ARCHITECTURE]})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _rope(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """One mapping of what transformers 4 and 5 write in three places.

    As transformers 5 has it `rope_scaling` wins where both are given; the base stays that of the
    other.
    """
    places = [values.get(name) for name in ("rope_parameters", "rope_scaling")]
    for place in places:
        if place is not None and not isinstance(place, dict):
            raise ValueError(f"{path}: rope_parameters must be a mapping, not {shown(place)}")
    found = {**(places[1] or places[0] or {})}
    found.setdefault("rope_theta", (places[0] or {}).get("rope_theta"))
    rope = {key: value for key, value in found.items() if value is not None}
    older = rope.pop("type", None)
    if older is not None:
        rope.setdefault("rope_type", older)
    if values.get("partial_rotary_factor") is not None:
        rope.setdefault("partial_rotary_factor", values["partial_rotary_factor"])
    theta = values.get("rope_theta")
    if theta is not None and rope.setdefault("rope_theta", theta) != theta:
        raise ValueError(f"{path}: rope_theta is {theta}, and {rope['rope_theta']}: correct it")
    return rope
