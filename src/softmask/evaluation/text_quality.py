"""Quality of samples: their likelihood under another model, and how much they repeat.

Generative perplexity alone is won by a model that repeats itself (Zheng et al., arXiv 2409.02908),
so it never stands without the entropy of the tokens, the distinct n-grams and the repetitions.
Shape suffixes: B batch, L length, V vocabulary, D width.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..decoding.masked_rows import pad
from ..hub.checkpoints import quiet
from ..hub.load import choose_device, choose_dtype
from ..reporting.progress import progress
from ..reporting.tables import light_table
from .batching import batched
from .standard_errors import clustered_ratio


def unigram_entropy(ids: Sequence[int]) -> float:
    """Entropy in nats of one sample's token frequencies; 0 for an empty one."""
    total = len(ids)
    return math.fsum(-n / total * math.log(n / total) for n in Counter(ids).values())


def distinct_n(samples: Sequence[Sequence[int]], n: int) -> float:
    """Share of different ones among the n-grams of all samples together; 0 where there is none.

    Falls as the samples grow in number and length: compare equal amounts of text only.
    """
    grams = [gram for ids in samples for gram in _n_grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(ids: Sequence[int], n: int = 4) -> float:
    """Share of a sample's n-grams that occurred before in it; 0 where there is none."""
    grams = _n_grams(ids, n)
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def _n_grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    if n < 1:
        raise ValueError(f"n-grams have at least one token, not {n}")
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


class Scored(NamedTuple):
    """Nats of a text, summed over `tokens` predicted tokens; whether its end was cut off."""

    nats: float
    tokens: int
    cut: bool


class Scorer:
    """A causal language model, other than the one that wrote the samples.

    A text is read from its beginning, after the beginning-of-text token where the tokenizer has
    one; without one its first token is context and not scored. Of a text longer than the model's
    window only what fits is read; `Scored.cut` says so.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
    ) -> None:
        """Loads the model.

        Args:
            name: a folder or Hub id that transformers reads as a causal language model.
            device, dtype: as in `hub.load`.
            batch_size: texts of one forward.

        Raises:
            ValueError: no such model, device or dtype, or a batch_size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        chosen = choose_device(device)
        try:
            with progress(f"loading {name}"), quiet():
                self.tokenizer = AutoTokenizer.from_pretrained(name)
                model = AutoModelForCausalLM.from_pretrained(
                    name, dtype=choose_dtype(dtype, chosen)
                )
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name} cannot score texts ({str(error).splitlines()[0]}): give a folder or Hub "
                "id of a causal language model"
            ) from error
        self.model = nn.Module.to(model, chosen).eval()
        self.device, self.batch_size = chosen, batch_size

    @property
    def window(self) -> int | None:
        """Most tokens that the model reads; None: any number."""
        return getattr(self.model.config, "max_position_embeddings", None)

    @torch.no_grad()
    def nats(self, texts: Sequence[str]) -> list[Scored]:
        """The negative log-likelihood of every text; 0 nats of 0 tokens for an empty one."""
        rows, cut = self._encode(texts)
        found = [Scored(0.0, 0, c) for c in cut]
        for batch in self._batches(rows, least=2):
            ids_BL, attention_BL = pad([rows[i] for i in batch], self.device)
            logits_BLV = self.model(ids_BL, attention_mask=attention_BL, use_cache=False).logits
            for i, logits_LV, ids_L in zip(batch, logits_BLV, ids_BL, strict=True):
                last = len(rows[i]) - 1
                # Row by row: the batch's logits in fp32 would be twice their size again.
                losses = F.cross_entropy(
                    logits_LV[:last].float(), ids_L[1 : last + 1], reduction="none"
                )
                found[i] = Scored(losses.cpu().double().sum().item(), last, cut[i])
        return found

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """(B, D) fp32 on the host: the last hidden state at the last token of every text.

        Raises:
            ValueError: no text, or an empty one.
        """
        if not texts or not all(texts):
            raise ValueError("an empty text has no features: leave it out")
        rows, _ = self._encode(texts)
        found: dict[int, Tensor] = {}
        for batch in self._batches(rows, least=1):
            ids_BL, attention_BL = pad([rows[i] for i in batch], self.device)
            output = self.model.base_model(ids_BL, attention_mask=attention_BL, use_cache=False)
            for i, hidden_LD in zip(batch, output.last_hidden_state, strict=True):
                found[i] = hidden_LD[len(rows[i]) - 1].float().cpu()
        return torch.stack([found[i] for i in range(len(texts))])

    def _encode(self, texts: Sequence[str]) -> tuple[list[Tensor], list[bool]]:
        """Token ids of every text, and whether its end was cut off."""
        if not texts:
            return [], []
        encoded = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        begin = self.tokenizer.bos_token_id
        rows = [ids if begin is None else [begin, *ids] for ids in encoded]
        most = self.window or max(map(len, rows))
        cut = [len(ids) > most for ids in rows]
        return [torch.tensor(ids[:most], dtype=torch.long) for ids in rows], cut

    def _batches(self, rows: list[Tensor], least: int) -> Iterator[list[int]]:
        """Indices of the rows with at least so many tokens, longest first."""
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
        kept = [i for i in order if len(rows[i]) >= least]
        with progress("reading texts with the scorer", len(kept), "texts") as shown:
            for batch in batched(kept, self.batch_size):
                yield batch
                shown.advance(len(batch))


@dataclass(frozen=True)
class Quality:
    """Samples in numbers; means over those that are not empty.

    Errors are standard errors over samples (None: fewer than two). None where nothing was
    measured: the perplexity without a scorer, MAUVE without references, all without any text.
    """

    samples: int
    empty: int
    cut: int | None  # texts longer than the scorer's window, scored up to there
    generative_perplexity: float | None  # exp(nats / tokens), all texts together
    generative_perplexity_error: float | None
    unigram_entropy: float | None  # nats
    unigram_entropy_error: float | None
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition_4: float | None
    mauve: float | None


def quality(
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    scorer: Scorer | None = None,
    references: Sequence[str] | None = None,
) -> Quality:
    """Measures samples.

    Args:
        texts, ids: the samples, as text and as the generator's tokens. Texts of nothing but
            white space count as empty and are left out of everything else.
        scorer: gives the generative perplexity, and the features for MAUVE.
        references: texts that people wrote, for MAUVE.

    Raises:
        ValueError: no samples, a text without ids or the reverse, references without a scorer or
            without the package mauve-text.
    """
    if not texts or len(texts) != len(ids):
        raise ValueError(
            f"{len(texts)} texts and {len(ids)} token lists: give one of each a sample"
        )
    if references is not None and scorer is None:
        raise ValueError("MAUVE needs a scorer: its features are the scorer's hidden states")
    kept = [i for i, text in enumerate(texts) if text.strip()]
    written, tokens = [texts[i] for i in kept], [list(ids[i]) for i in kept]
    (perplexity, perplexity_error), cut = (None, None), None
    if scorer is not None:
        scores = scorer.nats(written)
        perplexity, perplexity_error = _perplexity(scores)
        cut = sum(score.cut for score in scores)
    similarity = None
    if references is not None and scorer is not None and written:
        similarity = mauve(written, references, scorer)
    entropy, entropy_error = _mean([unigram_entropy(row) for row in tokens])
    return Quality(
        samples=len(texts),
        empty=len(texts) - len(kept),
        cut=cut,
        generative_perplexity=perplexity,
        generative_perplexity_error=perplexity_error,
        unigram_entropy=entropy,
        unigram_entropy_error=entropy_error,
        distinct_1=distinct_n(tokens, 1),
        distinct_2=distinct_n(tokens, 2),
        distinct_3=distinct_n(tokens, 3),
        repetition_4=_mean([repetition(row) for row in tokens])[0],
        mauve=similarity,
    )


def check_references(references: Sequence[str]) -> None:
    """Looks at what MAUVE needs before anything is measured.

    Raises:
        ValueError: mauve-text is not installed, there is no text, or one is empty.
    """
    if importlib.util.find_spec("mauve") is None:
        raise ValueError("MAUVE needs mauve-text: pip install 'softmask[mauve]'")
    if not references or not all(references):
        raise ValueError("an empty reference text has no features: leave it out")


def mauve(texts: Sequence[str], references: Sequence[str], scorer: Scorer) -> float:
    """MAUVE in (0, 1] (Pillutla et al., arXiv 2102.01454), 1: the two sets look the same.

    On the scorer's features; values of different scorers do not compare, and a few hundred texts
    on either side are too few.

    Raises:
        ValueError: mauve-text is not installed, or a text is empty.
    """
    check_references(references)
    from mauve import compute_mauve

    result = compute_mauve(
        p_features=scorer.features(references).numpy(),
        q_features=scorer.features(texts).numpy(),
        verbose=False,
    )
    return float(result.mauve)


def _perplexity(scores: list[Scored]) -> tuple[float | None, float | None]:
    """exp(nats / tokens), and its standard error: the delta method takes it through the exp."""
    if not any(score.tokens for score in scores):
        return None, None
    nats, error = clustered_ratio([s.nats for s in scores], [s.tokens for s in scores])
    return math.exp(nats), None if error is None else math.exp(nats) * error


def _mean(values: list[float]) -> tuple[float | None, float | None]:
    return clustered_ratio(values, [1.0] * len(values)) if values else (None, None)


def table_of(found: dict[str, Any]) -> Table:
    """`asdict(Quality)` as a table; what was not measured is left out."""
    table = light_table()
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_column("s.e.", justify="right")
    for field in fields(Quality):
        value, error = found[field.name], found.get(f"{field.name}_error")
        if value is not None and not field.name.endswith("_error"):
            shown = str(value) if isinstance(value, int) else f"{value:.4f}"
            table.add_row(
                field.name.replace("_", " "), shown, "" if error is None else f"{error:.4f}"
            )
    return table
