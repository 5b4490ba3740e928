"""Checkpoints of the training state: complete or absent."""
