"""A browser for tests of the page: what they do on it, and what is seen there."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from processes import ENVIRONMENT, python

from softmask.serving.config import ServeConfig
from softmask.serving.http_server import HttpServer
from softmask.serving.listener import bind
from softmask.serving.page import page_html
from softmask.serving.service import Service

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# Layout shifts, all of them: a shift after an input counts here, though browsers forgive it.
WATCH = """
window.shifts = 0; window.violations = [];
new PerformanceObserver((list) => list.getEntries().forEach((e) => (window.shifts += e.value)))
  .observe({ type: "layout-shift", buffered: true });
addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective));
"""


@contextlib.contextmanager
def serving(checkpoint) -> Iterator[str]:
    """The address of a server of this checkpoint in a thread."""
    service = Service(checkpoint, ServeConfig())
    listener = bind("127.0.0.1", 0)
    server = HttpServer(service, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    service.engine.start()
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        service.engine.close(finish="nothing")
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def serving_alone(*options: str) -> Iterator[tuple[str, subprocess.Popen]]:
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


def load_trace(page, trace, tmp_path) -> None:
    """The page of a trace, from a file, with a cell for each token."""
    path = tmp_path / "trace.html"
    path.write_text(page_html({"mode": "trace", "trace": trace}), encoding="utf-8")
    page.goto(path.as_uri())
    page.click("#cells")


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
    ended(page)


def ended(page) -> None:
    """Waits for the end of what runs."""
    page.wait_for_selector("body:not(.busy)")


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


def posted(page) -> list[dict]:
    """What the page posts from now on, request by request."""
    bodies: list[dict] = []
    page.on(
        "request",
        lambda request: request.post_data and bodies.append(json.loads(request.post_data)),
    )
    return bodies
