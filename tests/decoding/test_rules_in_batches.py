"""A rule that sees one text at a time: what it makes of a text depends on no neighbour."""

from __future__ import annotations

import pytest
import torch

import softmask

# Their first masks stand in different columns, by which a rule can tell the texts apart.
PROMPTS = ["The", "One day, Tom", "Once upon a time there was a little girl named"]


@pytest.fixture(scope="module")
def bundled():
    return softmask.load(device="cpu")


def alone_and_together(checkpoint, **settings) -> tuple[list[str], list[str]]:
    """Each prompt's text by itself, and in one batch, under the same seeds."""
    settings |= {"max_new_tokens": 8, "steps": 8}
    together = softmask.generate(checkpoint, PROMPTS, seed=0, **settings)
    alone = [
        softmask.generate(checkpoint, prompt, seed=seed, **settings)
        for seed, prompt in enumerate(PROMPTS)
    ]
    return [one.text for one in alone], [one.text for one in together]


def test_what_a_text_draws_does_not_depend_on_whether_a_neighbour_draws(bundled) -> None:
    @softmask.commit_rule("far_by_lot", draws=True)
    def far_by_lot(rows):
        return rows.uniform_N if int(rows.position_N.min()) > 6 else rows.probability_N

    alone, together = alone_and_together(bundled, alg=far_by_lot, temperature=0.8)
    assert alone == together


@pytest.mark.parametrize("widths", [(0, 2, 2), (3, 0, 1)])
def test_a_feedback_rule_may_say_shares_of_some_texts_alone(bundled, widths) -> None:
    first_columns = [len(bundled.tokenizer.encode(prompt)) for prompt in PROMPTS]
    assert len(set(first_columns)) == len(PROMPTS)

    @softmask.feedback_rule("some_shares", top=3, state={"begin": -1})
    def some_shares(rows):
        """Shares of so many tokens, by the text's first mask."""
        begin_N = rows.state["begin"]
        begin = int(rows.position_N.min()) if int(begin_N[0]) < 0 else int(begin_N[0])
        rows.state["begin"] = torch.full_like(begin_N, begin)
        width = widths[first_columns.index(begin)]
        sure_N = torch.ones_like(rows.probability_N)
        return (sure_N, rows.top_probability_NK[:, :width]) if width else sure_N

    soft_mask = {"mode": some_shares, "scale": 0.9, "k": 2}
    alone, together = alone_and_together(bundled, soft_mask=soft_mask)
    assert alone == together
