"""Training: a recipe in YAML becomes a run in a folder, and at its end an adapter or a model.
May import: puzzles, hub, decoding, models, reporting and what stands on top.
Start with run.py (train, which puts the rest together); config.py has every setting.
"""
