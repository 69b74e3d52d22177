"""A training run: devices, compiled programs, the loop, checkpoints, records, signals."""
