"""Throughput of the bundled model as a client sees it, and what of a busy step is not the model.

    python benchmarks/client_load.py benchmarks/results/DATE_client_load [--guidellm PATH]

The same streamed completions at 1, 8 and 64 at once: by a client over HTTP in a process of its
own, as vLLM's benchmark asks them, and by the engine alone, in pairs. With --guidellm, by that
client too. A step's time is split: forward and logits are the model's; the rest of the step is
the batch's; the time of a busy run outside of steps is the engine's and, with HTTP, the server's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from load_client import TOKENS, body
from rich.console import Console
from rich.table import Table

import softmask
from softmask.decoding import predictions
from softmask.decoding.batch import Batch
from softmask.models import DreamModel
from softmask.reporting.result_folder import claim, write
from softmask.reporting.tables import light_table
from softmask.serving.config import ServeConfig
from softmask.serving.http_server import HttpServer
from softmask.serving.listener import bind
from softmask.serving.protocol import CompletionRequest
from softmask.serving.service import Service

Json = dict[str, Any]
CONCURRENCY = (1, 8, 64)


# The server, and what its steps spend their time on.

TIMED = (
    (Batch, "step", "step"),
    (DreamModel, "hidden", "model"),
    (predictions, "read_head", "model"),
)


@contextlib.contextmanager
def parts_of_steps() -> Iterator[dict[str, float]]:
    """Seconds of steps, of the model in them (forward and head), and the number of steps."""
    spent = {"step": 0.0, "model": 0.0, "steps": 0.0}
    own = [getattr(owner, name) for owner, name, _ in TIMED]

    def timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            started = time.perf_counter()
            found = function(*args, **named)
            spent[kind] += time.perf_counter() - started
            spent["steps"] += kind == "step"
            return found

        return call

    for (owner, name, kind), function in zip(TIMED, own, strict=True):
        setattr(owner, name, timed(kind, function))
    try:
        yield spent
    finally:
        for (owner, name, _), function in zip(TIMED, own, strict=True):
            setattr(owner, name, function)


@contextlib.contextmanager
def serving() -> Iterator[tuple[Service, int]]:
    """A server of the bundled model in this process, and its port."""
    service = Service(softmask.load(device="cpu"), ServeConfig(running=64, queue=64))
    listener = bind("127.0.0.1", 0)
    server = HttpServer(service, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    service.engine.start()
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield service, listener.getsockname()[1]
    finally:
        service.engine.close(finish="nothing")
        server.should_exit = True
        thread.join()
        listener.close()


def over_http(port: int, concurrency: int, count: int) -> list[tuple[float, float]]:
    """Seconds of each request to its first part and to its end; the first is of the whole run."""
    client = Path(__file__).with_name("load_client.py")
    command = [sys.executable, str(client), str(port), str(concurrency), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(first, last) for first, last in json.loads(done.stdout)]


def alone(service: Service, concurrency: int, count: int) -> list[tuple[float, float]]:
    """The same requests, handed to the engine from threads without HTTP."""
    jobs = [service.jobs(CompletionRequest.model_validate(body(n)))[0] for n in range(count)]
    started = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(lambda job: service.engine.submit(job.request).result(), jobs))
    return [(0.0, time.perf_counter() - started)]


def measure(
    service: Service,
    spent: dict[str, float],
    run: Callable[[], list[tuple[float, float]]],
    count: int,
) -> Json:
    """One run: requests a second, and what a busy step's time went to."""
    before, stats = dict(spent), service.engine.stats()
    (_, seconds), *times = run()
    after = service.engine.stats()
    steps = spent["steps"] - before["steps"]
    step, model = (1000 * (spent[key] - before[key]) / steps for key in ("step", "model"))
    whole = 1000 * seconds / steps
    firsts = [first for first, _ in times]
    return {
        "requests_per_s": round(count / seconds, 2),
        "first_token_s": round(statistics.median(firsts), 3) if firsts else None,
        "forwards": after.forwards - stats.forwards,
        "whole_ms": round(whole, 2),
        "model_ms": round(model, 2),
        "rest_of_step_ms": round(step - model, 2),
        "outside_steps_ms": round(whole - step, 2),
        "outside_steps_share": round(1 - step / whole, 3),
    }


def guidellm(program: Path, port: int, concurrency: int, count: int, folder: Path) -> Json:
    """What guidellm says of the same load: requests a second, seconds to the first token."""
    asked = folder / "asked.jsonl"
    lines = [{"prompt": body(n)["prompt"], "output_tokens_count": TOKENS} for n in range(count)]
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backend = f"kind=openai_http,target=http://127.0.0.1:{port},request_format=/v1/completions"
    words = [
        *("run", "--backend", backend, "--disable-console"),
        *("--profile", f"kind=concurrent,streams={concurrency}"),
        *("--constraint", f"kind=max_requests,count={count}"),
        *("--data", f"kind=json_file,path={asked}"),
        *("--output", f"kind=json,path={folder / 'out.json'}"),
    ]
    subprocess.run([program, *words], check=True, capture_output=True, text=True, cwd=folder)
    found = json.loads((folder / "out.json").read_text())["benchmarks"][0]["metrics"]
    return {
        "requests_per_s": round(found["requests_per_second"]["successful"]["mean"], 2),
        "first_token_s": round(found["time_to_first_token_ms"]["successful"]["median"] / 1000, 3),
    }


def main(argv: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder for the result")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (3)")
    parser.add_argument("--guidellm", type=Path, help="its command, where it is installed")
    args = parser.parse_args(argv)
    claim(args.out)
    runs: list[Json] = []
    with parts_of_steps() as spent, serving() as (service, port):
        over_http(port, 4, 4)  # warm
        for concurrency in CONCURRENCY:
            count = max(4, concurrency)
            for number in range(args.rounds):
                ways = {
                    "HTTP": partial(over_http, port, concurrency, count),
                    "engine": partial(alone, service, concurrency, count),
                }
                for way, run in ways.items():
                    found = measure(service, spent, run, count)
                    runs.append({"concurrency": concurrency, "way": way, "round": number, **found})
                    print(runs[-1], flush=True)
            if args.guidellm is not None:
                with tempfile.TemporaryDirectory() as folder:
                    found = guidellm(args.guidellm, port, concurrency, count, Path(folder))
                runs.append({"concurrency": concurrency, "way": "guidellm", "round": 0, **found})
                print(runs[-1], flush=True)
    table = summary(runs)
    Console().print(table)
    write(args.out, ["python", *sys.argv], {"tokens": TOKENS, "runs": runs}, [table])
    return 0


def summary(runs: list[Json]) -> Table:
    """Medians of the rounds."""
    names = [name for name in runs[0] if name not in ("concurrency", "way", "round")]
    table = light_table("medians; ms are of a step")
    for heading in ("at once", "by", *(name.replace("_", " ") for name in names)):
        table.add_column(heading, justify="right")
    groups: dict[tuple[int, str], list[Json]] = {}
    for run in runs:
        groups.setdefault((run["concurrency"], run["way"]), []).append(run)
    for (concurrency, way), group in groups.items():
        cells = []
        for name in names:
            values = [run[name] for run in group if run.get(name) is not None]
            cells.append(f"{statistics.median(values):g}" if values else "-")
        table.add_row(str(concurrency), way, *cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
