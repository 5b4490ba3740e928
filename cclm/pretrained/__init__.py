"""Weights in: published files, towers by name, initialisation."""
