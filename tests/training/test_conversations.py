"""Conversations from files and the Hub: what becomes a row, what is left out, what is cached."""

from __future__ import annotations

import copy
import csv
import dataclasses
import gzip
import importlib.util
import itertools
import json
import os
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paths import DATA, SHARED
from transformers import Qwen2Tokenizer

from softmask.training import conversation_cache, conversations
from softmask.training.config import ConversationConfig, SourceConfig
from softmask.training.conversation_cache import Conversations
from softmask.training.conversations import load_conversations
from softmask.training.corpus import train_tokenizer
from softmask.training.messages import messages_of
from softmask.training.sources import form_of_source, resolve_source

datasets = pytest.importorskip("datasets", reason="pip install 'softmask[train]'")
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError  # noqa: E402

SAMPLE = DATA / "gsm8k_sample.jsonl"
GSM8K = SHARED / "eval" / "gsm8k_train.jsonl"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Its prompt begins a thought that the whole chat lacks, as templates of reasoning models do.
STRICT_TEMPLATE = (
    "{% if messages[0]['content'] == 'drop' and messages|length > 1 %}dropped{% endif %}"
    "{% for m in messages %}{% if m['content'] == 'refuse' %}{{ raise_exception('refused') }}"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if messages[0]['content'] == 'think' %}<think>{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_dream_folder(tmp_path_factory.mktemp("dream") / "model", chat=True)


@pytest.fixture
def tokenizer(folder: Path) -> Qwen2Tokenizer:
    return Qwen2Tokenizer.from_pretrained(folder)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("SOFTMASK_CACHE", str(tmp_path / "cache"))
    # After each stream of parquet files, datasets 5 waits five seconds for its threads.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    return tmp_path / "cache"


def chat(question: str, answer: str | None, **more) -> dict:
    return {"messages": [say("user", question), say("assistant", answer)], **more}


def say(role: str, content) -> dict:
    return {"role": role, "content": content}


def chats(count: int, first: int = 0) -> list[dict]:
    return [chat(f"question {i}?", f"the answer {i}") for i in range(first, first + count)]


def write_lines(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config(*paths: str | Path, **changes) -> ConversationConfig:
    columns = {k: changes.pop(k) for k in list(changes) if k.endswith(("_column", "subset"))}
    columns |= {"revision": changes.pop("revision")} if "revision" in changes else {}
    sources = tuple(SourceConfig(str(path), **columns) for path in paths)
    return ConversationConfig(sources, **changes)


def gsm8k(path: Path, **changes) -> ConversationConfig:
    return config(path, prompt_column="question", response_column="answer", **changes)


def held_out_in(path: Path, validation: Path) -> ConversationConfig:
    return ConversationConfig(sources=(SourceConfig(str(path), validation=str(validation)),))


def load(settings: ConversationConfig, tokenizer, seed: int = 0) -> Conversations:
    return load_conversations(settings, tokenizer, seed, lambda line: None)


def left_out(path: Path, tokenizer, **changes) -> dict[str, int]:
    """Reasons of both parts together."""
    counts = load(config(path, **changes), tokenizer).counts.values()
    found: dict[str, int] = {}
    for reason, number in itertools.chain.from_iterable(c.left_out.items() for c in counts):
        found[reason] = found.get(reason, 0) + number
    return found


def texts(rows, tokenizer) -> list[str]:
    return [tokenizer.decode(row["input_ids"]) for row in rows]


def ids(loaded: Conversations) -> dict[str, list[str]]:
    return {part: list(getattr(loaded, part)["id"]) for part in ("train", "validation")}


# What a row is.


def test_a_row_is_the_chat_template_s_own_tokens_and_the_prompt_ends_where_the_answer_begins(
    tokenizer,
) -> None:
    loaded = load(gsm8k(SAMPLE), tokenizer)
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    assert (len(loaded.train), len(loaded.validation)) == (11, 1)
    for row in itertools.chain(loaded.train, loaded.validation):
        file, line = row["id"].rsplit(":", 1)
        values = json.loads(lines[int(line) - 1])
        assert file == str(SAMPLE)
        messages = chat(values["question"], values["answer"])["messages"]
        options = {"tokenize": True, "return_dict": False}
        assert row["input_ids"] == tokenizer.apply_chat_template(messages, **options)
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, **options)
        assert row["input_ids"][: row["prompt_length"]] == prompt
        answer = tokenizer.decode(row["input_ids"][row["prompt_length"] :])
        assert answer == values["answer"] + "<|im_end|>\n"


def test_all_but_the_last_message_is_the_prompt_and_roles_are_ours_in_any_case(
    tmp_path, tokenizer
) -> None:
    turns = [("SYSTEM", "be brief"), ("HUMAN", "hi"), ("Assistant", "hello"), ("user", "bye")]
    messages = [say(*turn) for turn in [*turns, ("ASSISTANT", "good bye")]]
    path = write_lines(tmp_path / "a.jsonl", [{"messages": messages}, *chats(1)])
    loaded = load(config(path, validation_share=0.5), tokenizer)
    rows = [*loaded.train, *loaded.validation]
    row = next(row for row in rows if row["id"].endswith(":1"))
    prompt = tokenizer.decode(row["input_ids"][: row["prompt_length"]])
    assert prompt == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_unknown_role_is_an_error_that_names_it_and_the_row(tmp_path, tokenizer) -> None:
    rows = [*chats(2), {"messages": [say("oracle", "42"), say("assistant", "so it is 42")]}]
    path = write_lines(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"a\.jsonl:3: unknown role 'oracle'; known: system, "):
        load(config(path), tokenizer)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"from": "human", "text": "hi"}]}, "must have the keys role and content "),
        ({"messages": "hi"}, "expected a list of messages, found str"),
        ({"messages": [say("user", 5)]}, "content must be text, not int"),
        ({"text": "hi", "n": 1}, "has the columns text, n: a file holds"),
        (["hi"], "expected an object, found list"),
    ],
)
def test_a_row_of_another_form_is_an_error_that_names_the_row(
    tmp_path, tokenizer, row, message
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*chats(3), row])
    with pytest.raises(ValueError, match=message) as error:
        load(config(path), tokenizer)
    assert f"{path}:4" in str(error.value)


def test_sharegpt_s_form_and_contents_in_parts_give_the_same_rows(tmp_path, tokenizer) -> None:
    plain = [chat(f"question {i}?", f"the answer {i}") for i in range(6)]
    parts = [
        chat([{"type": "text", "text": f"question {i}"}, {"type": "text", "text": "?"}], None)
        for i in range(6)
    ]
    for i, row in enumerate(parts):
        row["messages"][1]["content"] = [{"type": "text", "text": f"the answer {i}"}]
    sharegpt = [
        {
            "conversations": [
                {"from": "human", "value": f"question {i}?"},
                {"from": "gpt", "value": f"the answer {i}"},
            ]
        }
        for i in range(6)
    ]
    loaded = [
        load(config(write_lines(tmp_path / f"{name}.jsonl", rows)), tokenizer)
        for name, rows in (("plain", plain), ("parts", parts), ("sharegpt", sharegpt))
    ]
    texts_of = [texts(one.train, tokenizer) for one in loaded]
    assert texts_of[0] == texts_of[1] == texts_of[2]
    assert len(texts_of[0]) == 5


def test_a_system_prompt_and_earlier_turns_in_columns_beside_stand_in_the_conversation(
    tmp_path, tokenizer
) -> None:
    before = [say("user", "one?"), say("assistant", "1")]
    turns = [say("user", "two?"), say("assistant", "2")]
    told = say("system", "Count.")
    forms = {
        "plain": {"messages": [told, *turns]},
        "sharegpt": {
            "system": "Count.",
            "conversations": [{"from": "human", "value": "two?"}, {"from": "gpt", "value": "2"}],
        },
        "pair": {"system": "Count.", "prompt": "two?", "response": "2"},
        "twice": {"system": "Other.", "messages": [told, *turns]},
        "blank": {"system": " ", "messages": [told, *turns]},
    }
    rows = {
        name: messages_of(SourceConfig("x"), "x:1", row)
        for name, row in (forms | {"none": {"system": None, "messages": turns}}).items()
    }
    assert rows.pop("none") == turns
    assert all(row == [told, *turns] for row in rows.values())
    named = SourceConfig("x", prompt_column="prompt", response_column="response")
    pair = {"prompt": "two?", "response": "2", "system": 3, "history": "medieval"}
    assert messages_of(named, "x:1", pair) == turns
    assert messages_of(SourceConfig("x"), "x:1", pair | {"system": None}) == turns
    table = {"instruction": "two?", "input": "", "output": "2", "history": ""}
    assert messages_of(SourceConfig("x"), "x:1", table) == turns
    alpaca = {"instruction": "two?", "input": None, "output": "2", "history": [["one?", "1"]]}
    assert messages_of(SourceConfig("x"), "x:1", alpaca) == [*before, *turns]
    assert "(instruction and input ask, output is the answer, history before); not read: n" in (
        form_of_source(
            resolve_source(
                config(write_lines(tmp_path / "a.jsonl", [alpaca | {"n": 1}])).sources[0], print
            )
        )
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"input": ["x"]}, "x:1: input must be text, not list"),
        ({"system": 5}, "x:1: system must be text, not int"),
        ({"history": [["only one"]]}, "x:1: history must be a list of [question, answer]"),
    ],
)
def test_a_column_beside_of_another_type_is_an_error(more, message) -> None:
    row = {"instruction": "i", "output": "o", **more}
    with pytest.raises(ValueError, match=re.escape(message)):
        messages_of(SourceConfig("x"), "x:1", row)


def test_chats_with_tools_or_pictures_are_left_out_and_counted(tmp_path, tokenizer) -> None:
    """A call of a tool stands beside the text: without it the row would teach something else."""
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    tools = [
        {"messages": [say("user", "6 x 7?"), call, say("tool", "42"), say("assistant", "42")]},
        {"messages": [say("user", "6 x 7?"), {**call, "content": "let me see"}]},
        {"conversations": [{"from": "function_call", "value": "f"}, {"from": "gpt", "value": "5"}]},
    ]
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    seen = chat([{"type": "text", "text": "what is it?"}, picture], "a cat")
    path = write_lines(tmp_path / "a.jsonl", [*tools, seen, *chats(12)])
    assert left_out(path, tokenizer) == {"tool turns": 3, "not text": 1}


def test_a_data_set_that_was_saved_to_disk_is_read_with_its_splits_and_in_its_order(
    tmp_path, tokenizer
) -> None:
    rows = datasets.Dataset.from_list(chats(8)).shuffle(seed=1)
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    plain = write_lines(tmp_path / "plain.jsonl", rows.to_list())
    one, two = (load(config(path), tokenizer) for path in (tmp_path / "saved", plain))
    assert texts(one.train, tokenizer) == texts(two.train, tokenizer)
    assert one.train[0]["id"].startswith(str(tmp_path / "saved" / "data-0000"))
    splits = datasets.DatasetDict(train=rows, valid=datasets.Dataset.from_list(chats(3, 20)))
    splits.save_to_disk(tmp_path / "splits")
    three = load(config(tmp_path / "splits"), tokenizer)
    assert len(three.train) == 8
    assert len(three.validation) == 3
    file = next((tmp_path / "splits" / "valid").glob("*.arrow"))
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"arrow is damaged"):
        load(config(tmp_path / "splits"), tokenizer)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_byte_order_mark_at_the_start_of_a_file_is_no_part_of_it(
    tmp_path, tokenizer, name
) -> None:
    rows = chats(5)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    text = lines if name.endswith("l") else json.dumps(rows)
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert sum(len(ids) for ids in ids(load(config(tmp_path / name), tokenizer)).values()) == 5


def test_a_folder_for_validation_is_read_by_its_own_files_of_that_split(
    tmp_path, tokenizer
) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(6))
    apart = tmp_path / "apart"
    apart.mkdir()
    for name, number in (("train", 1), ("test", 2), ("validation", 3)):
        write_lines(apart / f"{name}.jsonl", chats(number, 20 * number))
        found = load(held_out_in(path, apart), tokenizer)
        assert (len(found.train), len(found.validation)) == (6, number)


def test_incomplete_conversations_are_left_out_and_counted(tmp_path, tokenizer) -> None:
    broken = [
        {"messages": []},
        {"messages": None},
        {"messages": [say("assistant", "the only message")]},
        {"messages": [say("user", "hi"), say("user", "anyone?")]},
        chat("hi", None),
        chat("hi", ""),
        chat("hi", "  \n"),
        {"messages": [say("user", None), say("assistant", "to nobody")]},
        chat("hi", "half of a pair: \ud800"),
    ]
    path = write_lines(tmp_path / "a.jsonl", broken + chats(20))
    assert left_out(path, tokenizer) == {"incomplete": len(broken)}


def test_an_empty_system_message_is_no_reason_to_leave_a_chat_out(tmp_path, tokenizer) -> None:
    rows = [{"messages": [say("system", ""), *row["messages"]]} for row in chats(3)]
    assert left_out(write_lines(tmp_path / "a.jsonl", rows), tokenizer) == {}


def test_rows_whose_prompt_does_not_begin_the_whole_or_that_the_template_refuses_are_left_out(
    tmp_path, tokenizer
) -> None:
    tokenizer.chat_template = STRICT_TEMPLATE
    rows = [chat("drop", "a long answer"), chat("refuse", "a long answer"), *chats(20)]
    assert left_out(write_lines(tmp_path / "a.jsonl", rows), tokenizer) == {"template": 2}


def test_an_answer_is_trained_behind_what_the_template_opens_it_with(tmp_path, tokenizer) -> None:
    tokenizer.chat_template = STRICT_TEMPLATE
    rows = [chat("think", " an end of imagination \n"), chat("think", "a long answer, too")]
    found = load(config(write_lines(tmp_path / "a.jsonl", rows)), tokenizer)
    rows = [*found.train, *found.validation]
    trained = {tokenizer.decode(row["input_ids"][row["prompt_length"] :]) for row in rows}
    endings = {"an end of imagination<|im_end|>\n", "a long answer, too<|im_end|>\n"}
    assert trained == endings
    assert all("assistant\n<think>" in tokenizer.decode(row["input_ids"]) for row in rows)


def test_a_token_across_the_border_of_prompt_and_answer_is_the_prompt_s(tmp_path) -> None:
    """An answer that begins with a line break: the template's and its own become one token."""
    tokenizer = train_tokenizer(["user\n\nassistant\n\nhello there\n\n"] * 50, 300)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}"
    )
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    rows = [chat(question, "\nhello there") for question in ("q?", "p?")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    (row,) = load(config(path, min_response=1), tokenizer).validation
    assert tokenizer.decode(row["input_ids"]).endswith("?assistant\n\nhello there")
    answer = row["input_ids"][row["prompt_length"] :]
    assert tokenizer.decode(answer) == "hello there"


def test_a_broken_template_is_one_sentence(tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}"
    with pytest.raises(ValueError, match="the chat template is broken"):
        load(gsm8k(SAMPLE), tokenizer)


def test_max_length_and_min_response_are_kept(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*chats(9), chat("hi", "x" * 300), chat("hi", "x")])
    kept = load(config(path, min_response=1), tokenizer)
    longest = max(len(row["input_ids"]) for row in [*kept.train, *kept.validation])
    assert left_out(path, tokenizer, min_response=1, max_length=longest) == {}
    assert left_out(path, tokenizer, min_response=1, max_length=longest - 1) == {"too long": 1}
    # "x", the end of the turn and a line break
    assert left_out(path, tokenizer, min_response=3) == {}
    assert left_out(path, tokenizer, min_response=4) == {"short answer": 1}


def test_tool_calls_are_known_by_the_tokenizer_s_own_ids(tmp_path, tokenizer) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            *chats(20),
            chat("weather?", "<tool_call>{}</tool_call>"),
            chat("what is </tool_call>", "an end"),
        ],
    )
    assert left_out(path, tokenizer) == {}  # here they are letters
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    assert tokenizer.convert_tokens_to_ids("<tool_call>") < 1000
    assert left_out(path, tokenizer) == {"tool calls": 2}
    assert left_out(path, tokenizer, drop_tool_calls=False) == {}


def test_the_name_of_the_mask_in_a_message_is_text_and_in_the_template_the_mask(
    tmp_path, tokenizer
) -> None:
    rows = [*chats(20), chat("hi", "the mask is <|mask|> here")]
    path = write_lines(tmp_path / "a.jsonl", rows)
    assert left_out(path, tokenizer) == {}
    tokenizer.chat_template += "{% if messages[1:] | length > 1 %}<|mask|>{% endif %}"
    path = write_lines(path, [*rows, {"messages": [say("user", "a"), *rows[0]["messages"]]}])
    assert left_out(path, tokenizer) == {"mask token": 1}


def test_a_tokenizer_without_a_chat_template_is_one_sentence(tokenizer) -> None:
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template: take"):
        load(gsm8k(SAMPLE), tokenizer)


# Counts, split and draw.


def test_two_lines_report_what_is_kept_left_out_and_how_many_tokens_there_are(
    tmp_path, tokenizer
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*chats(18), chat("hi", None), chat("hi", "x")])
    lines: list[str] = []
    loaded = load_conversations(config(path), tokenizer, 3, lines.append)
    for part, line in zip(("train", "validation"), lines, strict=True):
        rows, counts = getattr(loaded, part), loaded.counts[part]
        prompts = sum(rows["prompt_length"])
        tokens = sum(len(row) for row in rows["input_ids"])
        assert (counts.kept, counts.prompt_tokens, counts.tokens) == (len(rows), prompts, tokens)
        assert line.startswith(f"{part}, newly tokenised: {len(rows)} conversations, ")
        assert f"{tokens:,} in all" in line
    assert sum(counts.drawn for counts in loaded.counts.values()) == 20
    assert "(incomplete 1, short answer 1)" in lines[0]


def test_the_drawn_are_counted_before_the_filter(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(50) + [chat("hi", None)] * 50)
    loaded = load(config(path, max_samples=40, validation_samples=8), tokenizer)
    train, validation = loaded.counts["train"], loaded.counts["validation"]
    assert (train.drawn, validation.drawn) == (40, 8)
    assert train.kept < 40
    assert train.left_out == {"incomplete": 40 - train.kept}


@pytest.mark.parametrize("streaming", [False, True])
def test_the_seed_decides_split_and_order_and_no_row_is_in_both_parts(
    tmp_path, tokenizer, streaming
) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(40))
    settings = {"validation_share": 0.25, "validation_samples": 10, "streaming": streaming}
    first = load(config(path, **settings), tokenizer, 1)
    again = load(config(path, **settings, cache=str(tmp_path / "other")), tokenizer, 1)
    other = load(config(path, **settings), tokenizer, 2)
    fixed = load(config(path, **settings, seed=1), tokenizer, 2)
    assert ids(first) == ids(again) == ids(fixed)
    assert ids(first) != ids(other)
    for loaded in (first, other):
        parts = [set(texts(rows, tokenizer)) for rows in loaded[:2]]
        assert (len(parts[0]), len(parts[1])) == (30, 10)
        assert not parts[0] & parts[1]


def test_copies_of_a_validation_row_are_left_out_of_training(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(10) * 3)
    loaded = load(config(path), tokenizer)
    assert not set(texts(loaded.train, tokenizer)) & set(texts(loaded.validation, tokenizer))
    assert loaded.counts["train"].left_out["in validation"] >= 3
    twice = load(config(path, path), tokenizer)  # the same file as two sources
    assert not set(texts(twice.train, tokenizer)) & set(texts(twice.validation, tokenizer))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["validation", "valid", "dev-00000-of-00001"])
def test_a_split_of_the_source_s_own_is_validation_and_nothing_else_is(
    tmp_path, tokenizer, split, streaming
) -> None:
    write_lines(tmp_path / "set" / "train-0.jsonl", chats(10))
    write_lines(tmp_path / "set" / "train-1.jsonl", chats(10, 10))
    write_lines(tmp_path / "set" / f"{split}.jsonl", chats(5, 20))
    loaded = load(config(tmp_path / "set", streaming=streaming), tokenizer)
    assert len(loaded.train) == 20
    assert {Path(i.rsplit(":", 1)[0]).name for i in loaded.validation["id"]} == {f"{split}.jsonl"}
    assert len(loaded.validation) == 5


@pytest.mark.parametrize("splits", [("train", "validation", "test"), ("train", "test")])
def test_the_test_split_is_never_read(tmp_path, tokenizer, splits) -> None:
    for i, split in enumerate(splits):
        write_lines(tmp_path / "set" / f"{split}.jsonl", chats(5, 5 * i))
    said: list[str] = []
    loaded = load_conversations(config(tmp_path / "set"), tokenizer, 0, said.append)
    assert not any("test.jsonl" in i for part in ids(loaded).values() for i in part)
    assert any("its split test is not read" in line for line in said)


def test_no_more_rows_are_held_out_than_are_validated_on(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(40))
    loaded = load(config(path, validation_share=0.5, validation_samples=3), tokenizer)
    assert (len(loaded.train), len(loaded.validation)) == (37, 3)


def test_sources_are_split_each_by_itself_then_drawn_from_together(tmp_path, tokenizer) -> None:
    paths = [write_lines(tmp_path / f"{n}.jsonl", chats(20, i * 20)) for i, n in enumerate("ab")]
    loaded = load(config(*paths, validation_share=0.25), tokenizer)
    for part, count in (("train", 15), ("validation", 5)):
        files = [i.rsplit(":", 1)[0] for i in ids(loaded)[part]]
        assert [files.count(str(path)) for path in paths] == [count, count]
        assert files != sorted(files)
    alone = load(config(paths[0], validation_share=0.25), tokenizer)
    held_out = set(ids(alone)["validation"])
    assert held_out == {i for i in ids(loaded)["validation"] if str(paths[0]) in i}


CONTENT = st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["<|mask|>", "<|im_end|>"]))
MESSAGES = st.lists(
    st.builds(say, st.sampled_from(["user", "ASSISTANT", "system"]), CONTENT), max_size=4
)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(MESSAGES, max_size=12), seed=st.integers(0, 9))
def test_whatever_the_chats_every_drawn_one_is_kept_or_counted_and_what_is_kept_is_sound(
    tmp_path, tokenizer, rows, seed
) -> None:
    good = [row["messages"] for row in chats(30)]
    everything = [{"messages": messages} for messages in rows + good]
    path = write_lines(tmp_path / "random.jsonl", everything)
    loaded = load(config(path, min_response=2), tokenizer, seed)
    counts = loaded.counts.values()
    assert sum(count.drawn for count in counts) == len(everything)
    names = [row["id"] for row in [*loaded.train, *loaded.validation]]
    assert len(set(names)) == len(names) == sum(count.kept for count in counts)
    for row in [*loaded.train, *loaded.validation]:
        assert 0 < row["prompt_length"] <= len(row["input_ids"]) - 2
        assert tokenizer.mask_token_id not in row["input_ids"]
        last = everything[int(row["id"].rsplit(":", 1)[1]) - 1]["messages"][-1]
        answer = tokenizer.decode(row["input_ids"][row["prompt_length"] :])
        assert answer == last["content"] + "<|im_end|>\n"


# Files.


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (("prompt", "completion"), "pairs (prompt and completion"),
        (("prompt", "response"), "pairs"),
        (("question", "answer"), "pairs (question asks, answer is the answer)"),
        (("instruction", "output"), "pairs"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_pairs_are_known_by_the_names_of_their_columns(
    tmp_path, tokenizer, columns, form, suffix
) -> None:
    pairs = [(f"question, {i}?", f"the answer\n{i}") for i in range(9)]
    rows = [dict(zip(columns, pair, strict=True)) | {"n": i} for i, pair in enumerate(pairs)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_lines(path, rows)
    elif suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        with path.open("w", newline="", encoding="utf-8-sig") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if suffix == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    same = write_lines(tmp_path / "same" / "a.jsonl", [chat(*pair) for pair in pairs])
    found, expected = load(config(path), tokenizer), load(config(same), tokenizer)
    assert texts(found.train, tokenizer) == texts(expected.train, tokenizer)
    assert form_of_source(resolve_source(SourceConfig(str(path)), print)).startswith(form[:5])


def test_an_instruction_and_its_input_are_one_question(tmp_path, tokenizer) -> None:
    rows = [{"instruction": f"add {i}", "input": "", "output": "yes, done"} for i in range(8)]
    rows += [{"instruction": f"sum {i}", "input": "1 and 2", "output": "three it is"} for i in "ab"]
    found = load(config(write_lines(tmp_path / "a.jsonl", rows)), tokenizer)
    said = "".join(texts([*found.train, *found.validation], tokenizer))
    assert "add 3<|im_end|>" in said
    assert "sum a\n\n1 and 2<|im_end|>" in said


def test_plain_text_is_trained_on_as_a_whole_and_needs_no_template(tmp_path, tokenizer) -> None:
    rows = [{"text": f"Once there was a cat, number {i}."} for i in range(9)]
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    found = load(config(write_lines(tmp_path / "a.jsonl", rows)), plain)
    assert set(found.train["prompt_length"]) == {1}  # nothing precedes the first token
    end = tokenizer.eos_token
    assert all(text.startswith("Once") and text.endswith(end) for text in texts(found.train, plain))
    mixed = write_lines(tmp_path / "b.jsonl", [*rows, *chats(2)])
    with pytest.raises(ValueError, match="a file holds conversations or plain text"):
        load(config(mixed), tokenizer)


def test_every_answer_is_trained_on_as_the_last_one_of_its_own_row(tmp_path, tokenizer) -> None:
    turns = [[say("user", f"q{i}{j}?"), say("assistant", f"answer {i}{j}")] for i in range(8)
             for j in range(2)]  # fmt: skip
    rows = [{"messages": [*turns[2 * i], *turns[2 * i + 1]]} for i in range(8)]
    path = write_lines(tmp_path / "a.jsonl", rows)
    found = load(config(path, train_on="all"), tokenizer)
    alone = load(config(path), tokenizer)
    assert len(found.train) == 2 * len(alone.train)
    said = texts(found.train, tokenizer)
    assert set(texts(alone.train, tokenizer)) < set(said)
    assert sum("1?" in text for text in said) == len(alone.train)


def test_a_prompt_is_trained_on_too_where_that_is_asked_for(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(9))
    assert set(load(config(path, mask_prompt=False), tokenizer).train["prompt_length"]) == {1}


def test_a_file_for_validation_is_all_of_it(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(9))
    held_out = write_lines(tmp_path / "b.jsonl", chats(4, first=100))
    source = SourceConfig(str(path), validation=str(held_out))
    found = load(ConversationConfig((source,)), tokenizer)
    assert len(found.train) == 9
    assert sorted(found.validation["id"]) == [f"{held_out}:{n}" for n in range(1, 5)]
    with pytest.raises(ValueError, match=r"there is no file or folder none\.jsonl for"):
        load(ConversationConfig((SourceConfig(str(path), validation="none.jsonl"),)), tokenizer)


def test_every_kind_of_file_gives_the_same_rows(tmp_path, tokenizer) -> None:
    rows = chats(1200)  # more than a batch
    write_lines(tmp_path / "a.jsonl", rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write((tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    (tmp_path / "d.json").write_text(json.dumps({"version": 1, "data": rows}))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "e.parquet", batch_size=500)
    found = []
    for path in sorted(tmp_path.glob("?.*")):
        loaded = load(config(path), tokenizer)
        parts = ids(loaded)
        found.append(
            (
                texts(loaded.train, tokenizer),
                {part: [i.removeprefix(str(path)) for i in parts[part]] for part in parts},
            )
        )
    assert len(found) == 5
    assert all(other == found[0] for other in found)


def test_a_folder_without_names_of_splits_is_for_training_and_other_files_are_named(
    tmp_path, tokenizer
) -> None:
    write_lines(tmp_path / "set" / "part-0.jsonl", chats(5))
    write_lines(tmp_path / "set" / "part-1.jsonl", chats(5, 5))
    (tmp_path / "set" / "notes.txt").write_text("no data")
    loaded = load(config(tmp_path / "set"), tokenizer)
    assert len(loaded.train) == 9
    write_lines(tmp_path / "set" / "train.jsonl", chats(20, 10))
    lines: list[str] = []
    loaded = load_conversations(config(tmp_path / "set"), tokenizer, 0, lines.append)
    assert len(loaded.train) == 18
    assert lines[0].endswith("begin with no split: part-0.jsonl, part-1.jsonl")


def test_a_broken_line_is_named(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", chats(3))
    path.write_text(path.read_text() + '\n{"messages": [\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:5 is no JSON \(.*correct it$") as error:
        load(config(path), tokenizer)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_local_source_is_one_sentence(tmp_path, tokenizer) -> None:
    good = write_lines(tmp_path / "good.jsonl", chats(3))
    bad = {
        "lines.json": good.read_bytes(),
        "object.json": b'{"rows": []}',
        "cut.jsonl.gz": gzip.compress(good.read_bytes())[:-20],
        "no.parquet": b"PAR1 but not really",
        "a.txt": b"hello",
        "latin.csv": b"prompt,response\ncaf\xe9,yes\n",
        "empty.jsonl": b"",
        "long.csv": b"prompt,response\nhi,yes,\nhi,yes, of course\n",
        "header.csv": b"prompt;response\n",
        "latin.jsonl": b'{"messages": "\xe9"}\n',
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    datasets.Dataset.from_list(chats(3)).to_parquet(tmp_path / "chat.parquet")
    (tmp_path / "nothing").mkdir()
    write_lines(tmp_path / "held_out" / "test.jsonl", chats(3))
    for source, message in [
        (config(tmp_path / "none.jsonl"), "there is no file or folder .*none.jsonl"),
        (config("data/train.jsonl"), "there is no file or folder data/train.jsonl"),
        (config("./nothere"), "there is no file or folder nothere, and it is no Hub id"),
        (config(tmp_path / "lines.json"), r"is no JSON .* one object a line ends in \.jsonl"),
        (config(tmp_path / "object.json"), "expected a list of objects"),
        (config(tmp_path / "cut.jsonl.gz"), "is damaged .*copy it again"),
        (config(tmp_path / "no.parquet"), "is damaged .*copy it again"),
        (
            config(tmp_path / "latin.jsonl"),
            r"latin\.jsonl:1 is not UTF-8 \(byte \d+\): convert it first",
        ),
        (config(tmp_path / "a.txt"), "is of no known kind: give .json"),
        (config(tmp_path / "latin.csv"), "latin.csv is no table in UTF-8"),
        (config(tmp_path / "long.csv"), "long.csv:2 has more fields than the header .* quotes"),
        (held_out_in(good, tmp_path / "header.csv"), "header.csv holds no conversations for val"),
        (held_out_in(good, good), "holds the same as .*nothing is left to train on"),
        (config(tmp_path / "empty.jsonl"), "holds no conversations: give another"),
        (config(tmp_path / "nothing"), "holds no .json, .*give the folder that does"),
        (config(tmp_path / "held_out"), "has no split 'train' but test"),
        (gsm8k(tmp_path / "chat.parquet"), "has no column 'question' but messages: name"),
        (gsm8k(good), r"good\.jsonl:1 has no column 'question' but messages"),
        (config(good, subset="all"), "a subset has no meaning there"),
        (config(good, revision="main"), "a revision has no meaning there"),
        (config(good, seed=-1), "seed must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            load(source, tokenizer)
        assert "\n" not in str(error.value), source


def test_where_everything_is_left_out_the_reasons_are_told(tmp_path, tokenizer) -> None:
    path = write_lines(tmp_path / "a.jsonl", [*chats(18), chat("hi", None), chat("hi", "x")])
    expected = r"no conversation is left for validation of 2 drawn \(too long 2; too long means"
    with pytest.raises(ValueError, match=expected):
        load(config(path, max_length=5, min_response=1), tokenizer)
    one = write_lines(tmp_path / "b.jsonl", chats(1))
    with pytest.raises(ValueError, match=r"to draw for train: give more of them, or .* --valid"):
        load(config(one), tokenizer)
    with pytest.raises(ValueError, match=r"to draw for train: .*validation_samples"):
        load(config(path, streaming=True), tokenizer)


# The cache.


def made(cache: Path) -> set[str]:
    return {path.name for path in (cache / "conversations").iterdir()}


def test_the_second_time_the_rows_come_from_the_cache(tokenizer, cache, monkeypatch) -> None:
    first = load(gsm8k(SAMPLE), tokenizer)
    tokenizer("hello there", truncation=True, max_length=3, padding="max_length")
    monkeypatch.setattr(conversations, "_build", None)
    lines: list[str] = []
    again = load_conversations(gsm8k(SAMPLE), tokenizer, 0, lines.append)
    assert again.train.to_list() == first.train.to_list()
    assert again.counts == first.counts
    assert [line.split(":")[0] for line in lines] == [
        "train, from the cache",
        "validation, from the cache",
    ]
    (key,) = made(cache)
    names = {path.name for path in (cache / "conversations" / key).iterdir()}
    assert names == {"train", "validation", "counts.json"}
    alike = datasets.load_from_disk(str(cache / "conversations" / key / "train"))
    assert alike.to_list() == first.train.to_list()


CHANGES = {
    "max_length": 1000,
    "min_response": 6,
    "max_samples": 10,
    "validation_samples": 400,
    "validation_share": 0.2,
    "drop_tool_calls": False,
    "train_on": "all",
    "mask_prompt": False,
    "streaming": True,
    "shuffle_buffer": 99,
    "seed": 7,
}


def test_every_setting_of_the_rows_gives_another_key_and_the_others_the_same(
    tmp_path, tokenizer, cache
) -> None:
    path = write_lines(tmp_path / "set" / "a.jsonl", chats(20))
    base = {"validation_samples": 5}
    load(config(path, **base), tokenizer)
    for number, (name, value) in enumerate(CHANGES.items(), 2):
        load(config(path, **(base | {name: value})), tokenizer)
        assert len(made(cache)) == number, name
    for name in ("extra_padding", "pad_multiple"):
        load(config(path, **base, **{name: 3}), tokenizer)
    load(config(path, **base, cache=str(cache)), tokenizer)
    assert len(made(cache)) == 1 + len(CHANGES)
    load(config(path, **base, seed=7), tokenizer, seed=8)
    assert len(made(cache)) == 1 + len(CHANGES)
    fields = {field.name for field in dataclasses.fields(ConversationConfig)}
    assert fields == {*CHANGES, *conversation_cache.NOT_OF_ROWS, "sources"}


def test_another_tokenizer_template_seed_file_name_or_content_gives_another_key(
    tmp_path, folder, tokenizer, cache
) -> None:
    path = write_lines(tmp_path / "set" / "train.jsonl", chats(20))
    settings = config(tmp_path / "set")
    seen = 0

    def another(tokenizer, seed: int = 0, settings: ConversationConfig = settings) -> None:
        nonlocal seen
        seen += 1
        loaded = load(settings, tokenizer, seed)
        assert len(made(cache)) == seen
        text = tokenizer.decode(loaded.train[0]["input_ids"])
        assert "question" in text

    another(tokenizer)
    another(tokenizer, seed=1)
    write_lines(path, chats(20, 1))
    another(tokenizer)
    write_lines(path.with_name("validation.jsonl"), chats(5, 90))
    another(tokenizer)
    path.with_name("validation.jsonl").rename(path.with_name("valid.jsonl"))
    another(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "[")
    another(tokenizer)
    tokenizer.add_tokens(["question"])
    another(tokenizer)
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer, ignore=shutil.ignore_patterns("*.safetensors"))
    (fewer / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    another(Qwen2Tokenizer.from_pretrained(fewer))
    both = [{"chat": row["messages"], **row} for row in chats(20)]
    another(tokenizer, settings=config(write_lines(path, both)))
    another(tokenizer, settings=config(path, messages_column="chat"))


@pytest.mark.parametrize("damage", ["cut", "flip", "lose", "counts", "file"])
def test_a_damaged_cache_is_made_anew(tokenizer, cache, damage) -> None:
    # Read before the file changes: a memory map has no guard against that.
    first = load(gsm8k(SAMPLE), tokenizer).train.to_list()
    (key,) = made(cache)
    folder = cache / "conversations" / key
    (arrow,) = (folder / "train").glob("*.arrow")
    content = bytearray(arrow.read_bytes())
    if damage == "cut":
        arrow.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        arrow.write_bytes(content)
    elif damage == "lose":
        shutil.rmtree(folder / "validation")
    elif damage == "counts":
        (folder / "counts.json").write_text("{}")
    else:
        shutil.rmtree(folder)
        folder.write_text("no folder")
    lines: list[str] = []
    again = load_conversations(gsm8k(SAMPLE), tokenizer, 0, lines.append)
    assert "newly tokenised" in lines[0]
    assert again.train.to_list() == first
    assert made(cache) == {key}


def test_what_is_interrupted_leaves_nothing_and_what_was_killed_disturbs_nobody(
    tokenizer, cache, monkeypatch
) -> None:
    def stop(*_arguments) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversation_cache, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            load(gsm8k(SAMPLE), tokenizer)
    assert made(cache) == set()
    load(gsm8k(SAMPLE), tokenizer)
    (key,) = made(cache)
    killed = cache / "conversations" / f"{key}.abc.tmp"
    os.rename(cache / "conversations" / key, killed)
    load(gsm8k(SAMPLE), tokenizer)
    assert made(cache) == {key, killed.name}


def test_two_that_make_the_same_rows_at_once_both_get_them(tokenizer, cache, monkeypatch) -> None:
    together = threading.Barrier(2, timeout=600)
    publish = conversation_cache.publish

    def wait_and_publish(*paths: Path) -> None:
        together.wait()
        publish(*paths)

    monkeypatch.setattr(conversation_cache, "publish", wait_and_publish)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load(gsm8k(SAMPLE), tokenizer), range(2))
    assert first.train.to_list() == second.train.to_list()
    assert len(made(cache)) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path, tokenizer) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match=r"cannot write to the cache .*SOFTMASK_CACHE"):
        load(gsm8k(SAMPLE, cache=str(tmp_path / "file")), tokenizer)


def test_without_datasets_the_install_command_is_told(tokenizer, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "datasets" else find(name)
    )
    with pytest.raises(ValueError, match=r"pip install 'softmask\[train\]'"):
        load(gsm8k(SAMPLE), tokenizer)


# The Hub: `load_dataset` and `dataset_info` are stood in for, the data sets are real ones.


@pytest.fixture
def hub(monkeypatch):
    """Data sets by name, and the calls that asked for them."""
    there: dict[str, object] = {}
    calls: list[dict] = []
    commits: dict[str, str] = {}

    def dataset_info(self, path: str, revision: str | None = None):
        calls.append({"info": path, "revision": revision})
        return SimpleNamespace(sha=commits.get(path, COMMIT))

    def load_dataset(path: str, name: str | None = None, **options):
        calls.append({"path": path, "name": name, **options})
        answer = there[path]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return SimpleNamespace(there=there, calls=calls, commits=commits)


def tulu(count: int) -> datasets.Dataset:
    rows = [
        {"id": f"tulu_{i}", "messages": row["messages"], "source": "ai2-adapt-dev/flan"}
        for i, row in enumerate(chats(count))
    ]
    return datasets.Dataset.from_list(rows)


def ling(count: int) -> datasets.Dataset:
    rows = []
    for i, row in enumerate(chats(count, 1000)):
        messages = [
            say({"user": "HUMAN", "assistant": "ASSISTANT"}[m["role"]], m["content"])
            for m in row["messages"]
        ]
        rows.append({"mid": f"m{i}", "messages": messages, "tags": ["qa"], "languages": ["py"]})
    return datasets.Dataset.from_list(rows)


def stream_of(rows: datasets.Dataset, folder: Path, name: str, shards: int = 1):
    """The same rows as the Hub streams them: out of parquet files."""
    files = []
    for i in range(shards):
        files.append(str(folder / f"{name}-{i}.parquet"))
        rows.shard(shards, i, contiguous=True).to_parquet(files[-1], batch_size=10)
    loaded = REAL_LOAD(
        "parquet", data_files={"train": files}, streaming=True, cache_dir=str(folder / "hf")
    )
    assert isinstance(loaded, datasets.IterableDatasetDict)
    return loaded


REAL_LOAD = datasets.load_dataset


def test_sets_on_the_hub_with_schemas_of_their_own_go_together(tokenizer, hub) -> None:
    hub.there["allenai/tulu"] = datasets.DatasetDict(train=tulu(20))
    hub.there["inclusionAI/Ling"] = datasets.DatasetDict(
        train=ling(20), valid=ling(4), test=ling(9)
    )
    settings = config("allenai/tulu", "inclusionAI/Ling", subset="all", revision="main")
    loaded = load(settings, tokenizer)
    assert (len(loaded.train), len(loaded.validation)) == (18 + 16, 2 + 4)
    names = ids(loaded)
    assert {name.rsplit(":", 1)[0] for name in names["validation"]} == {
        "allenai/tulu:train",
        "inclusionAI/Ling:valid",
    }
    assert loaded.counts["train"].left_out == {"in validation": 4}
    asked = [call for call in hub.calls if "path" in call]
    assert asked[0] == {
        "path": "allenai/tulu",
        "name": "all",
        "revision": COMMIT,
        "streaming": False,
    }
    row = next(row for row in loaded.train if row["id"].startswith("allenai"))
    number = int(row["id"].rsplit(":", 1)[1]) - 1
    assert f"question {number}?" in tokenizer.decode(row["input_ids"])


def test_the_commit_on_the_hub_decides_the_key_and_a_pinned_one_needs_no_hub(
    tokenizer, hub, cache
) -> None:
    hub.there["allenai/tulu"] = datasets.DatasetDict(train=tulu(20))
    load(config("allenai/tulu"), tokenizer)
    load(config("allenai/tulu"), tokenizer)
    assert len(made(cache)) == 1
    hub.commits["allenai/tulu"] = "f" * 40
    load(config("allenai/tulu"), tokenizer)
    assert len(made(cache)) == 2
    pinned = config("allenai/tulu", revision=COMMIT)
    hub.calls.clear()
    load(pinned, tokenizer)
    assert hub.calls == []
    assert len(made(cache)) == 2


def test_a_stream_is_read_once_and_no_further_than_rows_are_drawn(tokenizer, hub) -> None:
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield chats(1, i)[0]

    features = datasets.Features(
        {"messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]}
    )
    stream = datasets.IterableDataset.from_generator(endless, features=features)
    hub.there["allenai/tulu"] = datasets.IterableDatasetDict(train=stream)
    settings = config(
        "allenai/tulu", streaming=True, max_samples=30, validation_samples=10, shuffle_buffer=20
    )
    loaded = load(settings, tokenizer)
    assert hub.calls[-1]["streaming"] is True
    assert (len(loaded.train), len(loaded.validation)) == (30, 10)
    assert read == list(range(len(read)))
    assert 40 <= len(read) <= 40 + 20 + 1
    both = texts(loaded.validation, tokenizer) + texts(loaded.train, tokenizer)
    assert len(set(both)) == 40
    assert both != sorted(both, key=lambda text: int(text.split("question ")[1].split("?")[0]))
    assert loaded.validation[0]["id"] == "allenai/tulu:train:streamed 1"
    assert loaded.train[0]["id"] == "allenai/tulu:train:streamed 11"


def test_streams_of_parquet_take_turns_until_all_are_spent(tmp_path, tokenizer, hub) -> None:
    hub.there["allenai/tulu"] = stream_of(tulu(60), tmp_path, "tulu", shards=3)
    hub.there["inclusionAI/Ling"] = stream_of(ling(20), tmp_path, "ling")
    settings = config(
        "allenai/tulu", "inclusionAI/Ling", streaming=True, validation_samples=10, shuffle_buffer=16
    )
    loaded = load(settings, tokenizer, 5)
    for part, counts in (("validation", [5, 5]), ("train", [55, 15])):
        names = [name.split(":")[0] for name in ids(loaded)[part]]
        assert [names.count(path) for path in hub.there] == counts
        assert names[:4] == ["allenai/tulu", "inclusionAI/Ling"] * 2
    again = load(dataclasses.replace(settings, cache=str(tmp_path / "other")), tokenizer, 5)
    assert again.train.to_list() == loaded.train.to_list()


def answer_of(error: type[Exception]) -> Exception:
    return error("the Hub's own words", response=SimpleNamespace(headers={}, request=None))


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_what_is_wrong_with_a_set_on_the_hub_is_one_sentence(tmp_path, tokenizer, hub) -> None:
    missing = datasets.exceptions.DatasetNotFoundError("no such set\n or it is private")
    gated = datasets.exceptions.DatasetNotFoundError("a gated dataset")
    for answer, message in [
        (missing, "a/b is no folder here nor a data set on the Hub: check spelling"),
        (caused(gated, answer_of(GatedRepoError)), "a/b is gated: accept its terms on its Hub"),
        (
            ConnectionError("Couldn't reach\nthe Hub"),
            "a/b is not here and cannot be read from the Hub",
        ),
        (ValueError("Config name is missing.\nPick: ['x']"), "a/b cannot be loaded, check its"),
        (RuntimeError("Dataset scripts are no longer supported"), "a/b cannot be loaded"),
        (datasets.DatasetDict(test=tulu(3)), "a/b has no split 'train' but test"),
        (datasets.DatasetDict(train=tulu(0)), "a/b holds no conversations"),
        (
            datasets.DatasetDict(train=tulu(3).rename_column("messages", "turns")),
            "a/b:train has no columns of a known form but id, turns, source",
        ),
    ]:
        hub.there["a/b"] = answer
        with pytest.raises(ValueError, match=message) as error:
            load(config("a/b"), tokenizer)
        assert "\n" not in str(error.value)
    turns = tulu(3).rename_column("messages", "turns")
    hub.there["a/b"] = stream_of(turns, tmp_path, "turns")
    with pytest.raises(ValueError, match="a/b:train:streamed 1 has no columns of a known"):
        load(config("a/b", streaming=True), tokenizer)


def test_a_stream_that_breaks_off_is_one_sentence(tokenizer, hub) -> None:
    def breaks():
        yield from chats(3)
        raise ConnectionError("the line went dead")

    hub.there["a/b"] = datasets.IterableDatasetDict(
        train=datasets.IterableDataset.from_generator(breaks)
    )
    with pytest.raises(
        ValueError, match=r"a/b is not here and cannot be read .*the line went dead"
    ):
        load(config("a/b", streaming=True), tokenizer)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answer_of(RepositoryNotFoundError), "a/b is no folder here nor a data set on the Hub"),
        (answer_of(GatedRepoError), "a/b is gated: accept"),
        (
            answer_of(huggingface_hub.errors.RevisionNotFoundError),
            "a/b has no revision 'v2': check the branch or tag",
        ),
    ],
)
def test_what_the_hub_says_of_a_commit_is_one_sentence(
    tokenizer, monkeypatch, error, message
) -> None:
    def dataset_info(*_arguments, **_options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(ValueError, match=message):
        load(config("a/b", revision="v2"), tokenizer)


def test_without_a_network_the_sentence_says_what_to_do(tokenizer, monkeypatch) -> None:
    # Nothing listens at port 9: the client's own error, of httpx or httpx2.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        ValueError, match=r"a/b is not here and cannot be read .*check the network, give local"
    ):
        load(config("a/b"), tokenizer)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="a/b is not here and cannot be read from the Hub"):
        load(config("a/b"), tokenizer)


# The real thing.


@pytest.mark.skipif(not GSM8K.is_file(), reason="needs GSM8K and the Qwen2.5 tokenizer")
@pytest.mark.slow
def test_all_of_gsm8k_becomes_rows_with_the_qwen_tokenizer(tokenizer) -> None:
    qwen = Qwen2Tokenizer.from_pretrained(SHARED / "tokenizer_qwen2.5")
    qwen.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    qwen.chat_template = tokenizer.chat_template
    loaded = load(gsm8k(GSM8K), qwen, seed=1)
    total = sum(counts.drawn for counts in loaded.counts.values())
    # A tenth is held out, of which 500 are drawn.
    assert total == 7473 - round(747.3) + 500
    assert loaded.counts["train"].kept == len(loaded.train) >= 6700
    assert loaded.counts["validation"].kept == len(loaded.validation) == 500
    row = loaded.train[0]
    line = GSM8K.read_text(encoding="utf-8").splitlines()[int(row["id"].rsplit(":", 1)[1]) - 1]
    assert json.loads(line)["answer"] in qwen.decode(row["input_ids"][row["prompt_length"] :])
