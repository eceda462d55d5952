"""How fast the page is: from Run to the first step on screen, and its frames during a long run.

    python benchmarks/page_speed.py --out benchmarks/results/DATE_page_speed/result.json

Headless Chromium, painting on the processor, against `softmask serve` with the bundled model on the
same machine: a run of 256 steps over 256 positions, soft-masked and plain beside each other, and
the same run played back from its trace, where nothing else competes for the processor. A frame is
the time between two calls of requestAnimationFrame; 16.7 ms are 60 a second. Each figure is the
median over the repeats, but for the worst frame, which is the worst of all. "in server" is the part
of the time to the first step that the server says it took for that step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from page_browser import browser, server
from rich.console import Console

from softmask.reporting.result_folder import provenance
from softmask.reporting.tables import light_table
from softmask.serving.page import page_html

TOKENS = 256
STORY = "Once upon a time, there was a little girl named Lily. She"
DONE = "() => !document.getElementById('run').hidden"
# Times between frames; layout shifts as browsers count them, but for what follows a click at once.
WATCH = """() => {
  window.deltas = []; let last = performance.now();
  const tick = (now) => {
    window.deltas.push(now - last); last = now; requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}"""
SHIFTS = """window.shift = 0;
const add = (entry) => { if (!entry.hadRecentInput) window.shift += entry.value; };
new PerformanceObserver((list) => list.getEntries().forEach(add))
  .observe({ type: "layout-shift", buffered: true });"""
FIRST = """() => {
  const at = (name) => performance.getEntriesByName(name)[0].startTime;
  return at("softmask-step") - at("softmask-run");
}"""
Numbers = dict[str, float]


def frames(deltas: list[float]) -> Numbers:
    """Median, p95 and worst of times between frames, in milliseconds."""
    cuts = statistics.quantiles(deltas, n=20, method="inclusive")
    return {
        "frames": len(deltas),
        "median": round(statistics.median(deltas), 2),
        "p95": round(cuts[18], 2),
        "worst": round(max(deltas), 2),
    }


def live(chromium: Any, address: str, *, compare: bool, tokens: int) -> tuple[Numbers, Any]:
    """One run from the form, and its trace."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.add_init_script(SHIFTS)
    page.goto(address)
    page.fill("#text", STORY)
    page.set_checked("#compare", compare)
    page.evaluate("document.getElementById('settings').open = true")
    wanted = {"max_tokens": tokens, "softmask.steps": tokens, "softmask.block_length": 0, "seed": 1}
    for name, value in wanted.items():
        page.fill(f"[name='{name}']", str(value))
    page.evaluate("document.getElementById('settings').open = false")
    page.evaluate(WATCH)
    page.wait_for_timeout(600)
    page.evaluate("window.shift = 0; window.deltas = []")
    page.click("#run")
    page.wait_for_function("() => performance.getEntriesByName('softmask-step').length")
    page.wait_for_function(DONE, timeout=600_000)
    found = {"first step": round(page.evaluate(FIRST), 1), **frames(page.evaluate("window.deltas"))}
    found["layout shift"] = round(page.evaluate("window.shift"), 4)
    with page.expect_download() as download:
        page.click("#json")
    trace = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    found["in server"] = max(round(1e3 * run["steps"][0]["seconds"], 1) for run in trace["runs"])
    page.close()
    return found, trace


def replay(chromium: Any, trace: Any) -> Numbers:
    """A trace played back from a file."""
    with tempfile.NamedTemporaryFile("w", suffix=".html", encoding="utf-8") as file:
        file.write(page_html({"mode": "trace", "trace": trace}))
        file.flush()
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"file://{file.name}")
        page.evaluate(WATCH)
        page.click("#play")
        page.wait_for_function("() => document.getElementById('play').textContent === 'Play'")
        found = frames(page.evaluate("window.deltas"))
        page.close()
    return found


def typical(runs: list[Numbers]) -> Numbers:
    """The median of each figure; of the worst ones the worst."""
    return {
        name: (max if name == "worst" else statistics.median)([run[name] for run in runs])
        for name in runs[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="positions and steps")
    args = parser.parse_args()
    raw: dict[str, list[Numbers]] = {}
    with server() as address, browser() as chromium:
        for _ in range(args.repeats):
            for name, compare in (("one run", False), ("side by side", True)):
                found, trace = live(chromium, address, compare=compare, tokens=args.tokens)
                raw.setdefault(f"live, {name}", []).append(found)
                raw.setdefault(f"played back, {name}", []).append(replay(chromium, trace))
        version = chromium.version
    summary = {name: typical(runs) for name, runs in raw.items()}
    columns = ("first step", "in server", "frames", "median", "p95", "worst", "layout shift")
    table = light_table(f"{args.tokens} steps of {args.tokens} positions, milliseconds")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, values in summary.items():
        table.add_row(name, *(str(values.get(column, "")) for column in columns))
    Console().print(table)
    result = {"command": f"python benchmarks/page_speed.py --out {args.out}", **provenance()}
    result |= {"chromium": version, "summary": summary, "raw": raw}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
