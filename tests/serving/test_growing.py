"""A hole whose length the model finds: in the library, beside other requests, and over HTTP."""

from __future__ import annotations

import json

import pytest
import torch
from fastapi.testclient import TestClient
from official import folder_of, official, read

import softmask
from softmask.cli.live_view import canvas_text
from softmask.cli.main import main
from softmask.cli.svg import picture
from softmask.config import SamplingConfig, SoftMaskConfig
from softmask.decoding.generation import Generation
from softmask.decoding.growing import Room
from softmask.decoding.prompts import encode_holes, rules_of
from softmask.decoding.sampler import denoise
from softmask.serving.config import ServeConfig
from softmask.serving.engine import Engine, Request
from softmask.serving.server import create_app
from softmask.serving.service import Service

CASES = {case["name"]: case for case in read("dreamon", "generate.json")["cases"]}
GROWS, SHRINKS = "expands", "expands and deletes, pad to the right"
FULL = "grows to the largest window, where expand is blocked"
SOFT = SoftMaskConfig(k=3, scale=0.8, offset=-2.0, steepness=1.0)
GREEDY = {"temperature": 0.0, "top_p": None}
# It grows to 6 tokens and more, and goes on to grow as long as it may.
TEXT, LONG = "some text [[4]] and so", "\ufffd):\n b1\ufffd\u052c[[4]]b\ufffd"


@pytest.fixture(scope="module")
def checkpoint():
    return official("dreamon")


def alone(text: str, most: int) -> tuple[list[int], list[int], int]:
    """The whole text's tokens, the hole's, and the forwards, of a hole up to so many tokens."""
    checkpoint = official("dreamon")
    mask_id, ids = checkpoint.model.mask_id, encode_holes(checkpoint, text).ids
    first, masks = ids.index(mask_id), ids.count(mask_id)
    room = Room(len(ids) - masks + most)
    canvas = torch.tensor([ids + [0] * (most - masks)])
    mask = torch.tensor([[1] * len(ids) + [0] * (most - masks)])
    more = {"rules": rules_of(checkpoint, infill=True), "attention_mask_BL": mask}
    config = SamplingConfig(alg="entropy", steps=room.rounds(ids, mask_id))
    *_, step = denoise(checkpoint.model, canvas, config, room_B=[room], **more)
    whole = step.canvas_BL[0, : step.stop_B[0]].tolist()
    return whole, whole[first : step.stop_B[0] - (len(ids) - first - masks)], step.forwards


def request(name: str, seed: int = 0, **more) -> Request:
    """A golden case as a request."""
    checkpoint, case = official("dreamon"), CASES[name]
    mask_id = checkpoint.model.mask_id
    ids = (*case["prefix"], *[mask_id] * 4, *case["suffix"])
    room = Room(len(ids) + 8)
    config = {"alg": "entropy", "steps": room.rounds(ids, mask_id), **more.pop("sampling", {})}
    return Request(
        ids,
        SamplingConfig(**config),
        rules=rules_of(checkpoint, infill=True),
        room=room,
        seed=seed,
        top_logprobs=2,
        **more,
    )


def drained(requests: list[Request]) -> list[tuple]:
    """What comes of requests side by side, one after another by one step, and their events."""
    engine = Engine(official("dreamon").model, positions=128, running=8, k=4)
    handles = []
    for one in requests:
        handles.append(engine.submit(one))
        engine.run_once()
    while engine.run_once():
        pass
    results = [handle.result(0) for handle in handles]
    assert [one.finish_reason for one in results] == ["done"] * len(results)
    assert engine.stats().positions_taken == 0
    return [(r.ids, r.forwards, h.pending()) for r, h in zip(results, handles, strict=True)]


def replayed(one: Request, events, final: tuple[int, ...]) -> None:
    """Events applied to the canvas give each time what is final, and in the end the result."""
    ids, first = list(one.ids), one.ids.index(official("dreamon").model.mask_id)
    stop = first + 4
    for event in events:
        if event.source is not None:
            mask = official("dreamon").model.mask_id
            hole = [mask if column < 0 else ids[column] for column in event.source]
            ids, stop = [*ids[:first], *hole, *ids[stop:]], first + len(hole)
        for column, token in zip(event.columns, event.ids, strict=True):
            ids[column] = token
        assert ids[: event.final] == list(final[: event.final])
        assert ids.count(official("dreamon").model.mask_id) == event.left
    assert tuple(ids) == final


DRAWN = {"temperature": 1.0, "top_k": 5}


def test_a_hole_that_grows_beside_other_requests_is_what_it_is_alone(checkpoint) -> None:
    fixed = Request(
        (*CASES[GROWS]["prefix"], *[checkpoint.model.mask_id] * 6),
        SamplingConfig(steps=6, alg="entropy"),
        rules=rules_of(checkpoint, infill=False),
        soft_mask=SOFT,
    )
    requests = [
        request(GROWS),
        fixed,
        request(SHRINKS, soft_mask=SOFT),
        request(FULL, sampling=DRAWN, seed=3),
        request(SHRINKS, sampling=DRAWN, seed=4),
        request(FULL),
    ]
    together = drained(requests)
    for one, (ids, forwards, events) in zip(requests, together, strict=True):
        ((own_ids, own_forwards, _),) = drained([one])
        assert (ids, forwards) == (own_ids, own_forwards)
        if one.room is None:
            continue
        replayed(one, events, ids)
        merged = events[0]
        for event in events[1:]:
            merged = merged.then(event)
        replayed(one, [merged], ids)
        assert len(merged.logprobs.logprob_N) == len(merged.columns)
    for name, place in ((GROWS, 0), (FULL, 5)):
        case = CASES[name]
        prefix, suffix = case["prefix"], case["suffix"]
        assert together[place][0] == (*prefix, *case["answer"], *suffix)


def test_a_failed_step_is_repeated_with_the_hole_as_it_was(monkeypatch) -> None:
    engine = Engine(official("dreamon").model, positions=128, running=4, k=4)
    requests = [request(GROWS), request(SHRINKS, soft_mask=SOFT)]
    handles = [engine.submit(one) for one in requests]
    step, tried = engine._batch.batch.step, []

    def fails_together(sequences) -> None:
        tried.append(len(sequences))
        step(sequences)
        if len(sequences) > 1:
            raise RuntimeError("too large")

    monkeypatch.setattr(engine._batch.batch, "step", fails_together)
    while engine.run_once():
        pass
    assert tried.count(2) > 4
    for one, handle in zip(requests, handles, strict=True):
        ((ids, forwards, _),) = drained([one])
        result = handle.result(0)
        assert (result.ids, result.forwards) == (ids, forwards)
        replayed(one, handle.pending(), ids)


def test_generate_finds_the_length_up_to_max_new_tokens(checkpoint) -> None:
    more = {"infill": True, **GREEDY}
    found = softmask.generate(checkpoint, [TEXT, LONG], max_new_tokens=12, **more)
    for one, text, reason in zip(found, (TEXT, LONG), ("stop", "length"), strict=True):
        whole, hole, forwards = alone(text, 12)
        assert (list(one.token_ids), one.forwards) == (whole, forwards)
        assert one.text == checkpoint.decode(hole).join(text.split("[[4]]"))
        assert one.finish_reason == reason
        assert len(hole) > 4
    most = Generation(checkpoint, LONG, infill=True)  # up to 128 tokens
    assert most.rooms[0].columns == len(most.rows[0]) - 4 + 128
    assert most.sampling.steps == 4 + 2 * 128
    cut = softmask.generate(checkpoint, LONG, max_new_tokens=12, steps=3, **more)
    assert (cut.finish_reason, cut.forwards) == ("length", 3)


def test_the_space_before_such_a_hole_stays(checkpoint) -> None:
    run = Generation(checkpoint, "a cat [[3]].", infill=True)
    assert checkpoint.decode(run.rows[0]).endswith(". <|endoftext|>".replace(" ", ""))
    masks = run.rows[0].index(checkpoint.model.mask_id)
    assert checkpoint.decode(run.rows[0][1:masks]) == "a cat "


def test_the_live_view_shows_the_canvas_as_long_as_it_is(checkpoint) -> None:
    run = Generation(checkpoint, TEXT, infill=True, max_new_tokens=12, sampling=GREEDY)
    lengths = []
    for step in run:
        text = canvas_text(run, step)
        shaded = [span for span in text.spans if getattr(span.style, "bgcolor", None)]
        assert len(shaded) == step.left_B[0]
        assert text.plain.endswith(" and so")
        lengths.append(sum(run.generated(step)))
    assert lengths[-1] == len(alone(TEXT, 12)[1])
    assert max(lengths) > 4


def test_the_command_fills_such_a_hole_and_keeps_it_as_a_picture(capsys, tmp_path) -> None:
    whole, hole, _ = alone(TEXT, 12)
    argv = ["generate", "--infill", TEXT, "--temperature", "0", "--device", "cpu"]
    argv += ["--top-p", "1", "--max-new-tokens", "12", "--model", str(folder_of("dreamon"))]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["token_ids"] == whole
    files = [tmp_path / name for name in ("run.json", "run.svg")]
    assert main([*argv, "--trace", str(files[0]), "--svg", str(files[1])]) == 0
    assert found["text"] in capsys.readouterr().out
    trace = softmask.Trace.load(files[0])
    # A column for each mask that there ever was; in the end those that stayed have a token.
    grown = sum(-1 in step.get("source", []) for step in trace.data["runs"][0]["steps"])
    assert len(trace.position_P) == 4 + 2 * grown
    assert (trace.committed_P >= 0).sum() == len(hole)
    assert picture(trace.data).count("<svg") == 1
    assert main([*argv, "--cache", "dual", "--block-length", "2"]) == 2
    assert "leave out cache" in capsys.readouterr().err


@pytest.fixture(scope="module")
def client(checkpoint):
    service = Service(checkpoint, ServeConfig(memory_mb=64))
    with service.engine, TestClient(create_app(service)) as client:
        yield client


def halves(text: str) -> dict:
    prompt, suffix = text.split("[[4]]")
    return {"prompt": prompt, "suffix": suffix, "temperature": 0, "top_p": 1}


@pytest.mark.parametrize(("text", "reason"), [(TEXT, "stop"), (LONG, "length")])
def test_a_suffix_has_what_the_model_finds_between_up_to_max_tokens(
    client, checkpoint, text, reason
) -> None:
    body = {**halves(text), "max_tokens": 12}
    answer = client.post("/v1/completions", json=body).json()
    (choice,), (whole, hole, forwards) = answer["choices"], alone(text, 12)
    assert choice["text"] == checkpoint.decode(hole)
    assert choice["finish_reason"] == reason
    assert answer["usage"]["completion_tokens"] == len(hole)
    assert answer["usage"]["prompt_tokens"] == len(whole) - len(hole)
    assert choice["softmask"]["forwards"] == forwards
    more = {"stream": True, "logprobs": 1}
    lines = client.post("/v1/completions", json=body | more).text.split("\n\n")
    chunks = [json.loads(line[6:])["choices"][0] for line in lines[:-2]]
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    assert chunks[-1]["finish_reason"] == reason
    logprobs = [one for chunk in chunks[:-1] for one in chunk["logprobs"]["token_logprobs"]]
    assert len(logprobs) == len(hole)
    assert None not in logprobs


def test_a_suffix_takes_fewer_tokens_than_a_hole_begins_with(client) -> None:
    answer = client.post("/v1/completions", json={**halves(TEXT), "max_tokens": 2}).json()
    assert answer["usage"]["completion_tokens"] <= 2


def test_a_denoise_stream_tells_how_the_canvas_grows(client, checkpoint) -> None:
    body = {"infill": TEXT, "max_tokens": 12, "temperature": 0, "top_p": 1}
    run = client.post("/v1/denoise", json=body | {"stream": False}).json()
    size, sizes = 4, []
    for step in run["steps"]:
        size = len(step.get("source", [0] * size))
        sizes.append(size)
        assert len(step["masked"]["position"]) == step["left"]
    hole = alone(TEXT, 12)[1]
    assert sizes[-1] == len(hole)
    assert max(sizes) > 4
    assert run["end"]["text"] == TEXT.replace("[[4]]", checkpoint.decode(hole))
    assert run["end"]["finish_reason"] == "stop"
    assert len(run["end"]["pieces"]) == len(run["start"]["tokens"]) - 4 + size


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"infill": "a [[2]] b [[2]]"}, "finds the length of one hole"),
        ({"infill": "a [[9]]", "max_tokens": 4}, "more than it may grow to: allow more"),
        ({"infill": "a [[2]]", "structured_outputs": {"choice": ["b"]}}, "a form needs a hole"),
        ({"infill": "a [[2]]", "softmask": {"threshold": 0.9}}, "one token a step: leave out"),
        ({"infill": "a [[2]]", "softmask": {"guidance": 1.0}}, "leave out guidance"),
        ({"infill": "a [[2]]", "softmask": {"step_schedule": "rounded"}}, "out step_schedule"),
    ],
)
def test_what_such_a_hole_cannot_have_is_refused_over_http(client, more, message) -> None:
    answer = client.post("/v1/denoise", json=more)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
