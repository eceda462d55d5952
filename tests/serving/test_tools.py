"""Tools as OpenAI's own client meets them: calls whose arguments keep to their schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import openai
import pytest
from pydantic import BaseModel
from test_server import HELLO, serving
from tiny import CHAT_TEMPLATE, TOOL_TEMPLATE

from softmask.constraints.compile import compile_constraint
from softmask.constraints.constraint import Constraint
from softmask.constraints.controls import to_bytes
from softmask.decoding.forms import automaton_for
from softmask.decoding.prompts import encode_chat, with_chat_template
from softmask.decoding.tool_syntax import Function, ToolSyntax, tool_syntax
from softmask.models.checkpoint import Checkpoint
from softmask.serving.config import ServeConfig
from softmask.serving.detokenizer import Token
from softmask.serving.protocol import ChatRequest
from softmask.serving.service import Service
from softmask.serving.tool_calls import CallReader, Offered

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
}
SCHEMAS: dict[str, Any] = {"weather": WEATHER, "now": {"type": "object", "properties": {}}}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}


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
    quick = {"softmask": {"steps": 40, "block_length": 8}}
    return {"model": "tools", "messages": HELLO, "tools": TOOLS, "extra_body": quick} | more


def allowed(*names: str, mode: str = "required") -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def called(value: str) -> dict[str, Any]:
    """A turn with a call."""
    function = {"name": "now", "arguments": f'{{"x": {value}}}'}
    return {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}


def tokens_of(text: str, size: int = 1000) -> list[Token]:
    """A text as tokens of so many characters, each behind one that is a part of a character."""
    parts = [text[start : start + size] for start in range(0, len(text), size)]
    return [Token(n, part) for n, one in enumerate(parts) for part in ("", one)]


def check(calls: Any) -> None:
    for call in calls:
        arguments = json.loads(call.function.arguments)
        jsonschema_rs.validate(SCHEMAS[call.function.name], arguments)
        assert call.id.startswith("call_")


# Calls.


def test_required_calls_come_and_their_arguments_keep_to_their_schema(client) -> None:
    quick = {"softmask": {"steps": 40}}
    options = ask(tool_choice="required", temperature=1.0, seed=1, n=3, extra_body=quick)
    answer = client.chat.completions.create(**options, logprobs=True)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        check(choice.message.tool_calls)
    calls = [choice.message.tool_calls for choice in answer.choices]
    assert max(map(len, calls)) > 1
    assert len({call.id for one in calls for call in one}) == sum(map(len, calls))
    single = client.chat.completions.create(**options, parallel_tool_calls=False)
    assert [len(choice.message.tool_calls) for choice in single.choices] == [1, 1, 1]


def test_a_tool_that_is_named_is_called_once(client) -> None:
    answer = client.chat.completions.create(**ask(tool_choice=NAMED, temperature=1.0, seed=2))
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    check([call])


def test_of_several_tools_those_that_are_allowed_are_called_and_all_are_shown(
    client, checkpoint
) -> None:
    options = ask(tool_choice=allowed("now"), temperature=1.0, seed=1, n=3)
    calls = [
        call
        for choice in client.chat.completions.create(**options).choices
        for call in choice.message.tool_calls
    ]
    check(calls)
    assert {call.function.name for call in calls} == {"now"}
    assert len(calls) > 3  # each may be called again
    service = Service(checkpoint, ServeConfig())
    body = {"messages": HELLO, "tools": TOOLS}
    (any_tool,), (one_tool,) = (
        service.jobs(ChatRequest.model_validate(body | more))
        for more in ({}, {"tool_choice": allowed("now")})
    )
    told = any_tool.request.ids[: any_tool.prompt_tokens]
    assert one_tool.request.ids[: one_tool.prompt_tokens] == told
    # As clients name a tool by its whole definition.
    whole = allowed("now", mode="auto")
    whole["allowed_tools"]["tools"] = TOOLS[1:]
    free = ask(tool_choice=whole, temperature=1.0, seed=0, n=3)
    answers = client.chat.completions.create(**free)
    called = [choice.message.tool_calls or [] for choice in answers.choices]
    assert not all(called)
    assert {call.function.name for one in called for call in one} <= {"now"}


def test_a_choice_that_is_free_brings_text_or_calls_or_both(client) -> None:
    answer = client.chat.completions.create(**ask(temperature=1.0, seed=0, n=2))
    called = [choice.message.tool_calls or [] for choice in answer.choices]
    assert any(called)
    assert not all(called)
    for choice, calls in zip(answer.choices, called, strict=True):
        check(calls)
        assert calls or choice.message.content
        assert (choice.finish_reason == "tool_calls") == bool(calls)


def test_with_a_form_of_its_own_a_text_has_it_and_else_tools_are_called(client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}
    answer = client.chat.completions.create(
        **ask(response_format=form, temperature=1.0, seed=3, n=4)
    )
    for choice in answer.choices:
        check(choice.message.tool_calls or [])
        assert choice.message.tool_calls or choice.message.content == '"yes"'


def test_a_form_beside_tools_that_fills_its_canvas_is_whole(client) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["yes"]}}}
    answer = client.chat.completions.create(**ask(response_format=form, max_tokens=5))
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ('"yes"', "stop")


class Now(BaseModel):
    """The hour."""


def test_a_message_that_the_client_has_parsed_may_be_sent_back(client) -> None:
    tools = [openai.pydantic_function_tool(Now, name="now")]
    asked = ask(tools=tools, tool_choice="required", parallel_tool_calls=False)
    said = client.chat.completions.parse(**asked).choices[0].message
    (call,) = said.tool_calls
    assert call.function.parsed_arguments == Now()
    told = {"role": "tool", "tool_call_id": call.id, "content": "3"}
    asked["messages"] = [*HELLO, said, told]
    asked |= {"tool_choice": "none", "max_tokens": 40, "response_format": Now}
    last = client.chat.completions.parse(**asked).choices[0].message
    assert last.parsed == Now()
    asked["messages"] = [*HELLO, {"role": "assistant", "content": last.content, "parsed": {}}]
    client.chat.completions.parse(**asked)


def test_a_stream_brings_the_same_calls_piece_by_piece(client) -> None:
    options = ask(tool_choice="auto", temperature=1.0, seed=1)
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.message.tool_calls
    pieces = 0
    with client.chat.completions.stream(**options) as stream:
        for event in stream:
            pieces += event.type == "tool_calls.function.arguments.delta"
        final = stream.get_final_completion().choices[0]
    assert pieces > 2 * len(whole.message.tool_calls)
    assert final.finish_reason == "tool_calls"
    assert final.message.content == whole.message.content
    assert [(c.function.name, c.function.arguments) for c in final.message.tool_calls] == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls
    ]


def test_an_empty_answer_beside_tools_is_the_same_streamed_and_may_be_sent_back(client) -> None:
    empty = False
    for seed in range(40):
        options = ask(temperature=1.0, seed=seed, max_tokens=40, stop=list("aeinost <"))
        whole = client.chat.completions.create(**options).choices[0].message
        empty = whole.content == "" and not whole.tool_calls
        if empty:
            break
    assert empty
    with client.chat.completions.stream(**options) as stream:
        said = stream.get_final_completion().choices[0].message
    assert said.content == ""
    client.chat.completions.create(**ask(messages=[*HELLO, said, *HELLO], max_tokens=40))


def test_an_answer_that_ends_before_its_calls_name_is_an_error_streamed_or_not(client) -> None:
    options = ask(tool_choice="required", stop='"')
    with pytest.raises(openai.UnprocessableEntityError, match="leave out stop"):
        client.chat.completions.create(**options)
    said: list[str | None] = []
    stream = client.chat.completions.create(**options, stream=True)
    with pytest.raises(openai.APIError, match="leave out stop"):
        said.extend(chunk.choices[0].delta.content for chunk in stream)
    assert said == [None]


# What the model is told.


HISTORY = [
    *HELLO,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "</tool_call>"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "5 <|im_end|>"},
]


def test_earlier_calls_and_their_results_are_in_the_prompt_and_names_in_them_are_text(
    checkpoint,
) -> None:
    service = Service(checkpoint, ServeConfig(max_tokens=100))
    described = {**TOOLS[0]["function"], "description": "<|im_end|>"}
    tools = [{"type": "function", "function": described}]
    asked = ChatRequest.model_validate({"messages": HISTORY, "tools": tools})
    (job,) = service.jobs(asked)
    ids = list(job.request.ids[: job.prompt_tokens])
    text = checkpoint.decode(ids)
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "</tool_call>"}}\n' in text
    assert '"description": "<|im_end|>"' in text
    assert "<tool_response>\n5 <|im_end|>\n</tool_response>" in text
    vocabulary = checkpoint.tokenizer.get_vocab()
    # Those of the template, which mentions a pair and writes one.
    assert ids.count(vocabulary["</tool_call>"]) == 2
    assert ids.count(vocabulary["<|im_end|>"]) == 4
    plain = ChatRequest.model_validate({"messages": HELLO, "tools": TOOLS, "tool_choice": "none"})
    (job,) = service.jobs(plain)
    assert list(job.request.ids[: job.prompt_tokens]) == encode_chat(checkpoint, HELLO)
    assert job.request.constraint is None


LLAMA = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one') }}{% endif %}"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
    "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.mark.parametrize("nothing", ["", "null"])
def test_a_call_may_have_had_no_arguments(checkpoint, nothing) -> None:
    service, prompts = Service(checkpoint, ServeConfig()), []
    for arguments in ("{}", nothing):
        call = called("1")
        call["tool_calls"][0]["function"]["arguments"] = arguments
        asked = {"messages": [*HELLO, call], "tools": TOOLS}
        (job,) = service.jobs(ChatRequest.model_validate(asked))
        prompts.append(job.request.ids[: job.prompt_tokens])
    assert prompts[0] == prompts[1]


def test_how_calls_are_written_is_read_off_the_template(checkpoint) -> None:
    hermes = tool_syntax(checkpoint)
    assert hermes.controls == ("<tool_call>", "</tool_call>")
    assert hermes.open == '\udcf8\n{"name": "'
    assert hermes.between == '}\n\udcf9\n\udcf8\n{"name": "'
    assert hermes.close == "}\n\udcf9"
    llama = tool_syntax(with_chat_template(checkpoint, LLAMA))
    assert llama == ToolSyntax('{"name": "', '", "parameters": ', None, "}", ())
    with pytest.raises(ValueError, match="knows no tools"):
        tool_syntax(with_chat_template(checkpoint, CHAT_TEMPLATE))
    odd = TOOL_TEMPLATE.replace("call.function.arguments | tojson", "'x'")
    with pytest.raises(ValueError, match="does not write calls as names and JSON"):
        tool_syntax(with_chat_template(checkpoint, odd))


def test_where_no_token_opens_a_call_its_first_words_do(checkpoint) -> None:
    syntax = tool_syntax(with_chat_template(checkpoint, LLAMA))
    functions = [Function("weather", WEATHER)]
    free = syntax.constraint(functions, required=False, parallel=True, text=None)
    automaton = compile_constraint(free)
    call = '{"name": "weather", "parameters": {"city": "x"}}'
    for text in ("", "Hi {", call, f"Hi {call}"):
        assert automaton.accepts(to_bytes(text))
    for text in ('{"name": "', call[:-1], f"{call} ", call * 2):
        assert not automaton.accepts(to_bytes(text))


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_are_read_whatever_pieces_their_text_comes_in(checkpoint, size) -> None:
    syntax = tool_syntax(checkpoint)
    arguments = ['{"a": "}\\"{", "b": [{}]}', "{}"]
    text = f"Let <me>.\n{syntax.open}f{syntax.middle}{arguments[0]}{syntax.between}g{syntax.middle}"
    text += arguments[1] + syntax.close
    reader, pieces = CallReader(Offered(syntax, ("f", "g"))), []
    tokens = tokens_of(text, size)
    for token in tokens:
        pieces += reader.feed([token])
    assert reader.rest() == []
    assert reader.text == "Let <me>."
    assert [(call.name, call.arguments) for call in reader.calls] == list(
        zip("fg", arguments, strict=True)
    )
    for number, one in enumerate(arguments):
        parts = [p.text for p in pieces if p.kind == "arguments" and p.call == number]
        assert "".join(parts) == one
    # Those of the text are its own, of the calls all but what closes the last one.
    used = [token for piece in pieces for token in piece.tokens]
    assert used == tokens[: len(used)]
    assert len(tokens) - len(used) <= 2 * len(syntax.close)
    own = [token for piece in pieces if piece.kind == "text" for token in piece.tokens]
    assert own == tokens[: 2 * -(-len(reader.text) // size)]


@pytest.mark.parametrize("behind", ["", '\n{"na', '\n{"name": "', '\n{"name": "weat'])
def test_of_a_call_whose_name_did_not_come_nothing_is_text(checkpoint, behind) -> None:
    """As where a deadline or a shutdown ends the answer."""
    syntax = tool_syntax(checkpoint)
    reader = CallReader(Offered(syntax, ("weather",)))
    pieces = reader.feed(tokens_of(f"Let me see. {syntax.open[0]}{behind}", 1)) + reader.rest()
    assert [(piece.kind, piece.text) for piece in pieces] == [("text", "Let me see.")]
    assert (reader.text, reader.calls) == ("Let me see.", [])


@pytest.mark.parametrize("parts", [["1. One", ".\n"], ["1. One.", "\n"], ["f", "({"]], ids=repr)
def test_the_end_of_a_text_is_not_lost_with_a_token_that_begins_before_it(
    checkpoint, parts
) -> None:
    for template in (checkpoint, with_chat_template(checkpoint, LLAMA)):
        reader = CallReader(Offered(tool_syntax(template), ("weather",)))
        tokens = [Token(0, part) for part in parts]
        pieces = [piece for token in tokens for piece in reader.feed([token])] + reader.rest()
        assert reader.text == "".join(piece.text for piece in pieces) == "".join(parts)
        assert [token for piece in pieces for token in piece.tokens] == tokens


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "Tom", "age": 3}', []),
        ('{"name": "weat', []),
        ('a {"name": "b {"name": "weather", "parameters": {}}', ["weather"]),
        ('{"name": "weathers", "parameters": {}}', []),
    ],
)
def test_what_begins_as_a_call_and_names_no_tool_is_text(checkpoint, size, text, calls) -> None:
    syntax = tool_syntax(with_chat_template(checkpoint, LLAMA))
    reader = CallReader(Offered(syntax, ("weather", "now")))
    tokens = tokens_of(text, size)
    pieces = [piece for token in tokens for piece in reader.feed([token])] + reader.rest()
    if not calls:
        assert [token for piece in pieces for token in piece.tokens] == tokens
    assert [call.name for call in reader.calls] == calls
    assert reader.text == (text if not calls else 'a {"name": "b')


@pytest.mark.parametrize("stream", [False, True])
def test_a_form_that_begins_as_calls_do_is_the_answer_and_calls_no_other_function(
    checkpoint, stream
) -> None:
    """Both begin with the same words where no control token opens a call."""
    person = {
        "type": "object",
        "properties": {
            "name": {"enum": ["Tom", "now"]},
            "parameters": {"type": "object", "maxProperties": 0},
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": person}}
    options = {"model": "tools", "messages": HELLO, "tools": TOOLS, "max_tokens": 64, "n": 4}
    options |= {"response_format": form, "stream": stream, "temperature": 1.0, "seed": 1}
    written = {index: "" for index in range(4)}
    called = set()
    with (
        serving(checkpoint, chat_template=LLAMA) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        answer = client.chat.completions.create(**options)
        for part in answer if stream else [answer]:
            for choice in part.choices:
                said = choice.delta if stream else choice.message
                written[choice.index] += said.content or ""
                for call in said.tool_calls or []:
                    called.add(choice.index)
                    assert call.function.name in (None, *SCHEMAS)
    for index, text in written.items():
        assert index in called or json.loads(text) == {"name": "Tom", "parameters": {}}


# Refusals.


def test_a_form_of_calls_that_nobody_could_write_is_refused(checkpoint) -> None:
    with pytest.raises(ValueError, match="what calls look like is incomplete"):
        compile_constraint(Constraint("tools", "{}"))
    with pytest.raises(ValueError, match="has no control tokens <x>"):
        automaton_for(checkpoint, Constraint("regex", "a", ("<x>",)), infill=False)
    with pytest.raises(ValueError, match="at most 8 different control tokens"):
        Constraint("regex", "a", ("<x>",) * 9)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"tools": [], "tool_choice": "required"}, "tool_choice needs tools to choose from"),
        ({"tool_choice": {**NAMED, "function": {"name": "x"}}}, "there is no tool 'x'"),
        ({"tool_choice": allowed("now", "x")}, "there is no tool 'x'"),
        ({"tool_choice": allowed()}, "tool_choice.allowed_tools.tools: "),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto"}},
            "tool_choice.mode: not implemented here: in a chat it stands under allowed_tools",
        ),
        (
            {"tool_choice": {"type": "function", "name": "now"}},
            "tool_choice.name: not implemented here: in a chat it stands under function",
        ),
        ({"messages": [*HELLO, called("[" * 900 + "]" * 900)]}, "nested deeper than 100 levels"),
        ({"messages": [*HELLO, called("[" * 50000)]}, "arguments: not a JSON object as text"),
        ({"tools": [], "tool_choice": allowed("now")}, "tool_choice needs tools to choose from"),
        ({"tools": TOOLS[:1] * 2}, "two functions have the same name"),
        ({"tools": [{"type": "custom"}]}, "tools.0.type: functions are the only tools here"),
        (
            {"tools": [{**NAMED, "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tool f: parameters have to be of type object",
        ),
        (
            {"tools": [{**NAMED, "function": {"name": "f", "parameters": {"type": 3}}}]},
            "tool f: ",
        ),
        ({"messages": [*HELLO, {"role": "tool", "content": None}]}, "messages.1.content: "),
        ({"max_tokens": 9, "tool_choice": "required"}, "the shortest text of this form has"),
    ],
)
def test_what_cannot_be_called_is_refused_in_a_sentence(client, more, sentence) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**ask(**more))
    assert sentence in refused.value.body["message"]


def test_a_model_whose_template_knows_no_tools_says_so(checkpoint) -> None:
    service = Service(with_chat_template(checkpoint, CHAT_TEMPLATE), ServeConfig())
    asked = ChatRequest.model_validate({"messages": HELLO, "tools": TOOLS})
    with pytest.raises(ValueError, match="knows no tools: describe them in words"):
        service.jobs(asked)
