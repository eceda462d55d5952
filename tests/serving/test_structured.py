"""Answers of a given form over HTTP: by whichever field, a valid text or an error comes back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest
from browsing import serving
from pydantic import BaseModel, Field

import softmask
from softmask.constraints import compile
from softmask.decoding import forms

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
    ({"json_schema": {"type": "object", "not": {}}}, "not"),
    ({"json_schema": {"type": "nothing"}}, "nothing"),
    ({"guided_grammar": "root = nothing"}, "grammar"),
    ({"guided_choice": []}, "guided_choice"),
    ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ({"response_format": {"type": "xml"}}, "response_format"),
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


def test_an_answer_that_a_stop_string_cuts_is_an_error_and_never_a_text(url) -> None:
    body = {"prompt": "a", "max_tokens": 60, "guided_regex": "[0-9]{2}-x+", "stop": "-"}
    answer = httpx.post(f"{url}/v1/completions", json=body, timeout=WAIT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "malformed")
    stream = httpx.post(f"{url}/v1/completions", json=body | {"stream": True}, timeout=WAIT)
    assert '"code":"malformed"' in stream.text
