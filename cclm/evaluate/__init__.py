"""Retrieval measurements and their tables."""
