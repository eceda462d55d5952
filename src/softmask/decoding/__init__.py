"""From masks to text: the denoising loop, commit rules, block caches, soft state, prompts.
May import: models and what stands on top.
Start with sampler.py (denoise, the loop), then batch.py; generation.py is text in, text out.
"""
