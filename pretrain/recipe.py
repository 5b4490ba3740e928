"""Reading a recipe: YAML plus dotted overrides into a checked `RunConfig`, with all complaints at once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from cclm.config import RunConfig
from cclm.data.config import DataConfig
from cclm.data.config import complaints_about as data_complaints
from cclm.errors import ConfigError
from cclm.pretrained.pixel_values import with_pixel_values
from cclm.pretrained.towers import with_towers
from pretrain.complaints import REFUSALS, all_complaints

RECIPES = Path(__file__).parent / "recipes"


def make_parser() -> ArgumentParser:
    """Build the command line: `--recipe NAME|PATH`, every field of `RunConfig` as a dotted option."""
    parser = ArgumentParser(
        prog="python -m pretrain",
        description="Pre-train a cross-view language model. Started again with the same run folder, it resumes.",
        exit_on_error=False,
    )
    parser.add_argument("--recipe", action="config", help="a name from pretrain/recipes/ or a path to a YAML file")
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def read_config(arguments: Sequence[str]) -> RunConfig:
    """Parse a command line into a configuration.

    Raises:
        ConfigError: unknown keys (with the nearest right one), wrong types, contradictions; all of them at once.
    """
    parser = make_parser()
    arguments = [resolve_recipe(argument, previous) for previous, argument in with_previous(arguments)]
    refuse_unknown_keys(arguments)
    try:
        values = parser.instantiate(parser.parse_args(arguments))
        config = RunConfig(**{item.name: values[item.name] for item in fields(RunConfig)})
    except REFUSALS as error:
        raise ConfigError(
            where="configuration",
            expected="values of the documented types that obey their rules",
            got="; ".join(all_complaints(parser, arguments)),
            do="Correct them; `python -m pretrain --help` explains every option. Nothing was started.",
        ) from error
    config = replace(config, data=with_tower_pixels(config), model=with_towers(config.model))
    check(config)
    return config


def with_tower_pixels(config: RunConfig) -> DataConfig:
    """Pictures normalised as the named image tower was trained with, where the recipe says nothing else."""
    source, data = config.model.vision.source, config.data
    if source is None:
        return data
    if data.image_text is not None:
        transform = with_pixel_values(data.image_text.transform, source)
        data = replace(data, image_text=replace(data.image_text, transform=transform))
    if data.regions is not None:
        transform = with_pixel_values(data.regions.transform, source)
        data = replace(data, regions=replace(data.regions, transform=transform))
    return data


def resolve_recipe(argument: str, previous: str) -> str:
    """Turn `--recipe demo` and `--recipe=demo` into the path of the shipped file; leave anything else alone."""
    if argument.startswith("--recipe="):
        return "--recipe=" + resolve_recipe(argument.removeprefix("--recipe="), "--recipe")
    if previous != "--recipe" or Path(argument).is_file():
        return argument
    shipped = RECIPES / f"{argument}.yaml"
    if shipped.exists():
        return str(shipped)
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    raise ConfigError(
        where="--recipe",
        expected="the path of a YAML file or one of " + ", ".join(names),
        got=repr(argument),
        do="Check the name.",
    )


def refuse_unknown_keys(arguments: Sequence[str]) -> None:
    """Complain about every unknown key of the recipe files and the dotted overrides in one error."""
    complaints = []
    for place, key in given_keys(arguments):
        known = set(known_keys(RunConfig))
        if key in known or any(key.startswith(f"{free}.") for free in FREE_KEYS):
            continue
        nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        complaints.append(f"{key} ({place})" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    if complaints:
        raise ConfigError(
            where="configuration",
            expected="known keys",
            got="unknown: " + ", ".join(complaints),
            do="Correct or remove them; `python -m pretrain --help` lists every key.",
        )


FREE_KEYS = (
    "optimizer.module_multipliers",
    "optimizer.weight_decay_multipliers",
    "model.vision.tower",
    "data.image_text.mix.language_weights",
    "data.text_pair.mix.language_weights",
)
"""Mappings with free keys: prefixes of parameter names, checked by the optimizer; an image model's own options;
languages."""


def given_keys(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (place, dotted key) of everything that the user wrote."""
    for previous, argument in with_previous(arguments):
        path = argument.removeprefix("--recipe=") if argument.startswith("--recipe=") else argument
        if previous == "--recipe" or argument.startswith("--recipe="):
            yield from ((path, key) for key in flatten(read_yaml(Path(path))))
        elif argument.startswith("--") and argument not in ("--recipe", "--help", "--print_config"):
            name = argument[2:].split("=", 1)[0]
            if not name.startswith("print_config"):
                yield "command line", name


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or is no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(content, dict) else type(content).__name__
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise ConfigError(
            where=str(path), expected="a YAML mapping", got=problem, do="Start from a recipe in pretrain/recipes/."
        )
    return dict(content)


def with_previous(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each argument with the one before it; the first with an empty one."""
    return list(zip(["", *arguments][: len(arguments)], arguments, strict=True))


def flatten(content: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every leaf of a nested mapping."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in FREE_KEYS:
            yield from flatten(value, f"{path}.")
        else:
            yield path


def known_keys(owner: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field of a dataclass tree, inner nodes included."""
    hints = get_type_hints(owner)
    for item in fields(owner):
        path = f"{prefix}{item.name}"
        yield path
        for candidate in unwrap(hints[item.name]):
            if is_dataclass(candidate) and inspect.isclass(candidate):
                yield from known_keys(candidate, f"{path}.")


def unwrap(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the hint itself."""
    is_union = get_origin(hint) is Union or type(hint).__name__ == "UnionType"
    return get_args(hint) if is_union else (hint,)


def check(config: RunConfig) -> None:
    """Refuse contradictions between the parts, all of them at once.

    Raises:
        ConfigError: listing every complaint.
    """
    complaints = list(contradictions(config))
    if complaints:
        raise ConfigError(
            where="configuration",
            expected="parts that agree",
            got="; ".join(complaints),
            do="Change one side of each; nothing was started.",
        )


def contradictions(config: RunConfig) -> Iterator[str]:
    """Yield one sentence for each contradiction."""
    yield from data_complaints(config.data)
    yield from size_contradictions(config)
    if config.engine == "plain" and config.precision != "fp32":
        yield f"engine plain runs in fp32, not {config.precision}"
    for name in ("every_steps", "keep"):
        if getattr(config.checkpoint, name) < 1:
            yield f"checkpoint.{name} must be at least 1"
    if config.track.every_steps < 1:
        yield "track.every_steps must be at least 1"
    weights = [name for name, value in vars(config.objectives).items() if name.endswith("_weight") and value < 0]
    if weights:
        yield "objectives: weights are not negative (" + ", ".join(weights) + ")"
    start, full = config.objectives.hardness_start_step, config.objectives.hardness_full_step
    if full and start > full:
        yield f"objectives.hardness_start_step {start} is after hardness_full_step {full}"


def size_contradictions(config: RunConfig) -> Iterator[str]:
    """Where the data and the network must have the same size."""
    images, regions, pairs = config.data.image_text, config.data.regions, config.data.text_pair
    vision, longest = config.model.vision, config.model.text.max_positions - config.model.text.position_offset
    for name, pictures in (("image_text", images), ("regions", regions)):
        if pictures is not None and pictures.transform.size != vision.image_size:
            yield (
                f"data.{name}.transform.size {pictures.transform.size} is not "
                f"model.vision.image_size {vision.image_size}"
            )
    for name, view in (("image_text", images), ("regions", regions), ("text_pair", pairs)):
        length = 0 if view is None else view.max_tokens
        if length > longest:
            yield f"data.{name}.max_tokens {length} exceeds the {longest} positions of model.text"
        elif (padded := -(-length // config.data.pad_multiple) * config.data.pad_multiple) > longest:
            yield f"data.{name}: {padded} positions with data.pad_multiple, model.text has {longest}"
        if view is pairs and pairs is not None and pairs.tlm and length <= longest < 2 * length - 1:
            yield f"data.text_pair.tlm needs {2 * length - 1} positions (2 · max_tokens - 1), model.text has {longest}"
    if regions is not None and not config.model.box_head:
        yield "data.regions needs model.box_head: true"
    if regions is not None and vision.stride and regions.patch_grid * vision.stride != vision.image_size:
        yield (
            f"data.regions.patch_grid {regions.patch_grid} is not the image tower's grid, "
            f"{vision.image_size // vision.stride} on a side"
        )
