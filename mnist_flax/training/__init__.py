"""How a run is carried out: devices, compiled programs, the loop, checkpoints, records, signals."""
