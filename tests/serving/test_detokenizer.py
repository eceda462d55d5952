"""Text from the left: whatever order tokens are committed in, and wherever characters are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_dream_folder

import softmask
from softmask.config import SamplingConfig
from softmask.constraints.vocabulary import bytes_by_character
from softmask.decoding.prompts import DecodeStream, decode_answer, encode, encode_chat, pieces
from softmask.serving.detokenizer import IncrementalDetokenizer
from softmask.serving.request import Event, Request

SAID = "Grüße, 世界 🙂 and 🇨🇭. <|endoftext|>"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "chat", chat=True)
    return softmask.load(folder, device="cpu")


def streamed(
    checkpoint, ids: list[int], groups: list[list[int]], **more
) -> tuple[list[str], object]:
    """What is handed out when these columns of an answer are committed group by group."""
    mask_id = checkpoint.model.config.mask_token_id
    prompt = [1, 2]
    request = Request((*prompt, *[mask_id] * len(ids)), SamplingConfig())
    stream = IncrementalDetokenizer(checkpoint, request, infill=False, **more)
    parts, done = [], set()
    for group in groups:
        done |= set(group)
        final = next((i for i in range(len(ids)) if i not in done), len(ids))
        columns = tuple(column + len(prompt) for column in group)
        event = Event(
            1,
            1,
            1,
            len(ids) - len(done),
            final + len(prompt),
            columns,
            tuple(ids[column] for column in group),
        )
        parts.append("".join(token.text for token in stream.take(event)))
    parts.append("".join(token.text for token in stream.rest()))
    return parts, stream


@st.composite
def orders(draw) -> tuple[list[int], list[list[int]]]:
    """Token ids, and an order in groups in which they are committed."""
    ids = draw(st.lists(st.integers(0, 255), min_size=1, max_size=24))
    order = draw(st.permutations(range(len(ids))))
    cuts = sorted(draw(st.sets(st.integers(1, len(ids)), max_size=6)) | {len(ids)})
    groups = [list(order[a:b]) for a, b in zip([0, *cuts], cuts, strict=False)]
    return ids, groups


@settings(max_examples=150)
@given(orders())
def test_the_parts_joined_are_the_text_in_any_order(checkpoint, order) -> None:
    ids, groups = order
    parts, stream = streamed(checkpoint, ids, groups)
    text, chosen = decode_answer(checkpoint, ids, infill=False)
    assert "".join(parts) == text == stream.text
    assert stream.count == len(chosen)


@settings(max_examples=150)
@given(orders(), st.lists(st.text("abc é", min_size=1, max_size=3), max_size=3))
def test_nothing_from_a_stop_string_on_is_ever_handed_out(checkpoint, order, stops) -> None:
    ids, groups = order
    parts, stream = streamed(checkpoint, ids, groups, stops=stops)
    text, _ = decode_answer(checkpoint, ids, infill=False)
    # The one that is whole first, whatever was committed together.
    places = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert "".join(parts) == (text[: min(places)[1]] if places else text)
    if places:
        assert stream.is_ended


def test_characters_of_several_tokens_come_whole(checkpoint) -> None:
    ids = encode(checkpoint, SAID, control=False)
    parts, _ = streamed(checkpoint, ids, [[column] for column in range(len(ids))])
    assert "".join(parts) == SAID
    assert not any("\ufffd" in part for part in parts)
    assert max(len(part.encode()) for part in parts) <= 8


@settings(max_examples=100)
@given(st.lists(st.integers(0, 255), max_size=30))
def test_pieces_joined_are_the_text(checkpoint, ids) -> None:
    parts = pieces(checkpoint, ids)
    assert len(parts) == len(ids)
    assert "".join(parts) == checkpoint.tokenizer.decode(ids, skip_special_tokens=True)


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*b"a\xc3\xa9\xef\xbf\xbd\xf0\x9f\x98\xff"]), max_size=40))
def test_bytes_that_never_become_a_character_are_not_waited_for(checkpoint, octets) -> None:
    names = {byte: name for name, byte in bytes_by_character().items()}
    ids = [checkpoint.tokenizer.convert_tokens_to_ids(names[octet]) for octet in octets]
    decoder, waiting = DecodeStream(checkpoint), 0
    for token in ids:
        waiting = 0 if decoder.add(token) else waiting + 1
        assert waiting <= 3
    parts = pieces(checkpoint, ids)
    assert "".join(parts) == bytes(octets).decode(errors="replace")


# Conversations.


@settings(max_examples=60)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_a_conversation_is_tokenised_as_its_rendered_text_is(checkpoint, said) -> None:
    roles = ["user", "assistant"]
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    rendered = checkpoint.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )
    assert encode_chat(checkpoint, messages) == encode(checkpoint, rendered)


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["<|im_end|>", "<|mask|>", "\n", "<|im_start|>", "hi "]), max_size=8)
)
def test_what_is_said_adds_no_control_token(checkpoint, parts) -> None:
    special = set(checkpoint.tokenizer.all_special_ids)
    said = "".join(parts)

    def control(content: str) -> list[int]:
        ids = encode_chat(checkpoint, [{"role": "user", "content": content}])
        return [i for i in ids if i in special]

    assert control(said) == control("")
    ids = encode_chat(checkpoint, [{"role": "user", "content": said}])
    assert said in checkpoint.tokenizer.decode(ids)
