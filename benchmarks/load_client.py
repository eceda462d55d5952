"""A client that streams completions, so many at once: the standard library alone starts fast.

    python benchmarks/load_client.py PORT CONCURRENCY COUNT

The last line is JSON: seconds to the first part and to the end of each request, and before them
those of the whole run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

TOKENS = 32
PROMPTS = ("One day, Tom", "Lily had a red ball", "It was raining. Ben", "Once upon a time")


def body(number: int) -> dict[str, Any]:
    """A request; each has a prompt of its own in turn."""
    return {
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }


async def ask(port: int, number: int) -> tuple[float, float]:
    """Seconds to the first part of the answer, and to its end."""
    content = json.dumps(body(number)).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    status = await reader.readline()
    assert b" 200 " in status, status
    await reader.readuntil(b"data: ")
    first = time.perf_counter() - started
    rest = await reader.read()
    assert b"data: [DONE]" in rest
    writer.close()
    return first, time.perf_counter() - started


async def drive(port: int, concurrency: int, count: int) -> list[tuple[float, float]]:
    """`count` requests, so many at once; before their times that of the whole run."""
    numbers = iter(range(count))
    times: list[tuple[float, float]] = []

    async def one_after_another() -> None:
        for number in numbers:
            times.append(await ask(port, number))

    started = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    return [(0.0, time.perf_counter() - started), *times]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(drive(*map(int, sys.argv[1:])))))
