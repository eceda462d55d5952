"""What `softmask` says when it is told nothing: what it is, and what to type first."""

WELCOME = """\
softmask runs, fine-tunes, evaluates and serves masked diffusion language models
with soft-masking: a position that stays masked is fed back a mixture of its
likeliest tokens, not a bare mask.

  softmask demo                      see it on a Sudoku, in under a minute
  softmask generate "One day, Tom"   write with the small model that is bundled
  softmask serve                     a page that shows every step; OpenAI's API
  softmask --help                    all commands

A chat, 15 GB to download and best on a GPU:
  softmask chat --model Dream-org/Dream-v0-Instruct-7B
"""
