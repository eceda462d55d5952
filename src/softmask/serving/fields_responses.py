"""The fields of OpenAI's Responses API: a part of the table in `fields.py`."""

from __future__ import annotations

from .field_rows import (
    DEFINED,
    FOUND,
    IN_ANY_CASE,
    NO_REASONING,
    NOT_KEPT,
    SALT,
    TURNED_OFF,
    Kind,
    done,
    ignored,
    logged,
    only,
)

HERE: tuple[Kind, ...] = ("responses",)
TEXT: tuple[Kind, ...] = ("responses_text",)
FORMAT: tuple[Kind, ...] = ("responses_format",)
TOOL: tuple[Kind, ...] = ("responses_tool",)
CHOICE: tuple[Kind, ...] = ("responses_choice",)
ALLOWED: tuple[Kind, ...] = ("responses_allowed",)
ITEM: tuple[Kind, ...] = ("item",)
PART: tuple[Kind, ...] = ("item_part",)
SEND_ALL = "send the whole conversation as input"

RESPONSES_API = (
    done("model", "the model's name; may be left out", HERE),
    done("input", "what is said: a text, or the items of a conversation", HERE),
    done("instructions", "what the model is told first, as the system", HERE, ""),
    done("max_output_tokens", "masks behind the prompt; default: the server's --max-tokens", HERE),
    done("temperature", "0 takes the likeliest token", HERE),
    done("top_p", "the smallest set of tokens with this total mass is kept", HERE),
    done("top_k", "only so many likeliest tokens are kept; 0 and -1: all of them", HERE),
    done("min_p", "tokens at least this share as likely as the likeliest are kept; 0: all", HERE),
    done("seed", "fixes every random choice", HERE, -1),
    done("cache_salt", SALT, HERE),
    done("text", "the form of the answer, under `format`", HERE, {}),
    done("chat_template_kwargs", "variables of the chat template, as `enable_thinking`", HERE),
    done("tools", "functions that the model may call, with JSON schemas", HERE, []),
    done("tool_choice", "none, auto, required, or an object that names one or several", HERE),
    done("parallel_tool_calls", "false: one call at most", HERE),
    done("include", "log-probabilities, by `message.output_text.logprobs`", HERE, []),
    done("top_logprobs", "and of so many leading tokens beside each", HERE, 0),
    done("stream", "answer with events as the text becomes final", HERE),
    done("metadata", "goes back with the answer", HERE, {}),
    logged("user", "whose request it is, by the client's own name", HERE),
    logged("safety_identifier", "the newer name of `user`", HERE),
    done("softmask", "what OpenAI has no field for: the last table", HERE),
    *ignored("nothing is stored: answers say `store: false`", "store", kinds=HERE),
    *ignored(
        FOUND,
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        kinds=HERE,
    ),
    *ignored("an input that does not fit is refused", "truncation", kinds=HERE),
    *ignored("there is one tier", "service_tier", kinds=HERE),
    *ignored("nothing is padded", "stream_options", kinds=HERE),
    *ignored(NO_REASONING, "reasoning", kinds=HERE),
    *ignored(TURNED_OFF, "background_options", "access_programs", "image", kinds=HERE),
    only("previous_response_id", instead=f"{NOT_KEPT}: {SEND_ALL}", kinds=HERE),
    only("conversation", instead=f"{NOT_KEPT}: {SEND_ALL}", kinds=HERE),
    only("prompt", instead=f"{NOT_KEPT}: {SEND_ALL}", kinds=HERE),
    only("background", False, instead="wait for the answer, or stream it", kinds=HERE),
    only("context_management", [], instead="leave out what is not needed any more", kinds=HERE),
    only("max_tool_calls", instead="parallel_tool_calls: false allows one", kinds=HERE),
    only("moderation", instead="look at texts before and behind this server", kinds=HERE),
    done("format", "an object with `type`: text, json_object or json_schema", TEXT),
    only("verbosity", "medium", instead="say in words how long answers are to be", kinds=TEXT),
    done("type", "text, json_object or json_schema", FORMAT),
    done("name", "of the schema; goes back with the answer", FORMAT),
    done("schema", "with type json_schema: what the answer validates against", FORMAT),
    *ignored("the schema says it all", "description", kinds=FORMAT),
    *ignored(IN_ANY_CASE, "strict", kinds=FORMAT + TOOL),
    done("type", "function", TOOL + CHOICE),
    *ignored(DEFINED, "description", "parameters", "strict", kinds=CHOICE),
    only("function", instead="here its fields stand beside type", kinds=TOOL + CHOICE),
    only("allowed_tools", instead="here its fields stand beside type", kinds=ALLOWED),
    done("type", "allowed_tools", ALLOWED),
    done("mode", "auto or required", ALLOWED),
    done("tools", "those of `tools` that may be called: objects that name one", ALLOWED),
    done("name", "the function's name", TOOL + CHOICE),
    done("description", "what it does, for the model", TOOL),
    done("parameters", "the JSON schema of its arguments; default: none", TOOL),
    *ignored("results are text", "output_schema", kinds=TOOL),
    only("async", False, instead="send the result with the next request", kinds=TOOL),
    only("defer_loading", False, instead="send the tools that are needed", kinds=TOOL),
    only("allowed_callers", ["direct"], instead="programs are not run here", kinds=TOOL),
    # In input.
    done("type", "message, function_call or function_call_output", ITEM),
    done("role", "of a message: system, developer, user or assistant", ITEM),
    done("content", "of a message: a text, or parts of type input_text or output_text", ITEM),
    done("call_id", "of a call and its output: the call's name", ITEM),
    done("name", "of a call: the function's name", ITEM),
    done("arguments", "of a call: a JSON object, as text", ITEM),
    done("output", "of a function_call_output: what came of it, as text", ITEM),
    *ignored(NOT_KEPT, "id", "status", "created_by", kinds=ITEM),
    *ignored("all of it is one conversation", "phase", "caller", "namespace", kinds=ITEM),
    only("async", False, instead="send the result with the call", kinds=ITEM),
    done("type", "input_text, output_text or text", PART),
    done("text", "what is said", PART),
    *ignored("it belongs to no turn's text", "annotations", "logprobs", kinds=PART),
    *ignored(FOUND, "prompt_cache_breakpoint", kinds=PART),
    only("refusal", instead="give it as text", kinds=PART),
)
