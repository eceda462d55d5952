"""Dream on transformers' own Qwen2 modules: bidirectional, logits aligned with positions.

Other families are this network too, by their configuration. State-dict names are those of the
original Dream checkpoints. What differs from Qwen2ForCausalLM is here: no causal mask, or one of
blocks, the shift by one, logits for chosen rows only, and soft tokens as input.
Shape suffixes: B batch, L length, N chosen rows, V vocabulary, D width.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Model
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeRotaryEmbedding
from transformers.utils import ModelOutput

from ..logits import LogitStatistics, statistics
from ..soft_mask import Feedback, SoftMask, SoftTokens, feedback_of
from .block_causal import Blocks
from .configuration_dream import DreamConfig
from .experts import WithExperts, use_experts
from .linear import use_faster_products
from .lm_head import CHUNK_LOGITS, read_head
from .packing import Layout, make_packed


@dataclass
class MaskedDiffusionOutput(ModelOutput):
    """Logits (B, L, V), or (N, V) where `rows` were chosen; the last hidden state (B, L, D).

    With `labels` of all positions: also the `loss`, fp32, a mean. With `labels` of `rows`: fp32
    cross-entropy `losses` (N,) and the most likely ids `predicted` (N,). With `observe`: the
    `feedback` of the rows. Where feedback was mixed in: its `entropies` and `lambdas`, (N,) each,
    without gradient.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    losses: Tensor | None = None
    predicted: Tensor | None = None
    feedback: Feedback | None = None
    entropies: Tensor | None = None
    lambdas: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class DreamBaseModel(WithExperts, Qwen2Model):
    """The transformer without its head."""

    config_class = DreamConfig

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        variant = {"bias": config.attention_bias, "normed": config.qk_norm}
        variant["partial"] = config.rotates_in_part
        for layer in self.layers:
            make_packed(layer.self_attn, eps=config.rms_norm_eps, **variant)
        if config.rotates_in_part:
            rotary: Any = Glm4MoeRotaryEmbedding  # which reads nothing of GLM's own configuration
            self.rotary_emb = rotary(config)
        if config.num_experts:
            use_experts(self.layers, config)


class DreamModel(WithExperts):
    """A masked diffusion language model: predicts every masked position at once.

    `soft_mask` is None until a checkpoint or a training run brings its parameters
    (`DreamModel.soft_mask = SoftMask(...)`); it then lives inside the model so that it is moved,
    trained and sharded with it.
    """

    config_class = DreamConfig
    config: DreamConfig
    # Whether `logits[b, i]` of all positions predicts position i. In the code of an exported folder
    # it does not: Dream's own does not either, and scripts written for it shift by themselves.
    aligned_logits: ClassVar[bool] = True
    # Dream's own generation call; decoding/diffusion_generate.py puts it here, with its settings
    # (`generation_config`).
    diffusion_generate: ClassVar[Callable[..., Any]]
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: DreamConfig) -> None:
        super().__init__(config)
        self.model = DreamBaseModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.soft_mask: SoftMask | None = None
        # transformers makes plain layers alone into quantised ones, and passes by ours in silence.
        if getattr(config, "quantization_config", None) is None:
            use_faster_products(self)
        self.post_init()

    @classmethod
    def can_generate(cls) -> bool:
        """Whether transformers' own `generate` works here: it writes left to right."""
        return False

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> NoReturn:
        """What peft asks of the base of an adapter whose task is CAUSAL_LM, for `generate` alone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("Dream has no generate(): call diffusion_generate()")

    @property
    def mask_id(self) -> int:
        """The id of the mask token.

        Raises:
            ValueError: the config has none.
        """
        if self.config.mask_token_id is None:
            raise ValueError(
                "the model's config has no mask_token_id: it is no masked diffusion model"
            )
        return self.config.mask_token_id

    @property
    def device(self) -> torch.device:
        """Where inputs go; with weights that are kept elsewhere, where those come to be used."""
        device = super().device
        hook = getattr(self.model.embed_tokens, "_hf_hook", None)  # accelerate's
        execution: Any = getattr(hook, "execution_device", None)
        away = device.type == "meta" and execution is not None
        return torch.device(execution) if away else device

    @contextlib.contextmanager
    def input_table(self) -> Iterator[Tensor]:
        """(V, D) input embeddings; those that a device map keeps elsewhere are there within."""
        embedding: Any = self.model.embed_tokens
        hook = getattr(embedding, "_hf_hook", None)
        if hook is not None:
            hook.pre_forward(embedding)
        try:
            yield embedding.weight
        finally:
            if hook is not None:
                hook.post_forward(embedding, None)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor | None] | str | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        soft_tokens: SoftTokens | None = None,
        feedback: Feedback | None = None,
        rows: Tensor | None = None,
        labels: Tensor | None = None,
        observe: bool = False,
        attached: bool = False,
        clean_ids: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        *,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> MaskedDiffusionOutput | tuple[Any, ...]:
        """Predicts positions from exactly one of `input_ids`, `inputs_embeds`, `soft_tokens`.

        Args:
            input_ids: (B, L) token ids.
            attention_mask: (B, L), 1 at real tokens and 0 at padding; or None, or "full" as in
                Dream's own loop: all are real; or masks made by transformers' mask functions,
                keyed by layer type, which then are all there is.
            position_ids: (B, L); default: positions counted from the first real token. Those of a
                block-causal model say in which block each position lies.
            inputs_embeds: (B, L, D).
            soft_tokens: superposed tokens, embedded here.
            feedback: with `input_ids`: statistics of an earlier pass that `self.soft_mask` mixes
                into them, here inside the forward, where sharded parameters get their gradient.
            rows: (N,) flat indices into B * L; the head runs on these alone.
            labels: (N,) true ids of `rows`: gives `losses` and `predicted` in place of logits; or
                (B, L) true ids, -100 where none counts: gives the `loss` beside the logits.
            observe: gives the `feedback` of `rows` for a next pass in place of logits; in mode
                "topk" the (N, V) logits are never whole. Beside labels of rows it comes with the
                losses, and may be had without soft-mask parameters: then of the likeliest token.
            attached: the feedback beside labels keeps its gradient.
            clean_ids: (B, L) true ids, of a block-causal model: `rows` of a block are predicted
                behind true blocks, all of them in one forward of 2 L positions.
            prompt_lengths: (B,) tokens in front of the first that is written: where blocks begin
                that begin with it (`block_origin`); default: they begin with the text.
            use_cache: False or None: there are no keys of earlier tokens to go on from.
            output_attentions: as in transformers.
            output_hidden_states: as in transformers.
            return_dict: False: a tuple of what there is, the loss first, as in transformers.
            num_items_in_batch: what the sum of the losses is divided by; default: their number.

        Returns:
            `logits[b, i]` predicts position i itself (the shift is undone), shape (B, L, V), or
            (N, V) for `rows`. Position 0, which nothing precedes, is read off its own row. In the
            code of an exported folder (B, L, V) logits are Dream's own: `logits[b, i]` predicts
            position i + 1 (`aligned_logits`); those of `rows`, losses and the loss are the same.

        Raises:
            ValueError: none or several kinds of input, feedback or `observe` without soft-mask
                parameters, `observe` without rows, labels of another shape, a cache, clean ids
                without rows or beside masks, or of a model that is not block-causal.
        """
        if use_cache:
            raise ValueError("Dream has no cache of earlier tokens: leave use_cache out")
        given = [x is not None for x in (input_ids, inputs_embeds, soft_tokens)]
        if sum(given) != 1:
            raise ValueError("give exactly one of input_ids, inputs_embeds and soft_tokens")
        self._check_reading(rows, labels, observe)
        if clean_ids is not None:
            self._check_clean(rows, attention_mask)
        if isinstance(attention_mask, str):
            if attention_mask != "full":
                raise ValueError(f"attention_mask must be a tensor or 'full', not {attention_mask}")
            attention_mask = None
        mixing: dict[str, Any] = {}
        if feedback is not None:
            if self.soft_mask is None or input_ids is None:
                raise ValueError("feedback needs input_ids and a model with soft-mask parameters")
            with self.input_table() as table_VD:
                soft_tokens, lambda_N = self.soft_mask(input_ids, feedback, table_VD)
            with torch.no_grad():
                entropy_N = self.soft_mask.entropy(feedback)
            mixing = {"lambdas": lambda_N.detach(), "entropies": entropy_N}
        if soft_tokens is not None:
            with self.input_table() as table_VD:
                inputs_embeds, input_ids = soft_tokens.embed(table_VD), None
        padding = attention_mask if isinstance(attention_mask, Tensor) else None
        if padding is not None and padding.dim() != 2:
            raise ValueError(
                f"attention_mask must have shape (batch, length), not {tuple(padding.shape)}"
            )
        if position_ids is None and padding is not None:
            position_ids = positions_from_mask(padding)
        tokens: Any = input_ids if inputs_embeds is None else inputs_embeds
        blocks = None
        if self.config.block_size is not None and not isinstance(attention_mask, dict):
            streams = 1 if clean_ids is None else 2
            blocks = Blocks.of(self.config, tokens, position_ids, prompt_lengths, streams)
            attention_mask = blocks.masks(self.config, self.dtype, padding)
            position_ids = blocks.position_ids
        if clean_ids is not None:
            clean = clean_ids if inputs_embeds is None else self.model.embed_tokens(clean_ids)
            tokens = torch.cat([tokens, clean], dim=1)
        outputs = {
            "output_attentions": output_attentions,
            "output_hidden_states": output_hidden_states,
        }
        output = self.model(
            input_ids=tokens if inputs_embeds is None else None,
            inputs_embeds=None if inputs_embeds is None else tokens,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            return_dict=True,
            **{name: value for name, value in outputs.items() if value is not None},
        )
        hidden_BSD = output.last_hidden_state  # S: L, or 2 L
        hidden_BLD = hidden_BSD if clean_ids is None else hidden_BSD[:, : clean_ids.shape[1]]
        source = self._source_rows(hidden_BLD, padding, rows)
        if clean_ids is not None and blocks is not None and source is not None:
            source = blocks.sources(source, rows)
        chosen = hidden_BSD if source is None else hidden_BSD.flatten(0, 1)[source]
        if labels is not None and rows is not None:
            kept = self._kept(observe)
            losses_N, predicted_N, *seen = self._losses(
                chosen, labels.to(chosen.device), kept, attached
            )
            reading: dict[str, Any] = {"losses": losses_N, "predicted": predicted_N}
            if kept:
                reading["feedback"] = feedback_of(LogitStatistics(*seen), rows, kept)
        elif rows is not None and observe:
            reading = {"feedback": self._observe(chosen, rows)}
        else:
            reading = self._read_all(hidden_BLD, chosen, source, labels, num_items_in_batch)
        result = MaskedDiffusionOutput(
            **reading,
            **mixing,
            last_hidden_state=hidden_BLD,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        as_tuple = not (self.config.return_dict if return_dict is None else return_dict)
        return result.to_tuple() if as_tuple else result

    def _read_all(
        self,
        hidden_BLD: Tensor,
        chosen: Tensor,
        source: Tensor | None,
        labels_BL: Tensor | None,
        items: Tensor | int | None,
    ) -> dict[str, Any]:
        """The logits of `chosen` rows, or of all; and with labels the loss of these."""
        if self.aligned_logits or source is None or source.dim() == 1:
            logits = aligned = self.lm_head(chosen)
        else:
            logits = self.lm_head(hidden_BLD)
            aligned = logits.flatten(0, 1)[source]
        if labels_BL is None:
            return {"logits": logits}
        shape = tuple(hidden_BLD.shape[:2])
        if labels_BL.shape != shape:
            raise ValueError(f"labels must have shape {shape}, not {tuple(labels_BL.shape)}")
        labels_M = labels_BL.flatten().to(aligned.device)
        summed = F.cross_entropy(aligned.float().flatten(0, 1), labels_M, reduction="sum")
        count = (labels_M != -100).sum().clamp_min(1) if items is None else items
        return {"loss": summed / count, "logits": logits}

    def _check_reading(self, rows: Tensor | None, labels: Tensor | None, observe: bool) -> None:
        if rows is None and observe:
            raise ValueError("observe is for chosen rows: give rows")
        if labels is not None and rows is not None and labels.shape != rows.shape:
            raise ValueError(f"{len(rows)} rows need as many labels, not {tuple(labels.shape)}")
        if observe and labels is None and self.soft_mask is None:
            raise ValueError("observe needs a model with soft-mask parameters")

    def _check_clean(self, rows: Tensor | None, attention_mask: Any) -> None:
        if self.config.block_size is None:
            raise ValueError("clean_ids are for block-causal models, and this one sees whole rows")
        if rows is None or isinstance(attention_mask, dict):
            raise ValueError("clean_ids need rows, and have masks of their own: give no others")

    def _kept(self, observe: bool) -> int:
        """How many leading logits are kept of each row beside its loss."""
        if not observe:
            return 0
        return 1 if self.soft_mask is None else min(self.soft_mask.reads, self.config.vocab_size)

    def _losses(
        self, chosen_ND: Tensor, labels_N: Tensor, kept: int, attached: bool
    ) -> tuple[Tensor, ...]:
        """(N,) fp32 cross-entropy and (N,) most likely ids; logits live for a chunk of rows.

        With `kept` leading tokens also the parts of LogitStatistics.
        """
        count = self._chunks(len(labels_N))
        *early, last = zip(chosen_ND.chunk(count), labels_N.chunk(count), strict=True)
        more = (kept, attached)
        # Not F.linear_cross_entropy (torch 2.13): needs a weight, gives no argmax, and on a CPU in
        # bf16 takes 3 to 4 times as long as plain, this 1.5: results/2026-11-25_cross_entropy.
        parts = [
            checkpoint(self._chunk_losses, *pair, *more, use_reentrant=False) for pair in early
        ]
        # The backward pass starts with the last chunk: its logits need not be made again.
        parts.append(self._chunk_losses(*last, *more))
        losses_N, *others = (torch.cat(part) for part in zip(*parts, strict=True))
        return losses_N + self._untouched(), *others

    def _chunks(self, rows: int) -> int:
        """Into how many chunks of about equal size these rows go (at least one)."""
        return max(1, math.ceil(rows * self.config.vocab_size / CHUNK_LOGITS))

    def _chunk_losses(
        self, chosen_ND: Tensor, labels_N: Tensor, kept: int, attached: bool
    ) -> tuple[Tensor, ...]:
        # Through the module, not its weight: it may be quantised, adapted or sharded.
        logits_NV = self.lm_head(chosen_ND)
        losses_N = F.cross_entropy(logits_NV.float(), labels_N, reduction="none")
        predicted_N = logits_NV.detach().argmax(-1)
        if not kept:
            return losses_N, predicted_N
        temperature = 1.0 if self.soft_mask is None else self.soft_mask.entropy_temperature
        read_NV = logits_NV if attached else logits_NV.detach()
        return losses_N, predicted_N, *statistics(read_NV, kept, temperature)

    def _untouched(self) -> Tensor | float:
        """0 that depends on all trainable soft-mask parameters: plain passes give them gradient 0.

        Distributed training waits for the gradient of every parameter, on every rank alike. Here
        and not in the objective, as sharded parameters are whole inside the forward only.
        """
        if self.soft_mask is None:
            return 0.0
        return 0.0 * sum(p.sum() for p in self.soft_mask.parameters() if p.requires_grad)

    def _observe(self, chosen_ND: Tensor, rows_N: Tensor) -> Feedback:
        """The feedback of these rows; their logits are whole in mode "temperature" alone."""
        assert self.soft_mask is not None
        with torch.no_grad():
            if self.soft_mask.is_dense:
                return Feedback(rows_N, logits_NV=self.lm_head(chosen_ND))
            size, temperature = self.config.vocab_size, self.soft_mask.entropy_temperature
            k = min(self.soft_mask.reads, size)
            seen = read_head(self.lm_head, chosen_ND, size, k, temperature=temperature)
            return feedback_of(seen, rows_N, k)

    def _source_rows(
        self, hidden_BLD: Tensor, padding_BL: Tensor | None, rows: Tensor | None
    ) -> Tensor | None:
        """Flat rows of the hidden state that predict `rows` (all positions for None).

        A position is read off the row before it; the first real one of a sequence off its own, also
        behind left padding, where the published code would read a padding row (finding B12).
        """
        if not self.config.logit_shift:
            return rows
        batch, length = hidden_BLD.shape[:2]
        device = hidden_BLD.device
        if rows is None:
            flat = torch.arange(batch * length, device=device).view(batch, length)
        else:
            flat = rows.to(device)
        first = flat % length == 0
        if padding_BL is not None:
            real = padding_BL.flatten().bool().to(device)
            first = first | (~real[(flat - 1).clamp_min(0)] & real[flat])
        return flat - (~first).long()

    def hidden(self, tokens: Tensor | SoftTokens, layout: Layout) -> Tensor:
        """(T, D) last hidden states of the positions that `layout` names.

        The head's logits of row `layout.sources(position)` predict a position.

        Args:
            tokens: (1, T) ids, or soft tokens, of these positions.
        """
        if isinstance(tokens, SoftTokens):
            with self.input_table() as table_VD:
                embeds_1TD = tokens.embed(table_VD)
        else:
            embeds_1TD = self.model.embed_tokens(tokens)
        hidden_1TD = self.model(
            inputs_embeds=embeds_1TD,
            position_ids=layout.positions_T[None],
            attention_mask=dict.fromkeys(self.config.layer_types or ()),
            use_cache=False,
            layout=layout,
        ).last_hidden_state
        return hidden_1TD[0].to(layout.flat_T.device)


def positions_from_mask(attention_mask_BL: Tensor) -> Tensor:
    """(B, L) positions counted from the first real token; padding gets 1, as in Dream."""
    positions_BL = attention_mask_BL.long().cumsum(-1) - 1
    return positions_BL.masked_fill(attention_mask_BL == 0, 1)
