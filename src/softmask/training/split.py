"""The seeded split of several sources into validation and training rows, and their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..row_files import BATCH
from .config import ConversationConfig
from .sources import SourceRow, SourceSplit, hub_errors


def split_rows(
    sources: list[tuple[SourceSplit, SourceSplit | None]], config: ConversationConfig, seed: int
) -> tuple[Iterator[SourceRow], Iterator[SourceRow]]:
    """Rows for validation and for training, in seeded order.

    Other sources beside it do not change how a source is split.
    """
    trains, validations = [], []
    for i, (train, validation) in enumerate(sources):
        numbers = np.arange(len(train.data))
        if validation is not None:
            validations.append((validation, np.arange(len(validation.data))))
        else:
            numbers = np.random.default_rng([seed, 0, i]).permutation(numbers)
            held_out = max(1, round(config.validation_share * len(numbers)))
            held_out = min(held_out, config.validation_samples)  # the rest is trained on
            validations.append((train, numbers[:held_out]))
            numbers = numbers[held_out:]
        trains.append((train, numbers))
    return (
        _at_random(validations, config.validation_samples, [seed, 1]),
        _at_random(trains, config.max_samples, [seed, 2]),
    )


def _at_random(
    choices: list[tuple[SourceSplit, np.ndarray]], limit: int | None, seed: list[int]
) -> Iterator[SourceRow]:
    """At most `limit` of the rows with these numbers, shuffled over all sources."""
    source_of = np.repeat(np.arange(len(choices)), [len(numbers) for _, numbers in choices])
    rows = np.concatenate([numbers for _, numbers in choices])
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    for start in range(0, len(order), BATCH):
        positions = order[start : start + BATCH]
        found: dict[int, SourceRow] = {}
        for i, (split, _) in enumerate(choices):
            own = positions[source_of[positions] == i]
            numbers = rows[own].tolist()
            if numbers:
                columns = split.data[numbers]
                for j, (position, number) in enumerate(zip(own.tolist(), numbers, strict=True)):
                    row = {name: column[j] for name, column in columns.items()}
                    found[position] = split.row(number + 1, row)
        yield from (found[position] for position in positions.tolist())


def split_streams(
    sources: list[tuple[SourceSplit, SourceSplit | None]], config: ConversationConfig, seed: int
) -> tuple[Iterator[SourceRow], Iterator[SourceRow]]:
    """Rows for validation and for training. Read all of the first before the second: both may
    come from one stream.

    Sources take turns, as the length of a stream is not known.
    """
    share = -(-config.validation_samples // len(sources))
    trains: list[Iterator[SourceRow]] = []
    validations: list[Iterator[SourceRow]] = []
    for train, validation in sources:
        stream = _stream(train, config.shuffle_buffer, seed)
        trains.append(stream)
        if validation is None:
            validations.append(itertools.islice(stream, share))
        else:
            validations.append(_stream(validation, config.shuffle_buffer, seed))
    return (
        itertools.islice(_alternate(validations), config.validation_samples),
        itertools.islice(_alternate(trains), config.max_samples),
    )


def _stream(rows: SourceSplit, buffer: int, seed: int) -> Iterator[SourceRow]:
    def read() -> Iterator[dict[str, Any]]:
        with hub_errors(rows.source):
            yield from rows.data.shuffle(seed=seed, buffer_size=buffer)

    for number, row in enumerate(read(), 1):
        yield rows.row(f"streamed {number}", row)


def _alternate(streams: list[Iterator[SourceRow]]) -> Iterator[SourceRow]:
    """One row of each stream in turn, until all have ended."""
    while streams:
        going = []
        for stream in streams:
            for value in itertools.islice(stream, 1):
                going.append(stream)
                yield value
        streams = going
