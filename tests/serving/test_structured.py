"""Answers of a given form over HTTP: by whichever field, a valid text or an error comes back."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import pytest
from browsing import serving
from pydantic import BaseModel, Field
from test_server import SERVERS, until
from test_server import serving as serving_with

import softmask
from softmask.constraints import compile
from softmask.constraints.token_automaton import TokenAutomaton
from softmask.decoding import forms
from softmask.serving.openai_responses import CompletionResponse

HELLO = [{"role": "user", "content": "Hello"}]
WAIT = 600.0


class Animal(BaseModel):
    name: str = Field(max_length=8)
    legs: int = Field(ge=0, le=8)


SCHEMA = Animal.model_json_schema()


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with serving(softmask.load(model, device="cpu")) as address:
        yield address


def test_a_model_of_pydantics_comes_back_parsed_whole_and_streamed(client) -> None:
    asked = {"model": "m", "messages": HELLO, "max_tokens": 60, "temperature": 1.0, "seed": 3}
    answer = client.chat.completions.parse(**asked, response_format=Animal)
    assert isinstance(answer.choices[0].message.parsed, Animal)
    assert answer.choices[0].finish_reason == "stop"
    with client.chat.completions.stream(**asked, response_format=Animal) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == answer.choices[0].message.parsed


GRAMMAR = 'root ::= "a" root "b" | "c"'
FIELDS = {
    "response_format": {"response_format": {"type": "json_object"}},
    "schema": {"response_format": {"type": "json_schema", "schema": SCHEMA}},
    "schema, object": {"response_format": {"type": "json_object", "schema": SCHEMA}},
    "structured_outputs.json": {"structured_outputs": {"json": SCHEMA}},
    "structured_outputs.regex": {"structured_outputs": {"regex": "[0-9]{2}-x+"}},
    "structured_outputs.choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "structured_outputs.grammar": {"structured_outputs": {"grammar": GRAMMAR}},
    "structured_outputs.json_object": {"structured_outputs": {"json_object": True}},
    "guided_json": {"guided_json": json.dumps(SCHEMA)},
    "guided_regex": {"guided_regex": "[0-9]{2}-x+"},
    "guided_choice": {"guided_choice": ["yes", "no"]},
    "guided_grammar": {"guided_grammar": 'start: "a" start "b" | "c"'},
    "grammar": {"grammar": GRAMMAR},
    "json_schema": {"json_schema": SCHEMA},
}


def is_of_form(field: str, text: str) -> bool:
    if "regex" in field:
        return re.fullmatch("[0-9]{2}-x+", text) is not None
    if "choice" in field:
        return text in ("yes", "no")
    if "grammar" in field:
        middle = text.find("c")
        return text == "a" * middle + "c" + "b" * middle
    if field in ("response_format", "structured_outputs.json_object"):
        return isinstance(json.loads(text), dict)
    return isinstance(Animal.model_validate_json(text), Animal)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_asks_for_a_form_gets_it(url, field) -> None:
    body = {"prompt": ["a", "b"], "max_tokens": 40, "temperature": 1, "n": 2, **FIELDS[field]}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert answer.status_code == 200, answer.text
    texts = [choice["text"] for choice in answer.json()["choices"]]
    assert len(texts) == 4
    assert all(is_of_form(field, text) for text in texts), texts


def test_what_stands_between_two_texts_has_the_form_too(url) -> None:
    body = {"prompt": "x = ", "suffix": ";", "max_tokens": 4, "guided_regex": "[0-9]+"}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert re.fullmatch("[0-9]{4}", answer.json()["choices"][0]["text"])
    body = {"infill": "x = [[4]];", "guided_regex": "[0-9]+", "stream": False}
    answer = httpx.post(f"{url}/v1/denoise", json=body, timeout=WAIT).json()
    assert re.fullmatch("x = [0-9]{4};", answer["end"]["text"])


REFUSED = [
    ({"guided_regex": "a", "guided_choice": ["a"]}, "each ask for a form: give one of them"),
    ({"guided_regex": "(a"}, "regex"),
    ({"guided_regex": "a", "max_tokens": 0, "echo": True}, "nothing is written that could have"),
    ({"guided_regex": r"(a)\1"}, "not supported"),
    ({"guided_regex": "a{50}", "max_tokens": 9}, "has 50 tokens, but there is room for 9"),
    ({"json_schema": {"type": "object", "not": {"const": 1}}}, "not"),
    ({"json_schema": {"type": "nothing"}}, "nothing"),
    ({"guided_grammar": "root = nothing"}, "grammar"),
    ({"guided_choice": []}, "guided_choice"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "text", "schema": {}}}, "schema stands in json_schema, or alone"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
]


@pytest.mark.parametrize(("asked", "reason"), REFUSED)
def test_a_form_that_cannot_be_promised_is_refused_in_a_sentence(url, asked, reason) -> None:
    body = {"prompt": "a", "max_tokens": 60, **asked}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert reason in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.fixture
def compiling(monkeypatch) -> Iterator[Callable[[], None]]:
    """Forms are not compiled before this is called."""
    goes_on = threading.Event()

    def compile_constraint(constraint):
        assert goes_on.wait(WAIT)
        return compile.compile_constraint(constraint)

    monkeypatch.setattr(forms, "compile_constraint", compile_constraint)
    yield goes_on.set
    goes_on.set()


def formed(name: str, **more) -> dict[str, object]:
    return {"messages": HELLO, "max_tokens": 30, "guided_choice": [name], **more}


def ask(url: str, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT)


@pytest.mark.parametrize("path", ["chat/completions", "denoise", "edits"])
def test_a_deadline_counts_while_a_form_is_compiled(chat_checkpoint, compiling, path) -> None:
    asked = formed(path, softmask={"deadline": 0.05})
    if path == "edits":
        asked |= {"text": "One", "start": 1, "end": 2}
        del asked["messages"]
    with serving_with(chat_checkpoint) as (url, service):
        answer = httpx.post(f"{url}/v1/{path}", json=asked, timeout=20)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")
        until(lambda: service.encoder.forms == 0)
        assert service.engine.stats().submitted == 0
        compiling()
        # What was begun for it is kept.
        assert ask(url, formed(path)).json()["choices"][0]["message"]["content"] == path


def test_forms_wait_in_a_line_of_bounded_length_and_equal_ones_together(
    chat_checkpoint, compiling
) -> None:
    with (
        serving_with(chat_checkpoint, queue=1) as (url, service),
        ThreadPoolExecutor(3) as pool,
    ):
        try:
            answers = [pool.submit(ask, url, formed("first"))]
            until(lambda: service.encoder.forms == 1)
            answers += [pool.submit(ask, url, formed("second")) for _ in range(2)]
            until(lambda: service.encoder.forms == 2)
            refused = ask(url, formed("third"))
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1
            metrics = httpx.get(f"{url}/metrics").text
            assert "softmask_requests_refused_total 1.0" in metrics
            assert "softmask_forms 2.0" in metrics
            # Without a new form there is no such line.
            assert ask(url, {"messages": HELLO, "max_tokens": 2}).status_code == 200
        finally:
            service.engine.queue = 3  # they come out of the one line into the other together
            compiling()
        said = [one.result().json()["choices"][0]["message"]["content"] for one in answers]
        assert said == ["first", "second", "second"]
        assert ask(url, formed("third")).status_code == 200


def test_a_client_that_leaves_waits_for_no_form(chat_checkpoint, compiling) -> None:
    with serving_with(chat_checkpoint) as (url, service):
        content, host = json.dumps(formed("left")).encode(), url.removeprefix("http://")
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        with socket.create_connection(tuple(host.split(":"))) as connection:
            connection.sendall(head.encode() + content)
            until(lambda: service.encoder.forms == 1)
        until(lambda: service.encoder.forms == 0)
        compiling()


def test_a_shutdown_tells_those_who_wait_for_a_form_at_once(chat_checkpoint, compiling) -> None:
    with serving_with(chat_checkpoint) as (url, service), ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, url, formed("begun"))]
        until(lambda: service.encoder.forms == 1)
        answers.append(pool.submit(ask, url, formed("not begun")))
        until(lambda: service.encoder.forms == 2)
        SERVERS[service].handle_exit(signal.SIGTERM, None)
        try:
            told = [answer.result(20) for answer in answers]
        finally:
            compiling()
        assert [answer.status_code for answer in told] == [503, 503]


def test_others_are_answered_while_a_form_is_compiled(url, monkeypatch) -> None:
    """Without a form, and with one that is known."""
    known = {"messages": HELLO, "max_tokens": 30, "guided_choice": ["yes", "no"]}
    hostile = {"messages": HELLO, "max_tokens": 30, "guided_regex": "slow|to|compile"}
    others = (known, {"messages": HELLO, "max_tokens": 4})
    chat = f"{url}/v1/chat/completions"
    assert httpx.post(chat, json=known, timeout=WAIT).status_code == 200
    begun, answered = threading.Event(), threading.Event()

    def compile_constraint(constraint):
        begun.set()
        assert answered.wait(WAIT)
        return compile.compile_constraint(constraint)

    monkeypatch.setattr(forms, "compile_constraint", compile_constraint)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.post, chat, json=hostile, timeout=WAIT)
        assert begun.wait(WAIT)
        try:
            found = [httpx.post(chat, json=asked, timeout=20) for asked in others]
        finally:
            answered.set()
        assert [answer.status_code for answer in found] == [200, 200]
        assert slow.result().json()["choices"][0]["message"]["content"] in ("slow", "to", "compile")


def test_a_stop_string_may_end_the_form_and_is_no_part_of_the_answer(url) -> None:
    body = {
        "prompt": "a",
        "max_tokens": 30,
        "guided_regex": r"[a-c]+@[a-c]+\.com\n",
        "stop": ["\n"],
    }
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert answer.status_code == 200, answer.text
    assert re.fullmatch(r"[a-c]+@[a-c]+\.com", answer.json()["choices"][0]["text"])


def test_an_event_is_one_line_for_clients_that_know_all_of_unicodes_line_ends(url) -> None:
    text = "a\u2028b\u2029c\x85d"
    body = {"prompt": "a", "max_tokens": 30, "guided_choice": [text], "stream": True}
    lines = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT).text.splitlines()
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(one["choices"][0]["text"] for one in found) == text
    assert {line[:6] for line in lines} == {"data: ", ""}


def test_an_answer_that_a_stop_string_cuts_is_an_error_and_never_a_text(url) -> None:
    body = {"prompt": "a", "max_tokens": 60, "guided_regex": "[0-9]{2}-x+", "stop": "-"}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "malformed")
    stream = httpx.post(f"{url}/v1/completions", json=body | {"stream": True}, timeout=WAIT)
    assert '"code":"malformed"' in stream.text


def test_the_event_loop_neither_looks_whether_a_form_fits_nor_writes_log_probabilities(
    url, monkeypatch
) -> None:
    """Both take seconds of the processor where texts are many and long."""
    begun: list[tuple[str, str]] = []

    def noted(owner: type, name: str) -> None:
        own = getattr(owner, name)

        def wrapper(*args: Any) -> Any:
            begun.append((name, threading.current_thread().name))
            return own(*args)

        monkeypatch.setattr(owner, name, wrapper)

    noted(TokenAutomaton, "_completes")
    noted(CompletionResponse, "whole")
    body = {"prompt": ["a", "b"], "n": 3, "max_tokens": 9, "guided_regex": "[ab]{3}", "logprobs": 2}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert answer.status_code == 200
    fits = [thread for name, thread in begun if name == "_completes"]
    assert len(fits) == 1  # once of all six
    assert fits[0].startswith("softmask-encoder")
    (whole,) = (thread for name, thread in begun if name == "whole")
    assert whole.startswith("asyncio")
