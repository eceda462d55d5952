"""Constraints on a text (regex, JSON schema, choices, grammar) as automata over bytes; no torch.
May import: what stands on top, nothing of models or decoding.
Start with compile.py (a constraint to its automaton), then forms.py, what all kinds become.
"""
