"""Texts that an automaton allows, drawn by walking through it."""

from __future__ import annotations

import itertools
import random

import numpy as np

from softmask.constraints.automaton import ByteAutomaton


def walks(automaton: ByteAutomaton, seed: int, count: int = 1, steps: int = 60) -> list[str]:
    """Random texts: states are left for any other with like chance, then for the nearest end."""
    draw = random.Random(seed)
    distance_S = distances(automaton)
    return [_walk(automaton, draw, distance_S, steps) for _ in range(count)]


def _walk(automaton: ByteAutomaton, draw: random.Random, distance_S: np.ndarray, steps: int) -> str:
    state, data = 0, bytearray()
    while not (automaton.accepting_S[state] and (len(data) >= steps or draw.random() < 0.2)):
        allowed = np.flatnonzero(automaton.next_SB[state] >= 0)
        if len(data) >= steps:
            nearer = distance_S[automaton.next_SB[state, allowed]] < distance_S[state]
            allowed = allowed[nearer]
        if not len(allowed):
            break
        targets = automaton.next_SB[state, allowed]
        target = draw.choice(sorted(set(targets.tolist())))
        byte = draw.choice(allowed[targets == target].tolist())
        data.append(byte)
        state = target
    return data.decode()


def distances(automaton: ByteAutomaton) -> np.ndarray:
    """How many bytes are missing to an end, at least; -1 where there is no end."""
    before: dict[int, set[int]] = {}
    for state, targets in enumerate(automaton.next_SB):
        for target in set(targets.tolist()) - {-1}:
            before.setdefault(target, set()).add(state)
    distance_S = np.where(automaton.accepting_S, 0, -1)
    level = set(np.flatnonzero(automaton.accepting_S).tolist())
    for steps in itertools.count(1):
        level = {state for target in level for state in before.get(target, ())}
        level = {state for state in level if distance_S[state] < 0}
        if not level:
            return distance_S
        distance_S[sorted(level)] = steps
    raise AssertionError("counting does not end")
