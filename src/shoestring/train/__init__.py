"""Losses, the optimiser with wide master weights, the step, checkpoints."""
