"""Answers of OpenAI's Responses API: an object, or events as it grows."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from .detokenizer import Token
from .errors import Ended
from .openai_responses import Answer, ResponseFormat, content_logprobs
from .responses_api import ResponsesRequest
from .tool_calls import Piece

Event = dict[str, Any]


class ResponsesResponse(ResponseFormat):
    """response, and the events that lead to it.

    Text and calls are items of `output`. The one that grows is closed when the next one begins.
    """

    prefix, kind = "resp", "response"
    done = ""

    def __init__(self, model: str, asked: ResponsesRequest) -> None:
        super().__init__(model)
        self._asked = asked
        self._output: list[dict[str, Any]] = []
        self._is_open = False  # the last item
        self._number = 0  # of the next event

    # Events.

    def event_name(self, chunk: Event) -> str | None:
        """An event's type, which its line `event` says too."""
        return str(chunk["type"])

    def opening(self, _index: int, _answer: Answer) -> list[Event]:
        """That there is an answer to come."""
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=self._response("in_progress")) for kind in kinds]

    def chunks(self, _index: int, answer: Answer, _tokens: list[Token]) -> list[Event]:
        """New text, and what is new of calls, whose log-probabilities have no place here."""
        events: list[Event] = []
        for piece in answer.pieces():
            if piece.kind == "text":
                events += self._text(piece.text, content_logprobs(answer, piece.tokens) or [])
            else:
                events += self._call(answer, piece)
        return events

    def closing(self, _index: int, answer: Answer, prompt_tokens: int) -> list[Event]:
        """The end of the last item, and of the answer."""
        events: list[Event] = []
        if not self._output:
            events += self._text("", [])
        status = "incomplete" if answer.finish_reason == "length" else "completed"
        events += self._close(status)
        response = self._response(status, usage=_usage(answer, prompt_tokens), softmask=answer.cost)
        return [*events, self._event(f"response.{status}", response=response)]

    def failure(self, error: Ended) -> Event:
        """That no answer came."""
        said = error.body["error"]
        response = self._response("failed")
        response["error"] = {"code": "server_error", "message": said["message"]}
        return self._event("response.failed", response=response)

    def whole(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        """The answer that is not streamed: what the last event would bring."""
        (answer,) = answers
        self.chunks(0, answer, answer.all)
        response: dict[str, Any] = self.closing(0, answer, prompt_tokens)[-1]["response"]
        return response

    # Items.

    def _text(self, text: str, logprobs: list[dict[str, Any]]) -> list[Event]:
        events: list[Event] = []
        if not (self._is_open and self._output[-1]["type"] == "message"):
            message = {"type": "message", "role": "assistant", "status": "in_progress"}
            events += self._open({"id": f"msg_{secrets.token_hex(12)}", **message, "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._output[-1]["content"].append(part)
            events.append(self._of_part("response.content_part.added", part=_copied(part)))
        part = self._output[-1]["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        if text or logprobs:
            delta = {"delta": text, "logprobs": logprobs}
            events.append(self._of_part("response.output_text.delta", **delta))
        return events

    def _call(self, answer: Answer, piece: Piece) -> list[Event]:
        if piece.kind == "call":
            events = self._close()
            call = {"type": "function_call", "call_id": answer.calls[piece.call].id}
            call |= {"name": piece.text, "arguments": "", "status": "in_progress"}
            return events + self._open({"id": f"fc_{secrets.token_hex(12)}", **call})
        self._output[-1]["arguments"] += piece.text
        kind = "response.function_call_arguments.delta"
        return [self._of_item(kind, item_id=self._output[-1]["id"], delta=piece.text)]

    def _open(self, item: dict[str, Any]) -> list[Event]:
        events = self._close()
        self._output.append(item)
        self._is_open = True
        return [*events, self._of_item("response.output_item.added", item=_copied(item))]

    def _close(self, status: str = "completed") -> list[Event]:
        """The end of the item that is open, if any; `status` is what becomes of it."""
        if not self._is_open:
            return []
        self._is_open = False
        item = self._output[-1]
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            text = {"text": part["text"], "logprobs": part["logprobs"]}
            events = [
                self._of_part("response.output_text.done", **text),
                self._of_part("response.content_part.done", part=part),
            ]
        else:
            said = {"item_id": item["id"], "name": item["name"], "arguments": item["arguments"]}
            events = [self._of_item("response.function_call_arguments.done", **said)]
        return [*events, self._of_item("response.output_item.done", item=item)]

    def _of_part(self, kind: str, **more: Any) -> Event:
        return self._of_item(kind, item_id=self._output[-1]["id"], content_index=0, **more)

    def _of_item(self, kind: str, **more: Any) -> Event:
        return self._event(kind, output_index=len(self._output) - 1, **more)

    def _event(self, kind: str, **more: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **more}

    # The object.

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        asked = self._asked
        ended = int(time.time()) if status == "completed" else None
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        choice = asked.tool_choice
        return {
            "id": self.id,
            "object": self.kind,
            "created_at": self.created,
            "completed_at": ended,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": cut,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self.model,
            "output": [_copied(item) for item in self._output],
            "parallel_tool_calls": asked.parallel_tool_calls,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": asked.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
            "tools": [{**tool.model_dump(), "strict": True} for tool in asked.tools],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            "metadata": asked.metadata,
            **more,
        }


def _usage(answer: Answer, prompt_tokens: int) -> dict[str, Any]:
    """Tokens, under the names that this interface has for them."""
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": answer.cached_tokens,
            "cache_write_tokens": 0,
        },
        "output_tokens": answer.tokens,
        "output_tokens_details": {"reasoning_tokens": 0, "forwards": answer.forwards},
        "total_tokens": prompt_tokens + answer.tokens,
    }


def _copied(item: dict[str, Any]) -> dict[str, Any]:
    """An item or part as it is now: it goes on to grow."""
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}
