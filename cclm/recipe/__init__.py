"""Recipes and command lines become a checked `RunConfig`, before anything starts and without torch."""
