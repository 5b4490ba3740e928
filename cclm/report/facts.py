"""The facts of a run, read from the plain files of its folder: what a model card and a report are made of.

run folder ── config.yaml, results.json, gallery.json, parity.json, stages.json, environment.json
shard sets named in config.yaml ── manifest.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cclm.config import RunConfig, named_sets
from cclm.files.reading import read_json
from cclm.recipe.read import read_run_config
from cclm.run.checkpoints import CheckpointFacts
from cclm.run.machine import ENVIRONMENT_NAME
from cclm.run.status import DONE_NAME
from cclm.shardfile.manifest import Counts
from cclm.shardfile.schema import MANIFEST_NAME
from cclm.types import View

RESULTS_NAME = "results.json"
GALLERY_NAME = "gallery.json"
PARITY_NAME = "parity.json"
STAGES_NAME = "stages.json"
UNKNOWN_ENVIRONMENT = {"machine": "unknown", "versions": "unknown"}
"""Of a run that did not write environment.json: the machine that reads it may be another."""

TRAINED_ON, MEASURED_ON, CHOSEN_ON = "trained on", "measured on", "choices made on"
"""What a run did with a set."""


@dataclass(frozen=True, kw_only=True)
class SetFacts(Counts):
    """One shard set."""

    role: str
    folder: str
    view: View
    command: str
    read_by: str = ""
    """Name of the run's view that trained on it."""
    tar_hashes: frozenset[str] = frozenset()
    """SHA-256 of its tars; empty if the manifest does not say."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a demonstration."""

    name: str
    command: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Everything known about a run."""

    name: str
    config: RunConfig
    results: Mapping[str, Any]
    """results.json; empty if this checkpoint was not measured."""
    gallery: Sequence[Mapping[str, Any]]
    """gallery.json; empty if there is none, or if this checkpoint was not measured."""
    parity: Mapping[str, Any]
    """parity.json of the export; empty if this checkpoint was not exported."""
    sets: Sequence[SetFacts]
    stages: Sequence[Stage]
    environment: Mapping[str, str]
    """Hardware and versions at the start of the training, from environment.json."""
    checkpoint: CheckpointFacts | None = None
    """The checkpoint that all of this is about; None: nothing is known of one."""
    train_seconds: float | None = None
    """What the training took, from its stage or else from done.json."""

    @property
    def steps(self) -> int | None:
        """Optimizer updates that the checkpoint has seen; what the recipe asks for may be more."""
        return None if self.checkpoint is None else self.checkpoint.step

    def trains_on(self, view: View) -> bool:
        """Return whether the run was trained on sets of this kind."""
        return any(settings.record_view is view for settings in self.config.views.values())

    def languages_of(self, view: View) -> set[str]:
        """Return the languages that the run was trained in on sets of this kind, where known."""
        found: set[str] = set()
        for one in self.sets:
            if one.role == TRAINED_ON and one.view is view:
                used = getattr(self.config.views[one.read_by], "languages", None)
                found.update(one.languages if used is None else used)
        return found


def read_facts(folder: Path, checkpoint: CheckpointFacts | None = None) -> RunFacts:
    """Read what a run folder knows about itself; results and exports of another checkpoint (if given) count as none.
    Raise ConfigError without config.yaml, or if a file cannot be read."""
    config = read_run_config(folder)
    results = read_json(folder / RESULTS_NAME, {})
    if not belongs(results.get("model") or {}, checkpoint):
        results = {}
    parity = read_json(folder / PARITY_NAME, {})
    stages = read_stages(folder, results)
    seconds = {stage.name: stage.seconds for stage in stages}.get("train")
    return RunFacts(
        name=folder.resolve().name,
        config=config,
        results=results,
        gallery=read_json(folder / GALLERY_NAME, []) if results else [],
        parity=parity if belongs(parity, checkpoint) else {},
        sets=read_sets(config, results),
        stages=stages,
        environment=read_json(folder / ENVIRONMENT_NAME, UNKNOWN_ENVIRONMENT),
        checkpoint=checkpoint,
        train_seconds=read_json(folder / DONE_NAME, {}).get("seconds") if seconds is None else seconds,
    )


def belongs(record: Mapping[str, Any], checkpoint: CheckpointFacts | None) -> bool:
    """Return whether results or a parity report (with the key "checkpoint") are about this checkpoint."""
    return checkpoint is None or record.get("checkpoint") == checkpoint.identity


def read_sets(config: RunConfig, results: Mapping[str, Any]) -> list[SetFacts]:
    """Return the facts of the sets that the run read and of those it was measured on; missing ones are left out."""
    folders = [(TRAINED_ON, one.path, one.view) for one in named_sets(config.views)]
    for role, measured in ((MEASURED_ON, results), (CHOSEN_ON, results.get("dev") or {})):
        if "set" in measured:
            folders.append((role, measured["set"]["shards"], ""))
    found = []
    for role, folder, read_by in folders:
        if manifest := read_json(Path(folder) / MANIFEST_NAME, {}):
            facts = SetFacts(
                role=role,
                folder=str(Path(folder)),
                view=View(manifest["view"]),
                **{item.name: manifest["totals"][item.name] for item in fields(Counts)},
                command=manifest.get("command", ""),
                read_by=read_by,
                tar_hashes=frozenset(shard["sha256"] for shard in manifest.get("shards") or ()),
            )
            found.append(facts)
    return found


def read_stages(folder: Path, results: Mapping[str, Any]) -> list[Stage]:
    """Return the stages: from stages.json ([{"name", "command", "seconds"}]), else those timed in results.json."""
    if listed := read_json(folder / STAGES_NAME, []):
        return [Stage(name=row["name"], command=row.get("command", ""), seconds=row.get("seconds")) for row in listed]
    seconds = results.get("seconds") or {}
    return [Stage(name=name, command="", seconds=value) for name, value in seconds.items()]
