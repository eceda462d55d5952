"""The page of texts in a headless Chromium, against the real server with the bundled model."""

from __future__ import annotations

import json
import re
import urllib.request
from itertools import pairwise
from pathlib import Path

import pytest
from browsing import (
    counter,
    ended,
    example,
    frames,
    load_trace,
    posted,
    put,
    run,
    scrub,
    serving_alone,
    view,
)
from official import official

from softmask.config import (
    FEEDBACK_PRESETS,
    SOFT_MASK_SCHEDULES,
)
from softmask.decoding.generation import Generation
from softmask.puzzles.puzzles import is_solved
from softmask.sampling import CACHES, SamplingConfig
from softmask.serving.page import live_data, page_csp, page_html
from softmask.serving.trace import record_ways
from softmask.shipped_rules import UNMASK_RULES

SUDOKU = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"
COUNTDOWN = "Countdown\n74,59,82,67\nSolution\n"
HOLED = "One day,[[5]] went to the park. He was very happy because[[8]]."
SIGNS = {"\n": "\u21b5", "<|endoftext|>": "\u220e"}


@pytest.fixture(scope="module")
def trace(address):
    """A Sudoku, soft-masked and plain, as a trace file."""
    settings = {"alg": "topk_margin", "block_length": None}
    body = {"prompt": SUDOKU, "max_tokens": 24, "temperature": 0, "seed": 1, "stream": False}
    runs = []
    for more in ({}, {"soft_mask": None}):
        request = urllib.request.Request(
            f"{address}/v1/denoise",
            json.dumps({**body, "softmask": {**settings, **more}}).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request) as response:
            runs.append(json.load(response))
    return {"format": "softmask-trace", "version": 1, "runs": runs}


def test_a_hole_is_laid_out_as_it_grows(new_page, tmp_path) -> None:
    more = {"max_new_tokens": 12, "sampling": {"temperature": 0.0, "top_p": None}}
    trace = record_ways(
        Generation(official("dreamon"), "some text [[4]] and so", infill=True, **more), [None]
    )
    (run_,) = trace["runs"]
    page = new_page()
    load_trace(page, trace, tmp_path)
    page.click("#cells")
    shown = """() => [...document.querySelectorAll(".token:not([hidden])")].map((token) =>
      token.classList.contains("masked") ? null : token.querySelector(".own").textContent)"""
    given, size, sizes = len(run_["start"]["tokens"]) - 4, 4, []
    for number, step in enumerate(run_["steps"], start=1):
        size = len(step.get("source", [0] * size))
        sizes.append(size)
        scrub(page, number)
        tokens = page.evaluate(shown)
        assert len(tokens) == given + size
        assert [i for i, text in enumerate(tokens) if text is None] == step["masked"]["position"]
    scrub(page, 0)
    assert len(page.evaluate(shown)) == given + 4
    assert max(sizes) > 4


# What it is.


def test_the_page_is_one_file_that_asks_for_nothing_else(new_page, trace, tmp_path) -> None:
    html = page_html({"mode": "trace", "trace": trace})
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert not re.search(r'\s(style|on\w+)="', html)
    page = new_page()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    load_trace(page, trace, tmp_path)
    page.wait_for_selector(".token")
    assert [url for url in requests if not url.startswith("data:")] == [page.url]


def test_the_policy_allows_the_page_and_nothing_besides(page, address) -> None:
    with urllib.request.urlopen(address) as response:
        html, policy = response.read().decode(), response.headers["content-security-policy"]
    assert policy == page_csp(html)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = true";
          document.body.append(script);
        }"""
    )
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("window.violations.splice(0)") == ["script-src-elem"]


def test_data_cannot_break_out_of_its_element(new_page, trace, tmp_path) -> None:
    evil = "</script><script>window.hacked = 1</script><!--"
    trace = json.loads(json.dumps(trace))
    trace["runs"][0]["start"]["model"] = evil
    page = new_page()
    load_trace(page, trace, tmp_path)
    assert page.locator("#model").inner_text() == evil
    assert page.evaluate("window.hacked") is None


# A run.


def test_it_opens_on_a_sudoku_that_plays_where_soft_and_plain_part(page, new_page) -> None:
    page.wait_for_function("() => Number(document.getElementById('scrub').value) > 0")
    assert page.locator("#play").inner_text() == "Pause"
    page.click("#play")
    scrub(page, 3)
    assert page.locator(".panel h2").all_inner_texts() == ["soft-masked", "plain"]
    assert page.locator(".grid .token:visible").count() == 2 * 81
    strongest = "(ghosts) => Math.max(...ghosts.map((g) => Number(g.style.opacity)))"
    soft, plain = (
        page.locator(".panel").nth(i).locator(".ghost").evaluate_all(strongest) for i in (0, 1)
    )
    assert soft > 0.1
    assert plain == 0
    scrub(page, 8)
    assert page.locator(".summary .right").inner_text() == "solved"
    assert page.locator(".differs .own").count() > 1
    parting = re.compile(
        r"first decides differently at step (\d) "
        r"\((row \d, column \d): (\d), ([\w-]+) (\d)\); (\d+) of 53 cells differ"
    )
    summaries = page.locator(".summary").all_inner_texts()
    soft, plain = (parting.search(text).groups() for text in summaries)
    step, place, own, name, theirs, count = soft
    assert name == "plain"
    assert plain == (step, place, theirs, "soft-masked", own, count)
    row, column = (int(number) for number in re.findall(r"\d", place))
    for at, is_open in ((int(step) - 1, True), (int(step), False)):
        scrub(page, at)
        cells = (
            page.locator(".panel").nth(i).locator(".token:visible").nth(9 * row + column - 10)
            for i in (0, 1)
        )
        assert all("masked" in cell.get_attribute("class").split() for cell in cells) == is_open
    still = new_page(reduced_motion="reduce")
    still.goto(page.url)
    frames(still, 10)
    assert still.locator("#at").inner_text() == "step 2 of 8"
    assert still.locator("#play").inner_text() == "Play"


def test_the_first_example_is_a_sudoku_that_is_filled_in_where_it_stands(page) -> None:
    run(page, compare=False)
    assert page.locator("#about-run").is_hidden()
    assert page.locator(".token.given:visible").count() == 28
    assert page.locator(".summary").inner_text() == "solved"
    digits = "".join(page.locator(".token:visible .own").all_inner_texts())
    puzzle = (
        re.sub(r"\[\[(\d)\]\]", lambda hole: "0" * int(hole[1]), page.input_value("#text"))
        .removeprefix("Sudoku\n")
        .strip()
    )
    answer = "\n".join(digits[row : row + 9] for row in range(0, 81, 9))
    assert is_solved("sudoku", puzzle, answer)
    assert page.locator(".token.masked").count() == 0
    assert page.locator(".outcome").is_hidden()
    page.click("#cells")
    assert page.locator(".outcome").inner_text().strip() == f"Sudoku\n{answer}"


def test_a_grid_against_the_rules_or_stopped_is_not_called_solved(
    new_page, trace, tmp_path
) -> None:
    def with_answer(position: int, text: str):
        changed = json.loads(json.dumps(trace))
        run = changed["runs"][0]
        first = next(i for i, token in enumerate(run["start"]["tokens"]) if token["masked"])
        ids = {v: int(k) for step in run["steps"] for k, v in step["texts"].items()}
        ids |= {token["text"]: token["id"] for token in run["start"]["tokens"]}
        for step in run["steps"]:
            for i, place in enumerate(step["committed"]["position"]):
                if place == first + position:
                    step["committed"]["id"][i] = ids[text]
        changed["runs"] = [run]
        return changed

    page = new_page()
    for position, text, verdict in (
        (0, "1", "a digit comes twice in row 1"),
        (1, "3", "a given digit was changed"),
        (4, "1", "the rows are not lines of their own"),
    ):
        load_trace(page, with_answer(position, text), tmp_path)
        assert page.locator(".summary").inner_text() == f"not solved: {verdict}"
    stopped = json.loads(json.dumps(trace))
    stopped["runs"][0]["steps"] = []
    stopped["runs"][0]["end"] |= {"finish_reason": "cancelled", "text": ""}
    load_trace(page, stopped, tmp_path)
    soft, plain = page.locator(".summary").all_inner_texts()
    assert re.search(r"differently at step \d \(row \d, column \d: none, plain \d\)", soft)
    assert re.search(r"differently at step \d \(row \d, column \d: \d, soft-masked none\)", plain)


def test_a_countdown_is_judged_by_its_rules(new_page, tmp_path) -> None:
    prompt = [{"id": i, "text": c, "masked": False} for i, c in enumerate(COUNTDOWN)]
    tokens = [*prompt, {"id": 3, "text": "", "masked": True}]
    start = {"id": "run-1", "name": "plain", "model": "m", "settings": {}, "infill": False}
    end = {"finish_reason": "stop", "forwards": 1, "steps": 1, "seconds": 0.1, "pieces": None}
    page = new_page()
    for answer, verdict in (
        ("74-59=15,82-15=67", "solved"),
        ("82-74=8,59+8=67", "solved"),
        ("74+59=133,133-82=67", "not solved: 133-82 is not 67"),
        ("74-59=15,82-15=68", "not solved: 82-15 is not 68"),
        ("74-59=15,15+59=74", "not solved: 59 is not there to be used"),
        ("74-59=15,82+15=97", "not solved: 97 is not 67"),
        ("82/2=41,1+1=2", "not solved: 2 is not there to be used"),
        ("74-59=15", "not solved: it takes 2 steps"),
        ("Tom,went", "not solved: Tom is no step"),
    ):
        run = {"start": {**start, "tokens": tokens}, "steps": [], "end": {**end, "text": answer}}
        load_trace(page, {"format": "softmask-trace", "version": 1, "runs": [run]}, tmp_path)
        assert page.locator(".summary").inner_text() == verdict
        assert is_solved("countdown", "74,59,82,67", answer) == (verdict == "solved")


def test_the_settings_of_an_example_go_with_its_text_and_ones_own_stay(page) -> None:
    names = ("softmask.steps", "softmask.alg", "softmask.block_length", "temperature", "seed")

    def settings() -> list[str]:
        return [page.input_value(f"[name='{name}']") for name in names]

    page.evaluate("document.getElementById('settings').open = true")
    assert settings() == ["8", "topk_margin", "0", "0", ""]
    page.fill("#text", page.input_value("#text").replace("78[[2]]3", "[[4]]3"))
    page.fill("[name='softmask.steps']", "12")
    assert settings() == ["12", "topk_margin", "0", "0", ""]
    page.fill("#text", "")
    page.type("#text", "Lily and")
    assert settings() == ["12", "", "", "", ""]
    example(page, "Sudoku")
    assert settings() == ["8", "topk_margin", "0", "0", ""]
    example(page, "Story")
    assert settings() == ["", "", "", "", "0"]


def test_holes_are_filled_in_and_what_was_given_stays(page) -> None:
    page.fill("#text", HOLED)
    run(page, compare=False)
    assert page.locator(".token.slot").count() == 13
    text = page.locator(".outcome").inner_text()
    assert text.startswith("One day,")
    assert " went to the park. He was very happy because" in text
    assert page.locator(".token.given").first.inner_text() == "One"


def test_soft_and_plain_run_side_by_side_on_one_seed_with_differences_marked(page) -> None:
    example(page, "Story")
    put(page, "max_tokens", "40")
    bodies = posted(page)
    run(page)
    assert page.locator(".panel h2").all_inner_texts() == ["soft-masked", "plain"]
    soft, plain = bodies
    assert soft["seed"] == plain["seed"] == 0
    assert "soft_mask" not in soft["softmask"]
    assert plain["softmask"]["soft_mask"] is None
    for panel in (0, 1):
        assert counter(page, "step", panel) == "40 / 40"
        assert float(counter(page, "tokens / forward", panel)) >= 1
        assert counter(page, "time", panel).endswith(" s")
    words = [set(re.findall(r"\w+", text)) for text in page.locator(".outcome").all_inner_texts()]
    marked = [
        set(page.locator(".outcome").nth(i).locator("mark").all_inner_texts()) for i in (0, 1)
    ]
    for i in (0, 1):
        assert words[i] - words[1 - i] <= marked[i] <= words[i] | set(".,!?\"'")


def test_masked_positions_show_what_is_fed_back_as_strongly_as_it_is(
    new_page, trace, tmp_path
) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    step = trace["runs"][0]["steps"][4]
    scrub(page, step["step"])
    masked = step["masked"]
    texts = {k: v for s in trace["runs"][0]["steps"] for k, v in s["texts"].items()}
    for row, position in enumerate(masked["position"]):
        token = page.locator(".panel").first.locator(f"[data-position='{position}'] .ghost")
        opacity = float(token.evaluate("(ghost) => ghost.style.opacity"))
        assert opacity == pytest.approx(masked["lambda"][row] * masked["w"][row][0], abs=1e-4)
        text = texts[str(masked["candidates"][row][0])]
        assert token.inner_text().strip() == SIGNS.get(text, text.strip())
    plain = (
        page.locator(".panel")
        .nth(1)
        .locator(".ghost")
        .evaluate_all("(ghosts) => ghosts.map((g) => Number(g.style.opacity))")
    )
    assert not any(plain)


def test_a_run_can_be_scrubbed_back_step_by_step(new_page, trace, tmp_path) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    steps = trace["runs"][0]["steps"]
    slider = page.locator("#scrub")
    slider.focus()
    final = view(page)
    for step in reversed(steps[-4:]):
        frames(page)
        seen = view(page)
        assert page.locator("#at").inner_text() == f"step {step['step']} of 24"
        assert sum(seen["masked"]) == step["left"]
        page.keyboard.press("ArrowLeft")
    for step in steps:
        scrub(page, step["step"])
        seen = view(page)
        masked = [i for i, is_masked in enumerate(seen["masked"]) if is_masked]
        assert masked == step["masked"]["position"]
        if step["step"] < 24:
            fresh = [i for i, is_fresh in enumerate(seen["fresh"]) if is_fresh]
            assert fresh == sorted(step["committed"]["position"])
    scrub(page, 0)
    assert sum(view(page)["masked"]) == 24
    scrub(page, 24)
    assert view(page) == final


def test_a_run_is_played_back_and_can_be_paused(new_page, trace, tmp_path) -> None:
    page = new_page()
    page.clock.install(time=0)  # the page's time goes on only where this test says so
    load_trace(page, trace, tmp_path)
    page.clock.pause_at(10_000)
    page.locator("#scrub").fill("14")
    page.click("#play")
    page.clock.run_for(1000)  # of 333 ms a step
    page.click("#play")
    assert 16 <= int(page.input_value("#scrub")) <= 17
    step = page.input_value("#scrub")
    page.clock.run_for(1000)
    assert page.input_value("#scrub") == step
    page.click("#play")
    page.clock.run_for(4000)
    assert page.input_value("#scrub") == "24"
    assert page.locator("#play").inner_text() == "Play"


def test_a_position_tells_its_candidates_under_pointer_and_focus(new_page, trace, tmp_path) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    step = trace["runs"][0]["steps"][3]
    scrub(page, step["step"])
    position, masked = step["masked"]["position"][2], step["masked"]
    token = page.locator(".panel").first.locator(f"[data-position='{position}']")
    popover = page.locator("#popover")
    token.hover()
    text = popover.inner_text()
    assert f"position {position}: masked, decided at step" in text
    assert f"lambda {masked['lambda'][2]:.2f}, entropy {masked['entropy'][2]:.2f} nats" in text
    assert len(popover.locator("tr").all()) == 1 + len(masked["candidates"][2])
    shares = popover.locator("tr:nth-child(2) td").all_inner_texts()
    assert shares[1:] == [f"{masked['p'][2][0]:.2f}", f"{masked['w'][2][0]:.2f}"]
    page.keyboard.press("Escape")
    assert popover.is_hidden()
    page.mouse.move(0, 0)
    token.focus()
    assert popover.is_visible()
    page.keyboard.press("ArrowRight")
    assert f"position {position + 1}: " in popover.inner_text()
    scrub(page, 24)
    assert f"position {position + 1}: decided at step" in popover.inner_text()
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.dataset.position") != str(position + 1)


def test_the_strip_scrubs_and_tells_and_can_show_other_numbers(new_page, trace, tmp_path) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    strip = page.locator(".strip canvas").first
    box = strip.bounding_box()
    before = strip.evaluate("(canvas) => canvas.toDataURL()")
    page.mouse.move(box["x"] + box["width"] * 5.5 / 24, box["y"] + 5)
    assert page.locator("#popover").is_visible()
    page.mouse.down()
    assert page.input_value("#scrub") == "6"
    page.mouse.move(box["x"] + box["width"] * 8.5 / 24, box["y"] + 5)
    page.mouse.up()
    assert page.input_value("#scrub") == "9"
    assert page.locator(".token[aria-selected]").count() == 2  # in both runs
    pictures = {before}
    for metric in ("lambda", "entropy"):
        page.select_option("#metric", metric)
        frames(page)
        pictures.add(strip.evaluate("(canvas) => canvas.toDataURL()"))
    assert len(pictures) == 3
    assert page.locator("#high").inner_text().endswith("nats")


@pytest.mark.long  # watches a whole text being written
def test_nothing_moves_while_tokens_come(page) -> None:
    """The answer is held back until the stand-in for its canvas is there."""
    holding = []
    page.route("**/v1/denoise", lambda route: holding.append(route))
    for name in ("Sudoku", "Story", HOLED):
        if name == HOLED:
            page.fill("#text", HOLED)
        else:
            example(page, name)
        put(page, "max_tokens", "24")
        page.click("#run")
        while len(holding) < 2:
            page.wait_for_timeout(20)
        frames(page, 3)
        page.evaluate("window.shifts = 0")
        for route in holding:
            route.continue_()
        ended(page)
        frames(page, 3)
        holding.clear()
        assert page.evaluate("window.shifts") < 0.001, name
    page.click("#prose")
    frames(page, 3)
    page.evaluate("window.shifts = 0")
    for step in range(0, 24, 2):
        scrub(page, step)
    assert page.evaluate("window.shifts") < 0.001


def test_a_run_is_stopped_and_what_came_stays_and_can_be_kept(page, address) -> None:
    example(page, "Story")
    put(page, "max_tokens", "230")
    page.set_checked("#compare", False)
    page.click("#run")
    page.wait_for_function("() => document.querySelectorAll('.token.done').length > 2")
    scrub(page, 1)
    page.wait_for_function("() => document.getElementById('play').textContent === 'Follow'")
    assert page.input_value("#scrub") == "1"
    page.click("#play")
    page.wait_for_function("() => Number(document.getElementById('scrub').value) > 3")
    page.click("#stop")
    ended(page)
    assert "stopped" in page.locator(".summary").inner_text()
    assert 0 < page.locator(".token.masked").count() < 230
    assert page.locator("#alert").inner_text() == ""
    with page.expect_download() as download:
        page.click("#json")
    (run_,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["runs"]
    assert run_["end"]["finish_reason"] == "cancelled"
    # The room that was kept for 230 tokens is given back.
    page.click("#cells")
    spare = page.eval_on_selector(
        ".outcome",
        """(outcome) => {
          const text = document.createRange();
          text.selectNodeContents(outcome);
          const { height } = text.getBoundingClientRect();
          return (outcome.offsetHeight - height) / parseFloat(getComputedStyle(outcome).lineHeight);
        }""",
    )
    assert spare < 4
    freed = "async () => /^softmask_running 0/m.test(await (await fetch('/metrics')).text())"
    page.wait_for_function(freed)


def live_page(page, address: str, **model) -> list[dict]:
    """The page of another model; what it posts is refused, and kept."""
    bodies: list[dict] = []
    described = {
        **{"name": "other", "context": 64, "chat": False, "soft_mask": None, "sampling": {}},
        **{"max_tokens": 16, "bundled": False, "keyed": False, **model},
    }
    html = page_html(live_data(described))

    def refuse(route) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=400, body='{"error": {"message": "no"}}')

    page.route(f"{address}/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.route("**/v1/denoise", refuse)
    page.goto(address)
    return bodies


def test_what_is_empty_is_not_sent_and_defaults_are_shown(new_page, address) -> None:
    page = new_page()
    soft = {"mode": "topk", "k": 2, "scale": 0.5, "offset": -1.0, "steepness": 2.0}
    soft |= {"temperature": 1.0, "schedule": "linear"}
    sampling = {"temperature": 0.7, "block_length": 16, "alg": "entropy"}
    kind = {"prompt_starts_with": ["Sum\n"], "sampling": {"alg": "origin"}, "max_new_tokens": 3}
    bodies = live_page(page, address, soft_mask=soft, sampling=sampling, prompt_kinds=[kind])
    assert page.locator("#examples").is_hidden()
    page.evaluate("document.getElementById('settings').open = true")
    for name, value in (("temperature", "0.7"), ("softmask.block_length", "16")):
        assert page.get_attribute(f"[name='{name}']", "placeholder") == value
    assert page.locator("[name='softmask.alg'] option").first.inner_text() == "default: entropy"
    assert page.input_value("[name='softmask.soft_mask.schedule']") == "linear"
    page.fill("#text", "Sum\n1+1=")  # a text of a kind that has defaults of its own
    assert page.get_attribute("[name='max_tokens']", "placeholder") == "3"
    assert page.get_attribute("[name='temperature']", "placeholder") == ""
    assert page.locator("[name='softmask.alg'] option").first.inner_text() == "default: origin"
    page.fill("#text", "Hello")
    page.set_checked("#compare", False)
    run(page)
    put(page, "softmask.block_length", "0")
    put(page, "softmask.soft_mask.scale", "0.25")
    put(page, "max_tokens", "5")
    run(page)
    plain, changed = ({k: v for k, v in body.items() if k != "seed"} for body in bodies)
    assert plain == {"prompt": "Hello", "softmask": {}}
    settings = {"block_length": None, "soft_mask": {**soft, "scale": 0.25}}
    assert changed == {"prompt": "Hello", "max_tokens": 5, "softmask": settings}
    for preset, more in (("spherical", {"scale": "0.2"}), ("off", {"k": "1"})):
        page.select_option("[name='softmask.soft_mask.feedback']", preset)
        for name, value in more.items():
            put(page, f"softmask.soft_mask.{name}", value)
        run(page)
    arc, off = (body["softmask"]["soft_mask"] for body in bodies[2:])
    assert (arc, off) == ({"feedback": "spherical", "scale": 0.2}, None)
    page.select_option("[name='softmask.soft_mask.feedback']", "spherical")
    assert page.input_value("[name='softmask.soft_mask.mixture']") == "spherical"
    page.select_option("[name='softmask.soft_mask.feedback']", "")
    assert page.input_value("[name='softmask.soft_mask.scale']") == "0.5"
    put(page, "max_tokens", "1.5")  # no number of its kind: nothing is posted
    page.evaluate("document.getElementById('settings').open = false")
    page.click("#run")
    assert "max_tokens must be a whole number" in page.get_by_role("alert").inner_text()
    assert page.get_attribute("#settings", "open") is not None
    assert len(bodies) == 4
    put(page, "max_tokens", "")
    for text in ("Sum\n1+[[1]]=2", "1+[[1]]=2"):  # the first is of a kind that consists of lines
        page.fill("#text", text)
        run(page)
    assert [body["infill"] for body in bodies[4:]] == ["Sum\n1+[[1]]=2\n", "1+[[1]]=2"]


def test_the_choices_and_what_settings_mean_are_the_librarys(page) -> None:
    field = page.locator("[name='softmask.threshold']")
    sentence = page.locator(f"[id='{field.get_attribute('aria-describedby')}']").text_content()
    assert sentence == SamplingConfig.__dataclass_fields__["threshold"].metadata["help"]
    assert page.locator("#settings [name]").count() == page.locator("#settings small").count()
    for name, values in (
        ("softmask.alg", UNMASK_RULES),
        ("softmask.cache", CACHES),
        ("softmask.soft_mask.schedule", SOFT_MASK_SCHEDULES),
        ("softmask.soft_mask.feedback", tuple(FEEDBACK_PRESETS)),
    ):
        options = page.locator(f"[name='{name}'] option").all_text_contents()
        assert tuple(options[1:]) == values


# Errors.


def test_a_refusal_says_what_to_do_and_that_what_is_below_is_the_run_before(page) -> None:
    run(page, compare=False)
    before = view(page)
    assert page.locator("#about-run").is_hidden()
    put(page, "softmask.alg", "origin")
    put(page, "softmask.threshold", "0.9")
    run(page)
    alert = page.get_by_role("alert").inner_text()
    assert "threshold commits by confidence" in alert
    assert "Change the text or the settings" in alert
    assert view(page) == before
    about = page.locator("#about-run").inner_text()
    assert "Below is the run before: the last one brought nothing." in about
    assert page.evaluate("document.activeElement.name") == "softmask.threshold"
    put(page, "softmask.threshold", "7")
    run(page)
    assert page.get_by_role("alert").inner_text().count("threshold") == 1


def test_an_error_of_the_page_itself_is_shown_and_leaves_it_free_to_run(page) -> None:
    example(page, "Story")
    put(page, "max_tokens", "6")
    page.set_checked("#compare", False)
    for part in ("Texts.prototype.expect", "Run.prototype.add"):
        fails = "() => { throw new TypeError('no canvas'); }"
        page.evaluate(f"void ([window.whole, {part}] = [{part}, {fails}])")
        run(page)
        alert = page.get_by_role("alert").inner_text()
        assert alert == "This page failed: no canvas. Run again, or reload the page."
        page.evaluate(f"void ({part} = window.whole)")
    run(page)
    assert page.get_by_role("alert").inner_text() == ""
    assert page.locator("#about-run").is_hidden()
    assert page.locator(".token.slot.done").count() == 6


def test_a_busy_server_says_when_to_come_back(page) -> None:
    body = json.dumps({"error": {"message": "the server is busy: 64 requests are waiting"}})
    page.route(
        "**/v1/denoise",
        lambda route: route.fulfill(status=429, headers={"retry-after": "7"}, body=body),
    )
    run(page, compare=False)
    alert = page.get_by_role("alert").inner_text()
    assert alert == "The server is busy: 64 requests are waiting. Run again in 7 seconds."
    assert page.locator("#about-run").is_visible()  # the recorded run is there again


@pytest.mark.long  # a server of its own
def test_an_error_is_shown_when_the_server_goes_away_and_what_came_stays(new_page) -> None:
    page = new_page()
    with serving_alone("--api-key", "secret") as (address, process):
        page.goto(address)
        run(page, compare=False)
        assert "wants an API key" in page.get_by_role("alert").inner_text()
        page.fill("#key input", "secret")
        example(page, "Story")
        put(page, "max_tokens", "230")
        page.set_checked("#compare", False)
        page.click("#run")
        page.wait_for_function("() => document.querySelectorAll('.token.done').length > 2")
        process.kill()
        ended(page)
    assert "went away in mid-run" in page.get_by_role("alert").inner_text()
    assert page.locator(".token.done").count() > 2
    run(page)
    assert "no server answers at" in page.get_by_role("alert").inner_text().lower()
    assert page.locator(".token.done").count() > 2
    assert "secret" not in page.url


def test_a_script_in_a_prompt_is_text(page) -> None:
    evil = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>"
    page.fill("#text", evil)
    put(page, "max_tokens", "6")
    run(page)
    assert evil in page.locator(".canvas").first.evaluate("(canvas) => canvas.textContent")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#panels img, #panels script").count() == 0


# Keeping and sharing.


def test_a_link_runs_with_its_text_and_settings_and_is_sent_to_no_server(page, new_page) -> None:
    page.fill("#text", "Lily & Tom #1, [[3]] 100%\nwent")
    put(page, "seed", "7")
    put(page, "softmask.soft_mask.k", "2")
    put(page, "softmask.alg", "maskgit_plus")
    page.set_checked("#compare", False)
    page.click("#share")
    link = page.url
    other = new_page()
    urls, bodies = [], posted(other)
    other.on("request", lambda request: urls.append(request.url))
    other.goto(link)
    other.wait_for_selector(".outcome mark, .token.done")
    ended(other)
    fields = """() => [...document.querySelectorAll("#settings [name], #text, #compare")].map(
        (field) => [field.value, field.checked])"""
    assert other.evaluate(fields) == page.evaluate(fields)
    (body,) = bodies
    assert body["infill"] == "Lily & Tom #1, [[3]] 100%\nwent"
    assert body["softmask"]["soft_mask"]["k"] == 2
    assert body["softmask"]["soft_mask"]["scale"] > 0.1
    assert body["seed"] == 7
    assert "max_tokens" not in body
    assert other.locator(".token.slot").count() == 3
    assert not any("Lily" in url for url in urls[1:])
    # One that would keep the server busy, or that is damaged, is only shown.
    for more, fault in (
        ("max_tokens=4000", "asks for more than 512 tokens or steps"),
        ("steps=4000", "asks for more than 512 tokens or steps"),
        ("seed=8&softmask.steps=many&alg=best&step=9", "softmask.steps, alg, step is no setting"),
    ):
        other.evaluate("(more) => { location.hash = `#text=Tom&${more}`; }", more)
        other.wait_for_selector(f"#alert:has-text('{fault}')")
        assert other.get_by_role("alert").inner_text().endswith("Look at it, and run it.")
    assert other.input_value("#text") == "Tom"
    assert [other.input_value(f"[name='{name}']") for name in ("seed", "softmask.alg")] == ["8", ""]
    assert len(bodies) == 1


@pytest.mark.long  # two pages
def test_an_exported_trace_gives_the_same_view_when_opened_again(page, new_page, tmp_path) -> None:
    run(page)
    page.click("#cells")
    scrub(page, 4)
    seen = view(page)
    with page.expect_download() as download:
        page.click("#json")
    path = tmp_path / "trace.json"
    download.value.save_as(path)
    trace = json.loads(path.read_text(encoding="utf-8"))
    other = new_page()
    load_trace(other, trace, tmp_path)
    assert other.locator("#form").is_hidden()
    scrub(other, 4)
    assert view(other) == seen
    page.fill("#text", HOLED)
    run(page, compare=False)
    page.set_input_files("#file", path)
    page.wait_for_function("() => document.querySelectorAll('.panel').length === 2")
    page.click("#cells")
    scrub(page, 4)
    assert view(page) == seen


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "This file is no JSON."),
        ('{"a": 1}', "This file is no trace of softmask."),
        ('{"format": "softmask-trace", "version": 2}', "This trace has version 2"),
        (
            '{"format": "softmask-trace", "version": 1, "runs": [{"start": {"tokens": []}}]}',
            "This trace is damaged",
        ),
    ],
)
def test_a_file_that_is_no_trace_is_refused(page, text: str, sentence: str) -> None:
    file = {"name": "x.json", "mimeType": "application/json", "buffer": text.encode()}
    page.set_input_files("#file", file)
    page.wait_for_selector("#alert strong")
    assert sentence in page.get_by_role("alert").inner_text()


def test_a_trace_is_opened_by_dropping_it(page, trace) -> None:
    page.evaluate(
        """(text) => {
          const data = new DataTransfer();
          data.items.add(new File([text], "trace.json"));
          for (const type of ["dragover", "drop"]) {
            const settings = { dataTransfer: data, bubbles: true, cancelable: true };
            document.body.dispatchEvent(new DragEvent(type, settings));
          }
        }""",
        json.dumps(trace),
    )
    page.wait_for_selector(".grid:has(.token:nth-child(30))")
    assert page.locator(".token:visible").count() == 2 * 16


def test_the_picture_is_a_png_of_what_is_shown(new_page, trace, tmp_path) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    scrub(page, 6)
    with page.expect_download() as download:
        page.click("#png")
    path = Path(download.value.path())
    assert path.read_bytes().startswith(b"\x89PNG")
    width, height = (int.from_bytes(path.read_bytes()[i : i + 4]) for i in (16, 20))
    box = page.locator("#panels").bounding_box()
    assert width == pytest.approx(2 * (box["width"] + 48), abs=2)
    assert height == pytest.approx(2 * (box["height"] + 48), abs=2)
    assert path.stat().st_size > 20_000


# For everybody.


def test_a_keyboard_alone_runs_scrubs_and_reads(page) -> None:
    put(page, "max_tokens", "24")
    page.focus("#text")
    page.keyboard.press("Control+a")
    page.keyboard.type("One day, Tom")
    page.keyboard.press("Control+Enter")
    ended(page)
    reached = []
    for _ in range(24):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.append(focused)
        if focused == "scrub":
            steps = int(page.get_attribute("#scrub", "max"))
            page.keyboard.press("ArrowLeft")
            frames(page)
            assert page.locator("#at").inner_text() == f"step {steps - 1} of {steps}"
        if "token" in focused:
            break
    assert {"run", "compare", "play", "scrub", "cells", "json"} <= set(reached)
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.className").startswith("token")
    assert page.locator("#popover").is_visible()
    page.keyboard.press("Tab")
    assert "token" not in page.evaluate("document.activeElement.className") or (
        page.evaluate("document.activeElement.closest('.panel').querySelector('h2').textContent")
        == "plain"
    )


def test_a_screen_reader_is_told_how_far_it_is_and_the_final_text(page) -> None:
    page.evaluate(
        """() => {
          window.told = [];
          const status = document.getElementById("status");
          const tell = () => window.told.push([performance.now(), status.textContent]);
          new MutationObserver(tell).observe(status, { childList: true });
        }"""
    )
    example(page, "Story")
    put(page, "max_tokens", "72")
    run(page)
    told = page.evaluate("window.told")
    *progress, (_, final) = told
    assert final.startswith("soft-masked: ")
    assert "\nplain: " in final
    for _, text in progress:
        assert re.fullmatch(r"step \d+ of 72, \d+ masks? left", text)
    times = [time for time, _ in progress]
    assert all(b - a >= 1900 for a, b in pairwise(times))
    alternative = page.locator(".alternative").first.evaluate("(p) => p.textContent")
    assert alternative.startswith("One day, Tom")
    assert page.locator("#status").get_attribute("aria-live") == "polite"


@pytest.mark.long  # reads the whole page in each state
def test_accessibility_has_nothing_serious_in_any_state(page, chat) -> None:
    axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The checker is put into the page as a script, which the page's own policy forbids.
    source = Path(axe_playwright.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(reduced_motion="reduce")
    # Every rule with light colours, those of colours with dark ones too.
    schemes = {"light": {}, "dark": {"runOnly": ["color-contrast", "link-in-text-block"]}}

    def check(state: str) -> None:
        page.evaluate(source)
        for scheme, rules in schemes.items():
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found = page.evaluate(
                "(rules) => axe.run(rules).then((results) => results.violations)", rules
            )
            serious = [
                (state, scheme, rule["id"], node["html"][:120], node["failureSummary"])
                for rule in found
                if rule["impact"] in ("serious", "critical")
                for node in rule["nodes"]
            ]
            assert not serious

    page.evaluate("document.getElementById('settings').open = true")
    check("opening")
    run(page)
    scrub(page, 3)
    page.locator(".token.masked").first.focus()
    check("focus in a run")
    put(page, "softmask.alg", "origin")
    put(page, "softmask.threshold", "0.9")
    page.click("#prose")
    run(page)
    check("prose and an error")
    page = chat
    page.fill("#say", "Hello")
    page.press("#say", "Enter")
    ended(page)
    page.get_by_role("button", name="Edit").last.click()
    page.keyboard.press("Control+a")
    page.wait_for_selector("#refill:not([hidden])")
    check("refill")


@pytest.mark.parametrize("name", ["Sudoku", "Story"])
def test_a_phone_has_no_horizontal_scroll(new_page, address, name: str) -> None:
    page = new_page(width=360, height=740, has_touch=True, is_mobile=True)
    page.goto(address)

    def fits() -> None:
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 360

    fits()
    page.evaluate("document.getElementById('settings').open = true")
    fits()
    example(page, name)
    put(page, "max_tokens", "24")
    run(page)
    fits()
    scrub(page, 5)
    page.locator(".token.masked").first.tap()
    assert page.locator("#popover").is_visible()
    box = page.locator("#popover").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    fits()
    assert page.locator("#scrub").bounding_box()["width"] > 300
    low, scale = (page.locator(f".ends {part}").first.bounding_box() for part in ("span", "canvas"))
    assert low["y"] <= scale["y"] <= low["y"] + low["height"]


def test_the_theme_follows_the_system_until_it_is_chosen_and_is_remembered(page) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(background)
    assert dark != light
    page.click("#theme")
    assert page.evaluate(background) == dark
    page.reload()
    assert page.evaluate(background) == dark
    assert page.locator("#theme").inner_text() == "Light"


def test_end_tokens_behind_a_text_are_one_sign(new_page, trace, tmp_path) -> None:
    page = new_page()
    load_trace(page, trace, tmp_path)
    signs = page.locator(".panel").first.locator(".token.special:visible")
    assert signs.evaluate_all("(all) => all.map((t) => t.dataset.count)") == [" \u00d7 5"]
    page.locator(".panel").first.locator(".token:visible").first.focus()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement.dataset.count") == " \u00d7 5"


def test_reduced_motion_is_respected(page) -> None:
    page.emulate_media(reduced_motion="reduce")
    run(page, compare=False)
    moving = "(tokens) => tokens.filter((t) => getComputedStyle(t).transitionDuration !== '0s')"
    assert page.locator(".face").evaluate_all(moving) == []
