"""Tasks that models are trained and measured on: Sudoku, Countdown, children's stories.
May import: decoding, models and what stands on top; only solve.py does.
Start with puzzles.py: what a puzzle is, how an answer is checked, streams without end.
"""
