"""The run folder as the identity of a run: what it was started with, and whether that is still so.

    config.yaml      the resolved configuration
    ds_config.json   the resolved DeepSpeed JSON
    environment.json versions and machine of the first start
    inputs.json      hashes of what the configuration only names: tokenizer, shard manifests, DeepSpeed JSON

A run resumes only with the same configuration and the same inputs: step k is a function of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from cclm.config import RunConfig
from cclm.data.tokenizer_file import TOKENIZER_NAME, tokenizer_file
from cclm.engine.ds_config import write_ds_config
from cclm.errors import CheckpointError, ConfigError
from cclm.files.atomic import replace_text
from cclm.run.checkpoints import newest_complete
from cclm.run.environment import ENVIRONMENT_NAME, describe_environment
from cclm.run.status import DONE_NAME
from cclm.shardfile.remote import manifest_bytes
from cclm.shardfile.schema import MANIFEST_NAME

CONFIG_FILE = "config.yaml"
INPUTS_FILE = "inputs.json"
QUARANTINE = "quarantine"

MAY_CHANGE = (
    *("checkpoint", "track", "run_folder", "device"),
    *("data.num_workers", "data.batch_timeout_s", "data.bad_sample_limit", "data.cache", "data.micro_batches"),
)
"""What a resumed run may do differently: nothing of it decides which samples a step holds."""
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
"""Of the DeepSpeed JSON: they follow from the configuration and the number of ranks, which the checkpoint checks."""


def as_values(config: RunConfig) -> dict[str, Any]:
    """The configuration as YAML would give it back: plain mappings and lists."""
    values: dict[str, Any] = _plain(asdict(config))
    return values


def input_hashes(config: RunConfig, ds_config: Mapping[str, Any] | None) -> dict[str, str]:
    """SHA-256 of every file that the configuration names and that decides what a step is.

    Raises:
        ConfigError: one of them does not exist.
    """
    tokenizer = Path(config.data.tokenizer) / TOKENIZER_NAME
    hashes = {
        str(tokenizer): hashlib.sha256(
            _read_input(str(tokenizer), tokenizer_file(config.data.tokenizer).read_bytes)
        ).hexdigest()
    }
    for view in config.views.values():
        for source in view.ordered_sources.values():
            name = f"{source.path.rstrip('/')}/{MANIFEST_NAME}"
            hashes[name] = _shards_hash(_read_input(name, partial(manifest_bytes, source.path, config.data.cache)))
    rules = {key: value for key, value in (ds_config or {}).items() if key not in BATCH_KEYS}
    hashes["DeepSpeed JSON"] = _text_hash(json.dumps(rules, sort_keys=True))
    return hashes


def identity_parts(config: RunConfig, inputs: Mapping[str, str]) -> dict[str, str]:
    """Return hashes of all that decides a step, by block of the configuration; the ranks compare them at the start."""
    parts: dict[str, Any] = {**as_values(config), "files that the configuration names": sorted(inputs.items())}
    versions = {name: text for name, text in describe_environment().items() if name in ("torch", "deepspeed")}
    return {name: _text_hash(json.dumps(part, sort_keys=True))[:16] for name, part in parts.items()} | versions


def refuse_another_run(folder: Path, config: RunConfig, inputs: Mapping[str, str]) -> None:
    """Do nothing if the folder holds this very run, or none that has got as far as a checkpoint.

    Raises:
        ConfigError: it was started with other values or other inputs; all of them are named.
        CheckpointError: its files cannot be read.
    """
    if not is_begun(folder):
        return
    before, known = _read(folder / CONFIG_FILE, yaml.safe_load), _read(folder / INPUTS_FILE, json.loads)
    changed = differences(before, as_values(config)) if before else []
    changed += [f"content of {name}" for name in inputs if known.get(name, inputs[name]) != inputs[name]]
    if changed:
        raise ConfigError(
            where=str(folder),
            expected="the configuration and inputs that this run was started with",
            got="other values of " + ", ".join(changed),
            do="Choose another run_folder for a new run, or give the old values to resume this one.",
        )


def is_begun(folder: Path) -> bool:
    """Whether there is anything to go on from; a start that failed before leaves the folder to the next."""
    return (folder / DONE_NAME).exists() or newest_complete(folder) is not None


def write_identity(
    folder: Path, config: RunConfig, inputs: Mapping[str, str], ds_config: dict[str, Any] | None
) -> None:
    """Write the files, each whole or not at all, and make the quarantine's folder."""
    (folder / QUARANTINE).mkdir(parents=True, exist_ok=True)
    replace_text(folder / INPUTS_FILE, json.dumps(dict(inputs), indent=1, sort_keys=True) + "\n")
    if ds_config is not None:
        write_ds_config(ds_config, folder)
    if not ((folder / ENVIRONMENT_NAME).exists() and is_begun(folder)):
        replace_text(folder / ENVIRONMENT_NAME, json.dumps(describe_environment(), indent=1) + "\n")
    replace_text(folder / CONFIG_FILE, yaml.safe_dump(as_values(config), sort_keys=False, allow_unicode=True))


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the values that decide steps and differ."""
    names = []
    for key in sorted(before.keys() | after.keys()):
        path = f"{prefix}{key}"
        old, new = before.get(key), after.get(key)
        if path in MAY_CHANGE or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            names += differences(old, new, f"{path}.")
        else:
            names.append(path)
    return names


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The mapping in a file of the run folder; empty if there is no such file."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
        problem = "" if isinstance(content, dict) else type(content).__name__
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
    if problem:
        raise CheckpointError(
            where=str(path),
            expected="what the run was started with",
            got=problem,
            do="Put the file back, or remove it to go on without the comparison.",
        )
    return dict(content)


def _shards_hash(manifest: bytes) -> str:
    """Hash of a set's shards alone: the command and the paths that made them do not change what is read."""
    try:
        document = json.loads(manifest)
        shards = [document[name] for name in ("format_version", "view", "shards")]
    except (ValueError, KeyError, TypeError):
        return hashlib.sha256(manifest).hexdigest()  # whoever reads the set says what is wrong with it
    return _text_hash(json.dumps(shards, sort_keys=True))


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


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
