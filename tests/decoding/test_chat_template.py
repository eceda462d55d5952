"""Chat templates: as transformers renders them, and within bounds whatever they hold."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from tiny import write_dream_folder

import softmask
from softmask.cli.main import main
from softmask.decoding import chat_template
from softmask.decoding.chat_template import ChatTemplateError, render_chat

CHAT = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": " What is \u00e9 < 2?\n"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Why?"},
]
TWICE = "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = %s %}{% endfor %}"
# In the manner of published ones: Qwen's tools and thinking, Llama's dates, Mistral's checks.
PUBLISHED = [
    "{%- if tools %}{{- tools | tojson }}{%- endif %}\n"
    "{%- if messages[0].role == 'system' %}{{- '<s>' + messages[0].content + '</s>\\n' }}"
    "{%- endif %}\n{%- set ns = namespace(last=0) %}\n"
    "{%- for m in messages[::-1] %}{%- set ns.last = loop.index0 %}{%- endfor %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
    "        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content ~ ns.last }}\n"
    "    {%- else %}{{- message.role | upper }}: {{ message.content | trim }}\n    {%- endif %}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "{{ bos_token }}{% macro turn(m) -%}[{{ m['content'] | replace('\\n', ' ') }}]{%- endmacro %}\n"
    "{% for m in messages %}\n{% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "{{ turn(m) }}{% generation %}{{ loop.index }}{% endgeneration %}\n"
    "{% if not loop.last %}, {% endif %}\n{% endfor %}{{ messages | tojson(indent=2) }}"
    "{{ messages | map(attribute='role') | join('|') }}{{ '%d' is string }}{{ 7 ** 2 % 5 }}",
]
BROKEN = {
    "{{ 1 / 0 }}": "division by zero",
    "{{ messages[0].content + 1 }}": "refuses these messages",
    "{{ messages[9].content }}": "has no element 9",
    "{{ raise_exception('no more') }}": "refuses these messages: no more",
    "{{ messages.append(1) }}": "unsafe",
    "{{ namespace(__class__=1) }}": "no attribute '__class__'",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
    "{% if %}": "is broken",
    "{{ (" * 2000: "is broken",
    "{% for a in b %}" * 30 + "{% endfor %}" * 30: "is broken",
}
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
]
HUGE = [
    "{{ 'a' * 10 ** 10 }}",
    "{{ 10 ** 10 ** 8 * 10 ** (10 ** 9) }}",
    "{{ 'a'.center(10 ** 9) }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ ('a' * 9 ** 6).replace('a', 'b' * 9 ** 6) }}",
    "{{ range(10 ** 9) | list }}",
    TWICE.replace("%s", "n.x ~ n.x"),
    TWICE.replace("%s", "n.x + n.x"),
    TWICE.replace(
        "{% set n.x = %s %}", "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}"
    ),
]


def tokenizer_of(template: str):
    return SimpleNamespace(chat_template=template, special_tokens_map={"bos_token": "<s>"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "chat", chat=True)
    return softmask.load(folder, device="cpu")


@pytest.mark.parametrize("template", [None, *PUBLISHED])
@pytest.mark.parametrize("options", [{}, {"add_generation_prompt": True}])
def test_a_template_gives_what_transformers_gives(checkpoint, template, options) -> None:
    tokenizer = checkpoint.tokenizer
    template = template or tokenizer.chat_template
    expected = tokenizer.apply_chat_template(
        CHAT, chat_template=template, tokenize=False, **options
    )
    own = SimpleNamespace(chat_template=template, special_tokens_map=tokenizer.special_tokens_map)
    assert render_chat(own, CHAT, **options) == expected


TRIMMING = (
    "{% for m in messages %}{% if m.role == 'user' %}<a>{{ m.content | trim }}</a>"
    "{% else %}<b>{{ '\n' }}{{ m.content | trim }}</b>{% endif %}{% endfor %}"
)


def test_a_last_message_that_stays_open_ends_the_text(checkpoint) -> None:
    open_text = render_chat(checkpoint.tokenizer, CHAT[:3], continue_final_message=True)
    assert open_text.endswith("assistant\nTwo.")


@pytest.mark.parametrize("said", ["1. The ", "1. The", "", " ", "\n"])
@pytest.mark.parametrize("trims", [False, True])
def test_a_template_that_trims_what_was_said_trims_it_where_it_stays_open(
    checkpoint, said, trims
) -> None:
    template = TRIMMING if trims else TRIMMING.replace("| trim", "")
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": said}]
    own = SimpleNamespace(chat_template=template, special_tokens_map={})
    found = render_chat(own, chat, continue_final_message=True)
    assert found == "<a>Why?</a><b>\n" + (said.strip() if trims else said)
    if said.strip():
        tokenizer = checkpoint.tokenizer
        options = {"chat_template": template, "tokenize": False}
        assert found == tokenizer.apply_chat_template(chat, continue_final_message=True, **options)


@pytest.mark.parametrize("template", BROKEN)
def test_what_fails_in_a_template_is_one_sentence(template) -> None:
    with pytest.raises(ValueError, match=BROKEN[template]):
        render_chat(tokenizer_of(template), CHAT)


@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_takes_for_ever_is_ended(template, monkeypatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.1)
    caught: list[BaseException] = []

    def render() -> None:
        try:
            render_chat(tokenizer_of(template), CHAT)
        except ValueError as error:
            caught.append(error)

    # Bounds hold in any thread: a server renders in several.
    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert "is not done after 0.1 seconds" in str(caught[0])


@pytest.mark.parametrize("template", HUGE)
def test_a_template_cannot_fill_the_memory(template) -> None:
    with pytest.raises(ValueError, match="more than 16,777,216 characters"):
        render_chat(tokenizer_of(template), CHAT)


@pytest.mark.parametrize("template", ["{{ '%9d' % 1 }}", "{{ '{:9}'.format(1) }}"])
def test_widths_in_format_strings_are_refused(template) -> None:
    with pytest.raises(ChatTemplateError, match="refuses these messages"):
        render_chat(tokenizer_of(template), CHAT)


def test_a_broken_template_is_one_sentence_at_the_command_line(tmp_path, capsys) -> None:
    folder = write_dream_folder(tmp_path / "dream")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    assert main(["generate", "Hello", "--model", str(folder), "--max-new-tokens", "2"]) == 2
    error = capsys.readouterr().err
    assert "the model's chat template refuses these messages" in error
    assert error.count("\n") == 1
