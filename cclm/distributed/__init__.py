"""Ranks: topology, collectives with gradients, agreement, spawning."""
