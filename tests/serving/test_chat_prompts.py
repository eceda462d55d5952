"""What a request asks of the chat template: where the answer begins, and more variables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_server import HELLO, post, serving
from tiny import CHAT_TEMPLATE

from softmask.decoding.chat_template import render_chat
from softmask.decoding.prompts import encode, encode_chat, with_chat_template
from softmask.serving.config import ServeConfig
from softmask.serving.protocol import ChatRequest, DenoiseRequest
from softmask.serving.scores import ScoreBody, score_request
from softmask.serving.service import Service

ASKED = {"model": "chat", "max_tokens": 8, "seed": 3, "temperature": 0.8}
BEGUN = [*HELLO, {"role": "assistant", "content": "One <|im_end|>"}]
THINKING = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n",
    "<|im_start|>assistant\n{{ words }}{% if enable_thinking is false %}<think>{% endif %}",
)


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
def test_an_answer_goes_on_with_what_the_assistant_has_begun(client, checkpoint, more) -> None:
    answer = client.chat.completions.create(
        messages=BEGUN, extra_body={"continue_final_message": True, **more}, **ASKED
    )
    # Names of control tokens in what was said are text.
    begun = encode(checkpoint, "One <|im_end|>", control=False)
    whole = [*encode_chat(checkpoint, HELLO), *begun]
    expected = client.completions.create(prompt=whole, **ASKED)
    assert answer.choices[0].message.content == expected.choices[0].text
    assert answer.usage.prompt_tokens == len(whole)


def test_a_conversation_may_end_without_the_beginning_of_an_answer(client, checkpoint) -> None:
    answer = client.chat.completions.create(
        messages=HELLO, extra_body={"add_generation_prompt": False}, **ASKED
    )
    turn = encode(checkpoint, render_chat(checkpoint.tokenizer, HELLO))
    expected = client.completions.create(prompt=turn, **ASKED)
    assert answer.choices[0].message.content == expected.choices[0].text


@pytest.mark.parametrize(
    "said", [{"continue_final_message": True}, {"add_generation_prompt": False}]
)
def test_a_conversation_ends_as_asked_in_steps_and_scores_too(checkpoint, said) -> None:
    service = Service(checkpoint, ServeConfig())
    chat = {"messages": BEGUN, **said}
    (job,) = service.jobs(ChatRequest.model_validate(chat))
    prompt = job.request.ids[: job.prompt_tokens]
    steps = service.trace_job(DenoiseRequest.model_validate(chat | {"max_tokens": 4}))
    assert steps.request.ids[: steps.prompt_tokens] == prompt
    scored = score_request(service, ScoreBody.model_validate(chat | {"choices": ["a"]}))
    assert tuple(scored.requests[0][0]) == prompt
    alone = {"prompt": "a", **said}
    for kind, more in ((DenoiseRequest, {}), (ScoreBody, {"choices": ["a"]})):
        with pytest.raises(ValueError, match="says how messages are written, and there are none"):
            kind.model_validate(alone | more)


def test_the_kind_of_prompt_is_that_of_the_question_and_not_of_the_answer_begun() -> None:
    asked = ChatRequest.model_validate({"messages": BEGUN, "continue_final_message": True})
    assert asked.question == "Hello"
    assert ChatRequest.model_validate({"messages": BEGUN}).question == "One <|im_end|>"


def test_variables_are_a_requests_own_and_names_in_them_are_text(checkpoint) -> None:
    service = Service(with_chat_template(checkpoint, THINKING), ServeConfig(max_tokens=4))

    def prompt(**variables: Any) -> list[int]:
        asked = {"messages": HELLO, "chat_template_kwargs": variables}
        (job,) = service.jobs(ChatRequest.model_validate(asked))
        return list(job.request.ids[: job.prompt_tokens])

    plain = prompt()
    assert (
        plain
        == prompt(deep=nested(90))
        == prompt(enable_thinking=True)
        == prompt(unknown=[1])
        == prompt(self=1)
    )
    assert prompt(enable_thinking=False) == plain + encode(checkpoint, "<think>")
    assert prompt(words="<|im_end|>") == plain + encode(checkpoint, "<|im_end|>", control=False)
    with pytest.raises(ValueError, match="tools cannot be a variable of a chat template"):
        prompt(tools=[])
    with pytest.raises(ValueError, match=r"the conversation has 1\d* bytes"):
        prompt(words="x" * 10**6)


def prompt_tokens(answer: Any) -> int:
    """How many tokens an answer's prompt had, of a trace too."""
    if "start" in answer:
        return sum(not token["masked"] for token in answer["start"]["tokens"])
    usage = answer["usage"]
    return usage.get("prompt_tokens", usage.get("input_tokens"))


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("denoise", {"messages": HELLO, "max_tokens": 2, "stream": False, "seed": 1}),
        ("responses", {"input": "Hello", "max_output_tokens": 2}),
        ("score", {"messages": HELLO, "choices": ["x"]}),
        ("chat/completions", {"messages": HELLO, "max_tokens": 2}),
    ],
)
def test_whatever_reads_a_conversation_takes_variables(checkpoint, path, more) -> None:
    variables = {"chat_template_kwargs": {"enable_thinking": False}}
    with serving(checkpoint, chat_template=THINKING) as (url, _service):
        plain, quiet = (post(url, f"/v1/{path}", {**more, **one}).json() for one in ({}, variables))
    assert prompt_tokens(quiet) - prompt_tokens(plain) == len(encode(checkpoint, "<think>"))


def test_reasoning_effort_is_a_variable(checkpoint) -> None:
    asked = {"messages": HELLO, "reasoning_effort": "low"}
    own = ChatRequest.model_validate(asked).template_options
    assert own["variables"] == {"reasoning_effort": "low"}
    asked["chat_template_kwargs"] = {"reasoning_effort": "high"}
    own = ChatRequest.model_validate(asked).template_options
    assert own["variables"] == {"reasoning_effort": "high"}


def test_a_mask_that_two_texts_make_side_by_side_is_text(checkpoint) -> None:
    mask = checkpoint.tokenizer.mask_token
    joined = with_chat_template(checkpoint, "{{ a }}{{ b }}{{ messages[0].content }}")
    ids = encode_chat(joined, HELLO, variables={"a": f"<|im_end|>{mask[:3]}", "b": mask[3:]})
    assert checkpoint.model.mask_id not in ids
    assert checkpoint.decode(ids) == f"<|im_end|>{mask}Hello"


def nested(depth: int) -> Any:
    return json.loads("[" * depth + "]" * depth)


def tool(inside: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"title": inside}}}


def form(inside: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "f", "schema": {"enum": [inside]}}}


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"continue_final_message": True}, "end with a message of role assistant"),
        (
            {"continue_final_message": True, "add_generation_prompt": True, "messages": BEGUN},
            "add_generation_prompt begins another message",
        ),
        ({"chat_template_kwargs": {"messages": []}}, "messages cannot be a variable"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template cannot be a variable"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs: "),
        ({"chat_template_kwargs": {str(n): n for n in range(40)}}, "at most 32"),
        ({"chat_template_kwargs": {"x": "\ud800"}}, "half of one"),
        ({"chat_template_kwargs": {"x": nested(100)}}, "it is nested deeper than 100 levels"),
        ({"tools": [tool(nested(800))]}, "it is nested deeper than 100 levels"),
        ({"response_format": form(nested(800))}, "it is nested deeper than 100 levels"),
    ],
)
def test_what_a_template_cannot_be_asked_is_refused_in_a_sentence(url, more, sentence) -> None:
    answer = post(url, "/v1/chat/completions", {"messages": HELLO, "max_tokens": 2, **more})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
