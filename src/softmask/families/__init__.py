"""Families of masked diffusion models: what each calls its settings, weights and tokens.
May import: config.
Start with family.py; registry.py says which family a config.json is of. Adding one is a file here.
"""
