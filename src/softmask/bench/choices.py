"""What benchmarks may be asked for, without what it takes to run them: no torch."""

BLOCK, BLOCK_STEPS = 32, 8  # masks of a block, and steps for them
MODES = ("plain", "topk", "temperature")
