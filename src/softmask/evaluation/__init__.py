"""Evaluation: lm-evaluation-harness tasks, likelihoods, held-out text, quality of samples.
May import: every room before it in docs/STRUCTURE.md.
Start with evaluate.py (one evaluation in a folder), then harness.py (the model it asks).
"""
