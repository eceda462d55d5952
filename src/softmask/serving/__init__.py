"""Continuous batching and HTTP: engine, scheduler, OpenAI's protocol, metrics, the page.
May import: every room before it in docs/STRUCTURE.md.
Start with engine.py (requests in, steps out), then server.py (routes).
"""
