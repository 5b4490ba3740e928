"""What a recipe names, looked at before a job is queued: in under a second, without torch or network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cclm.config import RunConfig, named_sets, validation_errors_for
from cclm.data.tokenizer_file import is_hub_name, tokenizer_file
from cclm.engine.ds_config import resolve_ds_file
from cclm.errors import CclmError, ConfigError
from cclm.files.typed import Converter
from cclm.recipe.read import RECIPES, Reading
from cclm.shardfile.options import is_remote
from cclm.views.table import VIEWS, Table


@dataclass(frozen=True, kw_only=True)
class CheckedRecipe:
    """A recipe that can be started."""

    config: RunConfig
    notes: tuple[str, ...]
    """What may be meant but deserves a line, such as a batch that is larger than its sets."""
    unseen: tuple[str, ...]
    """What only the start of the run looks at: remote shard sets, models on the hub."""


def check_recipe(
    arguments: Sequence[str],
    *,
    world_size: int = 1,
    files_exist: bool = True,
    recipes: Path = RECIPES,
    table: Table = VIEWS,
) -> CheckedRecipe:
    """Check a command line of `python -m pretrain` for a job with so many ranks.

    Remote shard sets and models on the hub are left to the start of the run; so are all shard sets and the tokenizer
    where another job makes them first (`files_exist` false).

    Raises:
        ConfigError: with everything that is wrong in all files and overrides, and with what they name.
    """
    reading = Reading(arguments, recipes, table)
    notes: list[str] = []
    unseen: list[str] = []
    if isinstance(reading.found, RunConfig):
        config, converter = reading.found, reading.converter
        for text in validation_errors_for(config, world_size):
            key, _, rest = text.partition(": ")
            converter.add(key, rest)
        unseen = [
            f"{one.key}: {one.path}" for one in named_sets(config.views) if is_remote(one.path) or not files_exist
        ]
        if files_exist:
            notes += _check_sets(config, converter)
        if is_hub_name(config.data.tokenizer) or not files_exist:
            unseen.append(f"data.tokenizer: {config.data.tokenizer}")
        else:
            with _noted(converter, "data.tokenizer"):
                tokenizer_file(config.data.tokenizer)
        if config.engine == "deepspeed":
            with _noted(converter, "deepspeed"):
                resolve_ds_file(config.deepspeed, config.engine_facts(world_size))
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


def _check_sets(config: RunConfig, converter: Converter) -> Iterator[str]:
    """Every local shard set is there, whole, and of its view; the batches are not larger than the sets."""
    from cclm.shardfile.manifest import Manifest

    samples: dict[str, int] = {}
    unknown: set[str] = set()
    for one in named_sets(config.views):
        if is_remote(one.path):
            unknown.add(one.view)
            continue
        with _noted(converter, one.key):
            manifest = Manifest.load(Path(one.path))
            if manifest.view is not one.holds:
                expected, got = f"a set of view {one.holds.value}", f"one of view {manifest.view.value}"
                raise ConfigError(expected=expected, got=got, do="", where=one.path)
            samples[one.view] = samples.get(one.view, 0) + manifest.totals.samples
    for view, count in samples.items():
        wanted = config.views[view].samples_per_step
        if view not in unknown and wanted > count:
            yield (
                f"views.{view}: a step takes {wanted:,} samples, but its sets hold only {count:,}: every batch holds "
                "some of them several times. Lower batch_size (and negative_group, matching_rows with it)."
            )
