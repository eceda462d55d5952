"""What a server allows, with the sentences that explain it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..config import (
    FEEDBACK_HELP,
    FEEDBACK_PRESETS,
    require,
    require_choice,
    require_positive,
    setting,
)
from ..settings import check_numbers

# Seconds in which answers reach their clients once the last request is over.
DRAIN_SECONDS = 5.0
HOST = re.compile(r"[a-z0-9_][a-z0-9._-]*")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]+")


@dataclass(frozen=True)
class ServeConfig:
    """Limits of a server.

    Raises:
        ValueError: a count below 1, or a number of seconds that is none.
    """

    name: str | None = setting(None, "the model's name for clients (default: its own)")
    chat_template: str | None = setting(
        None, "the text of a chat template (Jinja) in place of the model's own"
    )
    feedback: str | None = setting(
        None, "of requests that name none (default: what the checkpoint brings); " + FEEDBACK_HELP
    )
    max_tokens: int = setting(256, "masks behind a prompt where a request names no number")
    memory_mb: int = setting(2048, "memory for requests, weights not included")
    prefix_cache_mb: int | None = setting(
        None,
        "of memory_mb, what keeps keys and values of earlier requests, for later ones that begin "
        "as they did; of block-causal models; 0: nothing (default: a quarter)",
    )
    running: int = setting(32, "requests that may run at once")
    queue: int = setting(64, "requests that may wait; more are answered 429")
    deadline: float = setting(600.0, "seconds after which a request is given up")
    grace: float = setting(30.0, "seconds that running requests have at a shutdown")
    max_body: int = setting(1 << 20, "bytes that a request may have")
    connections: int = setting(
        512, "connections that may be open; beyond that those that wait for their client are closed"
    )
    arrival: float = setting(
        30.0, "seconds in which a request has to arrive whole, and an answer to be taken"
    )
    echo_tokens: int | None = setting(
        None,
        "of a prompt that is echoed with log-probabilities, the last so many tokens are scored, a "
        "forward each (default: all)",
    )
    log_prompts: bool = setting(False, "write requests into the log as they are")
    api_keys: tuple[str, ...] = setting((), "keys, one of which requests must bring")
    hosts: tuple[str, ...] = setting(
        (),
        "names by which clients may call the server, beside addresses; none: by any, from pages "
        "of any origin",
    )
    origins: tuple[str, ...] = setting(
        (), "whose pages may use the server, beside its own: https://example.org, or * for all"
    )

    def __post_init__(self) -> None:
        check_numbers("", self)
        if self.feedback is not None:
            require_choice("feedback", self.feedback, tuple(FEEDBACK_PRESETS))
        require_positive(self, "max_tokens", "memory_mb", "running", "queue", "max_body")
        require_positive(self, "connections")
        kept = self.prefix_cache_mb
        require(
            kept is None or 0 <= kept < self.memory_mb,
            f"prefix_cache_mb is a part of the {self.memory_mb} MB of memory_mb: give 0 (none) or "
            f"more, and less than that, not {kept}",
        )
        require(
            self.echo_tokens is None or self.echo_tokens >= 1,
            f"echo_tokens must be at least 1, not {self.echo_tokens}",
        )
        require(self.deadline > 0, f"deadline must be more than 0 seconds, not {self.deadline}")
        require(self.grace >= 0, f"grace must not be negative, but is {self.grace}")
        require(self.arrival > 0, f"arrival must be more than 0 seconds, not {self.arrival}")
        require(all(self.api_keys), "an API key must not be empty")
        for host in self.hosts:
            require(
                HOST.fullmatch(host) is not None,
                f"an allowed host is a name without port, such as example.org, not {host!r}",
            )
        for origin in self.origins:
            require(
                origin in ("*", "null") or ORIGIN.fullmatch(origin) is not None,
                "an allowed origin is a scheme and a host, such as https://example.org, not "
                f"{origin!r}",
            )
