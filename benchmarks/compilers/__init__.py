"""What the compilers for TPUs and GPUs say of the programs, and what their rounding changes."""
