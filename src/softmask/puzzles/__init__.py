"""Tasks that models are trained and measured on: Sudoku, Countdown and children's stories.

Imports no other room; all but `stories.py` need the standard library only.
Start with `puzzles.py`: what a puzzle is, how an answer is checked, streams without end.
"""
