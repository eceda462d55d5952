"""OpenAI's Responses API as its official client meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseInputItem
from test_server import serving
from test_tools import TOOLS

from softmask.decoding.prompts import encode_chat
from softmask.models.checkpoint import Checkpoint
from softmask.serving.responses_api import ResponsesRequest

FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]


class Verdict(pydantic.BaseModel):
    answer: Literal["yes", "no"]
    sure: bool


@pytest.fixture(scope="module")
def checkpoint(tool_checkpoint) -> Checkpoint:
    return tool_checkpoint


@pytest.fixture(scope="module")
def client(checkpoint) -> Iterator[openai.OpenAI]:
    with (
        serving(checkpoint, max_tokens=120) as (url, _service),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(**more: Any) -> dict[str, Any]:
    quick = {"softmask": {"steps": 40, "block_length": 8}, "seed": 1}
    return {"model": "tools", "input": "Hello", "temperature": 1.0, "extra_body": quick} | more


def events_of(stream: Any) -> list[Any]:
    events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def valid(response: Response) -> Response:
    """As the official types have it, each field of its type."""
    return Response.model_validate(response.model_dump(mode="json", by_alias=True))


def test_a_text_is_answered_as_the_chat_of_it_is_and_nothing_is_stored(client) -> None:
    said = client.responses.create(
        **ask(instructions="Be short.", max_output_tokens=12, metadata={"a": "b"}, store=True)
    )
    turns: Any = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hello"},
    ]
    options = {name: ask()[name] for name in ("model", "temperature", "extra_body")}
    chat = client.chat.completions.create(messages=turns, max_tokens=12, **options)
    assert said.output_text == chat.choices[0].message.content
    assert (said.usage.input_tokens, said.usage.output_tokens) == (
        chat.usage.prompt_tokens,
        chat.usage.completion_tokens,
    )
    cut = chat.choices[0].finish_reason == "length"
    assert said.status == ("incomplete" if cut else "completed")
    assert (said.incomplete_details is not None) == cut
    assert said.output[-1].status == said.status
    short = client.responses.create(**ask(max_output_tokens=1))
    assert (short.status, short.output[-1].status) == ("incomplete", "incomplete")
    assert said.store is False
    assert (said.metadata, said.instructions) == ({"a": "b"}, "Be short.")
    valid(said)


def test_a_form_is_parsed_into_the_class_that_asked_for_it(client) -> None:
    parsed = client.responses.parse(**ask(text_format=Verdict))
    assert isinstance(parsed.output_parsed, Verdict)
    assert parsed.status == "completed"
    with client.responses.stream(**ask(text_format=Verdict)) as stream:
        events = events_of(stream)
    assert events[0].type == "response.created"
    assert stream.get_final_response().output_parsed == parsed.output_parsed
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == parsed.output_text


def test_calls_are_items_and_a_stream_brings_their_arguments(client) -> None:
    options = ask(tools=FLAT, tool_choice="required", include=["message.output_text.logprobs"])
    whole = valid(client.responses.create(**options))
    calls = [item for item in whole.output if item.type == "function_call"]
    assert calls
    for call in calls:
        assert isinstance(json.loads(call.arguments), dict)
    with client.responses.stream(**options) as stream:
        events = events_of(stream)
    final = stream.get_final_response()
    assert [(item.name, item.arguments) for item in final.output] == [
        (call.name, call.arguments) for call in calls
    ]
    kinds = [event.type for event in events]
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments for call in calls]
    for kind in ("response.output_item.added", "response.output_item.done"):
        assert kinds.count(kind) == len(calls)
    assert kinds[-1] == "response.completed"


def test_of_several_tools_those_that_are_allowed_are_called(client) -> None:
    choice = {"type": "allowed_tools", "mode": "required"}
    choice["tools"] = [{"type": "function", "name": "now"}]
    whole = valid(client.responses.create(**ask(tools=FLAT, tool_choice=choice)))
    assert whole.tool_choice.model_dump() == choice
    assert len(whole.tools) == len(FLAT) == 2
    assert {item.name for item in whole.output} == {"now"}


def test_a_stream_loses_no_log_probabilities_of_text_that_it_holds_back(client) -> None:
    """White space may be the beginning of a call."""
    texts = 0
    for seed in range(3):
        options = ask(tools=FLAT, include=["message.output_text.logprobs"])
        options["extra_body"] = {**options["extra_body"], "seed": seed}
        whole = client.responses.create(**options)
        with client.responses.stream(**options) as stream:
            events = events_of(stream)
        if [item.type for item in whole.output] != ["message"]:
            continue
        texts += 1
        logprobs = whole.output[0].content[0].logprobs
        assert events[-1].response.output[0].content[0].logprobs == logprobs
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        assert [one.token for event in deltas for one in event.logprobs] == [
            one.token for one in logprobs
        ]
    assert texts


def test_text_before_calls_is_an_item_of_its_own(client) -> None:
    options = ask(tools=FLAT, include=["message.output_text.logprobs"], top_logprobs=2)
    whole = valid(client.responses.create(**options))
    assert [item.type for item in whole.output] == ["message", "function_call"]
    with client.responses.stream(**options) as stream:
        events = events_of(stream)
    final = stream.get_final_response()
    assert final.output_text == whole.output_text
    logprobs = final.output[0].content[0].logprobs
    assert whole.output[0].content[0].logprobs == logprobs
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert sum(len(event.logprobs) for event in deltas) == len(logprobs)
    # Of the text's own tokens, the last of which may end in the space before the call.
    said = b"".join(bytes(one.bytes) for one in logprobs).decode()
    assert said.rstrip() == final.output_text
    # Of some tokens there is no other that may stand there.
    assert max(len(one.top_logprobs) for one in logprobs) == 2
    added = [event.item.type for event in events if event.type == "response.output_item.added"]
    assert added == ["message", "function_call"]


def test_what_was_answered_goes_back_as_input(client, checkpoint) -> None:
    """As agents do: what came out, and what came of the calls, behind what was said before."""
    first = client.responses.create(
        **ask(tools=FLAT, tool_choice={"type": "function", "name": "now"})
    )
    (call,) = first.output
    items: list[Any] = [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "noon"})
    second = client.responses.create(**ask(input=items, tools=FLAT, tool_choice="none"))
    function = {"name": "now", "arguments": {}}
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
        {"role": "tool", "content": "noon"},
    ]
    assert second.usage.input_tokens == len(encode_chat(checkpoint, turns))
    pydantic.TypeAdapter(list[ResponseInputItem]).validate_python(items)
    # A message and the calls behind it are one turn.
    said = {"type": "message", "id": "1", "role": "assistant", "status": "completed"}
    said["content"] = [{"type": "output_text", "text": "So", "annotations": []}]
    reasoning = {"type": "reasoning", "id": "2", "summary": []}
    asked = ResponsesRequest.model_validate({"input": [*items[:1], reasoning, said, *items[1:]]})
    messages = asked.as_chat().messages
    assert [message.role for message in messages] == ["user", "assistant", "tool"]
    assert (messages[1].text, len(messages[1].tool_calls)) == ("So", 1)


def test_a_request_that_fails_in_a_stream_ends_with_response_failed(checkpoint) -> None:
    with (
        serving(checkpoint, start=False) as (url, service),
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        stream = client.responses.create(**ask(max_output_tokens=100), stream=True)
        service.engine.close(finish="nothing")
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error.message == "the server is shutting down: try again"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"previous_response_id": "r"}, "previous_response_id: not implemented here: no answer is"),
        ({"background": True}, "background: not implemented here: wait for the answer"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: functions are the only tools here"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type: nothing is kept"),
        ({"input": [{"type": []}]}, "input.0.type: [] is none of message, function_call"),
        ({"input": [{"role": "user"}]}, "input.0.content: a message needs it"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input.0.content.0.type: this model reads and writes text alone",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            "input.0.arguments: not a JSON object as text",
        ),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format: schema goes with type"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}},
            "tool_choice.mode: ",
        ),
        (
            {
                "input": [{"type": "function_call", "call_id": "", "name": "f", "arguments": ""}]
                * 129
            },
            "input: 129 calls in a row are too many: at most 128",
        ),
        ({"tool_choice": "required"}, "tool_choice needs tools to choose from"),
        ({"include": ["message.output_text.logprob"]}, "include.0: "),
    ],
)
def test_what_cannot_be_answered_is_refused_in_a_sentence(client, more, sentence) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**ask(**more))
    assert refused.value.body["message"].startswith(sentence)


@pytest.mark.parametrize(
    "more",
    [
        {"metadata": {"\ud800": "x"}},
        {"tools": [{"type": "function", "name": "f", "parameters": {"title": "\ud800"}}]},
        {"text": {"format": {"type": "json_schema", "schema": {"\ud800": {}}}}},
    ],
)
def test_half_a_character_is_refused_wherever_it_would_be_sent_back(more) -> None:
    with pytest.raises(pydantic.ValidationError, match="half of one"):
        ResponsesRequest.model_validate({"input": "x", **more})
