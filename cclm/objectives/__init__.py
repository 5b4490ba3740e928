"""Losses as pure functions of tensors; they know no ranks."""
