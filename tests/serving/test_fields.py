"""What clients of OpenAI, vLLM and llama.cpp send beside the text, and what they are told of it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types import chat as openai_chat
from openai.types import responses as openai_responses
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from openai.types.completion_create_params import CompletionCreateParamsBase
from openai.types.responses import response_input_param
from openai.types.responses.response_create_params import ResponseCreateParamsStreaming
from openai.types.shared_params import FunctionDefinition
from test_server import HELLO, post, serving

import softmask
from softmask.decoding.prompts import encode_chat
from softmask.serving import (
    edit_body,
    messages,
    protocol,
    responses_api,
    scores,
    structured,
    tools,
)
from softmask.serving.errors import sentence_of
from softmask.serving.fields import FIELDS, known
from softmask.serving.protocol import ChatRequest, CompletionRequest

MODELS: dict[str, Any] = {
    "chat": protocol.ChatRequest,
    "completions": protocol.CompletionRequest,
    "denoise": protocol.DenoiseRequest,
    "message": messages.Message,
    "part": messages.TextPart,
    "stream_options": protocol.StreamOptions,
    "score": scores.ScoreBody,
    "edit": edit_body.EditBody,
    "response_format": structured.ResponseFormat,
    "structured_outputs": structured.StructuredOutputs,
    "tool": tools.Tool,
    "function": tools.FunctionDefinition,
    "tool_choice": tools.NamedTool,
    "allowed_choice": tools.AllowedChoice,
    "allowed_tools": tools.AllowedTools,
    "named_function": tools.NamedFunction,
    "tool_call": tools.ToolCall,
    "called_function": tools.CalledFunction,
    "responses": responses_api.ResponsesRequest,
    "responses_text": responses_api.TextConfig,
    "responses_format": responses_api.TextFormat,
    "responses_tool": responses_api.ResponsesTool,
    "responses_choice": responses_api.ResponsesNamed,
    "responses_allowed": responses_api.ResponsesAllowed,
    "item": responses_api.Item,
    "item_part": responses_api.ItemPart,
}
ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
}
TEXTS = {"chat": {"messages": HELLO}, "completions": {"prompt": "One"}, "responses": {"input": "x"}}


@pytest.fixture(scope="module")
def url(checkpoint) -> Iterator[str]:
    with serving(checkpoint, max_tokens=4) as (address, _service):
        yield address


def parameters(create: Any) -> set[str]:
    """The fields that a method of OpenAI's client sends."""
    names = set(inspect.signature(create).parameters)
    return names - {"self", "extra_headers", "extra_query", "extra_body", "timeout"}


# The table.


def test_every_parameter_of_the_official_client_is_in_the_table() -> None:
    """A new release's field is to be looked at: implemented, ignored for a reason, or refused."""
    client = openai.OpenAI(api_key="none")
    sent = {
        "chat": parameters(client.chat.completions.create)
        | set(CompletionCreateParamsStreaming.__annotations__),
        "completions": parameters(client.completions.create)
        | set(CompletionCreateParamsBase.__annotations__),
        "responses": parameters(client.responses.create)
        | set(ResponseCreateParamsStreaming.__annotations__),
        "responses_text": set(openai_responses.ResponseTextConfigParam.__annotations__),
        "responses_format": set(
            openai_responses.ResponseFormatTextJSONSchemaConfigParam.__annotations__
        ),
        "responses_tool": set(openai_responses.FunctionToolParam.__annotations__),
        "responses_choice": set(openai_responses.ToolChoiceFunctionParam.__annotations__),
        "responses_allowed": set(openai_responses.ToolChoiceAllowedParam.__annotations__),
        "item": set(openai_responses.EasyInputMessageParam.__annotations__)
        | set(openai_responses.ResponseOutputMessageParam.__annotations__)
        | set(openai_responses.ResponseFunctionToolCallParam.__annotations__)
        | set(response_input_param.FunctionCallOutput.__annotations__),
        "item_part": set(openai_responses.ResponseInputTextParam.__annotations__)
        | set(openai_responses.ResponseOutputTextParam.__annotations__),
        "message": {
            name
            for role in ("System", "Developer", "User", "Assistant", "Tool")
            for name in getattr(openai_chat, f"ChatCompletion{role}MessageParam").__annotations__
        },
        "tool": set(openai_chat.ChatCompletionFunctionToolParam.__annotations__),
        "function": set(FunctionDefinition.__annotations__),
        "tool_choice": set(openai_chat.ChatCompletionNamedToolChoiceParam.__annotations__),
        "allowed_choice": set(openai_chat.ChatCompletionAllowedToolChoiceParam.__annotations__),
        "allowed_tools": set(openai_chat.ChatCompletionAllowedToolsParam.__annotations__),
        "tool_call": set(openai_chat.ChatCompletionMessageFunctionToolCallParam.__annotations__),
        "part": set(openai_chat.ChatCompletionContentPartTextParam.__annotations__),
        "stream_options": set(openai_chat.ChatCompletionStreamOptionsParam.__annotations__),
    }
    new = {(kind, name) for kind, names in sent.items() for name in names - set(known(kind))}
    assert not new


def test_what_the_table_says_is_implemented_is_and_nothing_else() -> None:
    for kind, model in MODELS.items():
        table = {f.name for f in known(kind).values() if f.does in ("implemented", "logged")}
        assert table == model._names(), kind
    places = [(kind, field.name) for field in FIELDS for kind in field.kinds]
    assert len(places) == len(set(places))


def said_in(answer: Any) -> Any:
    """The text of an answer of any kind."""
    if "output" in answer:
        return [item["content"] for item in answer["output"]]
    return [choice.get("text") or choice.get("message") for choice in answer["choices"]]


@pytest.mark.parametrize("kind", ROUTES)
def test_every_field_is_accepted_where_it_changes_nothing_all_at_once(url, kind) -> None:
    plain = post(url, ROUTES[kind], {**TEXTS[kind], "seed": 1}).json()
    # So many that they are sent in parts.
    neutral = [(f.name, value) for f in known(kind).values() for value in (None, *f.neutral)]
    ignored = [(f.name, {"any": "thing"}) for f in known(kind).values() if f.does == "ignored"]
    given = [one for one in neutral + ignored if one[0] not in (*TEXTS[kind], "seed")]
    for start in range(3):
        body = dict(given[start::3]) | TEXTS[kind] | {"seed": 1}
        answer = post(url, ROUTES[kind], body)
        assert answer.status_code == 200, answer.text
        assert said_in(answer.json()) == said_in(plain)


@pytest.mark.parametrize("kind", ROUTES)
def test_what_is_not_implemented_is_refused_with_what_to_do_instead(kind) -> None:
    for field in known(kind).values():
        if field.does == "neutral":
            with pytest.raises(pydantic.ValidationError) as refused:
                MODELS[kind].model_validate({**TEXTS[kind], field.name: ["else"]})
            error = {**refused.value.errors()[0], "loc": ("body",)}
            sentence = f"{field.name}: not implemented here: {field.meaning}"
            assert sentence_of(error) == (sentence, field.name)


# Requests of clients, as they send them.

AUTOGEN = {"messages": [{"role": "system", "content": "Go."}, {**HELLO[0], "name": "user"}]}
GUIDELLM = {
    **TEXTS["chat"],
    "max_tokens": 6,
    "max_completion_tokens": 6,
    "stop": None,
    "ignore_eos": True,
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
VLLM_BENCH = {
    "prompt": "One",
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 6,
    "logprobs": None,
    "stream": True,
    "stream_options": {"include_usage": True},
    "ignore_eos": True,
    "top_k": -1,
    "min_p": 0.0,
}
LIBRECHAT = {**TEXTS["chat"], "user": "665f1c", "stream": True, "presence_penalty": 0, "top_p": 1}
LLAMA_CPP = {
    **TEXTS["chat"],
    **{"n_predict": 5, "cache_prompt": True, "samplers": None, "mirostat": 0, "mirostat_tau": 5.0},
    **{"repeat_penalty": 1.0, "repeat_last_n": 64, "typical_p": 1, "top_k": 40, "seed": -1},
    **{"min_p": 0, "xtc_probability": 0, "dry_multiplier": 0.0, "timings_per_token": False},
    **{"id_slot": -1, "return_progress": False, "reasoning_format": "none", "stream": False},
}
# An answer of ours in the history, as the official client dumps it.
AGAIN = {
    "messages": [
        *HELLO,
        {
            "role": "assistant",
            "content": "Hi.",
            **{"refusal": None, "annotations": [], "audio": None, "function_call": None},
            "tool_calls": [],
        },
        {"role": "user", "content": [{"type": "text", "text": "On.", "cache_control": {}}]},
    ],
    **{"metadata": {"run": "7"}, "store": False, "service_tier": "auto", "n": 1},
    **{"safety_identifier": "abc", "prompt_cache_key": "k", "parallel_tool_calls": True},
    **{"verbosity": "medium", "reasoning_effort": "low", "response_format": {"type": "text"}},
}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("chat", AUTOGEN),
        ("chat", GUIDELLM),
        ("completions", VLLM_BENCH),
        ("chat", LIBRECHAT),
        ("chat", LLAMA_CPP),
        ("chat", AGAIN),
    ],
    ids=["autogen", "guidellm", "vllm bench", "librechat", "llama.cpp", "again"],
)
def test_the_requests_of_real_clients_are_answered(url, kind, body) -> None:
    answer = post(url, ROUTES[kind], body)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text


def test_the_name_of_a_speaker_reaches_a_template_that_knows_names(checkpoint) -> None:
    asked = ChatRequest.model_validate(AUTOGEN)
    assert [message.as_template().get("name") for message in asked.messages] == [None, "user"]
    said = [message.as_template() for message in asked.messages]
    plain = [{**message, "name": "x"} for message in said]
    # This template does not.
    assert encode_chat(checkpoint, said) == encode_chat(checkpoint, plain)


def test_what_a_client_says_of_itself_goes_into_the_log(checkpoint, caplog) -> None:
    caplog.set_level("INFO", logger="softmask.server")
    with serving(checkpoint, max_tokens=2) as (url, _service):
        post(url, ROUTES["completions"], {"prompt": "One", "user": "anna", "request_id": "r1"})
        too_long = post(url, ROUTES["completions"], {"prompt": "One", "user": "x" * 1000})
    fields = caplog.records[0].fields
    assert (fields["user"], fields["request_id"]) == ("anna", "r1")
    assert too_long.status_code == 400


def test_top_k_is_real_and_so_are_three_names_of_max_tokens() -> None:
    asked = {"max_tokens": 3, "max_completion_tokens": 3, "n_predict": 3, "top_k": 7}
    body = CompletionRequest.model_validate({"prompt": "x", **asked})
    assert (body.new_tokens, body.top_k) == (3, 7)
    with pytest.raises(ValueError, match="max_tokens and n_predict are the same"):
        CompletionRequest.model_validate({"prompt": "x", "max_tokens": 3, "n_predict": 4})


@pytest.mark.parametrize("kind", ROUTES)
def test_min_p_filters_by_its_own_name_and_under_softmask(url, kind) -> None:
    body = {**TEXTS[kind], "seed": 1, "temperature": 1.5}
    texts = [
        said_in(post(url, ROUTES[kind], body | more).json())
        for more in ({}, {"top_k": 1}, {"min_p": 1}, {"softmask": {"min_p": 1.0}}, {"min_p": 0.0})
    ]
    # The likeliest alone, either way.
    assert texts[1] == texts[2] == texts[3] != texts[0] == texts[4]
    refused = post(url, ROUTES[kind], body | {"min_p": 1.5})
    assert refused.json()["error"]["message"].startswith("min_p: ")


# Going on past the end.


@pytest.fixture(scope="module")
def ending(checkpoint) -> dict[str, Any]:
    """A request whose text ends early."""
    for seed in range(40):
        body = {"prompt": "One", "max_tokens": 48, "temperature": 2.0, "seed": seed}
        settings = {name: value for name, value in body.items() if name not in ("prompt",)}
        settings["max_new_tokens"] = settings.pop("max_tokens")
        own = softmask.generate(checkpoint, "One", chat=False, **settings)
        if own.finish_reason == "stop":
            return body
    raise AssertionError("no text ended")


def test_ignore_eos_writes_exactly_max_tokens(url, ending) -> None:
    short = post(url, ROUTES["completions"], ending).json()
    assert short["choices"][0]["finish_reason"] == "stop"
    assert short["usage"]["completion_tokens"] < 48
    long = post(url, ROUTES["completions"], {**ending, "ignore_eos": True}).json()
    assert long["choices"][0]["finish_reason"] == "length"
    assert long["usage"]["completion_tokens"] == 48


# Counts and log-probabilities.


def sent(answer) -> list[dict[str, Any]]:
    """The events of a stream."""
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_usage_has_openais_details_and_the_forwards(url) -> None:
    answer = post(url, ROUTES["chat"], {**TEXTS["chat"], "n": 2}).json()
    told = openai_chat.ChatCompletion.model_validate(answer).usage
    assert told is not None
    assert told.prompt_tokens_details.cached_tokens == 0
    assert told.completion_tokens_details.reasoning_tokens == 0
    forwards = answer["usage"]["completion_tokens_details"]["forwards"]
    assert forwards == sum(choice["softmask"]["forwards"] for choice in answer["choices"]) > 0


@pytest.mark.parametrize(("kind", "body"), [("chat", GUIDELLM), ("completions", VLLM_BENCH)])
def test_events_count_tokens_where_that_is_asked_for(url, kind, body) -> None:
    *chunks, last = sent(post(url, ROUTES[kind], body))
    assert last["choices"] == []
    if body is VLLM_BENCH:
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[-1] == 6
    assert last["usage"]["completion_tokens"] == 6


def test_the_bytes_of_tokens_are_those_of_the_text_whatever_its_characters(url, checkpoint) -> None:
    body = {**TEXTS["chat"], "max_tokens": 40, "temperature": 2.0, "seed": 3}
    (choice,) = post(
        url, ROUTES["chat"], {**body, "logprobs": True, "top_logprobs": 5, "ignore_eos": True}
    ).json()["choices"]
    tokens = choice["logprobs"]["content"]
    joined = bytes(byte for token in tokens for byte in token["bytes"])
    special = [str(token) for token in checkpoint.tokenizer.all_special_tokens]
    text = joined.decode("utf-8", "replace")
    for name in special:
        text = text.replace(name, "")
    assert text == choice["message"]["content"]
    assert any(token["token"] == "\ufffd" for token in tokens)
    for token in tokens:
        top = token["top_logprobs"]
        assert len(top) == 5
        assert [one["logprob"] for one in top] == sorted((o["logprob"] for o in top), reverse=True)
        assert all(one["bytes"] for one in top)


# What is wrong is said as it is.


@pytest.mark.parametrize(
    ("kind", "body", "sentence"),
    [
        ("completions", {"prompt": "x", "stop": ["a"] * 17}, "stop: List should have at most 16"),
        ("completions", {"prompt": "x", "stop": ["a", 5]}, "stop.1: Input should be a valid str"),
        ("completions", {"prompt": 5}, "prompt: a prompt is a text, a list of texts, token ids"),
        ("completions", {"prompt": [[1, "a"]]}, "prompt.0.1: Input should be a valid integer"),
        ("completions", {"prompt": ["a", 1]}, "prompt.1: Input should be a valid string"),
        # Neither is a name in Python.
        ("completions", {"prompt": "x", "max-tokens": 1}, "max-tokens: unknown here: did you mean"),
        ("completions", {"prompt": "x", "softmask.steps": 1}, "softmask.steps: unknown here: did"),
        ("completions", {"prompt": "x", "temprature": 1}, "temprature: unknown here: did you mean"),
        (
            "chat",
            {"messages": HELLO, "softmask": {"stepz": 4}},
            "softmask.stepz: unknown here: did",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content: this model reads and writes text alone: 'image_url' parts",
        ),
        (
            "chat",
            {"messages": [{"role": "assistant", "content": None}]},
            "messages.0.content: a message says something",
        ),
        (
            "chat",
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages.0.tool_calls: an assistant alone calls tools",
        ),
        ("chat", {"messages": [{"role": "user"}]}, "messages.0.content: a message says something"),
        (
            "chat",
            {"messages": [{"role": "robot", "content": "x"}]},
            "messages.0.role: 'robot' is none of system, developer, user, assistant",
        ),
        ("chat", {"messages": ["hello"]}, "messages.0: a message is an object with role and"),
        ("chat", {"messages": HELLO, "max_tokens": 2, "n_predict": 3}, "max_tokens and n_predict"),
    ],
)
def test_an_error_names_its_true_cause(url, kind, body, sentence) -> None:
    error = post(url, ROUTES[kind], body).json()["error"]
    assert error["message"].startswith(sentence)
    named = re.match(r"([\w.-]+): ", error["message"])
    assert error["param"] == (named and named[1])


def test_sixteen_stops_are_taken(url) -> None:
    stops = [f"{i} is not in it" for i in range(16)]
    assert post(url, ROUTES["completions"], {"prompt": "x", "stop": stops}).status_code == 200


@pytest.mark.parametrize(
    "kind",
    ["", "application/x-www-form-urlencoded", "text/plain", "multipart/form-data", "\u00e9"],
)
def test_a_body_without_its_type_is_told_the_header_to_send(url, kind) -> None:
    headers = {"content-type": kind.encode("latin-1")}
    answer = post(url, ROUTES["completions"], {"prompt": "x"}, headers=headers)
    said = f"says Content-Type {kind!r}" if kind else "has no Content-Type"
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        f"the request {said}: send JSON with -H 'Content-Type: application/json'"
    )
