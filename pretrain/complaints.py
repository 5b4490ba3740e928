"""Everything that is wrong with a command line, gathered after the parser has stopped at the first complaint.

A cluster job is tried once an hour, not once a second: a user should hear of all mistakes at the first try. So each
value that the parser refuses is noted, taken out, and the rest is parsed again; then each part is built on its own.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from cclm.config import RunConfig
from cclm.data.config import DataConfig
from cclm.data.config import complaints_about as data_complaints
from cclm.errors import CclmError

REFUSALS = (ArgumentError, TypeError, ValueError)
"""What the parser and the parts of a configuration raise about a value."""
_EXPECTED = re.compile(r"^(?:- )?Expected an? <class '([\w.]+)'>\. Got value: ")
_KEY = re.compile(r'Parser key "([^"]+)"')


def all_complaints(parser: ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Every complaint about these arguments: values of a wrong type first, then rules that parts break."""
    remaining = list(arguments)
    found: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            try:
                values = parser.parse_args(remaining)
            except REFUSALS as error:
                key = ".".join(_KEY.findall(str(error)))
                shorter = without(remaining, key, Path(folder) / f"{len(found)}.yaml")
                if found and shorter == remaining:  # a consequence of what was taken out
                    return found
                found.append(spell(error, key))
                if shorter == remaining:
                    return found
                remaining = shorter
            else:
                return found + list(complaints_of_parts(values.as_dict()))


def complaints_of_parts(values: Mapping[str, Any]) -> Iterator[str]:
    """Build each part of the configuration alone; what one refuses says nothing about the others."""
    hints = get_type_hints(RunConfig)
    for item in fields(RunConfig):
        if not isinstance(values.get(item.name), dict):
            continue
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(hints[item.name], nested_key=None)
        try:
            built = parser.instantiate(parser.parse_object(values[item.name]))
            part = hints[item.name](**{field.name: built[field.name] for field in fields(hints[item.name])})
        except REFUSALS as error:
            yield spell(error, item.name)
        else:
            if isinstance(part, DataConfig):
                yield from (f"data.{complaint}" for complaint in data_complaints(part))


def spell(error: Exception, key: str) -> str:
    """Make one line of an error, with the dotted key in front."""
    if isinstance(error, CclmError):
        return f"{error.where or key}: {error.got}"
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line.startswith(("Expected a <class", "- Expected")) and "NoneType" not in line]
    text = " ".join((told or [line for line in lines if not _KEY.match(line)])[:1]).rstrip(".")
    text = _EXPECTED.sub(r"expected \1, got ", text)
    return f"{key}: {text}" if key and not text.startswith(key) else text


def without(arguments: Sequence[str], key: str, new_recipe: Path) -> list[str]:
    """The arguments without the dotted key: neither given on the command line nor by a recipe file."""
    kept, skip = [], False
    for previous, argument in zip(["", *arguments], [*arguments, ""], strict=True):
        if skip or not argument:
            skip = False
        elif argument.split("=", 1)[0] == f"--{key}":
            skip = "=" not in argument
        elif previous == "--recipe" or argument.startswith("--recipe="):
            prefix, path = ("--recipe=" if argument.startswith("--recipe=") else ""), argument.removeprefix("--recipe=")
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            if remove(content, key):
                new_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
                path = str(new_recipe)
            kept.append(prefix + path)
        else:
            kept.append(argument)
    return kept


def remove(content: Any, key: str) -> bool:
    """Take a dotted key out of nested mappings, in place; tell whether it was there."""
    *parents, last = key.split(".")
    for name in parents:
        content = content.get(name) if isinstance(content, dict) else None
    return isinstance(content, dict) and content.pop(last, MISSING) is not MISSING


MISSING = object()
"""Stands for "not there"; None is a value."""
