"""What decides a training run, as frozen dataclasses: a recipe in YAML has exactly these keys.

    name, seed
    model          the checkpoint to fine-tune, or the shape of a model made from nothing
    adapter        DoRA or LoRA; null trains every weight
    soft_mask      initial soft-mask parameters; null is the plain twin
    conversations  chats to fine-tune on        } one of
    corpus         text and puzzles to pretrain on  } the two
    noise          how much is masked
    train          everything about the optimisation
    sampling       what `generate` takes by default with the finished model; else its base's
    prompt_kinds   the same for prompts of some kinds

Imports neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from ..config import (
    PromptKind,
    SamplingConfig,
    SoftMaskConfig,
    check_kinds,
    from_mapping,
    require,
    require_choice,
    require_positive,
    setting,
)
from ..puzzles.puzzles import check_mixture

OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("cosine", "linear", "constant")
WEIGHTINGS = ("mean", "row", "elbo", "published", "answer")
# Where the loss does not ask for the time at which a row was masked.
TIMELESS = WEIGHTINGS[:2]
REVEALS = ("confidence", "random")
ACCUMULATIONS = ("mean", "sum")
COINS = ("batch", "step")
BIASES = ("none", "all", "lora_only")
TRAINED_ON = ("last", "all")
SUDOKUS = ("sudoku_4x4", "sudoku_9x9")
DTYPES = ("float32", "bfloat16", "float16", "auto")
MOST_STAGES = 4096  # of a row: more than a long answer has tokens
MOST_PASSES = 64  # that make feedback for one update: as many as a short decoding has steps
LARGEST = 1e30  # of a rate: what it is multiplied with stays finite
# A BPE begins with all bytes and has a token for the end, the beginning and the mask.
SMALLEST_VOCABULARY = 256 + 3
RECIPE = "recipe.json"  # in the folder of a run: every setting
REPORTERS = ("tensorboard", "wandb", "trackio")


def _require_shares(config: Any, *names: str) -> None:
    for name in names:
        share = getattr(config, name)
        require(share is None or 0 <= share <= 1, f"{name} must lie in [0, 1], not {share}")


def _require_rates(config: Any, *names: str) -> None:
    """Raises ValueError unless each is unset, or above 0 and finite as a float32 too."""
    for name in names:
        rate = getattr(config, name)
        right = rate is None or 0 < rate <= LARGEST
        require(right, f"{name} must be > 0 and at most {LARGEST:g}, not {rate}")


def _require_not_negative(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        right = value is None or 0 <= value <= LARGEST
        require(right, f"{name} must be >= 0 and at most {LARGEST:g}, not {value}")


def _require_few_passes(passes: int | None) -> None:
    few = passes is None or passes <= MOST_PASSES
    require(few, f"feedback_passes must be at most {MOST_PASSES}, not {passes}: each is a forward")


@dataclass(frozen=True)
class ModelShape:
    """Size of a model that is trained from nothing; names as in Qwen2's configuration."""

    hidden_size: int = setting(192, "width")
    intermediate_size: int = setting(512, "width inside the MLP")
    num_hidden_layers: int = setting(6, "layers")
    num_attention_heads: int = setting(6, "attention heads")
    num_key_value_heads: int = setting(3, "key and value heads")
    max_position_embeddings: int = setting(512, "longest canvas, in tokens")
    vocab_size: int = setting(2048, "tokens of the BPE trained on the text, special ones included")
    tie_word_embeddings: bool = setting(True, "one table for the input and the head")

    def __post_init__(self) -> None:
        require_positive(self, "hidden_size", "intermediate_size", "num_hidden_layers")
        require_positive(self, "num_attention_heads", "num_key_value_heads")
        require_positive(self, "max_position_embeddings")
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        require(
            heads % shared == 0,
            f"num_attention_heads, {heads}, must be a multiple of num_key_value_heads, {shared}",
        )
        require(
            self.hidden_size % (2 * heads) == 0,
            f"hidden_size, {self.hidden_size}, must be a multiple of twice the attention heads, "
            f"{heads}: positions turn pairs of values",
        )
        require(
            self.vocab_size >= SMALLEST_VOCABULARY,
            f"vocab_size must be at least {SMALLEST_VOCABULARY}, not {self.vocab_size}",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained."""

    path: str | None = setting(None, "folder or Hub id of a checkpoint; null: from nothing")
    revision: str | None = setting(None, "branch, tag or commit on the Hub")
    family: str | None = setting(None, "of models whose files do not say: opendcoder, ...")
    dtype: str | None = setting(
        None, "of the loaded weights; null: float32 on a CPU or without adapter, else their own"
    )
    load_in_4bit: bool = setting(False, "frozen weights in 4 bits (nf4, bitsandbytes), as QLoRA")
    attention: str | None = setting(None, "attention kernel: sdpa, eager, ...; null: by device")
    block_size: int | None = setting(
        None, "make the model block-causal, in blocks of so many tokens; null: it stays as it is"
    )
    shape: ModelShape = ModelShape()

    def __post_init__(self) -> None:
        require_positive(self, "block_size")
        if self.dtype is not None:
            require_choice("dtype", self.dtype, DTYPES)
        for name in ("revision", "family", "dtype"):
            require(
                self.path is not None or getattr(self, name) is None,
                f"{name} needs model.path, the checkpoint that it is about: give that, or leave "
                f"{name} out",
            )
        require(
            self.path is None or self.shape == ModelShape(),
            f"shape is of a model made from nothing, and {self.path} has its own: leave "
            "model.shape out (--set model.shape={} takes a recipe's away)",
        )


@dataclass(frozen=True)
class AdapterConfig:
    """A PEFT adapter; the defaults are the published ones."""

    r: int = setting(16, "rank")
    alpha: float = setting(16.0, "scale: alpha / r times the update")
    dropout: float = setting(0.0, "dropout before the adapter")
    bias: str = setting("none", "biases that are trained too: " + ", ".join(BIASES))
    dora: bool = setting(True, "DoRA: magnitude and direction apart; false: LoRA")
    target_modules: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj"), "linear layers that get an adapter"
    )
    layers: tuple[int, ...] | None = setting(None, "only these layers; null: all")

    def __post_init__(self) -> None:
        require_positive(self, "r")
        _require_shares(self, "dropout")
        require_choice("bias", self.bias, BIASES)
        require(bool(self.target_modules), "target_modules is empty: name linear layers")
        require(self.layers != (), "layers is empty: name layers, or null")  # PEFT: all of them


@dataclass(frozen=True)
class SourceConfig:
    """One set of conversations: a Hub id, a json, jsonl, csv or parquet file, or a folder.

    A folder holds such files, or a data set that `save_to_disk` wrote. What a row is, the names of
    its columns say, see `messages.py`.
    """

    path: str = field(metadata={"help": "Hub id, file or folder"})
    subset: str | None = setting(None, "configuration of the Hub data set, such as 'all'")
    revision: str | None = setting(None, "branch, tag or commit on the Hub; null: the newest")
    messages_column: str = setting(
        "messages", "column with the list of {role, content} or {from, value}"
    )
    prompt_column: str | None = setting(None, "with response_column: instead of messages")
    response_column: str | None = setting(None, "with prompt_column: instead of messages")
    validation: str | None = setting(
        None, "file or folder for validation; null: a split of that name, or a share of the rows"
    )

    def __post_init__(self) -> None:
        both = (self.prompt_column is None) == (self.response_column is None)
        require(both, "prompt_column and response_column go together")


@dataclass(frozen=True)
class ConversationConfig:
    """Which conversations are trained on, and how they become rows."""

    sources: tuple[SourceConfig, ...]
    max_length: int = setting(2048, "longer conversations are left out, in tokens")
    min_response: int = setting(5, "shorter responses are left out, in tokens")
    max_samples: int | None = setting(300_000, "at most this many conversations are drawn")
    validation_samples: int = setting(500, "at most this many conversations for validation")
    validation_share: float = setting(0.1, "share held out where a source has no split of its own")
    train_on: str = setting(
        "last", "a row for the last answer of a conversation, or for 'all', each with what precedes"
    )
    mask_prompt: bool = setting(True, "train on answers alone; false: on what precedes them too")
    drop_tool_calls: bool = setting(True, "leave out conversations with tool-call tokens")
    streaming: bool = setting(False, "read only as much of a Hub data set as is drawn")
    shuffle_buffer: int = setting(100_000, "streaming: conversations shuffled at a time")
    extra_padding: int = setting(50, "0 to this many less one pads behind a batch, at random")
    pad_multiple: int = setting(8, "rows are padded to a multiple of this")
    seed: int | None = setting(None, "of the split and the order; null: the run's")
    cache: str | None = setting(
        None, "folder of tokenised data; null: $SOFTMASK_CACHE, else ~/.cache/softmask"
    )

    def __post_init__(self) -> None:
        require(bool(self.sources), "sources is empty: name data sets or files")
        require_choice("train_on", self.train_on, TRAINED_ON)
        require_positive(self, "max_length", "min_response", "max_samples", "validation_samples")
        require_positive(self, "shuffle_buffer", "extra_padding", "pad_multiple")
        share = self.validation_share
        require(0 < share < 1, f"validation_share must lie between 0 and 1, not {share}")


@dataclass(frozen=True)
class CorpusConfig:
    """What a pretraining run reads. Every batch is drawn from (seed, number of the batch) alone."""

    puzzles: dict[str, float] = setting(
        {"sudoku_4x4": 1.0, "countdown_3": 1.0}, "mixture of generated puzzles, by weight"
    )
    in_place: tuple[str, ...] = setting(
        (), "Sudokus that are filled in; behind all other puzzles a solution is written"
    )
    text: tuple[str, ...] = setting((), "text files, documents separated by <|endoftext|> lines")
    packed: bool = setting(False, "rows run through the documents; else a row holds one story")
    puzzle_share: float = setting(0.6, "probability that a batch holds puzzles, not text")
    puzzle_batch: int = setting(64, "puzzles a batch, all of one kind")
    puzzle_pool: int | None = setting(
        None, "train on so many of each kind, the same for every seed; null: never one twice"
    )
    story_batch: int = setting(16, "rows of text a batch")
    story_length: int = setting(160, "tokens of a row of text")
    validation_share: float = setting(0.01, "of the text, its end: validated on and not trained on")

    def __post_init__(self) -> None:
        _require_shares(self, "puzzle_share", "validation_share")
        require_positive(self, "puzzle_batch", "puzzle_pool", "story_batch", "story_length")
        others = [name for name in self.in_place if name not in SUDOKUS]
        require(not others, f"in_place takes {' and '.join(SUDOKUS)}, not {', '.join(others)}")
        check_mixture(self.puzzles)
        text = bool(self.text) or self.puzzle_share == 1
        require(text, "text is empty: name files or set puzzle_share: 1")


@dataclass(frozen=True)
class NoiseConfig:
    """How much of a row is masked; t ~ U(t_low, t_high)."""

    t_low: float = setting(1e-3, "smallest masking time")
    t_high: float = setting(1.0, "largest masking time")
    per_row: bool = setting(True, "a time for each row, stratified over the batch; false: one")
    floor: float = setting(0.0, "masked with probability (1 - floor) t + floor")
    at_least_one: bool = setting(
        True, "mask one token of a row at least: never idle, but weights by 1/t then overstate it"
    )

    def __post_init__(self) -> None:
        low, high = self.t_low, self.t_high
        require(0 <= low <= high <= 1, f"0 <= t_low <= t_high <= 1 must hold, not {low} and {high}")
        _require_shares(self, "floor")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run; a setting that is null is as in `train` and `corpus`."""

    name: str = field(metadata={"help": "of the stage, in the log"})
    steps: int = field(metadata={"help": "updates"})
    learning_rate: float | None = setting(None, "at the end of the warm-up")
    final_learning_rate: float | None = setting(None, "where the schedule ends")
    warmup: float | None = setting(None, "share of the stage (below 1) or steps")
    soft_probability: float | None = setting(None, "share of batches with the two-pass loss")
    feedback_passes: int | None = setting(None, "passes that make feedback, at most")
    left_to_right: float | None = setting(None, "share of rows masked as in block-wise decoding")
    puzzles: dict[str, float] | None = setting(None, "mixture of this stage")
    puzzle_share: float | None = setting(None, "share of puzzle batches in this stage")

    def __post_init__(self) -> None:
        require_positive(self, "steps", "feedback_passes")
        if self.puzzles is not None:
            check_mixture(self.puzzles)
        _require_few_passes(self.feedback_passes)
        _require_shares(self, "soft_probability", "left_to_right", "puzzle_share")
        _require_rates(self, "learning_rate")
        _require_not_negative(self, "final_learning_rate", "warmup")


@dataclass(frozen=True)
class TrajectoryConfig:
    """Rows that are revealed stage by stage; see trajectory.py."""

    stages: int = setting(8, "forwards that a row stays for: each reveals about so much of it")
    forwards: int = setting(
        1, "stages an update runs through, with the gradient through what is carried between them"
    )
    reveal: str = setting(
        "confidence", "masks revealed first: " + ", ".join(REVEALS) + "; the surest, or any"
    )

    def __post_init__(self) -> None:
        require_positive(self, "stages", "forwards")
        require_choice("reveal", self.reveal, REVEALS)
        require(self.stages <= MOST_STAGES, f"stages must be at most {MOST_STAGES}")
        require(
            self.stages % self.forwards == 0,
            f"stages, {self.stages}, must be a multiple of forwards, {self.forwards}: an update "
            "runs through so many",
        )

    @property
    def period(self) -> int:
        """Updates that a row takes part in."""
        return self.stages // self.forwards


@dataclass(frozen=True)
class TrainConfig:
    """The optimisation."""

    steps: int | None = setting(None, "updates; null: as many as `epochs` takes")
    epochs: float = setting(1.0, "passes over the conversations, trajectories in full")
    batch_size: int = setting(1, "rows a device and forward (a corpus has batches of its own)")
    accumulation: int = setting(1, "forwards a device and update")
    learning_rate: float = setting(1e-4, "at the end of the warm-up")
    final_learning_rate: float = setting(0.0, "where the schedule ends")
    schedule: str = setting("cosine", "learning rate after the warm-up: " + ", ".join(SCHEDULES))
    warmup: float = setting(0.03, "linear warm-up: share of the updates (below 1) or updates")
    soft_probability: float = setting(
        0.5, "share of batches with the two-pass loss; of rows that read their state (trajectory)"
    )
    trajectory: TrajectoryConfig | None = setting(
        None, "carry a row's feedback from forward to forward; null: two passes, as published"
    )
    feedback_passes: int = setting(
        1, "passes that make feedback: 1 as published; else a soft batch draws 1 to this many"
    )
    fit_soft_mask: bool = setting(
        False, "begin with the offset and steepness that the entropy of masked positions asks for"
    )
    soft_learning_rate: float = setting(1e-2, "learning rate of the soft-mask parameters")
    soft_coin: str = setting("batch", "soft or plain is drawn for each 'batch' or each 'step'")
    left_to_right: float = setting(0.0, "share of rows masked as in block-wise decoding, noise.py")
    weighting: str = setting("mean", "loss: " + ", ".join(WEIGHTINGS) + "; see objective.py")
    accumulate: str = setting("mean", "loss over an update's forwards: mean, or (published) sum")
    optimizer: str = setting("adamw", "of the layers' matrices: adamw or muon; the rest has AdamW")
    weight_decay: float = setting(0.0, "weight decay of the matrices")
    beta2: float = setting(0.999, "AdamW beta2")
    clip: float = setting(1.0, "largest gradient norm")
    precision: str = setting("bfloat16", "of the matrix products: float32, or bfloat16 (autocast)")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass")
    ema: float | None = setting(None, "decay of a moving average of the weights, which is kept")
    log_every: int = setting(10, "updates between lines of the log")
    eval_every: int = setting(100, "updates between evaluations")
    eval_at_start: bool = setting(True, "evaluate before the first update too")
    eval_batches: int = setting(4, "batches of each kind an evaluation of a corpus takes")
    save_every: int = setting(100, "updates between checkpoints")
    save_limit: int | None = setting(3, "checkpoints kept, the best one among them; null: all")
    keep_best: bool = setting(False, "end with the checkpoint of the lowest eval_loss")
    report_to: tuple[str, ...] = setting((), "besides log.jsonl: " + ", ".join(REPORTERS))
    arguments: dict[str, Any] = setting({}, "more of transformers' TrainingArguments, by name")
    stages: tuple[StageConfig, ...] = setting((), "parts of the run with settings of their own")

    def __post_init__(self) -> None:
        for name, choices in (
            ("schedule", SCHEDULES),
            ("soft_coin", COINS),
            ("weighting", WEIGHTINGS),
            ("accumulate", ACCUMULATIONS),
            ("optimizer", OPTIMIZERS),
            ("precision", PRECISIONS),
        ):
            require_choice(name, getattr(self, name), choices)
        for name in self.report_to:
            require_choice("report_to", name, REPORTERS)
        require_positive(self, "steps", "batch_size", "accumulation", "log_every")
        require_positive(self, "feedback_passes")
        _require_few_passes(self.feedback_passes)
        require_positive(self, "eval_every", "eval_batches", "save_every", "save_limit")
        _require_shares(self, "soft_probability", "left_to_right")
        _require_rates(self, "learning_rate", "soft_learning_rate", "epochs", "clip")
        _require_not_negative(self, "final_learning_rate", "warmup", "weight_decay")
        require(0 <= self.beta2 < 1, f"beta2 must lie in [0, 1), not {self.beta2}")
        require(self.ema is None or 0 < self.ema < 1, f"ema must lie in (0, 1), not {self.ema}")
        if self.trajectory is not None:
            self._check_trajectory()
        given = self.steps is not None and bool(self.stages)
        require(not given, "give steps or stages, not both: stages have steps of their own")
        best = not self.keep_best or self.save_every % self.eval_every == 0
        require(best, "keep_best needs save_every to be a multiple of eval_every")

    @property
    def visits(self) -> int:
        """Updates that a row takes part in."""
        return 1 if self.trajectory is None else self.trajectory.period

    def _check_trajectory(self) -> None:
        require(
            self.soft_coin == "batch",
            "soft_coin has no effect with trajectory (each row draws for itself): leave it out",
        )
        for name, neutral, instead in (
            ("feedback_passes", 1, "a row's feedback is that of its stages before"),
            ("left_to_right", 0.0, "its stages say what is masked"),
        ):
            used = any(getattr(one, name) not in (None, neutral) for one in (self, *self.stages))
            require(not used, f"{name} has no effect with trajectory ({instead}): leave it out")
        require(
            self.weighting in TIMELESS,
            f"trajectory masks no row at a time t: weighting must be {' or '.join(TIMELESS)}",
        )


@dataclass(frozen=True)
class Recipe:
    """A training run: everything that decides its numbers."""

    name: str = field(metadata={"help": "of the run, and of its folder"})
    train: TrainConfig
    seed: int = setting(1, "decides weights, data and masks")
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig | None = setting(None, "PEFT adapter; null: every weight is trained")
    soft_mask: SoftMaskConfig | None = setting(None, "initial parameters; null: plain training")
    conversations: ConversationConfig | None = setting(None, "chats to fine-tune on")
    corpus: CorpusConfig | None = setting(None, "text and puzzles to pretrain on")
    noise: NoiseConfig = NoiseConfig()
    sampling: SamplingConfig = SamplingConfig()
    prompt_kinds: tuple[PromptKind, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self.prompt_kinds)
        one = (self.conversations is None) != (self.corpus is None)
        require(one, "give one of conversations and corpus")
        require(0 <= self.seed < 2**32, f"seed must lie in [0, 2**32), not {self.seed}")
        if self.adapter is not None:
            require(self.model.path is not None, "an adapter needs model.path, the base checkpoint")
            require(
                self.sampling == SamplingConfig() and not self.prompt_kinds,
                "sampling and prompt_kinds are written beside a whole model, and an adapter has "
                "those of its base: leave them out",
            )
        if self.conversations is not None:
            require(self.model.path is not None, "conversations need model.path, a checkpoint")
        else:
            bounded = bool(self.train.stages) or self.train.steps is not None
            require(bounded, "a corpus is endless: give train.steps or train.stages")
        if self.corpus is not None and not self.corpus.text:
            for stage in self.train.stages:
                require(
                    stage.puzzle_share in (None, 1),
                    f"stage {stage.name} has puzzle_share {stage.puzzle_share}, and corpus.text is "
                    "empty: name files, or leave its puzzle_share out",
                )
        require(
            self.noise.t_low > 0 or self.train.weighting in TIMELESS,
            f"weighting {self.train.weighting} divides by the time t, and noise.t_low is 0: give a "
            f"smallest time above 0, or a weighting of {' or '.join(TIMELESS)}",
        )
        if self.train.trajectory is not None and self.soft_mask is not None:
            require(
                not self.soft_mask.feedback.rule.dense,
                f"trajectory would carry all logits for soft_mask.mode {self.soft_mask.mode}: "
                "choose one that mixes leading tokens, such as topk",
            )
        if self.train.fit_soft_mask and self.soft_mask is not None:
            require(
                self.soft_mask.weight == "sigmoid",
                "fit_soft_mask finds offset and steepness, which weight sigmoid alone reads",
            )
        if self.model.block_size is not None:
            self.check_network(self.model.block_size)
        if self.model.load_in_4bit:
            require(self.adapter is not None, "weights in 4 bits cannot be trained: add an adapter")

    def check_network(self, block_size: int | None) -> None:
        """Raises ValueError where a model of such blocks (None: none) is not trained like this."""
        size = block_size if self.model.block_size is None else self.model.block_size
        if size is None:
            return
        require(
            self.train.trajectory is None,
            "trajectory reveals whole rows, and a block-causal model decides block by block: leave "
            "it out",
        )
        kinds = [kind.sampling.get("block_length") for kind in self.prompt_kinds]
        for length in (self.sampling.block_length, *kinds):
            require(
                length is None or size % length == 0,
                f"the model writes blocks of {size} tokens: sampling.block_length must divide "
                f"that, not be {length}",
            )

    @classmethod
    def of(cls, values: Any, where: str) -> Recipe:
        """The recipe of a mapping, which an earlier version may have written.

        Raises:
            ValueError: see `from_mapping`.
        """
        mask = values.get("soft_mask") if isinstance(values, dict) else None
        if isinstance(mask, dict) and isinstance(mask.get("keep_norm"), bool):
            mask = dict(mask)
            if mask.pop("keep_norm"):
                mask.setdefault("mixture", "norm_kept")
            values = values | {"soft_mask": mask}
        return from_mapping(cls, values, where)

    def as_mapping(self) -> dict[str, Any]:
        """Every setting, as a file of JSON or YAML holds it; `of` reads it again."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values

    def twin(self) -> Recipe:
        """The same run without soft-masking."""
        return dataclasses.replace(self, soft_mask=None)
