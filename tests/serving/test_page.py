"""The page in a headless Chromium, against the real server with the bundled model."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from processes import ENVIRONMENT, python

from softmask.config import CACHES, SOFT_MASK_SCHEDULES, UNMASK_RULES
from softmask.puzzles.puzzles import is_solved
from softmask.serving.page import page_csp, page_html

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
SUDOKU = "Sudoku\n0102\n4201\n0003\n2300\nSolution\n"
COUNTDOWN = "Countdown\n74,59,82,67\nSolution\n"
HOLED = "One day,[[5]] went to the park. He was very happy because[[8]]."
SIGNS = {"\n": "\u21b5", "<|endoftext|>": "\u220e"}
# Layout shifts, all of them: a shift after an input counts here, though browsers forgive it.
WATCH = """
window.shifts = 0; window.violations = [];
new PerformanceObserver((list) => list.getEntries().forEach((e) => (window.shifts += e.value)))
  .observe({ type: "layout-shift", buffered: true });
addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
"""


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a server of the bundled model, and its process."""
    command = [*python(), "-m", "softmask", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        bufsize=1,
    )
    try:
        yield process.stdout.readline().split()[-1], process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as (address, _process):
        yield address


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Makes pages; none of them may have thrown an error or met its own policy."""
    contexts, errors = [], []

    def make(width: int = 1200, height: int = 900, **more):
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # against hanging
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(WATCH)
        return page

    yield make
    violations = [page.evaluate("window.violations") for c in contexts for page in c.pages]
    for context in contexts:
        context.close()
    assert not errors
    assert not any(violations)


@pytest.fixture
def page(new_page, address):
    page = new_page()
    page.goto(address)
    return page


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


def load_trace(page, trace, tmp_path) -> None:
    """The page of a trace, from a file."""
    path = tmp_path / "trace.html"
    path.write_text(page_html({"mode": "trace", "trace": trace}), encoding="utf-8")
    page.goto(path.as_uri())


def example(page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def put(page, name: str, value: str) -> None:
    """Fills in a setting, whether it can be seen or not."""
    page.eval_on_selector(f"[name='{name}']", "(field, value) => (field.value = value)", value)


def run(page, *, compare: bool | None = None) -> None:
    """Runs what the form says, to the end."""
    if compare is not None:
        page.set_checked("#compare", compare)
    page.click("#run")
    page.wait_for_selector("#run:not([hidden])")


def scrub(page, step: int) -> None:
    """Moves the slider to a step and waits for the next frame."""
    page.evaluate(
        """async (step) => {
          const range = document.getElementById("scrub");
          range.value = step;
          range.dispatchEvent(new Event("input"));
          for (let i = 0; i < 2; i++) await new Promise(requestAnimationFrame);
        }""",
        step,
    )


def view(page) -> dict[str, object]:
    """What is seen of the first run: its tokens, what they are, its counters."""
    return page.evaluate(
        """() => {
          const panel = document.querySelector(".panel");
          const tokens = [...panel.querySelectorAll(".token")];
          return {
            texts: tokens.map((t) => t.textContent),
            masked: tokens.map((t) => t.classList.contains("masked")),
            fresh: tokens.map((t) => t.classList.contains("fresh")),
            counters: [...panel.querySelectorAll("dd")].map((d) => d.textContent),
          };
        }"""
    )


def counter(page, name: str, panel: int = 0) -> str:
    pairs = page.locator(".panel").nth(panel).locator(".counters > div")
    return pairs.filter(has_text=name).locator("dd").inner_text()


def frames(page, count: int = 2) -> None:
    """Waits until so many frames are drawn."""
    page.evaluate(
        "async (n) => { for (; n > 0; n--) await new Promise(requestAnimationFrame); }", count
    )


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


def test_the_first_example_runs_at_once_and_solves_a_sudoku_as_a_grid(page) -> None:
    run(page, compare=False)
    grid = page.locator(".digit")
    assert page.locator(".digit.given").count() == 4
    assert page.locator(".verdict").inner_text() == "solved"
    written = page.locator(".outcome").inner_text().strip()
    assert "".join(grid.locator(".own").all_inner_texts()) == written.replace("\n", "")
    puzzle = page.locator("#text").input_value().split("\n", 1)[1].removesuffix("\nSolution\n")
    assert is_solved("sudoku", puzzle, written)
    assert page.locator(".canvas").is_visible()
    assert page.locator(".token.masked").count() == 0


def test_a_grid_that_breaks_the_rules_is_not_called_solved(new_page, trace, tmp_path) -> None:
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
        assert page.locator(".verdict").inner_text() == f"not solved: {verdict}"


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


def test_holes_are_filled_in_and_what_was_given_stays(page) -> None:
    example(page, "Story with holes")
    assert page.input_value("#text") == HOLED
    run(page, compare=False)
    assert page.locator(".token.slot").count() == 13
    text = page.locator(".outcome").inner_text()
    assert text.startswith("One day,")
    assert " went to the park. He was very happy because" in text
    assert page.locator(".token.given").first.inner_text() == "One"


def test_soft_and_plain_run_side_by_side_on_one_seed_with_differences_marked(page) -> None:
    example(page, "Story")
    put(page, "max_tokens", "40")
    bodies = []
    page.on("request", lambda request: bodies.append(request.post_data_json))
    run(page)
    assert page.locator(".panel h2").all_inner_texts() == ["soft-masked", "plain"]
    soft, plain = (body for body in bodies if body)
    assert soft["seed"] == plain["seed"] == 5
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
    page.clock.run_for(400)  # of 120 ms a step
    page.click("#play")
    assert 16 <= int(page.input_value("#scrub")) <= 17
    step = page.input_value("#scrub")
    page.clock.run_for(1000)
    assert page.input_value("#scrub") == step
    page.click("#play")
    page.clock.run_for(2000)
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


def test_nothing_moves_while_tokens_come(page) -> None:
    """The answer is held back until the stand-in for its canvas is there."""
    holding = []
    page.route("**/v1/denoise", lambda route: holding.append(route))
    for name in ("Sudoku", "Story", "Story with holes"):
        example(page, name)
        put(page, "max_tokens", "24")
        page.click("#run")
        while len(holding) < 2:
            page.wait_for_timeout(20)
        frames(page, 3)
        page.evaluate("window.shifts = 0")
        for route in holding:
            route.continue_()
        page.wait_for_selector("#run:not([hidden])")
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
    page.wait_for_selector("#run:not([hidden])")
    assert "stopped" in page.locator(".summary").inner_text()
    assert 0 < page.locator(".token.masked").count() < 230
    assert page.locator("#alert").inner_text() == ""
    with page.expect_download() as download:
        page.click("#json")
    (run_,) = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))["runs"]
    assert run_["end"]["finish_reason"] == "cancelled"
    freed = "async () => /^softmask_running 0/m.test(await (await fetch('/metrics')).text())"
    page.wait_for_function(freed)


def live_page(page, address: str, **model) -> list[dict]:
    """The page of another model; what it posts is refused, and kept."""
    bodies: list[dict] = []
    described = {
        **{"name": "other", "context": 64, "chat": False, "soft_mask": None, "sampling": {}},
        **{"max_tokens": 16, "bundled": False, **model},
    }
    html = page_html({"mode": "live", "model": described, "examples": []})

    def refuse(route) -> None:
        bodies.append(route.request.post_data_json)
        route.fulfill(status=400, body='{"error": {"message": "no"}}')

    page.route(f"{address}/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.route("**/v1/denoise", refuse)
    page.goto(address)
    return bodies


def test_a_conversation_is_posted_for_a_chat_model_and_holes_as_holes(new_page, address) -> None:
    page = new_page()
    bodies = live_page(page, address, chat=True)
    assert page.locator("#examples").is_hidden()
    for text in ("Hello", "Hello [[3]]"):
        page.fill("#text", text)
        run(page)
    assert [{k: v for k, v in body.items() if k != "seed"} for body in bodies] == [
        {"messages": [{"role": "user", "content": "Hello"}], "softmask": {}},
        {"infill": "Hello [[3]]", "softmask": {}},
    ]


def test_what_is_empty_is_not_sent_and_defaults_are_shown(new_page, address) -> None:
    page = new_page()
    soft = {"mode": "topk", "k": 2, "scale": 0.5, "offset": -1.0, "steepness": 2.0}
    soft |= {"temperature": 1.0, "schedule": "linear"}
    sampling = {"temperature": 0.7, "block_length": 16, "alg": "entropy"}
    bodies = live_page(page, address, soft_mask=soft, sampling=sampling)
    page.evaluate("document.getElementById('settings').open = true")
    for name, value in (("temperature", "0.7"), ("softmask.block_length", "16")):
        assert page.get_attribute(f"[name='{name}']", "placeholder") == value
    assert page.locator("[name='softmask.alg'] option").first.inner_text() == "default: entropy"
    assert page.input_value("[name='softmask.soft_mask.schedule']") == "linear"
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
    put(page, "softmask.threshold", "2")  # out of range: nothing is posted
    page.evaluate("document.getElementById('settings').open = false")
    page.click("#run")
    assert page.get_attribute("#settings", "open") is not None
    assert len(bodies) == 2


def test_the_choices_are_those_of_the_library(page) -> None:
    for name, values in (
        ("softmask.alg", UNMASK_RULES),
        ("softmask.cache", CACHES),
        ("softmask.soft_mask.schedule", SOFT_MASK_SCHEDULES),
    ):
        options = page.locator(f"[name='{name}'] option").all_text_contents()
        assert tuple(options[1:]) == values


# Errors.


def test_a_refusal_says_what_to_do_and_leaves_the_last_run_there(page) -> None:
    run(page, compare=False)
    before = view(page)
    put(page, "softmask.alg", "origin")
    put(page, "softmask.threshold", "0.9")
    run(page)
    alert = page.get_by_role("alert").inner_text()
    assert "threshold commits by confidence" in alert
    assert "Change the text or the settings" in alert
    assert view(page) == before


def test_a_busy_server_says_when_to_come_back(page) -> None:
    body = json.dumps({"error": {"message": "the server is busy: 64 requests are waiting"}})
    page.route(
        "**/v1/denoise",
        lambda route: route.fulfill(status=429, headers={"retry-after": "7"}, body=body),
    )
    run(page, compare=False)
    alert = page.get_by_role("alert").inner_text()
    assert alert == "The server is busy: 64 requests are waiting. Run again in 7 seconds."
    assert page.locator("#view").is_hidden()


def test_an_error_is_shown_when_the_server_goes_away_and_what_came_stays(new_page) -> None:
    page = new_page()
    with serving("--api-key", "secret") as (address, process):
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
        page.wait_for_selector("#run:not([hidden])")
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


def test_a_link_brings_back_prompt_and_settings_and_is_sent_to_no_server(page, new_page) -> None:
    example(page, "Story")
    page.fill("#text", "Lily & Tom #1, [[3]] 100%\nwent")
    put(page, "seed", "7")
    put(page, "softmask.soft_mask.k", "2")
    put(page, "softmask.alg", "maskgit_plus")
    page.set_checked("#compare", False)
    page.click("#share")
    link = page.url
    other = new_page()
    requests = []
    other.on("request", lambda request: requests.append(request))
    other.goto(link)
    fields = "(form) => [...form.elements].filter((f) => f.name).map((f) => [f.value, f.checked])"
    assert other.eval_on_selector("#form", fields) == page.eval_on_selector("#form", fields)
    run(other)
    body = next(request.post_data_json for request in requests if request.post_data)
    assert body["infill"] == "Lily & Tom #1, [[3]] 100%\nwent"
    assert body["softmask"]["soft_mask"]["k"] == 2
    assert body["softmask"]["soft_mask"]["scale"] > 0.1
    assert body["seed"] == 7
    assert "max_tokens" not in body
    assert other.locator(".token.slot").count() == 3


def test_an_exported_trace_gives_the_same_view_when_opened_again(page, new_page, tmp_path) -> None:
    run(page)
    page.click("#prose")
    scrub(page, 9)
    seen = view(page)
    with page.expect_download() as download:
        page.click("#json")
    path = tmp_path / "trace.json"
    download.value.save_as(path)
    trace = json.loads(path.read_text(encoding="utf-8"))
    other = new_page()
    load_trace(other, trace, tmp_path)
    assert other.locator("#form").is_hidden()
    scrub(other, 9)
    assert view(other) == seen
    example(page, "Countdown")
    run(page, compare=False)
    page.set_input_files("#file", path)
    page.wait_for_function("() => document.querySelectorAll('.panel').length === 2")
    scrub(page, 9)
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
    page.wait_for_selector(".panel")
    assert page.locator(".verdict").first.inner_text() == "solved"


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
    page.focus("#text")
    page.keyboard.press("Control+a")
    page.keyboard.type("One day, Tom")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#run:not([hidden])")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.append(focused)
        if focused == "scrub":
            page.keyboard.press("ArrowLeft")
            frames(page)
            assert page.locator("#at").inner_text() == "step 5 of 6"
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_has_nothing_serious_in_any_state(page, scheme: str) -> None:
    axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright")
    # The checker is put into the page as a script, which the page's own policy forbids.
    source = Path(axe_playwright.__file__).with_name("axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")

    def check(state: str) -> None:
        page.evaluate(source)
        found = page.evaluate("axe.run().then((results) => results.violations)")
        serious = [
            (state, rule["id"], node["html"][:120], node["failureSummary"])
            for rule in found
            if rule["impact"] in ("serious", "critical")
            for node in rule["nodes"]
        ]
        assert not serious

    check("loaded")
    page.evaluate("document.getElementById('settings').open = true")
    check("settings")
    run(page)
    check("finished")
    scrub(page, 3)
    check("scrubbed")
    page.locator(".token.masked").first.focus()
    check("focus")
    page.click("#prose")
    check("prose")
    put(page, "softmask.alg", "origin")
    put(page, "softmask.threshold", "0.9")
    run(page)
    check("error")


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
    page.click("#prose")
    scrub(page, 5)
    page.locator(".token.masked").first.tap()
    assert page.locator("#popover").is_visible()
    box = page.locator("#popover").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    fits()


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


def test_reduced_motion_is_respected(page) -> None:
    page.emulate_media(reduced_motion="reduce")
    run(page, compare=False)
    moving = "(tokens) => tokens.filter((t) => getComputedStyle(t).transitionDuration !== '0s')"
    assert page.locator(".face").evaluate_all(moving) == []
