"""Sampling: schedule, solvers, experts, guidance and the loop."""
