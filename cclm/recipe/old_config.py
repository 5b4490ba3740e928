"""The `config.yaml` of runs of older versions, in today's form: the one place that knows what keys were called."""

from __future__ import annotations

from dataclasses import replace

from cclm.files.node import Node

RENAMED = {"model.temperature": "model.initial_temperature"}
"""Key then → key now, in the same mapping."""
GONE = ("model.pack_tokens",)
"""Keys that decided no value."""


def upgraded(root: Node) -> Node:
    """Return a configuration with today's keys; one of today comes back as it is."""
    for old, new in RENAMED.items():
        root = _changed(root, old.split("."), new.rpartition(".")[2])
    for old in GONE:
        root = _changed(root, old.split("."), None)
    return root


def _changed(node: Node, path: list[str], name: str | None) -> Node:
    """Rename the last key of a path, or take it out (None)."""
    first, *rest = path
    if not isinstance(node.value, dict) or first not in node.value:
        return node
    inside = dict(node.value)
    if rest:
        inside[first] = _changed(inside[first], rest, name)
    else:
        found = inside.pop(first)
        if name is not None:
            inside.setdefault(name, found)
    return replace(node, value=inside)
