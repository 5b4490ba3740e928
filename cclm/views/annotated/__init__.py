"""Rows of annotation files: images with a text, and what is to be said about them (classes, answers)."""
