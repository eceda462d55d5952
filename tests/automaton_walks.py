"""Texts that an automaton allows, drawn by walking through it."""

from __future__ import annotations

import random

import numpy as np

from softmask.constraints.automaton import ByteAutomaton


def walk(automaton: ByteAutomaton, seed: int, steps: int = 60) -> str:
    """A random text: states are left for any other with like chance, then for the nearest end."""
    draw = random.Random(seed)
    distance_S = distances(automaton)
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
    """How many bytes are missing to an end, at least."""
    distance_S = np.where(automaton.accepting_S, 0, np.iinfo(np.int32).max // 2)
    while True:
        behind_SB = np.where(
            automaton.next_SB >= 0, distance_S[automaton.next_SB], np.iinfo(np.int32).max // 2
        )
        better_S = np.minimum(distance_S, behind_SB.min(axis=1) + 1)
        if (better_S == distance_S).all():
            return distance_S
        distance_S = better_S
