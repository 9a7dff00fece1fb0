"""Checkpoints: reading files, naming tensors, telling what a file is."""
