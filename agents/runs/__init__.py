"""One training run: its folder, logs, checkpoints, and what keeps it alive."""
