"""The `config.yaml` of runs of older versions, in today's form: the one place that knows what keys were called."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

Tree = dict[str, Any]

OLD_VIEWS = ("image_text", "regions", "text_pair")
"""What stood in `data`, with sources as lists; null where there was none."""


def upgraded(tree: Any) -> Any:
    """Return a configuration with today's keys; one of today, or what is no mapping, comes back as it is."""
    if not isinstance(tree, dict):
        return tree
    tree = copy.deepcopy(tree)
    model, data = tree.get("model"), tree.get("data")
    if isinstance(model, dict):
        model.pop("pack_tokens", None)  # it decided no value
        if "temperature" in model:
            model.setdefault("initial_temperature", model.pop("temperature"))
    if isinstance(data, dict) and any(name in data for name in OLD_VIEWS):
        tree["views"] = _views_of(data)
    return tree


def _views_of(data: Tree) -> Tree:
    """Take the views out of `data`, with the share of the steps that held regions."""
    share = data.pop("region_probability", None)
    found = {name: view for name in OLD_VIEWS if (view := data.pop(name, None)) is not None}
    for view in found.values():
        _name_sources(view)
    if share is not None and "regions" in found:
        found["regions"]["step_share"] = share
    return found


def _name_sources(view: Tree) -> None:
    """Turn `shards` and the lists beside it into `sources` by name, in the order that they had."""
    mix = view.get("mix") or {}
    lists = {
        "path": view.pop("shards"),
        "weight": view.pop("weights", None),
        "repeat": mix.pop("repeats", None),
        "max_epochs": mix.pop("max_epochs", None),
    }
    names = _names_of(lists["path"])
    view["sources"] = {
        name: {field: values[number] for field, values in lists.items() if values is not None}
        for number, name in enumerate(names)
    }
    for stage in mix.get("schedule") or ():
        if stage.get("weights") is not None:
            stage["weights"] = dict(zip(names, stage["weights"], strict=True))


def _names_of(paths: Sequence[str]) -> list[str]:
    names = [path.rstrip("/").rpartition("/")[2] for path in paths]
    is_ordered = names == sorted(set(names))  # sources are ordered by their names
    return names if is_ordered else [f"{number:03}-{name}" for number, name in enumerate(names)]
