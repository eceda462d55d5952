"""What a checkpoint is: where its files lie, and, once loaded, what generation needs of it.

`hub` finds and loads them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..config import PromptKind, SoftMaskConfig, kind_of
from ..constraints.token_automaton import TokenAutomaton, Vocabulary
from ..constraints.vocabulary import bytes_by_character, token_bytes
from ..families.family import Family
from ..families.links import Link
from ..families.registry import by_name
from ..settings import plain
from .configuration_dream import DreamConfig
from .modeling_dream import DreamModel


@dataclass(frozen=True)
class Source:
    """Where a checkpoint lies, with everything read and checked but the weights' content.

    `name` is what the user called it; `folder` is a GGUF file where all lies in one; `links` say
    which weights here those in the files are; `soft_mask` is what holds for model and adapter
    together.
    """

    name: str
    folder: Path
    adapter: Path | None
    config: DreamConfig
    tokenizer: PreTrainedTokenizerFast
    weights: tuple[Path, ...]
    links: tuple[Link, ...]
    soft_mask: SoftMaskConfig | None

    @property
    def is_gguf(self) -> bool:
        """Whether everything is in one GGUF file."""
        return self.folder.is_file()


@dataclass(frozen=True)
class Checkpoint:
    """What generation needs: model, tokenizer, and the soft-mask parameters where there are any.

    `sampling` are settings of SamplingConfig that suit this model, where its folder names some,
    `prompt_kinds` those of prompts that want others; `source` is where everything came from.
    """

    model: DreamModel
    tokenizer: PreTrainedTokenizerFast
    soft_mask: SoftMaskConfig | None
    name: str
    sampling: Mapping[str, Any] = field(default_factory=dict)
    source: Source | None = None
    prompt_kinds: tuple[PromptKind, ...] = ()

    def kind_of(self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]]) -> PromptKind:
        """What suits a prompt: a text, its ids, or a conversation, which its last message decides.

        Everything that decodes asks this, so that a prompt has the same defaults wherever it is
        put to the model.
        """
        prompt = plain(prompt)
        if not self.prompt_kinds:
            text = ""
        elif isinstance(prompt, str):
            text = prompt
        elif isinstance(prompt[-1], Mapping):
            text = str(prompt[-1].get("content"))
        else:  # not checked yet
            known = range(self.model.config.vocab_size)
            given = map(plain, prompt)
            ids = [index for index in given if isinstance(index, int) and index in known]
            text = self.decode(ids)
        return kind_of(text, self.prompt_kinds, self.sampling)

    def decode(self, ids: int | Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ids = ids if isinstance(ids, int) else list(ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert isinstance(text, str)  # a list is for lists of lists
        return text

    def bytes_of(self, token: int) -> bytes:
        """What a token stands for, which may be a part of a character alone."""
        name: Any = self.tokenizer.convert_ids_to_tokens(token)
        if name is None:  # a row of the embedding table that is beyond the tokenizer
            return b""
        if token in self._added_ids:
            return name.encode()
        return bytes(map(bytes_by_character().__getitem__, name))

    @functools.cached_property
    def _added_ids(self) -> frozenset[int]:
        """Tokens beside the vocabulary; the tokenizer puts them together anew at every look."""
        return frozenset(self.tokenizer.added_tokens_decoder)

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What each token adds to a text, as bytes."""
        return Vocabulary.of(token_bytes(self.tokenizer))

    @functools.cached_property
    def joins_spaces(self) -> bool:
        """Whether there are tokens of a space and what follows it."""
        space = next(name for name, byte in bytes_by_character().items() if byte == ord(" "))
        names = self.tokenizer.get_vocab()
        return any(name[0] == space and name.strip(space) for name in names)

    @functools.cached_property
    def automata(self) -> dict[Any, TokenAutomaton]:
        """Forms that were asked for before, over this vocabulary: `decoding/constrained.py`."""
        return {}

    @property
    def family(self) -> Family:
        """Whose tokens and ways of decoding suit the model."""
        return by_name(self.model.config.family)

    @property
    def grows_holes(self) -> bool:
        """Whether the model finds the length of a hole itself."""
        return self.model.config.expand_token_id is not None

    @functools.cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: those of the config and tokenizer, and the end of a chat turn."""
        configured = self.model.config.eos_token_id
        ids = configured if isinstance(configured, list | tuple) else [configured]
        ids = [*ids, self.tokenizer.eos_token_id]
        vocabulary = self.tokenizer.get_vocab()
        ids += [vocabulary.get(token) for token in self.family.end_tokens]
        return tuple(dict.fromkeys(i for i in ids if i is not None))


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity; None: all are finite.

    At the speed of the memory (17 GB/s on a thread, a tenth of the time of a copy), so that every
    model is checked when it is loaded. Integers and weights that lie elsewhere are passed by.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta or tensor.numel() == 0:
            continue
        # float8 has no minimum of its own.
        values = tensor.detach() if tensor.element_size() > 1 else tensor.detach().float()
        ends = torch.stack(values.aminmax())
        if not bool(torch.isfinite(ends).all()):
            return name
    return None


def not_finite(name: str, dtype: torch.dtype) -> str:
    """What is said of a weight that `first_not_finite` has found."""
    return (
        f"{name} holds NaN or infinity in {dtype}: the weights are damaged, or do not fit this "
        "dtype"
    )
