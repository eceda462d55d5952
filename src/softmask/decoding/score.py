"""How likely given texts are behind a prompt: text in, log-likelihoods out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized

from ..config import require, shown
from ..models.checkpoint import Checkpoint
from .arguments import as_count, row_seeds
from .generation import SoftMaskChoice, choose_soft_mask
from .likelihood import Estimate, Estimator, LikelihoodConfig, Request, Scorer
from .prompts import (
    Prompt,
    encode,
    encode_chat,
    first_ids,
    is_token_ids,
    known_ids,
    read_prompts,
)

# Masks of a score where nothing is said: its error is small beside what separates choices.
SAMPLES = 32
BATCH_SIZE = 16


def score(
    checkpoint: Checkpoint,
    prompt: Prompt,
    choices: Sequence[str | Sequence[int]],
    *,
    estimator: Estimator = "masks",
    samples: int = SAMPLES,
    seed: int = 0,
    soft_mask: SoftMaskChoice = "checkpoint",
    batch_size: int = BATCH_SIZE,
    guidance: float = 0.0,
) -> list[Estimate]:
    """Estimates how likely each of some continuations is behind a prompt; the least nats win.

    The choices share their random numbers, so that differences have less of an error than each.
    So do calls with the same prompt and seed: texts that are averaged need a seed each.

    Args:
        prompt: a text as it is, a conversation (through the chat template), or token ids.
        choices: what may follow: texts, to which spaces at the end of the prompt move, or token
            ids.
        estimator: "masks", "chain", "llada" or "one_step": see `softmask.decoding.likelihood`.
        samples: masks that are drawn of each choice; chain and one_step draw none.
        soft_mask: as of `generate`.
        batch_size: rows of one forward.
        guidance: classifier-free guidance w, as of `generate`; 0: none.

    Raises:
        ValueError: an empty choice, none at all, a text that the model's context cannot hold, a
            setting out of range, or a conversation without a chat template.
    """
    samples, batch_size = as_count("samples", samples), as_count("batch_size", batch_size)
    (seed,) = row_seeds(seed, 1)
    pairs = pairs_of(checkpoint, prompt, choices, lambda text: encode(checkpoint, text))
    config = LikelihoodConfig(samples, batch_size, seed, estimator, guidance)
    soft = choose_soft_mask(soft_mask, checkpoint.soft_mask)
    questions = [pairs[0][0]] * len(pairs)
    scorer = Scorer(checkpoint.model, pairs, config, soft, questions=questions)
    while scorer.step(batch_size):
        pass
    return scorer.estimates()


def pairs_of(
    checkpoint: Checkpoint,
    prompt: Prompt,
    choices: Sequence[str | Sequence[int]],
    encode_text: Callable[[str], list[int]],
) -> list[Request]:
    """Prompt and continuation as token ids, of each choice.

    Spaces at the end of a prompt begin continuations that are texts: tokens bring the space before
    them. Before continuations that are token ids they stay where they are.

    Raises:
        ValueError: a choice is empty, or there is none; see `encode_chat`.
    """
    require(not isinstance(choices, str), "choices are a list of texts, not one text")
    require(isinstance(choices, Iterable), f"choices are a list of texts, not {shown(choices)}")
    choices = list(choices)
    require(len(choices) > 0, "there is nothing to score: give choices")
    spaces = ""
    if not isinstance(prompt, str) and not (isinstance(prompt, Sized) and len(prompt) == 0):
        (prompt, *others), _ = read_prompts(prompt)
        require(not others, "choices are scored behind one prompt, not several")
    if isinstance(prompt, str):
        kept = prompt.rstrip(" ")
        spaces = prompt[len(kept) :]
        first = first_ids(checkpoint)
        before_text, before_ids = ([*first, *encode_text(text)] for text in (kept, prompt))
    elif len(prompt) == 0:
        before_text = before_ids = []
    elif is_token_ids(prompt):
        before_text = before_ids = known_ids(checkpoint, prompt)
    else:
        before_text = before_ids = encode_chat(checkpoint, prompt)  # type: ignore[arg-type]
    pairs: list[Request] = []
    for number, choice in enumerate(choices):
        require(
            isinstance(choice, Sized) and not isinstance(choice, Mapping | bytes),
            f"choice {number} is no text and no list of token ids",
        )
        require(len(choice) > 0, f"choice {number} is empty: there is nothing to score")
        if isinstance(choice, str):
            context, ids = before_text, encode_text(spaces + choice)
        else:
            context, ids = before_ids, known_ids(checkpoint, choice)
        pairs.append((context or [prefix_id(checkpoint)], ids))
    return pairs


def prefix_id(checkpoint: Checkpoint) -> int:
    """What stands before a text that nothing stands before."""
    bos = checkpoint.tokenizer.bos_token_id
    return int(checkpoint.end_ids[0] if bos is None else bos)
