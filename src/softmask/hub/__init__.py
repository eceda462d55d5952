"""Checkpoints on disk and on the Hub: found, checked, loaded, exported, uploaded.
May import: decoding, models and what stands on top.
Start with load.py.
"""
