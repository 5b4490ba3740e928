"""Checkpoints: complete or absent; HF-format export with proof."""
