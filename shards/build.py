"""Builds shard sets: many processes, the same bytes as one; killed and started again, it goes on.

    drafts --plan--> shards --(each shard: make records, write, one state file)--> manifest, quarantine.jsonl

A set's folder keeps `.build/`, one small file per finished shard, until its manifest is written. A shard counts as
finished when its state file is there; one that was cut off is built again, over the hidden half file.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cclm.atomic import replace_bytes, sync
from cclm.errors import ConfigError, DataError
from cclm.shardfile import schema
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.manifest import Manifest, ShardInfo
from cclm.shardfile.writer import ImageTextShardWriter, TextPairShardWriter
from cclm.types import ImageTextRecord
from shards.draft import Draft
from shards.plan import SetPlan, recipe_json
from shards.recipe import SetRecipe
from shards.workers import only_builder, run_jobs

QUARANTINE_NAME = "quarantine.jsonl"
_STATE_FOLDER = ".build"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one shard's drafts."""

    number: int
    info: ShardInfo | None
    """None when every record was refused: then there is no file."""
    refused: Sequence[dict[str, Any]]
    """One quarantine line a record: key, source, shard, reason, message."""

    def to_json(self) -> bytes:
        """Return the state file's bytes."""
        info = None if self.info is None else asdict(self.info)
        return canonical_json({"number": self.number, "info": info, "refused": self.refused})

    @classmethod
    def from_json(cls, data: bytes) -> Outcome:
        """Read a state file's bytes."""
        fields = json.loads(data)
        info = None if fields["info"] is None else ShardInfo.from_json(fields["info"])
        return cls(number=fields["number"], info=info, refused=fields["refused"])


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """One shard to build, in any process."""

    folder: Path
    name: str
    recipe: SetRecipe
    number: int
    drafts: Sequence[Draft]


def build_shard(job: ShardJob) -> Outcome:
    """Make a shard's records and write them; refused records are described, not lost."""
    refused: list[dict[str, Any]] = []
    with _writer_of(job) as writer:
        for draft in job.drafts:
            try:
                made = draft.make()
                if isinstance(made, ImageTextRecord):
                    assert isinstance(writer, ImageTextShardWriter)
                    writer.add(made)
                else:
                    assert isinstance(writer, TextPairShardWriter)
                    writer.add_group(made)
            except DataError as error:
                refused.append(
                    {
                        "key": draft.key,
                        "source": draft.source,
                        "shard": job.number,
                        "reason": error.reason,
                        "message": str(error),
                    }
                )
    outcome = Outcome(number=job.number, info=writer.shards[0] if writer.shards else None, refused=refused)
    replace_bytes(_state_path(job.folder, job.number), outcome.to_json(), durable=True)
    return outcome


def _writer_of(job: ShardJob) -> ImageTextShardWriter | TextPairShardWriter:
    """Return a writer that writes this one shard: its size was decided by the plan."""
    if job.recipe.view.value == "image_text":
        return ImageTextShardWriter(job.folder, job.name, None, None, first_shard=job.number)
    return TextPairShardWriter(
        job.folder,
        job.name,
        job.recipe.pairs_per_block,
        None,
        None,
        first_shard=job.number,
        licences=job.recipe.licences,
    )


def _state_path(folder: Path, number: int) -> Path:
    return folder / _STATE_FOLDER / f"{number:06d}.json"


def is_complete(folder: Path, plan: SetPlan) -> bool:
    """Tell whether a folder already holds this very set.

    Raises:
        ConfigError: it holds another one, whole or begun.
    """
    manifest_path, plan_path = folder / schema.MANIFEST_NAME, folder / _STATE_FOLDER / "plan"
    if manifest_path.exists():
        digest = Manifest.load(folder).config.get("plan")
    elif plan_path.exists():
        digest = plan_path.read_text(encoding="utf-8")
    else:
        return False
    if digest != plan.digest:
        raise ConfigError(
            expected="an empty folder, or the same build to go on with",
            got="a build of another recipe or of a corpus that has changed",
            do="Remove the folder, or choose another --out.",
            where=str(folder),
        )
    return manifest_path.exists()


def open_jobs(folder: Path, plan: SetPlan) -> tuple[list[Outcome], list[ShardJob]]:
    """Return what earlier runs finished, and what is left to do. Begins the set if it is new."""
    (folder / _STATE_FOLDER).mkdir(parents=True, exist_ok=True)
    replace_bytes(folder / _STATE_FOLDER / "plan", plan.digest.encode(), durable=True)
    finished, jobs = [], []
    for number, drafts in enumerate(plan.shards):
        state = _state_path(folder, number)
        outcome = Outcome.from_json(state.read_bytes()) if state.exists() else None
        if outcome is not None and _is_there(folder, outcome):
            finished.append(outcome)
        else:
            jobs.append(ShardJob(folder=folder, name=plan.name, recipe=plan.recipe, number=number, drafts=drafts))
    return finished, jobs


def _is_there(folder: Path, outcome: Outcome) -> bool:
    info = outcome.info
    if info is None:
        return True
    tar = folder / info.name
    return (folder / info.index_name).exists() and tar.exists() and tar.stat().st_size == info.size_bytes


def finish_set(folder: Path, plan: SetPlan, outcomes: Sequence[Outcome], command: str) -> Manifest:
    """Write quarantine.jsonl and, at last, the manifest.

    Raises:
        DataError: reason too_many_bad.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.number)
    refused = [line for outcome in ordered for line in outcome.refused]
    infos = [outcome.info for outcome in ordered if outcome.info is not None]
    replace_bytes(folder / QUARANTINE_NAME, b"".join(canonical_json(line) + b"\n" for line in refused), durable=True)
    if _are_too_many(len(refused), plan):
        raise _too_many_bad(folder, plan, refused)
    assert sum(info.samples for info in infos) + len(refused) == plan.num_records, "a record got lost"
    config = {
        "recipe": recipe_json(plan.recipe),
        "plan": plan.digest,
        "records_in": plan.num_records,
        "refused": dict(sorted(Counter(line["reason"] for line in refused).items())),
    }
    manifest = Manifest(view=plan.recipe.view, shards=infos, command=command, config=config)
    manifest.save(folder)
    shutil.rmtree(folder / _STATE_FOLDER)
    sync(folder)
    return manifest


def _are_too_many(num_refused: int, plan: SetPlan) -> bool:
    """Tell whether a set fails: more refused than its recipe allows, or nothing left."""
    return num_refused > plan.recipe.max_bad_fraction * plan.num_records or num_refused == plan.num_records


def _too_many_bad(folder: Path, plan: SetPlan, refused: Sequence[dict[str, Any]]) -> DataError:
    counts = Counter(line["reason"] for line in refused).most_common(5)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts)
    return DataError(
        reason="too_many_bad",
        expected=f"at most {plan.recipe.max_bad_fraction:.2%} of {plan.num_records:,} records refused",
        got=f"{len(refused):,} ({reasons}); the first: {refused[0]['message']}" if refused else "no records at all",
        do=f"Read {folder / QUARANTINE_NAME}, mend the corpus, or raise max_bad_fraction in the recipe.",
        where=plan.name,
    )


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of a build that was killed; only for the one builder that holds the lock."""
    for path in folder.rglob(".*.partial"):
        path.unlink()


def build_sets(
    plans: Sequence[SetPlan],
    out: Path,
    *,
    workers: int = 1,
    command: str = "",
    on_shard: Callable[[str, int, bool], None] | None = None,
) -> dict[str, Manifest]:
    """Build every planned set into `out`/NAME; sets that are complete are left alone.

    Args:
        plans: what to build.
        out: parent of the sets' folders.
        workers: processes; the result is the same for any number.
        command: goes into the manifests.
        on_shard: called with (set name, records, whether an earlier run did it) for each finished shard.

    Raises:
        ConfigError: a folder holds another build, or one is running there.
        DataError: reasons too_many_bad, worker_died.
    """
    report = on_shard or (lambda _name, _records, _before: None)
    with only_builder(out):
        todo = {plan.name: plan for plan in plans if not is_complete(out / plan.name, plan)}
        outcomes: dict[str, list[Outcome]] = {}
        jobs: list[ShardJob] = []
        for plan in plans:
            if plan.name not in todo:
                report(plan.name, plan.num_records, True)
                continue
            remove_leftovers(out / plan.name)
            outcomes[plan.name], open_ones = open_jobs(out / plan.name, plan)
            jobs += open_ones
            for outcome in outcomes[plan.name]:
                report(plan.name, len(plan.shards[outcome.number]), True)
            if not open_ones:
                finish_set(out / plan.name, plan, outcomes[plan.name], command)
        for job, outcome in run_jobs(build_shard, jobs, workers):
            plan, done = todo[job.name], outcomes[job.name]
            done.append(outcome)
            report(job.name, len(job.drafts), False)
            # Too many bad ones are noticed at once, not after hours.
            num_refused = sum(len(each.refused) for each in done)
            if len(done) == len(plan.shards) or _are_too_many(num_refused, plan):
                finish_set(job.folder, plan, done, command)
    return {plan.name: Manifest.load(out / plan.name) for plan in plans}
