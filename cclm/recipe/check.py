"""What a recipe names, looked at before a job is queued: in under a second, without torch or network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cclm.config import RunConfig, named_sets, rank_errors
from cclm.data.tokenizer_file import is_hub_name, tokenizer_file
from cclm.engine.ds_config import refuse_unguarded_offload, resolve_ds_file
from cclm.errors import CclmError, ConfigError
from cclm.files.typed import Converter
from cclm.recipe.read import RECIPES, Reading
from cclm.shardfile.options import is_remote
from cclm.types import IMAGE_SET, PAIR_SET

VIEWS = {IMAGE_SET: "image_text", PAIR_SET: "text_pair"}
"""Kind of set that a configuration asks for → the view that its manifest must name."""


@dataclass(frozen=True, kw_only=True)
class CheckedRecipe:
    """A recipe that can be started."""

    config: RunConfig
    notes: tuple[str, ...]
    """What may be meant but deserves a line, such as a batch that is larger than its sets."""
    unseen: tuple[str, ...]
    """What only the start of the run looks at: remote shard sets, models on the hub."""


def check_recipe(arguments: Sequence[str], *, world_size: int = 1, recipes: Path = RECIPES) -> CheckedRecipe:
    """Check a command line of `python -m pretrain` for a job with so many ranks.

    Remote shard sets and models on the hub are left to the start of the run.

    Raises:
        ConfigError: with everything that is wrong in all files and overrides, and with what they name.
    """
    reading = Reading(arguments, recipes)
    notes: list[str] = []
    unseen: list[str] = []
    if isinstance(reading.found, RunConfig):
        config, converter = reading.found, reading.converter
        _check_ranks(config, world_size, converter)
        unseen = [f"{one.key}: {one.place}" for one in named_sets(config.data) if is_remote(one.place)]
        notes += _check_sets(config, converter)
        if is_hub_name(config.data.tokenizer):
            unseen.append(f"data.tokenizer: {config.data.tokenizer}")
        else:
            with _noted(converter, "data.tokenizer"):
                tokenizer_file(config.data.tokenizer)
        _check_deepspeed(config, world_size, converter)
    return CheckedRecipe(config=reading.finish(), notes=tuple(notes), unseen=tuple(unseen))


@contextmanager
def _noted(converter: Converter, key: str) -> Iterator[None]:
    """Turn an error into problems of a key; those that have a place keep it."""
    try:
        yield
    except ConfigError as error:
        for problem in error.problems:
            if problem.place:
                converter.problems.append(problem)
            else:
                several = len(error.problems) > 1
                converter.add(key, problem if several else f"expected {error.expected}, got {problem}")
    except CclmError as error:
        converter.add(key, f"expected {error.expected}, got {error.got} ({error.where})")
    except OSError as error:
        converter.add(key, f"cannot be looked at: {error.strerror or error}")


def _check_ranks(config: RunConfig, world_size: int, converter: Converter) -> None:
    for text in rank_errors(config, world_size):
        key, _, rest = text.partition(": ")
        converter.add(key, rest)


def _check_sets(config: RunConfig, converter: Converter) -> Iterator[str]:
    """Every local shard set is there, whole, and of its view; the batches are not larger than the sets."""
    from cclm.shardfile.manifest import Manifest

    samples: dict[str, int] = {}
    unknown: set[str] = set()
    for one in named_sets(config.data):
        if is_remote(one.place):
            unknown.add(one.view)
            continue
        with _noted(converter, one.key):
            manifest = Manifest.load(Path(one.place))
            if manifest.view.value != VIEWS[one.kind]:
                raise ConfigError(expected=one.kind, got=f"one of view {manifest.view.value}", do="", where=one.place)
            samples[one.view] = samples.get(one.view, 0) + manifest.totals.samples
    for view, count in samples.items():
        settings = getattr(config.data, view)
        wanted = getattr(settings, "images_per_step", settings.batch_size)
        if view not in unknown and wanted > count:
            yield (
                f"data.{view}: a step takes {wanted:,} samples, but its sets hold only {count:,}: every batch holds "
                "some of them several times. Lower batch_size (and negative_group, matching_rows with it)."
            )


def _check_deepspeed(config: RunConfig, world_size: int, converter: Converter) -> None:
    if config.engine != "deepspeed":
        return
    with _noted(converter, "deepspeed"):
        resolved = resolve_ds_file(config.deepspeed, config.engine_facts(world_size))
        refuse_unguarded_offload(resolved, config.uses_all_parameters)
