"""Answers that the processes of a launch make together: each makes a share, and all get all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from ..reporting.progress import progress
from .ranks import Ranks
from .responses import Responses

K = TypeVar("K")
V = TypeVar("V")
Answers = list[dict[str, Any]]


class SharedResponses:
    """`responses` of this process, filled by all processes of `ranks`.

    Every process must call each method, with the same work.
    """

    def __init__(self, responses: Responses, ranks: Ranks) -> None:
        self.responses, self.ranks = responses, ranks

    def union(self, asked: dict[K, V]) -> dict[K, V]:
        """All that any process asks for: one whose own cache has answers asks for fewer."""
        return {key: value for part in self.ranks.all_gather(asked) for key, value in part.items()}

    def fill(
        self,
        batches: Sequence[Sequence[V]],
        answer: Callable[[Sequence[V]], Answers],
        *,
        key_of: Callable[[V], str],
        on_saved: Callable[[Sequence[V], Answers], None],
        description: str,
        quiet: bool = False,
    ) -> None:
        """Answers the batches that hold a request without an answer, each process its share.

        Args:
            answer: answers a batch, in its order.
            key_of: the key of a request in `responses`.
            on_saved: callback after the answers of a batch are on disk.
            description, quiet: of the progress bar, which the first process shows.
        """
        self._exchange_known(key_of(request) for batch in batches for request in batch)
        open_batches = [
            batch for batch in batches if any(key_of(one) not in self.responses for one in batch)
        ]
        found: Answers = []
        hidden = quiet or self.ranks.index > 0
        share = self.ranks.share(open_batches)
        asked = sum(map(len, share))
        with progress(description, asked, "requests", quiet=hidden) as shown:
            for batch in share:
                answers = answer(batch)
                self.responses.add(answers)
                found += answers
                on_saved(batch, answers)
                shown.advance(len(batch))
        self._exchange(found)

    def _exchange_known(self, keys: Iterable[str]) -> None:
        self._exchange([self.responses[key] for key in keys if key in self.responses])

    def _exchange(self, found: Answers) -> None:
        for answers in self.ranks.all_gather(found):
            self.responses.know(answers)
