"""What a caller has set in torch, as its default dtype, leaves no trace in what is decoded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import softmask
from softmask.decoding.unmask import transfer_count, transfer_share
from softmask.soft_mask import SoftMask

PROMPTS = ["The", "One day, Tom"]
DTYPES = [torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def bundled():
    return softmask.load(device="cpu")


@pytest.fixture
def default_dtype():
    """Sets it, until the test is over."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def runs(bundled) -> list[Callable[[], object]]:
    """Each way through decoding that makes tensors of its own, and what it gives."""

    def texts(**settings):
        settings = {"max_new_tokens": 4, "steps": 3, "seed": 0} | settings
        return [one.text for one in softmask.generate(bundled, PROMPTS, **settings)]

    form = softmask.Constraint("regex", " [a-z]+")
    feedback = {"scale": 0.7, "weight": "entropy", "entropy_temperature": 2.0}
    return [
        texts,
        lambda: texts(soft_mask=False, temperature=0.0, top_p=None),
        lambda: texts(soft_mask=feedback | {"mode": "temperature"}, temperature=0.0, top_p=None),
        lambda: texts(soft_mask=feedback | {"mixture": "spherical", "schedule": "linear"}),
        lambda: texts(alg="origin", temperature=1.0, top_p=0.9, end_penalty=1.0),
        lambda: texts(alg="entropy", alg_temp=0.5, temperature=1.0, noise="float64"),
        lambda: texts(alg="random", guidance=1.0, threshold=0.5, agreement=2),
        lambda: texts(alg="own_score", soft_mask={"mode": "own_share", "scale": 0.7}),
        lambda: texts(constraint=form),
        lambda: softmask.trace(bundled, PROMPTS[1], max_new_tokens=4, steps=3, seed=0).text,
        lambda: softmask.edit(bundled, "One day, Tom went to bed.", 9, 12, steps=3, seed=0).text,
        lambda: softmask.score(bundled, "Tom", [" a", " went to"], samples=4, guidance=1.0),
        lambda: softmask.score(bundled, "Tom", [" a", " went to"], estimator="llada"),
        lambda: softmask.score(bundled, "Tom", [" a", " went to"], estimator="chain"),
    ]


@pytest.fixture
def own_rules_of_numbers():
    """A rule that keeps plain numbers, and one that says confidence and shares."""

    @softmask.commit_rule("own_score", state={"seen": 0.0})
    def own_score(rows):
        rows.state["seen"] = [0.1] * len(rows.tokens_N)
        return rows.probability_N * rows.left_N + rows.share_N

    @softmask.feedback_rule("own_share", top=2)
    def own_share(rows):
        return rows.probability_N, rows.top_probability_NK


def test_no_default_dtype_or_device_shows_in_what_is_decoded(
    runs, own_rules_of_numbers, default_dtype
) -> None:
    expected = [run() for run in runs]
    default_dtype(torch.float64)  # which is refused, or spreads, where fp32 is expected
    assert [run() for run in runs] == expected
    default_dtype(torch.bfloat16)  # in which numbers are lost
    with torch.device("meta"):
        assert [run() for run in runs] == expected


def test_the_schedule_that_is_kept_is_that_of_every_default(default_dtype) -> None:
    # Numbers of steps that no other test has asked for.
    for steps, dtype in zip((1901, 1903, 1907), DTYPES, strict=True):
        default_dtype(dtype)
        with torch.device("meta"):
            early = [transfer_share(step, steps, 1e-3) for step in (0, 1, steps // 2)]
            counts = transfer_count(901, steps // 2, steps, 1e-3)
        default_dtype(torch.float32)
        times = torch.linspace(1, 1e-3, steps + 1)
        shares = (1 - times[1:] / times[:-1]).tolist()
        assert early == [shares[0], shares[1], shares[steps // 2]]
        assert counts == int(torch.tensor(901.0) * shares[steps // 2])


@pytest.mark.parametrize("exact", [False, True])
def test_soft_mask_parameters_are_in_fp32_under_every_default(default_dtype, exact) -> None:
    expected = SoftMask(0.3, exact=exact)
    default_dtype(torch.bfloat16)
    made = SoftMask(0.3, exact=exact)
    for name in ("scale", "offset", "steepness", "temperature"):
        assert torch.equal(getattr(made, name), getattr(expected, name))
        assert getattr(made, name).dtype == torch.float32


@pytest.mark.parametrize("sampling", [{}, {"block_length": 4, "cache": "prefix"}, {"threshold": 0}])
def test_a_run_that_begins_within_inference_mode_goes_on_behind_it(bundled, sampling) -> None:
    settings = {"max_new_tokens": 8, "seed": 0, "sampling": {"steps": 4, **sampling}}
    expected = softmask.Generation(bundled, "Hello", **settings).completions()[0]
    with torch.inference_mode():
        run = softmask.Generation(bundled, "Hello", **settings)
        next(iter(run))
    found = run.completions()[0]
    assert found.text == expected.text
    assert found.mean_lambda == expected.mean_lambda
