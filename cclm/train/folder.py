"""The run folder as the identity of a run: what it was started with, what may change when it goes on, and what did.

    config.yaml      the resolved configuration of the newest start
    ds_config.json   its resolved DeepSpeed JSON
    environment.json versions and machine of the first start
    inputs.json      hashes of what the configuration only names: tokenizer, shard manifests, DeepSpeed JSON (which
                     the ranks compare with each other, not with an earlier start)
    kernels.json     what the newest start computes with, and why (`cclm.ops.choice`)
    changes.jsonl    a line for each start with other settings than the one before: step, old and new values

Which samples a step holds never changes in a run. How they are computed and how fast the run learns may (`MAY_CHANGE`),
and files may move, for they are known by their content. Everything else is another run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from cclm.annotations.retrieval import PARTS, Part
from cclm.config import RunConfig, evaluated_sets, named_files, named_sets, named_teachers
from cclm.data.tokenizer_file import TOKENIZER_NAME, tokenizer_file
from cclm.errors import CheckpointError, ConfigError
from cclm.files.atomic import replace_text
from cclm.files.lines import StepLines
from cclm.files.reading import read_json, to_plain, to_yaml
from cclm.ops.choice import Choice, describe
from cclm.recipe.read import CONFIG_FILE, read_run_config
from cclm.run.checkpoints import newest_complete, read_marker
from cclm.run.machine import ENVIRONMENT_NAME, describe_environment
from cclm.run.status import DONE_NAME
from cclm.shardfile.remote import manifest_bytes
from cclm.shardfile.schema import MANIFEST_NAME
from cclm.train.retrieval_sets import asked_of, is_annotated
from cclm.train.retrieval_sets import named_sets as sets_of
from cclm.views.table import VIEWS, Table

Value = TypeVar("Value")
INPUTS_FILE = "inputs.json"
CHANGES_FILE = "changes.jsonl"
DS_CONFIG_FILE = "ds_config.json"
KERNELS_FILE = "kernels.json"
QUARANTINE = "quarantine"

MAY_CHANGE = {
    key: meaning
    for keys, meaning in (
        ("run_folder device", "where the run lives and computes"),
        ("kernels deterministic", "with what it computes: the same but for rounding, and for what dropout draws"),
        ("checkpoint track", "how often it saves and writes, and what"),
        ("watch", "when a rank counts as hung"),
        ("evaluation", "what is measured, when, and which checkpoint counts as the best"),
        ("health", "which steps are skipped, and how many may be"),
        ("data.num_workers data.batch_timeout_s data.cache data.bad_sample_limit", "how samples are brought here"),
        ("views.*.cache_groups views.*.transform.cache_bytes start.remember_bytes", "what is kept in memory"),
        ("data.micro_batches", "parts in which a step is computed; no loss depends on it"),
        ("activation_checkpointing", "what is kept for the backward pass, and what is computed again"),
        ("engine deepspeed precision", "how the training state is held and computed with: the same but for rounding"),
        ("optimizer.total_steps", "the length of the run, and with it the end of the learning rate's schedule"),
        ("optimizer.learning_rate optimizer.warmup_steps optimizer.warmup_from_zero", "how fast it learns from here"),
        ("optimizer.schedule optimizer.decay_steps optimizer.final_fraction", "how fast it learns from here"),
        ("optimizer.max_grad_norm", "how fast it learns from here"),
    )
    for key in keys.split()
}
"""Key, or the mapping that it stands in → what a change means; * is any one name. docs/recipes.md has this table."""
FROM_OURS = frozenset(
    {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
)
"""Of the DeepSpeed JSON: they follow from our configuration and the number of ranks."""
_DO = (
    "Give the old values to go on with this run, or choose another run_folder for a new one. "
    "What may change: docs/recipes.md, “Going on with other settings”."
)


def input_hashes(config: RunConfig, ds_config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the SHA-256 of everything that the configuration names and that decides what a step is, by its key.

    Raises:
        ConfigError: one of them does not exist.
    """
    data = config.data
    tokenizer = _read_input(f"{data.tokenizer}/{TOKENIZER_NAME}", tokenizer_file(data.tokenizer).read_bytes)
    hashes = {"data.tokenizer": hashlib.sha256(tokenizer).hexdigest()}
    sets = [(one.key, one.path) for one in (*named_sets(config.views), *evaluated_sets(config))]
    for key, name, where, part in _measured(config):
        if not is_annotated(name, where):
            sets.append((key, where))
            continue
        assert config.finetune is not None
        asked = asked_of(config.finetune, name, where, part)
        hashes[key] = _json_hash(sorted((language, one.sha256) for language, one in asked.items()))  # of no other files
    for key, path in sets:
        read = partial(manifest_bytes, path, data.cache)
        hashes[key] = _shards_hash(_read_input(f"{path.rstrip('/')}/{MANIFEST_NAME}", read))
    for key, path in named_files(config.views):
        hashes[key] = hashlib.sha256(_read_input(path, Path(path).read_bytes)).hexdigest()
    for key, teacher in named_teachers(config.views):
        from cclm.data.teacher import teacher_files

        hashes[key] = teacher_files(teacher).identity
    rules = {key: value for key, value in (ds_config or {}).items() if key not in FROM_OURS}
    return hashes | {"deepspeed": _json_hash(rules)}


def _measured(config: RunConfig) -> Iterator[tuple[str, str, str, Part]]:
    """Yield the key, the name and the place of every set that retrieval is measured on, and what of it."""
    for part in PARTS:
        sets = {} if config.finetune is None else sets_of(config.finetune, part)
        for name, where in sets.items():
            yield f"finetune.{part}_sets.{name}", name, where, part


def identity_parts(config: RunConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return hashes of all that decides a step, by block of the configuration; the ranks compare them at the start."""
    parts: dict[str, Any] = {**to_plain(config), "files that the configuration names": sorted(inputs.items())}
    versions = {name: text for name, text in describe_environment().items() if name in ("torch", "deepspeed")}
    return {name: _json_hash(part)[:16] for name, part in parts.items()} | versions


def check_same_run(folder: Path, config: RunConfig, inputs: Mapping[str, str], table: Table = VIEWS) -> None:
    """Do nothing if the folder's run may go on with this configuration, or if none has got as far as a checkpoint.

    Raises:
        ConfigError: values or inputs differ that may not, or the run has got further than this one would; all named.
        CheckpointError: its files cannot be read.
    """
    before = _earlier_start(folder, table) if is_begun(folder) else None
    if before is None:
        return
    known: dict[str, str] = _read(folder / INPUTS_FILE, lambda: read_json(folder / INPUTS_FILE, {})) or {}
    by_content = {"data.tokenizer", *(one.key for one in named_sets(config.views))}
    by_content |= {key for key, _ in (*named_files(config.views), *named_teachers(config.views))}
    by_content |= {f"views.{name}.folder" for name in config.views}
    problems = [
        f"{key}: {old!r} → {new!r}"
        for key, (old, new) in differences(before, config).items()
        if not may_change(key) and (key not in by_content or None in (old, new))
    ]
    problems += [
        f"{key}: other content than at the start"
        for key in inputs
        if known.get(key, inputs[key]) != inputs[key] and not may_change(key)
    ]
    newest = newest_complete(folder)
    done = 0 if newest is None else read_marker(newest).step
    if done > config.steps:
        problems.append(f"optimizer.total_steps: {config.steps}, and {done} steps are done already")
    if problems:
        expected = "the settings and inputs that this run was started with"
        raise ConfigError(where=str(folder), expected=expected, problems=problems, do=_DO)


def may_change(key: str) -> bool:
    """Whether a run may go on with another value at a dotted key."""
    names = key.split(".")
    return any(
        len(names) >= len(free) and all(one in ("*", name) for one, name in zip(free, names, strict=False))
        for free in (free.split(".") for free in MAY_CHANGE)
    )


def is_begun(folder: Path) -> bool:
    """Whether there is anything to go on from; a start that failed before leaves the folder to the next."""
    return (folder / DONE_NAME).exists() or newest_complete(folder) is not None


def write_identity(
    folder: Path, config: RunConfig, inputs: Mapping[str, str], ds_config: dict[str, Any] | None, table: Table = VIEWS
) -> None:
    """Write the files, each whole or not at all, note what changed, and make the quarantine's folder."""
    (folder / QUARANTINE).mkdir(parents=True, exist_ok=True)
    newest = newest_complete(folder)
    before = None if newest is None else _earlier_start(folder, table)
    changed = {} if before is None else differences(before, config) | _ds_differences(folder, ds_config)
    if newest is not None and changed:
        note = {"time": round(time.time(), 3), "changed": changed}
        StepLines(folder / CHANGES_FILE).append(read_marker(newest).step, note)
    replace_text(folder / INPUTS_FILE, json.dumps(dict(inputs), indent=1, sort_keys=True) + "\n")
    if ds_config is not None:
        replace_text(folder / DS_CONFIG_FILE, json.dumps(ds_config, indent=2, sort_keys=True) + "\n")
    if not ((folder / ENVIRONMENT_NAME).exists() and is_begun(folder)):
        replace_text(folder / ENVIRONMENT_NAME, json.dumps(describe_environment(), indent=1) + "\n")
    replace_text(folder / CONFIG_FILE, to_yaml(config))
    (folder / DONE_NAME).unlink(missing_ok=True)  # who comes here is not done: the run was made longer


def write_kernels(folder: Path, choices: Sequence[Choice], device: torch.device) -> None:
    """Write what this start computes with and why, and say it in a line."""
    replace_text(folder / KERNELS_FILE, json.dumps(describe(choices, device), indent=1) + "\n")
    sys.stderr.write(f"kernels: {', '.join(f'{one.op} {one.chosen}' for one in choices)}\n")


def differences(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the old and new value of every dotted key that differs; None where there is no such key."""
    return _changes(dict(_leaves(to_plain(before), "")), dict(_leaves(to_plain(after), "")))


def _ds_differences(folder: Path, after: Mapping[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """The same of the DeepSpeed JSON, under `deepspeed`, between two starts with DeepSpeed."""
    before = read_json(folder / DS_CONFIG_FILE, None)
    if before is None or after is None:
        return {}
    old, new = (
        {key: value for key, value in _leaves(dict(one), "deepspeed") if key.split(".")[1] not in FROM_OURS}
        for one in (before, after)
    )
    return _changes(old, new)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{key}[{number}]")
    else:
        yield key, value


def _earlier_start(folder: Path, table: Table) -> RunConfig | None:
    return _read(folder / CONFIG_FILE, partial(read_run_config, folder, table))


def _read(path: Path, read: Callable[[], Value]) -> Value | None:
    """What stands in a file of the run folder; None if there is no such file."""
    if not path.exists():
        return None
    try:
        return read()
    except ConfigError as error:
        raise CheckpointError(
            where=str(path),
            expected="what the run was started with",
            got=error.got,
            do="Put the file back, or remove it to go on without the comparison.",
        ) from error


def _shards_hash(manifest: bytes) -> str:
    """Hash of a set's shards alone: the command and the paths that made them do not change what is read."""
    try:
        document = json.loads(manifest)
        shards = [document[name] for name in ("format_version", "view", "shards")]
    except (ValueError, KeyError, TypeError):
        return hashlib.sha256(manifest).hexdigest()  # whoever reads the set says what is wrong with it
    return _json_hash(shards)


def _read_input(name: str, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except OSError as error:
        raise ConfigError(
            where=name,
            expected="a file that the configuration names",
            got=error.strerror or str(error),
            do="Check the path; `python -m shards` makes shard sets and tokenizers.",
        ) from error


def _json_hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
