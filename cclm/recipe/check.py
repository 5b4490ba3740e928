"""What a recipe names, looked at before a job is queued: in under a second, without torch or network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cclm.config import (
    ALL,
    NamedSet,
    RunConfig,
    evaluated_sets,
    named_files,
    named_sets,
    named_teachers,
    validation_errors_for,
)
from cclm.data.config import ViewConfig
from cclm.data.tokenizer_file import is_hub_name, tokenizer_file
from cclm.engine.ds_config import resolve_ds_file
from cclm.errors import CclmError, ConfigError
from cclm.files.atomic import file_sha256
from cclm.files.typed import Converter
from cclm.recipe.epochs import with_epochs, without_training
from cclm.recipe.read import RECIPES, Reading
from cclm.shardfile.cache import PACKAGES
from cclm.shardfile.options import is_remote
from cclm.views.table import VIEWS, Table

if TYPE_CHECKING:
    from cclm.shardfile.manifest import Manifest


Look = Literal["manifests", "present", "hashed"]
"""How closely local shard sets are looked at."""
MOST_FAULTS = 5
"""Files of a set that are named."""


@dataclass(frozen=True, kw_only=True)
class CheckedRecipe:
    """A recipe that can be started."""

    config: RunConfig
    notes: tuple[str, ...]
    """What may be meant but deserves a line, such as a batch that is larger than its sets."""


def check_recipe(
    arguments: Sequence[str],
    *,
    world_size: int = 1,
    files_exist: bool = True,
    shards: Look = "manifests",
    recipes: Path = RECIPES,
    table: Table = VIEWS,
) -> CheckedRecipe:
    """Check a command line of `python -m pretrain` for a job with so many ranks. Of local shard sets it reads the
    manifests, or looks for every file too, or reads them all. Remote sets and models on the hub are left to the start
    of the run; so are all sets and the tokenizer where another job makes them first (`files_exist` false). Raise
    ConfigError with everything that is wrong in all files and overrides, and with what they name."""
    reading = Reading(arguments, recipes, table)
    notes: list[str] = []
    if isinstance(reading.found, RunConfig):
        config, converter = without_training(reading.found), reading.converter
        notes += _notes_on(config)
        for text in validation_errors_for(config, world_size):
            key, _, rest = text.partition(": ")
            converter.add(key, rest)
        if files_exist:
            notes += _check_sets(config, converter, shards)
            for key, path in named_files(config.views):
                if not Path(path).is_file():
                    converter.add(key, f"expected an annotation file, got nothing at {path}", "wrong_value")
            for key, teacher in named_teachers(config.views):
                from cclm.data.teacher import teacher_files

                with _noted(converter, key):
                    teacher_files(teacher)
            for key, path in _measured_sets(config):
                if not is_remote(path) and not Path(path).is_dir():
                    converter.add(key, f"expected a shard set or a folder of annotations, got nothing at {path}")
        if files_exist and not is_hub_name(config.data.tokenizer):
            with _noted(converter, "data.tokenizer"):
                tokenizer_file(config.data.tokenizer)
        if config.engine == "deepspeed" and config.views:
            with _noted(converter, "deepspeed"):
                resolve_ds_file(config.deepspeed, config.engine_facts(world_size))
    config = reading.finish()
    return CheckedRecipe(config=with_epochs(config) if files_exist else without_training(config), notes=tuple(notes))


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


def _notes_on(config: RunConfig) -> Iterator[str]:
    """Yield what a mode costs, and what is not installed here: it may be in the container that the ranks run in."""
    if config.deterministic:
        yield "deterministic: a GPU is slower with it, and an operation without such a kernel ends the run by its name."
    if config.finetune is not None and config.finetune.lora is not None and config.steps and not find_spec("peft"):
        yield "finetune.lora: it needs peft, which is not installed here: pip install 'cclm-pretraining[lora]'."
    protocol = (config.checkpoint.copy_to or "").partition("://")[0]
    for package in ("fsspec", PACKAGES.get(protocol, "fsspec")) if protocol else ():
        if not find_spec(package):
            yield f"checkpoint.copy_to: it needs the package {package}, which is not installed here."


def _measured_sets(config: RunConfig) -> Iterator[tuple[str, str]]:
    finetune = config.finetune
    if finetune is not None:
        for key, sets in (("dev_sets", finetune.dev_sets), ("test_sets", finetune.test_sets)):
            for name, where in sets.items():
                path = where if is_remote(where) else str(Path(finetune.data) / where.removeprefix("file://"))
                yield f"finetune.{key}.{name}", path


def _check_sets(config: RunConfig, converter: Converter, look: Look) -> Iterator[str]:
    """Every local shard set is there, whole, and of its view; the batches are not larger than the sets."""
    from cclm.shardfile.manifest import Manifest

    samples: dict[str, int] = {}
    languages: dict[str, set[str]] = {}
    unknown: set[str] = set()
    for one in (*named_sets(config.views), *evaluated_sets(config)):
        if is_remote(one.path):
            unknown.add(one.view)
            continue
        with _noted(converter, one.key):
            manifest = Manifest.load(Path(one.path))
            if manifest.view is not one.holds:
                expected, got = f"a set of view {one.holds.value}", f"one of view {manifest.view.value}"
                raise ConfigError(expected=expected, got=got, do="", where=one.path)
            if one.view:
                samples[one.view] = samples.get(one.view, 0) + manifest.totals.samples
                languages.setdefault(one.view, set()).update(manifest.totals.languages)
                for wanted in _wanted_languages(config.views[one.view]) if _is_drawn_from(config, one) else ():
                    if wanted.isdisjoint(manifest.totals.languages):
                        expected = f"expected texts in {' or '.join(sorted(wanted))}"
                        converter.add(one.key, f"{expected}, got none in {one.path}", "wrong_value")
            else:
                _check_languages(config, converter, one, manifest)
            faults = [] if look == "manifests" else list(_faults(Path(one.path), manifest, look))
            for fault in faults[:MOST_FAULTS]:
                converter.add(one.key, fault, "wrong_value")
            if len(faults) > MOST_FAULTS:
                converter.add(one.key, f"and {len(faults) - MOST_FAULTS} more files of {one.path}", "wrong_value")
    for view, count in samples.items():
        taken = config.views[view].samples_per_step
        if view not in unknown and taken > count:
            yield (
                f"views.{view}: a step takes {taken:,} samples, but its sets hold only {count:,}: every batch holds "
                "some of them several times. Lower batch_size (and negative_group, matching_rows with it)."
            )
        nowhere = set[str]().union(*_wanted_languages(config.views[view])) - languages[view]
        if view not in unknown and nowhere:
            yield f"views.{view}: none of its sets has texts in {', '.join(sorted(nowhere))}."


def _is_drawn_from(config: RunConfig, one: NamedSet) -> bool:
    """Whether a set's source has a weight at any time; without weights it has."""
    name, mix = one.key.split(".")[-2], config.views[one.view].mix
    weights = [config.views[one.view].ordered_sources[name].weight]
    weights += [stage.weights.get(name) for stage in mix.schedule if stage.weights is not None]
    return any(weight != 0 for weight in weights)


def _wanted_languages(view: ViewConfig) -> Iterator[set[str]]:
    """Yield the languages of which each of a view's sets must have one: the only ones, and those with weights, by
    stage. Texts of regions stand in no manifest."""
    only = getattr(view, "languages", None)
    tables = (view.mix.language_weights, *(stage.language_weights for stage in view.mix.schedule))
    if "boxes" not in view.trains:
        yield from [] if only is None else [set(only)]
        yield from ({name for name, weight in table.items() if weight > 0} for table in tables if table is not None)


def _check_languages(config: RunConfig, converter: Converter, one: NamedSet, manifest: Manifest) -> None:
    """A set that is measured has captions in the languages that are asked for."""
    assert config.evaluation is not None, "it names the set"
    name, group, *_ = [*config.evaluation.measure.split("/"), ""]
    is_language = one.key.endswith(f".{name}") and group not in (ALL, *config.evaluation.groups)
    wanted = {*config.evaluation.languages, *([group] if is_language else ())}
    if missing := sorted(wanted - {*manifest.totals.languages}):
        converter.add(one.key, f"expected captions in {', '.join(missing)}, got none in {one.path}", "wrong_value")


def _faults(folder: Path, manifest: Manifest, look: Look) -> Iterator[str]:
    for shard in manifest.shards:
        for name, size, digest in (
            (shard.name, shard.size_bytes, shard.sha256),
            (shard.index_name, None, shard.index_sha256),
        ):
            path = folder / name
            if not path.is_file():
                yield f"expected {path}, which its manifest names, got nothing there"
            elif size is not None and path.stat().st_size != size:
                yield f"expected {size:,} bytes in {path}, got {path.stat().st_size:,}"
            elif look == "hashed" and file_sha256(path) != digest:
                yield f"expected the SHA-256 of its manifest in {path}, got another"
