"""The rule's test: `pytest examples/test_steady.py`. A rule is a function, so it needs no model."""

import torch
from steady import steady

import softmask


def look(state: dict, tokens: list[int], chances: list[float]) -> list[bool]:
    """What the rule says of these positions."""
    seen = {"tokens_N": torch.tensor(tokens), "probability_N": torch.tensor(chances)}
    return steady(softmask.MaskedRows.of(state, **seen), patience=1, least=0.5).tolist()


def test_a_token_is_committed_when_it_leads_a_second_time_and_is_likely() -> None:
    state = {"token": torch.tensor([-1, -1, -1]), "steps": torch.zeros(3, dtype=torch.long)}
    assert look(state, [7, 8, 9], [0.9, 0.9, 0.3]) == [False, False, False]
    assert look(state, [7, 5, 9], [0.9, 0.9, 0.3]) == [True, False, False]
    assert look(state, [7, 5, 9], [0.9, 0.9, 0.6]) == [True, True, True]


def test_it_writes_a_text_in_fewer_forwards_than_tokens() -> None:
    checkpoint = softmask.load(device="cpu")
    prompt = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"
    settings = {"max_new_tokens": 24, "temperature": 0.0, "top_p": None, "chat": False}
    done = softmask.generate(checkpoint, prompt, alg=steady, **settings)
    assert done.text == "3142\n4231\n1423\n2314"
    assert done.forwards < 12
