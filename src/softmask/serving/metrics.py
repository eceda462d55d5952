"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from .encoder import Encoder
from .engine import Engine
from .request import FinishReason

# Seconds; answers take from tens of milliseconds to minutes.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class EngineCollector(Collector):
    """Reads the counts of an engine and its encoder whenever Prometheus scrapes."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        self._engine, self._encoder = engine, encoder

    def collect(self) -> Iterator[Metric]:
        """Gauges and counters of this moment."""
        stats = self._engine.stats()
        prefixes = stats.prefixes
        gauges = {
            "running": (stats.running, "Requests that are being denoised"),
            "waiting": (stats.waiting, "Requests in the waiting queue"),
            "forms": (self._encoder.forms, "New forms that requests wait for"),
            "positions": (stats.positions, "Positions of the canvas"),
            "positions_taken": (stats.positions_taken, "Positions in use"),
            "prefix_cache_bytes": (prefixes.bytes, "Keys and values of earlier requests, in bytes"),
            "lambda_mean": (stats.mean_lambda, "Mean weight of the feedback at masked positions"),
        }
        for name, (value, text) in gauges.items():
            yield GaugeMetricFamily(f"softmask_{name}", text, value=value)
        counters = {
            "requests_accepted": (stats.submitted, "Requests that were accepted"),
            "requests_refused": (
                stats.refused + self._encoder.refused,
                "Requests that found the waiting queue full, or too many new forms",
            ),
            "forwards": (stats.forwards, "Forward passes of the batch"),
            "tokens_committed": (stats.committed, "Tokens committed"),
            "prefix_cache_queries": (prefixes.queries, "Requests whose beginning was looked up"),
            "prefix_cache_hits": (prefixes.hits, "Those of which a beginning was kept"),
            "prefix_cache_tokens": (prefixes.tokens, "Tokens that they did not compute anew"),
            "prefix_cache_evictions": (prefixes.evictions, "Blocks that made room for others"),
            "steps_apart": (stats.apart, "Steps that failed and were repeated in parts"),
        }
        for name, (value, text) in counters.items():
            yield CounterMetricFamily(f"softmask_{name}", text, value=value)
        ended = CounterMetricFamily(
            "softmask_requests_ended", "Requests that are over", labels=["reason"]
        )
        for reason in get_args(FinishReason):
            ended.add_metric([reason], stats.ended.get(reason, 0))
        yield ended
        yield SummaryMetricFamily(
            "softmask_step_seconds",
            "Time of a step of the batch",
            count_value=stats.steps,
            sum_value=stats.busy_seconds,
        )
        per_forward = stats.committed / stats.forwards if stats.forwards else 0.0
        yield GaugeMetricFamily(
            "softmask_tokens_per_forward", "Tokens committed per forward pass", value=per_forward
        )


class Metrics:
    """The counts of an engine and its encoder, and those of HTTP."""

    def __init__(self, engine: Engine, encoder: Encoder) -> None:
        disable_created_metrics()  # they double the number of lines
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(engine, encoder))
        self.answers = Counter(
            "softmask_http_answers",
            "Answers by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "softmask_http_seconds",
            "Time until an answer was complete",
            ["route"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter(
            "softmask_tokens", "Tokens of prompts and answers", ["of"], registry=self.registry
        )
