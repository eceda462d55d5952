"""Family: all that sets models of one origin apart, as data. No torch.

There is one network, one loop and one objective. A family says how its files map onto them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..settings import shown

# Stands for the number of a layer in names of weights.
LAYER = "*"
TABLE, HEAD, NORM = "model.embed_tokens", "lm_head", "model.norm"
# The end of a text and of a chat turn, as most tokenizers call them.
END_TOKENS = ("<|endoftext|>", "<|im_end|>")


@dataclass(frozen=True)
class Family:
    """What softmask has to know of a family of models.

    Args:
        name: as it is given to `family=` and `--family`.
        title: as people call it.
        architectures: names in config.json by which its models are known; else by
        model_types: where they have no architecture of their own.
        mark: a key of config.json that tells it from another family of the same architecture.
        explicit: never recognised by its files, as they are those of another family or of an
            ordinary model.
        hub: ids of Hub repositories that are of it, whatever their files say.
        renamed: keys of config.json, and what they are called here (`ConfigFile`).
        usual: settings that its models have where config.json does not say otherwise.
        fixed: settings that every model of the family has, and its config.json does not say.
        required: values of further keys that make a model of the family one that fits this network.
        each_layer: values of keys that have one for each layer, likewise.
        further: what its own config.json has to say beside that, without a meaning here.
        weights: parts of names of weights, and what they are called here; `*` is a layer's number.
        fused: names of weights that hold, row behind row, what are several here, and those.
        mask_token: by which the mask's id is found where config.json has no mask_token_id.
        end_tokens: that end an answer, beside those that config and tokenizer name.
        bos: whether a raw prompt begins with the tokenizer's bos token.
        eos: whether a raw text that is given to its end ends with the tokenizer's eos token.
        chat: what its own code sets in the chat template, which templates read as variables;
            who gives a conversation may set them otherwise.
        answer_header: what its chat template writes before an answer, and behind every
            conversation, even where no answer is asked for.
        sampling: settings of SamplingConfig that its own code decodes with, without the cache:
            `hub.load` gives a block-causal model its exact one.
        training: settings of a recipe, by its parts, that its own code fine-tunes with.
        trains_padding: whether the padding's embedding is trained, which transformers' classes
            leave out.
    """

    name: str
    title: str
    architectures: tuple[str, ...]
    model_types: tuple[str, ...] = ()
    mark: str | None = None
    explicit: bool = False
    hub: tuple[str, ...] = ()
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    usual: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    each_layer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    further: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: tuple[tuple[str, str], ...] = ()
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    mask_token: str | None = None
    end_tokens: tuple[str, ...] = END_TOKENS
    bos: bool = False
    eos: bool = False
    chat: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    answer_header: str = ""
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    trains_padding: bool = False

    @property
    def network(self) -> dict[str, Any]:
        """The settings that make its network, where a config.json does not say otherwise."""
        return dict(self.usual) | dict(self.fixed)

    @property
    def is_block_causal(self) -> bool:
        """Whether the family's own code decides block by block."""
        return "block_size" in {*self.network, *self.renamed.values()}

    def settings(self, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """A config.json of this family under our names.

        Args:
            where: the file, for errors.

        Raises:
            ValueError: a value makes it another model than this network.
        """
        for key, wanted in self._required(values).items():
            value = values.get(key)
            if value is not None and value != wanted:
                raise ValueError(
                    f"{where} says {key} {shown(value)}: softmask loads {self.title} with "
                    f"{shown(wanted)} there"
                )
        ours = {key: value for key, value in values.items() if key not in self.renamed}
        ours |= {new: values[old] for old, new in self.renamed.items() if old in values}
        return dict(self.usual) | ours | dict(self.fixed)

    def original_settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The inverse of `settings`: a config.json in our names under those of the family."""
        theirs = {self.original_key(k): v for k, v in values.items() if k not in self.fixed}
        # Some families have the size of their tables under a name of its own, and this one too.
        theirs |= {key: values[key] for key in ("vocab_size",) if key in values}
        names: dict[str, Any] = {"architectures": list(self.architectures[:1])}
        names |= {"model_type": self.model_types[0]} if self.model_types else {}
        return theirs | self._required(values) | dict(self.further) | names

    def _required(self, values: Mapping[str, Any]) -> dict[str, Any]:
        layers = values.get("num_hidden_layers")
        several = layers if isinstance(layers, int) else 0
        return dict(self.required) | {k: [v] * several for k, v in self.each_layer.items()}

    def original_key(self, key: str) -> str:
        """What one of our settings is called in config.json of the original files."""
        return {ours: theirs for theirs, ours in self.renamed.items()}.get(key, key)

    def template(self, text: str) -> str:
        """A chat template of the family's files, as it is to be read here.

        What comes out may stand in a file again: it is left as it is.
        """
        begin = "".join(
            f"{{% if {key} is not defined %}}{{% set {key} = {str(value).lower()} %}}{{% endif %}}"
            for key, value in self.chat.items()
        )
        end = ""
        if self.answer_header:
            begin += "{% set written %}"
            end = "{% endset %}{{ written if add_generation_prompt else written.removesuffix("
            end += json.dumps(self.answer_header) + ") }}"
        if text.startswith(begin):
            return text
        # Jinja drops one line break at the end of a file, which is no longer the end.
        return begin + (text.removesuffix("\n") if end else text) + end

    def own_name(self, name: str) -> str:
        """What a weight of the original files is called here."""
        return renamed(name, self.weights)

    def original_name(self, name: str) -> str:
        """The inverse of `own_name`."""
        return renamed(name, tuple((ours, theirs) for theirs, ours in self.weights))


@functools.cache
def _pattern(part: str) -> re.Pattern[str]:
    """Of names that begin with this part; there may be 24,000, those of LLaDA2.0 flash."""
    return re.compile(re.escape(part).replace(re.escape(LAYER), r"(\d+)") + r"(?=\.|$)")


def renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """A weight's name with the first of these parts that it begins with replaced."""
    for old, new in pairs:
        match = _pattern(old).match(name)
        if match is not None:
            layer = match[1] if match.groups() else ""
            return new.replace(LAYER, layer) + name[match.end() :]
    return name
