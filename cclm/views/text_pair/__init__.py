"""Sentences with translations."""
