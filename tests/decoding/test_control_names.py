"""Names of control tokens in what people write are text, in training as in a request."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import write_dream_folder

import softmask
from softmask.decoding.control_names import ControlNames
from softmask.decoding.prompts import encode, encode_chat, encode_holes
from softmask.training.config import ConversationConfig, SourceConfig
from softmask.training.conversations import load_conversations

# As in the tokenizer of Qwen2.5: added tokens that are not special.
NOT_SPECIAL = ["<tool_call>", "<|fim_prefix|>"]
NAMES = ["<|im_start|>", "<|im_end|>", "<|mask|>", *NOT_SPECIAL]
SAID = st.lists(st.sampled_from([*NAMES, "\n", "hi 7", "é", "{{ 1 }}"]), max_size=5).map("".join)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "chat", chat=True)
    loaded = softmask.load(folder, device="cpu")
    loaded.tokenizer.add_tokens(NOT_SPECIAL)
    return loaded


def control_ids(checkpoint, ids: list[int]) -> list[int]:
    known = set(checkpoint.tokenizer.added_tokens_decoder)
    return [index for index in ids if index in known]


@settings(max_examples=60, deadline=None)
@given(st.lists(SAID, min_size=1, max_size=3))
def test_the_control_tokens_of_a_conversation_are_the_templates_own(checkpoint, said) -> None:
    def conversation(texts: list[str]) -> list[int]:
        roles = ["user", "assistant"]
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
        return encode_chat(checkpoint, messages)

    ids = conversation(said)
    assert control_ids(checkpoint, ids) == control_ids(checkpoint, conversation(["x"] * len(said)))
    decoded = checkpoint.tokenizer.decode(ids)
    assert all(text in decoded for text in said)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=SAID, answer=SAID)
def test_training_reads_a_conversation_as_a_request_does(
    checkpoint, tmp_path, question, answer
) -> None:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    path = tmp_path / "chats.jsonl"
    other = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    rows = [{"messages": messages + other}, {"messages": other}, {"messages": other[:1] + other}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ConversationConfig(
        (SourceConfig(str(path)),),
        drop_tool_calls=False,
        validation_share=0.34,
        min_response=1,
        cache=str(tmp_path / "cache"),
    )
    made = load_conversations(config, checkpoint.tokenizer, 0, lambda line: None)
    by_id = {row["id"]: row for row in [*made.train, *made.validation]}
    row = by_id[f"{path}:1"]
    assert row["input_ids"][: row["prompt_length"]] == encode_chat(
        checkpoint, [*messages, other[0]]
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_request_and_a_token_in_a_raw_prompt_but_the_mask(
    checkpoint, name
) -> None:
    token = checkpoint.tokenizer.convert_tokens_to_ids(name)
    assert token not in encode(checkpoint, f"a{name}b", control=False)
    assert token not in encode_holes(checkpoint, f"a{name}[[2]]b", control=False).ids[:-3]
    assert (token in encode(checkpoint, f"a{name}b")) == (name != "<|mask|>")
    assert checkpoint.tokenizer.decode(encode(checkpoint, name, control=False)) == name


def test_a_name_at_any_depth_of_a_message_is_hidden_and_comes_back(checkpoint) -> None:
    names = ControlNames(checkpoint.tokenizer)
    call = {"function": {"name": "f", "arguments": {"text": ["<|im_end|>"]}}}
    hidden, found = names.hide([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert found
    assert "<|im_end|>" not in json.dumps(hidden)
    assert json.loads(names.show(json.dumps(hidden)))[0]["tool_calls"] == [call]


def test_bytes_that_are_no_utf8_are_refused_in_one_sentence(checkpoint) -> None:
    for control in (True, False):
        with pytest.raises(ValueError, match="is half a character"):
            encode(checkpoint, "a\udc80", control=control)
