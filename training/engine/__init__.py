"""The training loop and what it needs that knows no particular stage: sharding, checkpoints, optimiser, reports."""
