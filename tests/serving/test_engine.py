"""The engine: whatever stands beside a request, it comes out as it would alone, or says why not."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import itertools
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch.profiler import ProfilerActivity, profile

from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.batch import MIXERS, Batch
from softmask.decoding.memory import Footprint
from softmask.decoding.sampler import denoise
from softmask.decoding.sequence import Rules
from softmask.models import DreamModel
from softmask.serving.engine import Engine, EngineClosed, QueueFull, Request
from softmask.serving.request import PENDING, Event, RequestHandle
from softmask.serving.running_batch import RunningBatch, Slot
from softmask.serving.scheduler import MAX_BYPASSES, FreeSpans, schedule
from softmask.soft_mask import SoftMask

MODEL = tiny_model()
MASK = MODEL.config.mask_token_id
POISON = 40  # an id that no request has but the one that is to fail
ONLY_TEXT = Rules(suppressed=(MASK, POISON))
STOPS = Rules(suppressed=(MASK, POISON), end_ids=(0, 1, 2, 3, 4, 5), stop=True)
SOFT = SoftMaskConfig(k=3, scale=0.8, offset=-3.0, steepness=1.0)
TEMPERED = SoftMaskConfig(mode="temperature", scale=0.8, offset=-3.0, steepness=1.0)
ARC = SoftMaskConfig(k=2, scale=0.8, mixture="spherical", weight="entropy", entropy_temperature=2.0)
WAIT = 600.0  # seconds that no test needs


def canvas(prompt: int, masks: int, seed: int = 0) -> tuple[int, ...]:
    """Random tokens with masks behind."""
    generator = torch.Generator().manual_seed(1000 * prompt + seed)
    ids = torch.randint(0, POISON, (prompt,), generator=generator).tolist()
    return (*ids, *[MASK] * masks)


def request(prompt: int = 5, masks: int = 8, **more) -> Request:
    sampling = more.pop("sampling", {})
    values = {"steps": masks, "alg": "maskgit_plus", **sampling}
    return Request(
        canvas(prompt, masks, more.pop("canvas_seed", 0)),
        SamplingConfig(**values),
        rules=more.pop("rules", ONLY_TEXT),
        **more,
    )


MIXED = [
    request(5, 8),
    request(9, 12, soft_mask=SOFT, sampling={"alg": "topk_margin", "steps": 6}),
    request(2, 10, soft_mask=TEMPERED),
    request(7, 9, sampling={"alg": "entropy", "temperature": 0.9, "top_p": 0.9}, seed=3),
    request(4, 8, sampling={"alg": "origin"}, seed=5),
    request(6, 8, sampling={"alg_temp": 0.4, "steps": 4}, seed=11, soft_mask=SOFT),
    request(3, 16, soft_mask=SOFT, sampling={"cache": "dual", "block_length": 4}),
    request(8, 12, sampling={"cache": "prefix", "block_length": 5, "steps": 9}),
    request(1, 12, soft_mask=SOFT, sampling={"threshold": 0.2, "block_length": 6, "cache": "dual"}),
    request(5, 10, sampling={"factor": 1.0}),
    request(5, 10, sampling={"entropy_bound": 0.5, "temperature": 0.7}, seed=2, rules=STOPS),
    request(7, 10, soft_mask=ARC),
    request(5, 8, sampling={"steps": 40}),  # most steps commit nothing
]


def alone(one: Request, model: DreamModel = MODEL) -> tuple[int, ...]:
    """The canvas of a request that nobody stands beside."""
    generators = [torch.Generator().manual_seed(one.seed)] if one.sampling.is_random else None
    steps = denoise(
        model,
        torch.tensor([one.ids]),
        one.sampling,
        soft_mask=one.soft_mask,
        rules=one.rules,
        generators=generators,
    )
    return tuple(list(steps)[-1].canvas_BL[0].tolist())


ALONE = [alone(one) for one in MIXED]


def drain(engine: Engine) -> None:
    while engine.run_once():
        pass


def fits(count: int, **more) -> Engine:
    return Engine(MODEL, positions=count, **more)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def run_with_steps(self, monkeypatch, seconds: float) -> None:
        """From now on a step takes this long."""
        step = Batch.step

        def slow(batch, texts=None) -> None:
            self.now += seconds
            step(batch, texts)

        monkeypatch.setattr(Batch, "step", slow)


# Results.


def test_requests_of_all_kinds_that_enter_at_different_steps_come_out_as_if_alone() -> None:
    engine, handles = fits(400), []
    for one in MIXED:
        handles.append(engine.submit(one))
        engine.run_once()
        engine.run_once()
    drain(engine)
    for handle, ids in zip(handles, ALONE, strict=True):
        result = handle.result()
        assert result.finish_reason == "done"
        assert result.ids == ids
        assert result.left == 0


@settings(max_examples=8, deadline=None)
@given(
    order=st.permutations(range(len(MIXED))),
    gaps=st.lists(st.integers(0, 4), min_size=len(MIXED), max_size=len(MIXED)),
    allocator=st.sampled_from([28, 60, 200]),
    running=st.sampled_from([1, 3, 64]),
)
def test_results_depend_on_no_order_of_arrival(order, gaps, allocator, running) -> None:
    engine, handles = fits(allocator, running=running), {}
    for index, gap in zip(order, gaps, strict=True):
        handles[index] = engine.submit(MIXED[index])
        for _ in range(gap):
            engine.run_once()
    drain(engine)
    assert [handles[index].result().ids for index in range(len(MIXED))] == ALONE


def with_equal_logits() -> DreamModel:
    """A model in which each token has a twin of the same logit at every position."""
    model = tiny_model(seed=2)
    with torch.no_grad():
        model.lm_head.weight[1:POISON:2] = model.lm_head.weight[0:POISON:2]
    return model


TWINS = with_equal_logits()
# Nuclei of one token make positions equally sure, and twins make tokens equally likely. Requests
# that differ in their steps and seeds alone are computed together.
SAMPLING = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.5]),
        "top_p": st.sampled_from([None, 0.1]),
        "top_k": st.sampled_from([None, 1, 3]),
        "alg": st.sampled_from(["maskgit_plus", "topk_margin", "entropy"]),
        "alg_temp": st.sampled_from([None, 0.4]),
    }
)
# With more steps than masks some commit nothing.
OWN = st.tuples(st.integers(2, 40), st.integers(0, 9), st.sampled_from([0, 5]))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SAMPLING, st.sampled_from([None, SOFT]), st.lists(OWN, min_size=2, max_size=4))
def test_what_is_drawn_or_chosen_among_equals_depends_on_the_request_alone(
    sampling, soft_mask, own
) -> None:
    requests = [
        request(
            5,
            24,
            canvas_seed=seed,
            soft_mask=soft_mask,
            seed=seed,
            top_logprobs=reported,
            sampling=sampling | {"steps": steps},
        )
        for steps, seed, reported in own
    ]
    engine = Engine(TWINS, positions=400)
    handles = [engine.submit(one) for one in requests]
    drain(engine)
    assert [handle.result().ids for handle in handles] == [alone(one, TWINS) for one in requests]


def test_many_threads_may_submit_to_a_running_engine() -> None:
    results: dict[int, tuple[int, ...]] = {}
    with fits(200) as engine:

        def ask(index: int) -> None:
            results[index] = engine.submit(MIXED[index]).result(WAIT).ids

        threads = [threading.Thread(target=ask, args=[i]) for i in range(len(MIXED))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [results[i] for i in range(len(MIXED))] == ALONE


def test_a_result_counts_its_own_steps_and_forwards() -> None:
    engine = fits(200)
    slow, quick = engine.submit(request(5, 8)), engine.submit(request(5, 8, sampling={"steps": 2}))
    drain(engine)
    assert (quick.result().steps, quick.result().forwards) == (2, 2)
    assert slow.result().steps == 8
    assert slow.result().forwards <= 8
    assert engine.stats().forwards < slow.result().forwards + quick.result().forwards


# Events.


def test_the_events_of_a_request_add_up_to_its_result_and_what_is_final_stays() -> None:
    one = request(4, 12, soft_mask=SOFT, top_logprobs=1, trace=True, sampling={"alg": "entropy"})
    engine = fits(40)
    handle = engine.submit(one)
    drain(engine)
    result, ids = handle.result(), list(one.ids)
    final = 4
    for event in handle:
        assert event.final >= final
        final = event.final
        for column, token in zip(event.columns, event.ids, strict=True):
            assert ids[column] == MASK
            ids[column] = token
        assert MASK not in ids[:final]
        assert ids.count(MASK) == event.left
    assert tuple(ids) == result.ids
    assert (final, event.step, event.forwards) == (16, result.steps, result.forwards)


def test_waiting_for_an_engine_that_nobody_started_is_refused() -> None:
    engine = fits(40)
    handle = engine.submit(request(4, 8))
    for wait in (handle.result, lambda: next(iter(handle))):
        with pytest.raises(RuntimeError, match="the engine was not started, so nothing"):
            wait()
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    with engine:
        assert handle.result().finish_reason == "done"


def test_an_engine_made_within_inference_mode_serves_from_its_thread() -> None:
    one = request(4, 8, soft_mask=SOFT)
    with torch.inference_mode():
        engine = fits(40)
    with engine:
        result = engine.submit(one).result()
    assert (result.error, result.finish_reason) == (None, "done")


def test_a_trace_tells_what_each_masked_position_is_on_the_way_to() -> None:
    engine = fits(40)
    handle = engine.submit(request(4, 12, soft_mask=SOFT, top_logprobs=4, trace=True))
    untraced = engine.submit(request(4, 12, soft_mask=SOFT))
    drain(engine)
    first = next(iter(handle)).trace
    assert first.ids_MK.shape == first.weights_MK.shape == (len(first.columns_M), 3)
    assert np.allclose(first.weights_MK.sum(1), first.lambda_M, atol=1e-6)
    assert (first.lambda_M > 0).all()
    assert np.array_equal(first.ids_MK, first.logprobs.ids_NK[:, :3])
    assert all(event.trace is None and event.logprobs is None for event in untraced)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_p": 0.8}, {"alg": "origin"}])
def test_events_tell_the_models_own_probabilities(sampling: dict) -> None:
    one = request(4, 12, top_logprobs=5, trace=True, seed=3, sampling={"steps": 4, **sampling})
    engine = fits(40)
    handle = engine.submit(one)
    drain(engine)
    ids = list(one.ids)
    for event in handle:
        with torch.no_grad():
            logits_LV = MODEL(torch.tensor([ids])).logits[0].float()
        for suppressed in one.rules.suppressed:
            logits_LV[:, suppressed] = torch.finfo(torch.float32).min
        logp_LV = logits_LV.log_softmax(-1)
        entropy_L = -(logp_LV.exp() * logp_LV.clamp_min(-1e30)).sum(-1)
        told = [
            (list(event.columns), event.logprobs),
            (event.trace.columns_M, event.trace.logprobs),
        ]
        for columns, seen in told:
            best = logp_LV[columns].topk(5)
            assert np.array_equal(seen.ids_NK, best.indices)
            assert np.allclose(seen.logprobs_NK, best.values, atol=1e-4)
            assert np.allclose(seen.entropy_N, entropy_L[columns], atol=1e-3)
        own = logp_LV[list(event.columns), list(event.ids)]
        assert np.allclose(event.logprobs.logprob_N, own, atol=1e-4)
        assert np.isnan(event.trace.logprobs.logprob_N).all()
        for column, token in zip(event.columns, event.ids, strict=True):
            ids[column] = token
    assert tuple(ids) == handle.result().ids


@pytest.mark.parametrize("sampling", [{}, {"alg": "topk_margin"}, {"temperature": 0.8}])
def test_reporting_log_probabilities_changes_nothing(sampling: dict) -> None:
    results = []
    for top_logprobs in (0, 6):
        engine = fits(60)
        one = request(
            4,
            12,
            soft_mask=SOFT,
            top_logprobs=top_logprobs,
            trace=top_logprobs > 0,
            sampling=sampling,
        )
        handles = [engine.submit(one), engine.submit(request(2, 9))]
        drain(engine)
        results.append([t.result().ids for t in handles])
    assert results[0] == results[1]


def test_too_many_leading_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 8"):
        fits(40).submit(request(4, 4, top_logprobs=9))
    with pytest.raises(ValueError, match="give top_logprobs"):
        request(4, 4, trace=True)


def test_a_slow_reader_holds_nobody_up_and_loses_nothing() -> None:
    engine = fits(120)
    handle = engine.submit(request(4, 100, soft_mask=SOFT))
    drain(engine)
    events = list(handle)
    assert len(events) == PENDING
    columns = [column for event in events for column in event.columns]
    assert sorted(columns) == list(range(4, 104))
    assert events[-1].left == 0


def test_two_events_as_one_say_what_both_said() -> None:
    one = Event(1, 9, 1, left=5, final=2, columns=(2,), ids=(7,))
    other = Event(2, 9, 2, left=3, final=4, columns=(3, 5), ids=(8, 9))
    both = Event(2, 9, 2, left=3, final=4, columns=(2, 3, 5), ids=(7, 8, 9))
    assert one.then(other) == both


def test_asyncio_reads_events_and_results_without_blocking_its_loop() -> None:
    async def read(engine: Engine, index: int) -> tuple[list[int], tuple[int, ...]]:
        handle = engine.submit(MIXED[index])
        columns = [column async for event in handle for column in event.columns]
        return columns, (await handle.finished()).ids

    async def read_all(engine: Engine):
        return await asyncio.gather(*(read(engine, i) for i in range(len(MIXED))))

    with fits(200) as engine:
        read = asyncio.run(read_all(engine))
    for one, expected, (columns, ids) in zip(MIXED, ALONE, read, strict=True):
        assert ids == expected
        changed = {i for i, (a, b) in enumerate(zip(one.ids, ids, strict=True)) if a != b}
        assert set(columns) == changed


def test_a_loop_that_is_gone_does_not_disturb_the_engine() -> None:
    async def leave(handle: RequestHandle) -> None:
        async for _event in handle:
            return

    with fits(200) as engine:
        handle = engine.submit(request(4, 60, soft_mask=SOFT))
        asyncio.run(leave(handle))
        assert handle.result(WAIT).finish_reason == "done"


# Leaving early.


def test_a_cancelled_request_frees_its_place_at_the_next_step() -> None:
    engine = fits(20)
    first, second = engine.submit(request(4, 12)), engine.submit(request(4, 12, canvas_seed=1))
    for _ in range(4):
        engine.run_once()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    first.cancel()
    engine.run_once()
    result = first.result()
    assert result.finish_reason == "cancelled"
    assert 0 < result.left < 12
    assert result.ids.count(MASK) == result.left
    assert (engine.stats().running, engine.stats().waiting) == (1, 0)
    drain(engine)
    assert second.result().ids == alone(second.request)
    assert engine.stats().positions_taken == 0


def test_whoever_asks_while_a_request_ends_sees_it_run_or_counted(monkeypatch) -> None:
    engine, seen, release = fits(20), [], RunningBatch.release

    def watched(batch: RunningBatch, slot: Slot) -> tuple[int, ...]:
        ids = release(batch, slot)
        asks = threading.Thread(target=lambda: seen.append(engine.stats()))
        asks.start()
        asks.join(0.2)  # an answer that is given now is given too early
        return ids

    monkeypatch.setattr(RunningBatch, "release", watched)
    handle = engine.submit(request(4, 12))
    engine.run_once()
    handle.cancel()
    drain(engine)
    while not seen:
        time.sleep(0.001)
    assert (seen[0].running, seen[0].ended) == (0, {"cancelled": 1})


def test_cancelling_what_waits_or_is_over_does_what_one_expects() -> None:
    engine = fits(20)
    first, second = engine.submit(request(4, 12)), engine.submit(request(4, 12))
    engine.run_once()
    second.cancel()
    drain(engine)
    first.cancel()
    engine.run_once()
    assert first.result().finish_reason == "done"
    assert second.result().finish_reason == "cancelled"
    assert second.result().ids == second.request.ids
    assert second.result().forwards == 0


def test_a_deadline_counts_from_submission_waiting_or_running() -> None:
    clock = Clock()
    engine = fits(20, clock=clock)
    running = engine.submit(request(4, 12, deadline=5.0))
    waiting = engine.submit(request(4, 12, deadline=4.0))
    patient = engine.submit(request(4, 12, deadline=50.0))
    engine.run_once()
    clock.now = 4.5
    engine.run_once()
    assert waiting.result().finish_reason == "deadline"
    assert waiting.result().waited == 4.5
    assert not running.is_over
    clock.now = 5.0
    drain(engine)
    assert running.result().finish_reason == "deadline"
    assert 0 < running.result().left < 12
    assert running.result().ran == 5.0
    assert patient.result().finish_reason == "done"


def test_a_full_line_refuses_and_says_when_to_come_back() -> None:
    clock = Clock()
    engine = fits(20, queue=2, clock=clock)
    handles = [engine.submit(request(4, 12)), engine.submit(request(4, 12))]
    with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
        engine.submit(request(4, 12))
    assert caught.value.retry_after > 0
    engine.run_once()
    handles.append(engine.submit(request(4, 12)))
    with pytest.raises(QueueFull):
        engine.submit(request(4, 12))
    handles[1].cancel()  # makes room in the line at once
    handles.append(engine.submit(request(4, 12)))
    drain(engine)
    reasons = [handle.result().finish_reason for handle in handles]
    assert reasons == ["done", "cancelled", "done", "done"]
    assert engine.stats().refused == 2
    assert engine.stats().ended == {"done": 3, "cancelled": 1}


def test_the_time_to_come_back_is_that_of_the_steps_that_wait(monkeypatch) -> None:
    clock = Clock()
    clock.run_with_steps(monkeypatch, 2.0)
    engine = fits(20, queue=3, clock=clock)
    for _ in range(3):
        engine.submit(request(4, 12))
    engine.run_once()
    engine.submit(request(4, 6))
    with pytest.raises(QueueFull) as caught:
        engine.submit(request(4, 12))
    assert caught.value.retry_after == 2.0 * (12 + 12 + 6)


def test_a_crowd_before_the_first_of_it_runs_is_not_told_to_wait_one_by_one(monkeypatch) -> None:
    clock = Clock()
    clock.run_with_steps(monkeypatch, 2.0)
    engine = fits(400, queue=4, running=4, clock=clock)
    engine.submit(request(4, 12))
    drain(engine)
    for deadline in (None, None, None, 8.0):
        engine.submit(request(4, 12, deadline=deadline))
    with pytest.raises(QueueFull) as caught:
        engine.submit(request(4, 12))
    assert caught.value.retry_after == (3 * 2.0 * 12 + 8.0) / 4


# Failing.


def poisoned(monkeypatch) -> None:
    """A model that cannot read one id."""
    hidden = DreamModel.hidden

    def fail(model, tokens, layout):
        ids = tokens if isinstance(tokens, torch.Tensor) else tokens.ids_BLK[..., 0]
        if (ids == POISON).any():
            raise RuntimeError("this id is poison\nand this line is noise")
        return hidden(model, tokens, layout)

    monkeypatch.setattr(DreamModel, "hidden", fail)


def test_a_request_that_breaks_the_model_fails_alone(monkeypatch) -> None:
    poisoned(monkeypatch)
    engine = fits(400)
    handles = [engine.submit(one) for one in MIXED[:5]]
    for _ in range(3):
        engine.run_once()
    bad = engine.submit(Request((POISON, 1, MASK, MASK), SamplingConfig(steps=2), rules=ONLY_TEXT))
    handles += [engine.submit(one) for one in MIXED[5:]]
    drain(engine)
    assert bad.result().finish_reason == "failed"
    assert bad.result().error == "RuntimeError: this id is poison"
    assert [handle.result().ids for handle in handles] == ALONE
    assert 1 <= engine.stats().apart <= 4  # halves of twelve


def test_a_step_too_large_for_the_memory_is_repeated_in_parts(monkeypatch) -> None:
    hidden = DreamModel.hidden

    def fail(model, tokens, layout):
        if len(layout.flat_T) > 60:
            raise torch.OutOfMemoryError("too large")
        return hidden(model, tokens, layout)

    monkeypatch.setattr(DreamModel, "hidden", fail)
    engine = fits(400)
    handles = [engine.submit(one) for one in MIXED]
    drain(engine)
    assert [handle.result().ids for handle in handles] == ALONE
    assert engine.stats().apart > 0


def test_logits_that_are_no_numbers_fail_their_request_alone() -> None:
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        model.model.embed_tokens.weight[POISON] = torch.nan
    engine = Engine(model, positions=80)
    handles = [engine.submit(one) for one in MIXED[:2]]
    bad = engine.submit(
        Request((1, POISON, MASK, MASK), SamplingConfig(steps=2, alg="entropy"), rules=ONLY_TEXT)
    )
    drain(engine)
    after = engine.submit(MIXED[6])  # where the failed one lay
    drain(engine)
    assert bad.result().finish_reason == "failed"
    assert "NaN" in bad.result().error
    assert [handle.result().ids for handle in handles] == ALONE[:2]
    assert after.result().ids == ALONE[6]


def test_a_request_that_cannot_be_laid_down_fails_alone(monkeypatch) -> None:
    add = Batch.add

    def fail(batch, start, ids_L, config, **more):
        if len(ids_L) == 9:
            raise torch.OutOfMemoryError("no memory left")
        return add(batch, start, ids_L, config, **more)

    monkeypatch.setattr(Batch, "add", fail)
    engine = fits(60)
    bad, good = engine.submit(request(1, 8)), engine.submit(MIXED[0])
    drain(engine)
    assert bad.result().error == "OutOfMemoryError: no memory left"
    assert good.result().ids == ALONE[0]
    assert engine.stats().positions_taken == 0


def test_an_engine_that_breaks_down_tells_everybody(monkeypatch) -> None:
    def broken(batch):
        raise RuntimeError("out of order")

    monkeypatch.setattr(Batch, "save", broken)
    engine = fits(20)
    handles = [engine.submit(request(4, 12)) for _ in range(3)]
    engine.start()
    for handle in handles:
        result = handle.result(WAIT)
        assert result.finish_reason == "failed"
        assert result.error == "the engine broke down: RuntimeError: out of order"
    with pytest.raises(EngineClosed, match="out of order"):
        engine.submit(request())
    engine.close()


# Order.


def test_requests_enter_in_the_order_in_which_they_came(monkeypatch) -> None:
    clock = Clock()
    clock.run_with_steps(monkeypatch, 1.0)
    engine = fits(26, clock=clock)
    handles = [engine.submit(request(1, 12, canvas_seed=i)) for i in range(8)]
    drain(engine)
    waited = [handle.result().waited for handle in handles]
    assert waited == sorted(waited)
    assert waited[:3] == [0, 0, waited[3]]  # two at a time


def test_a_large_request_is_bypassed_a_few_times_and_then_waited_for() -> None:
    engine = fits(40, queue=200)
    order: list[RequestHandle] = []
    small = [engine.submit(request(1, 9, canvas_seed=0))]
    engine.run_once()
    large = engine.submit(request(4, 36))
    for index in range(60):
        small.append(engine.submit(request(1, 9 - index % 5, canvas_seed=index)))
    while engine.run_once():
        order += [t for t in [large, *small] if t.is_over and t not in order]
    assert large.result().finish_reason == "done"
    before = order.index(large)
    assert before <= 1 + MAX_BYPASSES
    assert large.result().ids == alone(large.request)


@dataclass
class Person:
    """Somebody who wants a place of this size."""

    size: int
    bypassed: int = 0
    until: int = 0


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 10), min_size=1, max_size=40),
    allocator=st.integers(10, 14),
    stays=st.integers(1, 4),
)
def test_nobody_starves(sizes, allocator, stays) -> None:
    waiting = [Person(size) for size in sizes]
    everybody, inside = list(waiting), []

    def enter(person: Person) -> bool:
        if sum(p.size for p in inside) + person.size > allocator:
            return False
        person.until = now + stays
        inside.append(person)
        return True

    for now in itertools.count():
        inside[:] = [person for person in inside if person.until > now]
        waiting = schedule(waiting, enter)
        assert all(person.bypassed <= MAX_BYPASSES for person in everybody)
        if not waiting:
            break
        assert now <= stays * len(sizes)


# The scheduler.


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
def test_stretches_never_overlap_and_come_together_again(moves) -> None:
    spans, taken = FreeSpans(64), []
    for takes, size in moves:
        if takes or not taken:
            start = spans.take(size)
            if start is None:
                gaps = np.ones(66, dtype=bool)
                gaps[[0, 65]] = False
                for a, n in taken:
                    gaps[1 + a : 1 + a + n] = False
                edges = np.flatnonzero(np.diff(gaps.astype(int)))
                assert all(b - a < size for a, b in edges.reshape(-1, 2))
            else:
                assert all(start + size <= a or a + n <= start for a, n in taken)
                assert 0 <= start <= 64 - size
                taken.append((start, size))
        else:
            spans.give(*taken.pop(size % len(taken)))
        assert spans.free == 64 - sum(n for _, n in taken)
    for stretch in taken:
        spans.give(*stretch)
    assert spans.take(64) == 0


KINDS = {
    "plain": (None, {}),
    "soft": (SOFT, {}),
    "tempered": (TEMPERED, {}),
    "drawn": (SOFT, {"temperature": 0.7, "top_p": 0.9}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocabulary", [64, 2048])
def test_the_measured_peak_stays_below_the_budget_and_above_half_of_it(kind, vocabulary) -> None:
    # Of usual proportions; many positions, so that the constant part does not decide.
    model = tiny_model(vocab_size=vocabulary, hidden_size=64, intermediate_size=192)
    mask, (soft, sampling) = vocabulary - 1, KINDS[kind]
    config = SamplingConfig(steps=8, block_length=32, cache="dual", **sampling)
    one = Request((1, 2, *[mask] * 30), config, soft, Rules(suppressed=(mask,)))
    engine = None

    def two_steps() -> None:
        nonlocal engine
        engine = Engine(model, positions=640, k=3)
        # What is drawn weighs more than the canvas says: not all of it enters.
        for _ in range(20):
            engine.submit(one)
        engine.run_once()
        engine.run_once()

    peak = peak_bytes(two_steps)
    running = engine.stats().running
    assert running == 20 or kind == "drawn"
    footprint = Footprint.of(model, cached=True, k=3)
    reading = running * footprint.reading(30, config, soft)
    needs = 640 * footprint.held + max(running * 32 * footprint.computed, reading)
    assert needs / 2 < peak < needs + footprint.fixed
    assert peak < engine.limits.memory


def peak_bytes(call) -> int:
    """The most bytes of tensors that were alive at once during a call, of those made in it."""
    gc.collect()  # garbage from before it would be freed within it, and count as less
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = seen.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def test_a_budget_in_megabytes_becomes_the_longest_canvas_within_it() -> None:
    engine = Engine(MODEL, memory_mb=4, running=1000)
    footprint, positions = engine.limits.footprint, engine.limits.positions
    assert footprint.total(positions) <= 4 * 2**20 < footprint.total(positions + 1)
    uncached = Engine(MODEL, memory_mb=4, running=1000, cached=False)
    assert uncached.limits.positions > positions
    assert Engine(MODEL, memory_mb=4000, running=3).limits.positions == 3 * 128


REFUSED = {
    "no mask": (request(5, 8), {"ids": (1, 2, 3)}, "no mask"),
    "empty": (request(5, 8), {"ids": ()}, "empty"),
    "beyond the vocabulary": (request(5, 8), {"ids": (64, MASK)}, "vocabulary"),
    "below it": (request(5, 8), {"ids": (-1, MASK)}, "vocabulary"),
    "a rule beyond it": (request(5, 8), {"rules": Rules(suppressed=(99,))}, "vocabulary"),
    "beyond the context": (request(5, 8), {"ids": (MASK,) * 129}, "context"),
    "beyond the canvas": (request(5, 8), {"ids": (MASK,) * 101}, "room for 100"),
    "blocks": (request(5, 8, sampling={"block_length": 2}), {"sampling": None}, "4 blocks"),
    "steps": (request(5, 8), {"sampling": SamplingConfig(steps=10**6)}, "too many"),
    "k": (request(5, 8), {"soft_mask": SoftMaskConfig(k=9, scale=0.5)}, "at most 8"),
    "k of the vocabulary": (request(5, 8), {"soft_mask": SoftMaskConfig(k=65)}, "lower k"),
    "seed": (request(5, 8), {"seed": -1}, "seed"),
    "deadline": (request(5, 8), {"deadline": 0.0}, "deadline"),
}


def test_what_is_kept_of_requests_that_are_over_does_not_grow_with_their_settings() -> None:
    """A module of the feedback and a bias over the vocabulary, for each that clients think of."""
    engine = Engine(MODEL, positions=60)
    size = (MODEL.config.vocab_size,)

    def ask(numbers: range) -> tuple[int, int]:
        for number in numbers:
            sampling = {"steps": 2, "end_penalty": 1 + number / 100}
            soft = dataclasses.replace(SOFT, scale=0.1 + number / 1000)
            engine.submit(request(2, 2, sampling=sampling, soft_mask=soft, rules=STOPS))
            while engine.run_once():
                pass
        found = gc.get_objects()
        rows = [one for one in found if isinstance(one, torch.Tensor) and one.shape == size]
        return sum(isinstance(one, SoftMask) for one in found), len(rows)

    modules, rows = ask(range(MIXERS))
    more = ask(range(MIXERS, 3 * MIXERS))
    assert more[0] <= modules
    assert more[1] <= rows


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence(name) -> None:
    one, changes, message = REFUSED[name]
    values = vars(one) | changes
    if values["sampling"] is None:
        values["sampling"] = SamplingConfig(steps=3, block_length=2)
    engine = fits(100)
    with pytest.raises(ValueError, match=message) as caught:
        engine.submit(Request(**values))
    assert "\n" not in str(caught.value)
    assert engine.stats().submitted == 0


def test_a_cache_needs_an_engine_that_has_one() -> None:
    cached = MIXED[6]
    with pytest.raises(ValueError, match="leave out cache dual"):
        fits(100, cached=False).submit(cached)
    engine = fits(100, cached=False)
    handle = engine.submit(MIXED[1])
    drain(engine)
    assert handle.result().ids == ALONE[1]


def test_logits_that_never_fit_are_refused_and_others_wait_their_turn() -> None:
    model = tiny_model(vocab_size=4096)
    mask, sampling = 4095, SamplingConfig(steps=4, temperature=0.5)
    memory = Footprint.of(model, cached=True, k=8).total(200)
    engine = Engine(model, memory_mb=memory / 2**20)
    with pytest.raises(ValueError, match="fewer new tokens"):
        engine.submit(Request((1, *[mask] * 100), sampling))
    fitting = int(engine.limits.reading / engine.limits.footprint.reading(1, sampling, None))
    handles = [engine.submit(Request((1, *[mask] * fitting), sampling)) for _ in range(2)]
    engine.run_once()
    assert (engine.stats().running, engine.stats().waiting) == (1, 1)
    drain(engine)
    assert all(handle.result().finish_reason == "done" for handle in handles)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either memory_mb or positions"),
        ({"memory_mb": 10, "positions": 10}, "either memory_mb or positions"),
        ({"memory_mb": 0.001}, "too little memory"),
        ({"positions": 0}, "positions must be at least 1"),
        ({"positions": 10, "queue": 0}, "queue must be at least 1"),
        ({"positions": 10, "running": 0}, "running must be at least 1"),
        ({"positions": 10, "k": 0}, "k must be at least 1"),
    ],
)
def test_an_engine_of_impossible_size_is_refused(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(MODEL, **arguments)


# The end.


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("finish", ["all", "running", "nothing"])
def test_closing_finishes_what_it_is_told_to_and_tells_the_others(finish, threaded) -> None:
    engine = fits(20)
    first, second = engine.submit(request(4, 12)), engine.submit(request(4, 12, canvas_seed=1))
    engine.run_once()
    engine.run_once()
    if threaded:
        engine.start()
    engine.close(finish=finish)
    engine.close()
    reasons = {
        "all": ("done", "done"),
        "running": ("done", "shutdown"),
        "nothing": ("shutdown", "shutdown"),
    }
    assert second.result(0).finish_reason in ("done", reasons[finish][1])
    if not threaded:
        assert second.result().finish_reason == reasons[finish][1]
        assert first.result().finish_reason == reasons[finish][0]
    with pytest.raises(EngineClosed, match="closed"):
        engine.submit(request())
    assert not [t for t in threading.enumerate() if t.name == "softmask-engine"]


def test_a_grace_period_ends_what_is_still_running(monkeypatch) -> None:
    clock = Clock()
    clock.run_with_steps(monkeypatch, 1.0)
    engine = fits(20, clock=clock)
    handle = engine.submit(request(4, 12))
    engine.run_once()
    engine.close(finish="all", grace=3.0)
    assert handle.result().finish_reason == "shutdown"
    assert (handle.result().steps, clock.now) == (5, 4.0)


def test_an_error_in_the_block_of_an_engine_ends_it_at_once() -> None:
    def fail() -> None:
        with fits(200) as engine:
            handles.append(engine.submit(request(4, 100, soft_mask=SOFT)))
            raise KeyError("ours")

    handles: list[RequestHandle] = []
    with pytest.raises(KeyError):
        fail()
    assert handles[0].is_over


def test_a_result_that_does_not_come_in_time_is_an_error_and_the_request_goes_on() -> None:
    engine = fits(20)
    handle = engine.submit(request(4, 12))
    with pytest.raises(TimeoutError):
        handle.result(timeout=0.01)
    drain(engine)
    assert handle.result().finish_reason == "done"


def test_the_numbers_of_an_engine_add_up() -> None:
    engine = fits(200)
    for one in MIXED[:4]:
        engine.submit(one)
    engine.run_once()
    engine.run_once()
    busy = engine.stats()
    assert (busy.running, busy.waiting, busy.submitted) == (4, 0, 4)
    assert busy.positions_taken == sum(len(one.ids) for one in MIXED[:4])
    assert 0 < busy.mean_lambda < 1
    drain(engine)
    done = engine.stats()
    assert done.ended == {"done": 4}
    assert done.committed == sum(one.ids.count(MASK) for one in MIXED[:4])
    assert done.busy_seconds >= done.step_seconds > 0
    assert done.forwards <= done.steps


def test_a_thread_sleeps_while_there_is_nothing_to_do() -> None:
    with fits(200) as engine:
        engine.submit(request()).result(WAIT)
        before = engine.stats().steps
        time.sleep(0.05)
        assert engine.stats().steps == before


@pytest.mark.parametrize("sampling", [{"temperature": 0.8}, {"alg": "origin"}, {"top_p": 0.9}])
@pytest.mark.parametrize("soft", [None, SOFT, TEMPERED], ids=["plain", "soft", "tempered"])
def test_a_canvas_of_a_requests_own_length_has_room_for_its_logits(sampling, soft) -> None:
    one = request(3, 40, sampling=sampling, soft_mask=soft)
    engine = Engine(MODEL, positions=len(one.ids), k=3)
    handle = engine.submit(one)
    drain(engine)
    assert handle.result().finish_reason == "done"
