"""Every field that requests of OpenAI, vLLM and llama.cpp have, and what becomes of it here.

One table. `protocol.py` has the types of what is implemented and leaves out what changes nothing;
`errors.py` says of the rest what to use instead; the documents and the schema are made from it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from functools import cache

from .field_rows import (
    ALL,
    ALLOWED,
    AMONG,
    BOTH,
    CALL,
    CALLED,
    CHAT,
    CHOICE,
    CHOSEN,
    COMPLETIONS,
    DEFINED,
    DENOISE,
    EDIT,
    FORMAT,
    FOUND,
    FUNCTION,
    IN_ANY_CASE,
    MESSAGE,
    MIN_P,
    NAMED,
    NO_REASONING,
    OPTIONS,
    OUTPUTS,
    PART,
    SALT,
    SCORE,
    TEXT_ALONE,
    TOOL,
    TURNED_OFF,
    VARIABLES,
    Kind,
    Known,
)
from .field_rows import done as _done
from .field_rows import ignored as _ignored
from .field_rows import logged as _logged
from .field_rows import only as _only
from .fields_responses import RESPONSES_API

STAYS = "keys and values stay in this process"
NO_ORDER = "tokens are not written one after the other: vary words by temperature and top_p"
FILTERS = "filter tokens by top_p, top_k or min_p"
BY_FORM = "exclude them by guided_regex, or check the answer"
OLD_TOOLS = "tools and tool_choice are the newer names"
IDS = "the steps of /v1/denoise name token ids"
TEMPLATE = "start the server with --chat-template"

OPENAI = (
    _done("model", "the model's name; may be left out", ALL),
    _done("messages", "the conversation: objects with `role` and `content`", CHAT + DENOISE),
    _done("prompt", "the text to go on from; or token ids, or a list of either", COMPLETIONS),
    _done(
        "suffix",
        "text behind the answer: `max_tokens` tokens are filled in, or at most so many by a model "
        "that finds the length of a hole",
        COMPLETIONS,
        "",
    ),
    # llama.cpp's clients send -1 for no limit, and for any seed.
    _done("max_tokens", "masks behind the prompt; default: the server's --max-tokens", ALL, -1),
    _done("max_completion_tokens", "the newer name of `max_tokens`", BOTH, -1),
    _done("n", "texts for each prompt; number i of all of them draws from `seed + i`"),
    _done("stop", "texts before which the answer is cut, at most 16", BOTH),
    _done("seed", "fixes every random choice", ALL, -1),
    _done("temperature", "0 takes the likeliest token", ALL),
    _done("top_p", "the smallest set of tokens with this total mass is kept", ALL),
    _done("stream", "answer with events as the text becomes final", ALL),
    _done("stream_options", "what events bring beside text: see below"),
    _done("logprobs", "log-probabilities of each token at the step that committed it", CHAT),
    _done("top_logprobs", "and of so many leading tokens beside it", CHAT, 0),
    _done(
        "logprobs",
        "log-probabilities of each token, and of so many leading ones, at the step that "
        "committed it",
        COMPLETIONS,
        False,
    ),
    _logged("user", "whose request it is, by the client's own name"),
    _logged("safety_identifier", "the newer name of `user`"),
    *_ignored("nothing is stored that it could belong to", "metadata", kinds=CHAT),
    *_ignored(
        FOUND,
        *("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        kinds=CHAT,
    ),
    *_ignored("there is one tier", "service_tier", kinds=CHAT),
    *_ignored("a guess to save time, which changes no answer", "prediction", kinds=CHAT),
    _done("reasoning_effort", "a variable of the chat template, where that reads it", CHAT),
    _only("frequency_penalty", 0, instead=NO_ORDER),
    _only("presence_penalty", 0, instead=NO_ORDER),
    _only("logit_bias", {}, [], instead="`end_penalty` under softmask makes texts longer"),
    _only("best_of", 1, instead="ask for n texts with logprobs, and choose", kinds=COMPLETIONS),
    _done("echo", "the prompt before the answer, with log-probabilities too", COMPLETIONS),
    _only("store", False, instead="keep the answer yourself", kinds=CHAT),
    _only("modalities", [], ["text"], instead=TEXT_ALONE, kinds=CHAT),
    _only("audio", instead=TEXT_ALONE, kinds=CHAT),
    _only("verbosity", "medium", instead="say in a message how long answers are to be", kinds=CHAT),
    _only("web_search_options", instead="put what was found into a message", kinds=CHAT),
    _only("moderation", instead="look at texts before and behind this server", kinds=CHAT),
    _done("response_format", "the form of the answer", ALL, {"type": "text"}),
    _done("tools", "functions that the model may call, with JSON schemas", CHAT, []),
    _done("tool_choice", "none, auto, required, or an object that names one or several", CHAT),
    _done("parallel_tool_calls", "false: one call at most", CHAT),
    _only("functions", [], instead=OLD_TOOLS, kinds=CHAT),
    _only("function_call", "none", "auto", instead=OLD_TOOLS, kinds=CHAT),
    # In messages.
    _done("role", "who says it: system, developer, user, assistant or tool", MESSAGE),
    _done("content", "what is said: a text, or parts of type text; null beside calls", MESSAGE),
    _done("name", "of the speaker, for chat templates that know names", MESSAGE),
    *_ignored("it belongs to no turn's text", "annotations", kinds=MESSAGE),
    # As the SDK's own helpers send a message back.
    *_ignored("the content says it", "parsed", kinds=MESSAGE),
    *_ignored("the arguments say it", "parsed_arguments", kinds=CALLED),
    _only("refusal", "", instead="give it as content", kinds=MESSAGE),
    _only("audio", instead=TEXT_ALONE, kinds=MESSAGE),
    _done("tool_calls", "of an assistant: the functions that it called", MESSAGE, []),
    _done("tool_call_id", "of a tool: which call it answers", MESSAGE),
    _only("function_call", instead=OLD_TOOLS, kinds=MESSAGE),
    _done("type", "text", PART),
    _done("text", "what is said", PART),
    *_ignored(FOUND, "prompt_cache_breakpoint", kinds=PART),
    # In response_format.
    _done("type", "text, json_object or json_schema", FORMAT),
    _done("json_schema", "with type json_schema: an object with `schema`", FORMAT),
    _done("schema", "what the answer validates against", NAMED),
    *_ignored("the schema says it all", "name", "description", kinds=NAMED),
    *_ignored(IN_ANY_CASE, "strict", kinds=NAMED + FUNCTION),
    # In tools, tool_choice and tool_calls.
    _done("type", "function", TOOL + CHOICE + CALL),
    _done("type", "allowed_tools", ALLOWED),
    _done("allowed_tools", "an object with `mode` and `tools`", ALLOWED),
    _done("mode", "auto or required", AMONG),
    _done("tools", "those of `tools` that may be called: objects that name one", AMONG),
    _only("mode", instead="in a chat it stands under allowed_tools", kinds=ALLOWED),
    _only("tools", instead="in a chat they stand under allowed_tools", kinds=ALLOWED),
    _only("name", instead="in a chat it stands under function", kinds=TOOL + CHOICE + CALL),
    *_ignored(DEFINED, "description", "parameters", "strict", kinds=CHOSEN),
    _done("function", "the function", TOOL + CHOICE + CALL),
    _done("name", "the function's name", FUNCTION + CHOSEN + CALLED),
    _done("description", "what it does, for the model", FUNCTION),
    _done("parameters", "the JSON schema of its arguments; default: none", FUNCTION),
    _done("id", "the call's name", CALL),
    *_ignored("calls stand in their order", "index", kinds=CALL),
    _done("arguments", "a JSON object, as text", CALLED),
    # In stream_options.
    _done("include_usage", "the last event counts tokens", OPTIONS),
    *_ignored("nothing is padded", "include_obfuscation", kinds=OPTIONS),
)
VLLM = (
    _done("top_k", "only so many likeliest tokens are kept; 0 and -1: all of them", ALL),
    _done("min_p", MIN_P, ALL),
    _done("ignore_eos", "the text goes on to `max_tokens`: no end token is written"),
    _done("continuous_usage_stats", "every event counts tokens", OPTIONS),
    _logged("request_id", "the client's own name of the request"),
    _logged("session_id", "the client's own name of the conversation"),
    _done("cache_salt", SALT, ALL),
    *_ignored(NO_REASONING, "include_reasoning"),
    *_ignored(NO_REASONING, "reasoning", "reasoning_content", kinds=MESSAGE),
    *_ignored("of another server", "provider_specific_fields", kinds=MESSAGE),
    # As libraries write it who pass on what Anthropic's clients send.
    *_ignored(FOUND, "cache_control", kinds=PART),
    *_ignored("special tokens are no part of a text", "spaces_between_special_tokens"),
    *_ignored("events come as text becomes final", "stream_interval"),
    *_ignored(TURNED_OFF, "length_penalty", "truncation_side", "return_mm_kwargs"),
    _only("repetition_penalty", 1, instead=NO_ORDER),
    _only("repetition_detection", instead="bound the text by max_tokens and stop"),
    _only("use_beam_search", False, instead="ask for n texts with logprobs, and choose"),
    _only("watermarking", False, instead="mark texts behind this server"),
    _only("min_tokens", 0, instead="ignore_eos writes exactly max_tokens"),
    _only("stop_token_ids", [], instead="give the tokens' texts as stop"),
    _only("include_stop_str_in_output", False, instead="put the stop text behind the answer"),
    _only("skip_special_tokens", True, instead=IDS),
    _only("truncate_prompt_tokens", instead="shorten the prompt"),
    _only("prompt_logprobs", instead="/v1/completions has echo with logprobs"),
    _only("logprob_token_ids", instead="ask for more leading tokens"),
    _only("allowed_token_ids", instead=FILTERS),
    _only("bad_words", [], instead=BY_FORM),
    _only("add_special_tokens", False, instead="no tokens are put before a prompt"),
    _only("prompt_embeds", instead="give the prompt as a text or token ids", kinds=COMPLETIONS),
    _done("structured_outputs", "the form of the answer, by one of its fields", ALL),
    _done("guided_json", "the former name of `structured_outputs.json`", ALL),
    _done("guided_regex", "the former name of `structured_outputs.regex`", ALL),
    _done("guided_choice", "the former name of `structured_outputs.choice`", ALL),
    _done("guided_grammar", "the former name of `structured_outputs.grammar`", ALL),
    # In structured_outputs.
    _done("json", "a JSON schema, as an object or as text", OUTPUTS),
    _done("regex", "a regular expression of Python's that the whole answer matches", OUTPUTS),
    _done("choice", "the answer is one of these texts", OUTPUTS),
    _done("grammar", "a grammar in GBNF or Lark", OUTPUTS),
    _done("json_object", "true: any JSON object", OUTPUTS, False),
    *_ignored(
        "JSON has one spacing, and declared properties alone, here",
        *("disable_any_whitespace", "disable_fallback", "disable_additional_properties"),
        "whitespace_pattern",
        kinds=OUTPUTS,
    ),
    _only("structural_tag", instead="give a grammar or a regex", kinds=OUTPUTS),
    *_ignored(TURNED_OFF, "guided_decoding_backend", "guided_whitespace_pattern"),
    _only("priority", 0, instead="requests start in the order in which they come"),
    _only("return_tokens_as_token_ids", False, instead=IDS),
    _only("return_token_ids", False, instead=IDS),
    _only("return_token_offsets", False, instead="completions with logprobs have text_offset"),
    _only("routed_experts_prompt_start", 0, instead="the model has no experts"),
    _only("thinking_token_budget", -1, instead=NO_REASONING),
    _only("kv_transfer_params", instead=STAYS),
    _only("ec_transfer_params", instead=STAYS),
    _only("vllm_xargs", {}, instead="settings of this server stand under softmask"),
    _only("echo", False, instead="put the last message before the answer", kinds=CHAT),
    _done(
        "add_generation_prompt",
        "false: nothing stands between the chat and its answer",
        CHAT + DENOISE + SCORE,
    ),
    _done(
        "continue_final_message",
        "the answer goes on with the assistant's last message",
        CHAT + DENOISE + SCORE,
    ),
    _only("documents", [], instead="put them into a message", kinds=CHAT),
    _only("chat_template", instead=TEMPLATE, kinds=CHAT),
    _done("chat_template_kwargs", VARIABLES, CHAT + DENOISE + SCORE),
    _only("media_io_kwargs", {}, instead=TEXT_ALONE, kinds=CHAT),
    _only("mm_processor_kwargs", {}, instead=TEXT_ALONE, kinds=CHAT),
    _only("return_prompt_text", False, instead="/v1/denoise starts with the prompt", kinds=CHAT),
)
LLAMA_CPP = (
    _done("n_predict", "llama.cpp's name of `max_tokens`", BOTH, -1),
    *_ignored(FOUND, "cache_prompt", "n_cache_reuse", "n_keep", "n_discard", "id_slot"),
    *_ignored(
        TURNED_OFF,
        *("repeat_last_n", "penalize_nl", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
        *("dry_sequence_breakers", "xtc_threshold", "dynatemp_exponent", "mirostat_tau"),
        *("mirostat_eta", "adaptive_decay", "grammar_lazy", "grammar_triggers"),
        *("preserved_tokens", "parse_tool_calls", "reasoning_budget_start_tag"),
        *("reasoning_budget_end_tag", "reasoning_budget_end_tags", "reasoning_budget_message"),
    ),
    *_ignored(NO_REASONING, "reasoning_format", "reasoning_control"),
    *_ignored("it says how tokens are drawn, not which", "backend_sampling"),
    *_ignored("a stream is silent until text is final", "sse_ping_interval"),
    *_ignored("answers say what they took, under softmask", "timings_per_token"),
    _only("n_cmpl", 1, instead="n is OpenAI's name of it"),
    _only("n_probs", 0, instead="logprobs are OpenAI's name of it"),
    _only("min_keep", 0, instead=FILTERS),
    _only("typical_p", 1, instead=FILTERS),
    _only("tfs_z", 1, instead=FILTERS),
    _only("top_n_sigma", -1, instead=FILTERS),
    _only("xtc_probability", 0, instead=FILTERS),
    _only("samplers", instead="temperature comes first, then each filter by itself"),
    _only("dynatemp_range", 0, instead="give one temperature"),
    _only("adaptive_target", -1, instead="give one temperature"),
    _only("mirostat", 0, instead="give one temperature"),
    _only("repeat_penalty", 1, instead=NO_ORDER),
    _only("dry_multiplier", 0, instead=NO_ORDER),
    _only("t_max_predict_ms", -1, 0, instead="`deadline` under softmask, in seconds"),
    _only("t_max_prompt_ms", -1, 0, instead="`deadline` under softmask, in seconds"),
    _only("n_indent", 0, instead="put the indentation at the end of the prompt"),
    _done("schema", "its place of `json_schema.schema`; with type json_object too", FORMAT),
    _done("grammar", "the form of the answer as a grammar in GBNF", ALL, ""),
    _done("json_schema", "the form of the answer as a JSON schema", ALL, {}),
    _only("lora", [], instead="start the server with --adapter"),
    _only("image_data", [], instead=TEXT_ALONE),
    _only("reasoning_budget_tokens", -1, instead=NO_REASONING),
    _only("post_sampling_probs", False, instead="log-probabilities are the model's own"),
    _only("return_tokens", False, instead=IDS),
    _only("response_fields", [], instead="take what you need of the answer"),
    _only("verbose", False, instead="/v1/denoise tells every step"),
    _only("return_progress", False, instead="/v1/denoise tells every step"),
    _only("chat_format", instead=TEMPLATE, kinds=CHAT),
    _only("chat_parser", "", instead=TEMPLATE, kinds=CHAT),
    _only("generation_prompt", "", instead=TEMPLATE, kinds=CHAT),
)
OWN = (
    _done("prompt", "the text to go on from", DENOISE),
    _done("infill", "a text in which [[n]] is a hole of n tokens", DENOISE, ""),
    _done("candidates", "leading tokens that a step reports of each position", DENOISE),
    _done("softmask", "what OpenAI has no field for: the last table", ALL),
    # In requests to score.
    _done("model", "the model's name; may be left out", SCORE),
    _done("prompt", "what stands before: a text or token ids", SCORE),
    _done("messages", "or a conversation, which the choices answer", SCORE),
    _done("choices", "the texts to score, or token ids; at most 64", SCORE),
    _done("seed", "of the masks that are drawn; the choices share them", SCORE),
    # In edits, beside what they share with /v1/denoise.
    _done("text", "the text", EDIT),
    _done("start", "the first character that is written anew, counted from 0", EDIT),
    _done("end", "the first character behind it", EDIT),
    _done("min_tokens", "the fewest tokens to write; default: half of those replaced", EDIT, 0),
    _done("max_tokens", "the most; default: twice those replaced, or 8", EDIT, -1),
    _done("softmask", "estimator, samples, guidance and more: see below", SCORE),
    _logged("user", "whose request it is, by the client's own name", SCORE),
)
# What edits share with /v1/denoise: how tokens are drawn, and the form.
WITH_EDITS = (
    *("model", "temperature", "top_p", "top_k", "min_p", "seed", "softmask", "response_format"),
    "cache_salt",
    *("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
    *("grammar", "json_schema"),
)


def _kinds(one: Known) -> tuple[Kind, ...]:
    shared = "denoise" in one.kinds and one.name in WITH_EDITS
    return one.kinds + EDIT if shared else one.kinds


FIELDS = tuple(
    dataclasses.replace(one, api=api, kinds=_kinds(one))
    for api, rows in {
        "OpenAI": (*OPENAI, *RESPONSES_API),
        "vLLM": VLLM,
        "llama.cpp": LLAMA_CPP,
        "softmask": OWN,
    }.items()
    for one in rows
)


@cache
def known(kind: Kind) -> dict[str, Known]:
    """The fields of a kind of object, by name."""
    return {one.name: one for one in FIELDS if kind in one.kinds}


def refusal(kind: Kind, name: str) -> str:
    """Why a field is not taken, and what to do instead."""
    fields = known(kind)
    if name in fields:
        return f"not implemented here: {fields[name].meaning}"
    return unknown(name, [one.name for one in fields.values() if one.does == "implemented"])


def unknown(name: str, names: Iterable[str]) -> str:
    """Why a field that nobody knows is not taken; the nearest of these names."""
    near = difflib.get_close_matches(name[:100], names, n=1)
    return f"unknown here: {f'did you mean {near[0]}?' if near else 'leave it out'}"
