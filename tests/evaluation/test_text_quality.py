"""Sample quality: counts by hand, a scorer that agrees with the model's own logits."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import random
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from softmask.evaluation.text_quality import (
    Scorer,
    distinct_n,
    quality,
    repetition,
    unigram_entropy,
)

TEXTS = ["the cat sat", "a", "on the mat, on the mat", "x y z!"]
SAMPLES = st.lists(st.integers(0, 5), max_size=20)


def save_tokenizer(path, begin: str | None) -> None:
    """Bytes as tokens."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["<|begin|>"] = len(vocabulary)
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=begin).save_pretrained(path)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A GPT-2 with a window of 24 tokens, whose tokenizer has a beginning-of-text token."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=257,
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=256,
        eos_token_id=256,
    )
    GPT2LMHeadModel(config).save_pretrained(path)
    save_tokenizer(path, "<|begin|>")
    return path


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A Llama whose tokenizer has no beginning-of-text token."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    save_tokenizer(path, None)
    return path


def test_the_entropy_of_tokens_is_that_of_their_frequencies() -> None:
    assert unigram_entropy([1, 1, 2, 3]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))
    assert unigram_entropy([7] * 9) == 0
    assert unigram_entropy([]) == 0


def test_distinct_grams_are_counted_over_all_samples() -> None:
    assert distinct_n([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct_n([[1, 2, 1], [1, 2]], 2) == 2 / 3
    assert distinct_n([[1, 2]], 3) == 0


def test_repetition_counts_grams_that_came_before_in_the_sample() -> None:
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == 1 / 5
    assert repetition([5] * 10, n=2) == 8 / 9
    assert repetition([1, 2, 3]) == 0
    with pytest.raises(ValueError, match="at least one token"):
        repetition([1], n=0)


@given(ids=SAMPLES, other=SAMPLES, n=st.integers(1, 4))
def test_measures_stay_in_their_range_and_do_not_depend_on_names(ids, other, n) -> None:
    assert -1e-12 <= unigram_entropy(ids) <= math.log(max(1, len(set(ids)))) + 1e-9
    assert 0 <= repetition(ids, n) < 1
    assert 0 <= distinct_n([ids, other], n) <= 1
    renamed = [100 - token for token in ids]
    assert unigram_entropy(renamed) == pytest.approx(unigram_entropy(ids))
    assert repetition(renamed, n) == repetition(ids, n)
    if len(ids) >= n:  # one sample alone: its n-grams are new ones or repeated ones
        assert distinct_n([ids], n) + repetition(ids, n) == pytest.approx(1)


@torch.no_grad()
def by_hand(scorer: Scorer, text: str, begin: list[int]) -> float:
    ids = begin + scorer.tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = scorer.model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(logits[i, token].item() for i, token in enumerate(ids[1:]))


def test_every_token_is_scored_after_the_beginning_of_text(gpt2) -> None:
    scorer = Scorer(gpt2, device="cpu")
    found = scorer.nats(TEXTS)
    assert [score.tokens for score in found] == [len(text) for text in TEXTS]
    for text, score in zip(TEXTS, found, strict=True):
        assert score.nats == pytest.approx(by_hand(scorer, text, [256]), rel=1e-4)
        assert not score.cut


def test_without_a_beginning_of_text_the_first_token_is_context(llama) -> None:
    scorer = Scorer(llama, device="cpu")
    found = scorer.nats([*TEXTS, ""])
    assert [score.tokens for score in found] == [len(text) - 1 for text in TEXTS] + [0]
    assert found[1] == found[-1] == (0.0, 0, False)
    assert found[0].nats == pytest.approx(by_hand(scorer, TEXTS[0], []), rel=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_score_alone_as_they_do_in_a_batch(kind: str, request) -> None:
    path = request.getfixturevalue(kind)
    alone, together = (Scorer(path, device="cpu", batch_size=size) for size in (1, 3))
    for one, other in zip(alone.nats(TEXTS), together.nats(TEXTS), strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-4)
        assert one[1:] == other[1:]
    torch.testing.assert_close(alone.features(TEXTS), together.features(TEXTS))


def test_a_text_beyond_the_window_is_cut_and_says_so(gpt2) -> None:
    scorer = Scorer(gpt2, device="cpu")
    long, fits = scorer.nats(["abcdefghij" * 3, ("abcdefghij" * 3)[:23]])
    assert (long.tokens, long.cut) == (23, True)
    assert (fits.tokens, fits.cut) == (23, False)
    assert long.nats == pytest.approx(fits.nats, rel=1e-5)
    assert quality(["abc " * 9, "abc"], [[1], [2]], scorer).cut == 1


@torch.no_grad()
def test_features_are_the_last_hidden_state_at_the_last_token(gpt2) -> None:
    scorer = Scorer(gpt2, device="cpu")
    ids = torch.tensor([[256, *scorer.tokenizer(TEXTS[0])["input_ids"]]])
    states = scorer.model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(scorer.features(TEXTS)[0], states[-1][0, -1])
    with pytest.raises(ValueError, match="an empty text has no features"):
        scorer.features(["a", ""])


def test_quality_puts_the_numbers_together(gpt2) -> None:
    scorer = Scorer(gpt2, device="cpu")
    ids = [[1, 2, 3, 4, 1, 2, 3, 4], [5, 5], [], [1]]
    texts = ["the cat sat", "a mat", " \n", "x"]
    found = quality(texts, ids, scorer)
    scores = scorer.nats([text for text in texts if text.strip()])
    tokens = sum(score.tokens for score in scores)
    per_token = sum(score.nats for score in scores) / tokens
    assert found.generative_perplexity == pytest.approx(math.exp(per_token))
    rest = sum((score.nats - per_token * score.tokens) ** 2 for score in scores)
    error = math.exp(per_token) * math.sqrt(1.5 * rest) / tokens
    assert found.generative_perplexity_error == pytest.approx(error)
    assert (found.samples, found.empty, found.cut, found.mauve) == (4, 1, 0, None)
    entropies = [math.log(4), 0, 0]
    assert found.unigram_entropy == pytest.approx(statistics.fmean(entropies))
    spread = statistics.stdev(entropies) / math.sqrt(3)
    assert found.unigram_entropy_error == pytest.approx(spread)
    assert (found.distinct_1, found.distinct_2) == (5 / 11, 5 / 8)
    assert found.repetition_4 == pytest.approx(1 / 5 / 3)
    json.dumps(dataclasses.asdict(found), allow_nan=False)


def test_without_a_scorer_there_is_no_perplexity() -> None:
    found = quality(["a b"], [[1, 2]])
    assert (found.generative_perplexity, found.cut, found.unigram_entropy_error) == (None,) * 3
    assert found.unigram_entropy == pytest.approx(math.log(2))


def test_empty_samples_alone_give_counts_alone(gpt2) -> None:
    found = quality(["", " "], [[], [3]], Scorer(gpt2, device="cpu"), references=["a"])
    assert (found.samples, found.empty) == (2, 2)
    assert (found.generative_perplexity, found.unigram_entropy, found.mauve) == (None,) * 3


@pytest.mark.parametrize(
    ("texts", "ids", "references", "message"),
    [
        ([], [], None, "0 texts and 0 token lists"),
        (["a"], [[1], [2]], None, "1 texts and 2 token lists"),
        (["a"], [[1]], ["b"], "MAUVE needs a scorer"),
    ],
)
def test_samples_that_do_not_fit_together_are_refused(texts, ids, references, message) -> None:
    with pytest.raises(ValueError, match=message):
        quality(texts, ids, references=references)


def test_what_is_no_causal_model_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="give a folder or Hub id of a causal language model"):
        Scorer(tmp_path, device="cpu")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Scorer(tmp_path, batch_size=0)


def test_mauve_says_which_package_is_missing(gpt2, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mauve" else found(name, *a)
    )
    with pytest.raises(ValueError, match=r"MAUVE needs mauve-text: pip install 'softmask\[mauve\]"):
        quality(["a"], [[1]], Scorer(gpt2, device="cpu"), references=["b"])


# faiss's own binding warns on import under Python 3.12.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mauve_is_higher_for_texts_like_the_references_than_for_others(gpt2) -> None:
    pytest.importorskip("mauve")
    scorer = Scorer(gpt2, device="cpu")
    rng = random.Random(0)
    people, alike, others = (
        ["".join(rng.choices(letters, k=6)) for _ in range(100)]
        for letters in ("abcdefgh", "abcdefgh", "12345678")
    )
    near, far = (
        quality(texts, [[1]] * 100, scorer, references=people).mauve for texts in (alike, others)
    )
    assert 0 < far < 0.5 < 0.9 < near <= 1
