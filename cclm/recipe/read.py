"""Recipes, command lines and the `config.yaml` of runs → `RunConfig`. No torch, no network.

    read_recipe(arguments)     what `python -m pretrain` starts with: types and rules
    read_run_config(folder)    what a run was started with, also one of an older version

What a recipe names (shard sets, tokenizer, DeepSpeed JSON) and the number of ranks: `cclm.recipe.check`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cclm.config import RunConfig
from cclm.data.config import ViewConfig
from cclm.errors import ConfigError
from cclm.files.describe import describe
from cclm.files.document import read_document
from cclm.files.node import COMMAND_LINE, Node, node_of, plain, said
from cclm.files.reading import merged, parse_arguments, raise_problems, to_yaml, with_override
from cclm.files.shipped import CHECKOUT, find_shipped
from cclm.files.typed import INVALID, Converter, Kinds
from cclm.recipe.start import with_start
from cclm.views.table import VIEWS, Table

RECIPES = CHECKOUT / "pretrain" / "recipes"
CONFIG_FILE = "config.yaml"
"""In a run folder: the resolved configuration."""
OLD_VIEWS = ("image_text", "regions", "text_pair")
"""What stood in `data` of older versions, with sources as lists; null where there was none."""
_DO = "Correct them; `--help` explains every option. Nothing was started."


def read_recipe(arguments: Sequence[str], recipes: Path = RECIPES, table: Table = VIEWS) -> RunConfig:
    """Read a command line, `--recipe NAME|PATH --KEY VALUE …`, into a configuration.

    Raises:
        ConfigError: with everything that is wrong in all files and overrides, each with its place.
    """
    return Reading(arguments, recipes, table).finish()


def read_run_config(folder: Path, table: Table = VIEWS) -> RunConfig:
    """Read what a run was started with, from its folder; also one that an older version of this library wrote.

    Raises:
        ConfigError: there is no such file, or it is no run's configuration.
    """
    path = folder / CONFIG_FILE
    converter = Converter(kinds_of(table), is_resolved=True)
    node = read_document(path, converter.problems)
    if node is not None:
        values = plain(node)
        todays = upgraded(values)
        node = in_table_order(node if todays == values else node_of(todays, str(path)), table)
    config = INVALID if node is None else converter.convert(node, RunConfig)
    expected = "a run folder, with the configuration that `python -m pretrain` wrote"
    raise_problems(converter.problems, str(path), expected, "Give the folder of a pre-training run.")
    assert isinstance(config, RunConfig)
    return config


def shown(
    arguments: Sequence[str], program: str, purpose: str, recipes: Path = RECIPES, table: Table = VIEWS
) -> str | None:
    """Return what `--help` or `--print_config` on a command line ask for; None if there is neither.

    Raises:
        ConfigError: `--print_config` of a configuration that is wrong.
    """
    line = parse_arguments(arguments, "--recipe")
    if line.wants_help:
        names = ", ".join(sorted(path.stem for path in recipes.glob("*.yaml")))
        usage = f"usage: {program} --recipe NAME|PATH [--KEY VALUE …] [--print_config]"
        recipe = f"--recipe  a file of options (YAML, JSON, TOML); of several the later ones win. Shipped:\n    {names}"
        return "\n".join([usage, "", purpose, "", recipe, "--print_config  print the resolved configuration", ""]) + (
            describe(RunConfig, kinds_of(table)) + "\n"
        )
    return to_yaml(Reading(arguments, recipes, table).finish()) if line.wants_config else None


def kinds_of(table: Table) -> Kinds:
    """Return the classes of the views' settings, for the reader."""
    return {ViewConfig: {name: entry.config for name, entry in table.items()}}


def in_table_order(root: Node, table: Table) -> Node:
    """Return a configuration with its views in the order of the table; one that is null is left out."""
    inside = root.value if isinstance(root.value, dict) else {}
    views = inside.get("views")
    if views is None or not isinstance(views.value, dict):
        return root
    given = {name: view for name, view in views.value.items() if view.value is not None}
    ordered = {name: given[name] for name in table if name in given}
    return replace(root, value={**inside, "views": replace(views, value={**ordered, **given})})


class Reading:
    """One command line on its way to a configuration: problems are gathered, and told together by `finish`."""

    def __init__(self, arguments: Sequence[str], recipes: Path = RECIPES, table: Table = VIEWS) -> None:
        line = parse_arguments(arguments, "--recipe")
        kinds = kinds_of(table)
        self.converter = Converter(kinds)
        self.converter.problems += line.problems
        self._is_unread = False
        root = Node(value={}, place=COMMAND_LINE)
        for name in line.files:
            root = merged(root, self._file(name, recipes))
        for key, value in line.overrides:
            root = with_override(root, key, value, RunConfig, kinds)
        try:
            root = with_start(root, partial(read_run_config, table=table))
        except ConfigError as error:
            self.converter.add("start.sources", f"expected {error.expected}, got {error.got} ({error.where})")
        self.found: object = self.converter.convert(in_table_order(root, table), RunConfig)
        """A `RunConfig`, or `INVALID`."""

    def finish(self) -> RunConfig:
        """Return the configuration, or raise one ConfigError with all problems."""
        problems = self.converter.problems
        if self._is_unread:  # what is missing may stand in the file that could not be read
            problems = [problem for problem in problems if problem.kind != "missing_key"]
        raise_problems(problems, "configuration", "a configuration without mistakes", _DO)
        assert isinstance(self.found, RunConfig)
        return self.found

    def _file(self, name: str, recipes: Path) -> Node:
        empty = Node(value={}, place=COMMAND_LINE)
        try:
            path = find_shipped(name, recipes, ".yaml", where="--recipe", do="Check the name.")
        except ConfigError as error:
            self._is_unread = True
            self.converter.add("", f"--recipe: expected {error.expected}, got {error.got}", "unreadable")
            return empty
        node = read_document(path, self.converter.problems)
        if node is not None and not isinstance(node.value, dict):
            self.converter.places[""] = node.place
            self.converter.add("", f"expected a mapping of options, got {said(node)}", "wrong_value")
            node = None
        self._is_unread = self._is_unread or node is None
        return node or empty


def upgraded(tree: Any) -> Any:
    """Return the `config.yaml` of an older version with today's keys; one of today comes back as it is."""
    if not isinstance(tree, dict):
        return tree
    tree = copy.deepcopy(tree)
    model, data = tree.get("model"), tree.get("data")
    if isinstance(model, dict):
        model.pop("pack_tokens", None)  # it decided no value
        if "temperature" in model:
            model.setdefault("initial_temperature", model.pop("temperature"))
    tree.setdefault("kernels", {"tf32": False})  # before there was a choice, float32 products were exact on a GPU, too
    if isinstance(data, dict) and any(name in data for name in OLD_VIEWS):
        tree["views"] = _views_of(data)
    return tree


def _views_of(data: dict[str, Any]) -> dict[str, Any]:
    """Take the views out of `data`, with the share of the steps that held regions."""
    share = data.pop("region_probability", None)
    found = {name: view for name in OLD_VIEWS if (view := data.pop(name, None)) is not None}
    for view in found.values():
        _name_sources(view)
    if share is not None and "regions" in found:
        found["regions"]["step_share"] = share
    return found


def _name_sources(view: dict[str, Any]) -> None:
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
