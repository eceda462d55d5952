"""The page's conversations, and stretches of a text that are refilled."""

from __future__ import annotations

import json
import re
import urllib.request

from browsing import ended, posted, put, run

import softmask
from softmask.decoding.prompts import encode_chat


def send(page, text: str) -> None:
    """Says something and waits for the answer."""
    page.fill("#say", text)
    page.press("#say", "Enter")
    ended(page)


def said(page) -> list[str]:
    return page.locator(".said").evaluate_all("(all) => all.map((one) => one.textContent)")


def act(page, message: int, name: str) -> None:
    page.locator(".message").nth(message).get_by_role("button", name=name, exact=True).click()


def test_a_conversation_is_answered_regenerated_edited_and_kept_until_it_is_cleared(chat) -> None:
    bodies = posted(chat)
    chat.evaluate("{ let drawn = 0.1; Math.random = () => (drawn += 0.01); }")
    assert chat.locator("#form").is_hidden()
    chat.click("#system summary")
    chat.fill("#system-text", "Be brief")
    put(chat, "temperature", "0.9")
    send(chat, "Hello")
    system = {"role": "system", "content": "Be brief"}
    hello = {"role": "user", "content": "Hello"}
    assert bodies[0]["messages"] == [system, hello]
    assert bodies[0]["max_tokens"] == 24
    first = said(chat)[1]
    assert first
    # An answer that ends before its last token leaves forwards out.
    note = chat.locator(".message .note").last.inner_text()
    tokens, forwards = map(int, re.match(r"(\d+) tokens · (\d+) forwards", note).groups())
    assert 0 < tokens <= 24
    assert tokens <= forwards <= 24
    act(chat, 1, "Regenerate")
    ended(chat)
    assert bodies[1]["messages"] == bodies[0]["messages"]
    assert bodies[1]["seed"] != bodies[0]["seed"]
    again = said(chat)[1]
    assert again != first
    send(chat, "And now?")
    answer = {"role": "assistant", "content": again}
    now = {"role": "user", "content": "And now?"}
    assert bodies[2]["messages"] == [system, hello, answer, now]
    act(chat, 0, "Edit")
    chat.locator(".edit:visible textarea").fill("Good day")
    chat.keyboard.press("Enter")
    ended(chat)
    assert bodies[3]["messages"] == [system, {"role": "user", "content": "Good day"}]
    kept = said(chat)
    assert len(kept) == 2
    act(chat, 1, "Steps")
    assert chat.locator(".panel .strip").is_visible()
    chat.reload()
    assert said(chat) == kept
    assert chat.input_value("#system-text") == "Be brief"
    chat.click("#clear")
    chat.reload()
    assert said(chat) == []


def test_an_answer_is_seen_while_it_is_denoised_and_can_be_stopped_and_copied(chat) -> None:
    put(chat, "max_tokens", "400")
    chat.fill("#say", "Hello")
    chat.press("#say", "Enter")
    chat.wait_for_function("() => document.querySelectorAll('.said .done').length > 4")
    assert chat.locator(".said .masked").count() > 100
    shares = "(all) => Math.max(...all.map((m) => Number(m.style.getPropertyValue('--share'))))"
    assert chat.locator(".said .masked").evaluate_all(shares) > 0.01
    chat.click("#stop-answer")
    ended(chat)
    assert "stopped" in chat.locator(".message .note").last.inner_text()
    chat.evaluate(
        """() => Object.defineProperty(navigator, "clipboard", {
          value: { writeText: async (text) => (window.copied = text) } })"""
    )
    act(chat, 0, "Copy")
    assert chat.evaluate("window.copied") == "Hello"


def test_a_stopped_answer_is_what_was_decided_from_the_left(chat) -> None:
    put(chat, "max_tokens", "400")
    put(chat, "softmask.block_length", "8")
    chat.fill("#say", "Hello")
    chat.press("#say", "Enter")
    chat.wait_for_function("() => document.querySelectorAll('.said .done').length > 4")
    chat.click("#stop-answer")
    ended(chat)
    answer = said(chat)[1]
    act(chat, 1, "Steps")
    tokens = chat.evaluate(
        """() => [...document.querySelectorAll(".panel .token:not(.given)")].map((token) =>
          token.classList.contains("masked") ? null : token.querySelector(".own").textContent)"""
    )
    left = tokens[: tokens.index(None)]
    assert len(left) > 0
    # As the view shows a line's end, a text's, and bytes that are no character yet.
    signs = {"\u21b5": "\n", "\u21e5": "\t", "\u2423": " ", "\u220e": "", "\u2592": "\ufffd"}
    shown = "".join("".join(signs.get(one, one) for one in token) for token in left)
    assert answer == shown


def test_an_answer_stays_where_another_one_is_stopped(chat) -> None:
    bodies = posted(chat)
    send(chat, "Hello")
    before, note = said(chat), chat.locator(".message .note").last.inner_text()
    put(chat, "max_tokens", "400")
    act(chat, 1, "Regenerate")
    chat.wait_for_function("() => document.querySelectorAll('.said .done').length > 4")
    chat.click("#stop-answer")
    ended(chat)
    assert said(chat) == before
    assert chat.locator(".message .note").last.inner_text() == note
    put(chat, "max_tokens", "8")
    send(chat, "And now?")
    assert [one["content"] for one in bodies[-1]["messages"]] == [*before, "And now?"]


def test_a_refused_refill_leaves_the_answer_and_the_editor_as_they_were(chat) -> None:
    send(chat, "Hello")
    before = said(chat)
    act(chat, 1, "Edit")
    editor = chat.locator(".edit:visible textarea")
    editor.fill("The dog sat on the mat")
    editor.evaluate("(field) => { field.focus(); field.setSelectionRange(4, 7); }")
    chat.wait_for_selector("#refill:not([hidden])")
    put(chat, "softmask.threshold", "7")
    chat.click("#refill button")
    ended(chat)
    assert "threshold must lie in [0, 1]" in chat.get_by_role("alert").inner_text()
    assert editor.input_value() == "The dog sat on the mat"
    chat.locator(".edit:visible").get_by_role("button", name="Cancel").click()
    assert said(chat) == before


def test_a_message_that_is_not_answered_comes_back_to_where_it_was_written(chat) -> None:
    bodies = posted(chat)
    send(chat, "Hello")
    answered = said(chat)
    # What the server refuses, and what the page does.
    for name, value, fault in (
        ("softmask.threshold", "7", "threshold must lie in [0, 1]"),
        ("max_tokens", "1.5", "max_tokens must be a whole number"),
    ):
        put(chat, name, value)
        send(chat, "And now?")
        assert chat.locator("#alert strong").count() == 1
        assert fault in chat.get_by_role("alert").inner_text()
        assert said(chat) == answered
        assert chat.input_value("#say") == "And now?"
        alert, say = (chat.locator(name).bounding_box() for name in ("#alert", "#say"))
        # A page scrolls by whole pixels.
        assert -1 < alert["y"] < alert["y"] + alert["height"] <= say["y"]
    act(chat, 0, "Edit")
    chat.locator(".edit:visible textarea").fill("Good day")
    chat.keyboard.press("Enter")
    ended(chat)
    assert said(chat) == answered
    assert chat.locator(".edit:visible textarea").input_value() == "Good day"
    put(chat, "softmask.threshold", "")
    put(chat, "max_tokens", "24")
    chat.press("#say", "Enter")
    ended(chat)
    assert chat.get_by_role("alert").inner_text() == ""
    assert said(chat)[:-1] == [*answered, "And now?"]
    assert [one["content"] for one in bodies[-1]["messages"]] == said(chat)[:-1]


def test_an_answer_that_a_reload_interrupts_says_so_and_can_be_asked_for_again(chat) -> None:
    send(chat, "Hello")
    answered = said(chat)
    chat.route("**/v1/denoise", lambda route: None)
    chat.fill("#say", "And now?")
    chat.press("#say", "Enter")
    chat.wait_for_selector(".message.coming")
    chat.reload()
    assert said(chat) == answered
    assert chat.input_value("#say") == "And now?"
    assert chat.get_by_role("alert").inner_text().startswith("Interrupted: ")
    act(chat, 1, "Regenerate")
    chat.wait_for_selector(".message.coming")
    chat.reload()
    assert said(chat) == answered
    assert "Regenerate it" in chat.get_by_role("alert").inner_text()
    chat.unroute("**/v1/denoise")
    put(chat, "max_tokens", "8")
    send(chat, "And now?")
    assert chat.get_by_role("alert").inner_text() == ""
    assert said(chat)[:-1] == [*answered, "And now?"]


def test_a_stretch_of_an_answer_is_refilled_by_mouse_and_by_keyboard(chat) -> None:
    bodies = posted(chat)
    send(chat, "Hello")
    act(chat, 1, "Edit")
    chat.locator(".edit:visible textarea").fill("The cat sat on the mat")
    chat.get_by_role("button", name="Save").click()
    chat.locator(".message .said").nth(1).evaluate(
        """(said) => getSelection().setBaseAndExtent(said.firstChild, 4, said.firstChild, 7)"""
    )
    chat.wait_for_selector("#refill:not([hidden])")
    assert chat.locator("#refill q").inner_text() == "cat"
    chat.fill("#refill input", "5")
    chat.click("#refill button")
    ended(chat)
    assert bodies[-1]["infill"] == "The [[5]] sat on the mat"
    assert bodies[-1]["messages"] == [{"role": "user", "content": "Hello"}]
    answer = said(chat)[1]
    assert answer.startswith("The ")
    assert answer.endswith(" sat on the mat")
    assert chat.locator(".said mark").count() == 1
    # By keyboard: the answer's editor, a selection, Tab to the bar.
    chat.locator(".message").nth(1).get_by_role("button", name="Edit").focus()
    chat.keyboard.press("Enter")
    chat.keyboard.press("Control+End")
    for _ in range(3):
        chat.keyboard.press("Shift+ArrowLeft")
    assert chat.locator("#refill q").inner_text() == "mat"
    chat.keyboard.press("Tab")
    chat.keyboard.type("3")
    chat.keyboard.press("Enter")
    ended(chat)
    assert bodies[-1]["infill"] == f"{answer[:-3]}[[3]]"
    assert said(chat)[1].startswith(answer[:-3])


def test_a_refill_that_a_deadline_cuts_leaves_the_words_as_they_were(chat) -> None:
    send(chat, "Hello")
    act(chat, 1, "Edit")
    chat.locator(".edit:visible textarea").fill("The cat sat on the mat")
    chat.get_by_role("button", name="Save").click()
    late = {"message": "it was not done within its deadline", "code": "deadline"}

    def cut_behind_a_step(route) -> None:
        events = route.fetch().text().split("\n\n")[:2]
        error = f"event: error\ndata: {json.dumps({'error': late})}"
        body = "\n\n".join([*events, error, ""])
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    chat.route("**/v1/denoise", cut_behind_a_step)
    chat.locator(".message .said").nth(1).evaluate(
        """(said) => getSelection().setBaseAndExtent(said.firstChild, 4, said.firstChild, 15)"""
    )
    chat.wait_for_selector("#refill:not([hidden])")
    chat.fill("#refill input", "6")
    chat.click("#refill button")
    ended(chat)
    assert "deadline" in chat.get_by_role("alert").inner_text()
    assert said(chat) == ["Hello", "The cat sat on the mat"]
    chat.reload()
    assert said(chat) == ["Hello", "The cat sat on the mat"]


def test_brackets_of_a_text_are_not_taken_for_holes_when_a_stretch_is_refilled(page) -> None:
    made = page.evaluate(
        """() => {
          const said = [];
          const at = (text, from, to) =>
            withHole({ warn: (refusal) => said.push(refusal.message) }, text, { from, to }, 2);
          return [at("x[[1]] <- a", 10, 11), at("a is x[[1]]", 0, 1), at("x[1] <- a", 8, 9), said];
        }"""
    )
    refusal = "Other [[n]] of this text would be filled in too"
    assert made == [None, None, "x[1] <- [[2]]", [refusal, refusal]]


def test_what_was_given_is_shown_without_the_token_that_begins_texts(page) -> None:
    text = page.evaluate(
        """() => {
          const tokens = ["<|beginoftext|>", "One ", "day"].map((text) => ({ text }));
          return promptOf({ start: { tokens }, slots: [3] });
        }"""
    )
    assert text == "One day"


def test_a_space_that_a_hole_begins_with_is_shown_once(page) -> None:
    """As the server of a model whose tokens bring spaces along tells of a text with holes."""
    filled = page.evaluate(
        """() => {
          const written = (text) => ({ text, masked: false });
          const mask = { text: "", masked: true };
          const tokens = [written("to"), mask, mask, written("x "), mask, mask, written(".")];
          const run = new Run({ tokens });
          run.end = { pieces: ["to", " the", "re", "x ", " and", " so", "."] };
          return fillIn(run, ["to ", "2", "x  ", "1", " ", "1", "."]);
        }"""
    )
    assert filled == {"text": "to therex  and so.", "stretch": {"from": 14, "to": 17}}


def test_a_hole_that_grows_in_an_answer_is_shown_and_taken_over_whole(page) -> None:
    shown, filled = page.evaluate(
        """() => {
          const written = (text) => ({ text, masked: false });
          const run = new Run({ tokens: [written("a"), { text: "", masked: true }, written("b")] });
          const [host, parts] = [document.createElement("p"), ["a", "1", "b"]];
          const draft = new Draft(host, run, parts);
          const nothing = { position: [], id: [], p: [], entropy: [] };
          const masked = { position: [], candidates: [], lambda: [], entropy: [], p: [], w: [] };
          const committed = { position: [2, 1], id: [8, 7], p: [1, 1], entropy: [0, 0] };
          run.add({ step: 1, texts: {}, source: [-1, -1], committed: nothing, masked });
          run.add({ step: 2, texts: { 7: "x", 8: "y" }, committed, masked });
          draft.draw();
          run.end = { pieces: ["a", "x", "y", "b"] };
          return [host.textContent, fillIn(run, parts)];
        }"""
    )
    assert shown == "axyb"
    assert filled == {"text": "axyb", "stretch": {"from": 1, "to": 3}}


def test_a_stretch_of_any_text_is_refilled(page) -> None:
    bodies = posted(page)
    page.fill("#text", "One day, Tom went to the park.")
    page.set_checked("#compare", False)
    page.eval_on_selector("#text", "(field) => { field.focus(); field.setSelectionRange(8, 17); }")
    page.wait_for_selector("#refill:not([hidden])")
    page.click("#refill button")
    page.wait_for_selector(".outcome:has-text('to the park')")
    ended(page)
    assert bodies[0]["infill"] == "One day,[[2]] to the park."
    page.locator(".outcome").evaluate(
        """(outcome) => {
          const range = document.createRange();
          range.selectNodeContents(outcome);
          range.setStart(outcome.lastChild, outcome.lastChild.data.length - 5);
          getSelection().removeAllRanges();
          getSelection().addRange(range);
        }"""
    )
    page.click("#refill button")
    page.wait_for_function("() => document.querySelectorAll('.token.slot.done').length === 2")
    assert bodies[1]["infill"].endswith(" to the [[2]]")
    assert bodies[1]["infill"].startswith("One day,")
    page.click("#use")
    text = page.input_value("#text")
    assert text.startswith("One day,")
    assert " to the " in text
    assert "[[" not in text
    put(page, "max_tokens", "6")
    run(page)
    assert bodies[-1]["prompt"] == text


def test_the_canvas_of_an_answer_with_a_hole_is_the_templates(chat_address, model) -> None:
    """The conversation up to the answer, the answer, and the end of its turn."""
    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "infill": "one [[2]] two", "stream": False}
    request = urllib.request.Request(
        f"{chat_address}/v1/denoise",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)
    tokens = answer["start"]["tokens"]
    checkpoint = softmask.load(model, device="cpu")
    prompt = encode_chat(checkpoint, messages)
    assert [token["id"] for token in tokens[: len(prompt)]] == prompt
    assert tokens[-1]["text"] == "<|im_end|>"
    written = tokens[len(prompt) : -1]
    assert "".join(token["text"] for token in written if not token["masked"]) == "one  two"
    assert sum(token["masked"] for token in written) == 2
    assert answer["end"]["text"].startswith("one ")
    assert answer["end"]["text"].endswith(" two")
