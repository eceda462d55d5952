"""How fast, and what speed costs: the benchmark in turns, the machine's limit, the frontier.
May import: every room before it in docs/STRUCTURE.md.
Start with benchmark.py.
"""
