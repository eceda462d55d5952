"""What real clients ask, recorded by benchmarks/clients: it is still answered as they read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from browsing import serving
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tiny import write_dream_folder

import softmask

RECORDS = sorted((Path(__file__).parents[1] / "data/clients").glob("*.json"))
WHOLE = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/responses": Response,
}
PARTS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletionChunk,
    "/v1/completions": Completion,
    "/v1/responses": ResponseStreamEvent,
}
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
FEW = 2  # tokens are enough where the answer has no form


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("clients")
    path = write_dream_folder(
        folder / "tiny", tools=True, max_position_embeddings=32768, num_hidden_layers=1
    )
    with (
        serving(softmask.load(path, device="cpu")) as address,
        httpx.Client(base_url=address, timeout=60.0) as client,
    ):
        yield client


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_what_a_real_client_asks_is_answered_in_the_shape_it_reads(client, path) -> None:
    for record in json.loads(path.read_text())["requests"]:
        body = record.get("body")
        if body and not has_form(body):
            limit = next((name for name in LIMITS if name in body), "max_tokens")
            body["max_output_tokens" if record["path"] == "/v1/responses" else limit] = FEW
        content = None if body is None else json.dumps(body)
        answer = client.request(
            record["method"], record["path"], content=content, headers=record["headers"]
        )
        assert answer.status_code == record["status"], answer.text
        check(record["path"], body, answer)


def has_form(body: dict[str, Any]) -> bool:
    """Whether the answer has to be of a form, which needs its tokens."""
    given = body.get("response_format") or body.get("text", {}).get("format")
    return given is not None or body.get("tool_choice", "auto") not in ("auto", "none")


def check(path: str, body: Any, answer: httpx.Response) -> None:
    """Validates an answer, or each part of a streamed one, as the official client has it."""
    if body is None:
        if path == "/v1/models":
            assert [Model.model_validate(one) for one in answer.json()["data"]]
        return
    if not body.get("stream"):
        whole = answer.json()
        for choice in whole["choices"] if body.get("echo") else []:
            # Nothing stands before the first token. OpenAI's is null too, though its type has none.
            for name in ("token_logprobs", "top_logprobs"):
                assert choice["logprobs"][name].pop(0) is None
        TypeAdapter(WHOLE[path]).validate_python(whole)
        return
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    last = lines.pop() if path != "/v1/responses" else "data: [DONE]"
    assert last == "data: [DONE]"
    parts = [json.loads(line.removeprefix("data: ")) for line in lines]
    for part in parts:
        if path == "/v1/completions":
            # Null until the end, as OpenAI's are, though its type has no null.
            ends = [choice["finish_reason"] or "stop" for choice in part["choices"]]
            choices = zip(part["choices"], ends, strict=True)
            part = {**part, "choices": [{**one, "finish_reason": end} for one, end in choices]}
        TypeAdapter(PARTS[path]).validate_python(part)
    if path == "/v1/responses":
        assert parts[-1]["type"] in ("response.completed", "response.incomplete")
    else:
        assert any(choice.get("finish_reason") for part in parts for choice in part["choices"])
