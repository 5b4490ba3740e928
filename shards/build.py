"""Builds shard sets: many processes or machines, the same bytes as one; killed and started again, it goes on.

    parts --scan--> .build/chunks --decide--> .build/drops, decision.json --write--> shards, .build/written --> manifest
    (every task)                  (once)                                  (any number of processes)          (last)

A set's folder keeps `.build/` until its manifest is written. Each step leaves files that are whole or not there, and
skips what is there: that is all that going on after a kill needs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from cclm.errors import ConfigError, DataError
from cclm.files.atomic import publish, replace_bytes, sync, temporary_path
from cclm.shardfile import schema
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.manifest import Manifest
from shards.chunks import list_chunks, mapped
from shards.decide import decide
from shards.drops import GROUP_MIXED, KEY_TWICE
from shards.follow import ChunkTotals, follow_chunks, guess_of_all, sum_of_chunks
from shards.plan import SetPlan, recipe_json
from shards.progress import WorkProgress
from shards.scan import chunks_of, scan, scan_jobs, skipped_rows, unfinished_parts
from shards.share import WHOLE, Share
from shards.workers import EXECUTORS, only_builder
from shards.write import ShardJob, ShardResult, quarantine_path, shard_job, state_path, write_shard

_STATE_FOLDER = ".build"

Report = Callable[[str, int | None, str], WorkProgress]
"""Opens a bar: (what is done, how much there is, its unit)."""


class _Runner(Protocol):
    def run(self, function: Callable[[Any], Any], jobs: Sequence[Any]) -> Iterator[tuple[Any, Any]]: ...


def build_sets(
    plans: Sequence[SetPlan],
    out: Path,
    *,
    workers: int = 1,
    command: str = "",
    executor: str = "processes",
    report: Report | None = None,
) -> dict[str, Manifest]:
    """Build every planned set into `out`/NAME; sets that are complete are left alone.

    Args:
        plans: what to build.
        out: parent of the sets' folders.
        workers: processes; the result is the same for any number.
        command: goes into the manifests.
        executor: a key of EXECUTORS.
        report: opens the progress bars; None: nothing is shown.

    Raises:
        ConfigError: a folder holds another build, or one is running there.
        DataError: reasons too_many_bad, worker_died.
        MissingDependencyError: the executor or a filter needs an optional package.
    """
    with only_builder(out), EXECUTORS[executor](workers) as runner:
        for plan in plans:
            build = _SetBuild(plan, out / plan.name, runner, workers, report or _silent)
            if not build.is_complete():
                build.begin(alone=True)
                build.scan(WHOLE)
                build.decide()
                build.write(WHOLE)
                build.finish(command)
    return {plan.name: Manifest.load(out / plan.name) for plan in plans}


def scan_share(
    plans: Sequence[SetPlan],
    out: Path,
    share: Share,
    *,
    workers: int = 1,
    executor: str = "processes",
    report: Report | None = None,
) -> None:
    """Do one task's share of reading the corpora; `merge_sets` does the rest once every task has (see `build_sets`)."""
    with only_builder(out, shared=True), EXECUTORS[executor](workers) as runner:
        for plan in plans:
            build = _SetBuild(plan, out / plan.name, runner, workers, report or _silent)
            if not build.is_complete():
                build.begin(alone=False)
                build.scan(share)


def merge_sets(
    plans: Sequence[SetPlan],
    out: Path,
    *,
    share: Share | None = None,
    workers: int = 1,
    command: str = "",
    executor: str = "processes",
    report: Report | None = None,
) -> dict[str, Manifest]:
    """Turn what the tasks have read into shards and manifests (see `build_sets`).

    Args:
        plans: as the tasks had them.
        out: as theirs.
        share: writes only a share of the shards, and no manifest: for sets so large that one machine is too slow.
            The merge without one that must follow finds those shards there.
        workers: processes.
        command: goes into the manifests.
        executor: a key of EXECUTORS.
        report: opens the progress bars.

    Raises:
        ConfigError: a task has not finished.
    """
    with only_builder(out, shared=share is not None), EXECUTORS[executor](workers) as runner:
        for plan in plans:
            build = _SetBuild(plan, out / plan.name, runner, workers, report or _silent)
            if not build.is_complete():
                build.begin(alone=share is None)
                build.check_all_is_read()
                build.decide()
                build.write(share or WHOLE)
                if share is None:
                    build.finish(command)
    return {} if share else {plan.name: Manifest.load(out / plan.name) for plan in plans}


def _silent(label: str, total: int | None, unit: str) -> WorkProgress:
    return WorkProgress(label, total, unit, Console(quiet=True))


class _SetBuild:
    """One set on its way from parts to a manifest."""

    def __init__(self, plan: SetPlan, folder: Path, runner: _Runner, workers: int, report: Report) -> None:
        self._plan, self._folder, self._runner, self._workers = plan, folder, runner, workers
        self._report = report
        self._state = folder / _STATE_FOLDER
        self._chunks, self._written = self._state / "chunks", self._state / "written"

    def is_complete(self) -> bool:
        """Tell whether the folder already holds this very set.

        Raises:
            ConfigError: it holds another one, whole or begun.
        """
        manifest_path, plan_path = self._folder / schema.MANIFEST_NAME, self._state / "plan"
        if manifest_path.exists():
            digest = Manifest.load(self._folder).config.get("plan")
        elif plan_path.exists():
            digest = plan_path.read_text(encoding="utf-8")
        else:
            return False
        if digest != self._plan.digest:
            raise ConfigError(
                expected="an empty folder, or the same build to go on with",
                got="a build of another recipe or of a corpus that has changed",
                do="Remove the folder, or choose another --out.",
                where=str(self._folder),
            )
        if manifest_path.exists() and self._state.exists():
            shutil.rmtree(self._state)  # killed between the manifest and the end
        return manifest_path.exists()

    def begin(self, *, alone: bool) -> None:
        """Make the folders; one that builds alone removes the half files of a build that was killed."""
        self._chunks.mkdir(parents=True, exist_ok=True)
        if alone:
            for path in self._folder.rglob(".*.partial"):
                path.unlink()
        replace_bytes(self._state / "plan", self._plan.digest.encode(), durable=True)

    def scan(self, share: Share) -> None:
        """Read a share of the corpus.

        Raises:
            DataError: reason too_many_bad, as soon as it is sure.
        """
        plan = self._plan
        jobs = list(
            scan_jobs(
                plan.parts, self._chunks, plan.seed, plan.recipe,
                task=share.number, tasks=share.of, workers=self._workers,
            )
        )  # fmt: skip
        with (
            self._report(f"{plan.name}: reading", None, "records") as progress,
            follow_chunks(self._chunks, progress) as followed,
        ):
            for _ in self._runner.run(scan, jobs):
                read = followed.look()
                self._check_bad_share(read, at_end=False)
                ended = [part for part in range(len(plan.parts)) if chunks_of(self._chunks, part) is not None]
                if guess := guess_of_all(read, ended, len(plan.parts)):
                    progress.expect(guess)
        if share == WHOLE:
            self._check_bad_share(followed.look(), at_end=True)

    def check_all_is_read(self) -> None:
        """Raise a ConfigError that names what the tasks have left."""
        left = unfinished_parts(self._chunks, [part.name for part in self._plan.parts])
        if left:
            raise ConfigError(
                expected="tasks that have read all of the corpus",
                got=f"{len(left)} of {len(self._plan.parts)} parts that are not finished ({', '.join(left[:3])}…)",
                do="Run the tasks that failed again (`shards build … --task I/N`), then merge.",
                where=str(self._folder),
            )
        self._check_bad_share(sum_of_chunks(self._chunks), at_end=True)

    def decide(self) -> None:
        """Decide what stands in the set, unless that was done."""
        self._written.mkdir(exist_ok=True)
        self._decision = decide(self._state, self._plan.recipe, self._plan.seed, self._runner.run)

    def write(self, share: Share) -> None:
        """Write a share of the shards."""
        jobs = [self._job(number) for number in range(share.number, self._num_jobs, share.of)]
        todo = [job for job in jobs if self._result(job.number) is None]
        with self._report(f"{self._plan.name}: writing", len(jobs), "shards") as progress:
            progress.advance(len(jobs) - len(todo), done_before=True)
            for job, _ in self._runner.run(write_shard, todo):
                progress.advance(1, note=f"{self._plan.name}-{job.number:06d}")

    @property
    def _num_jobs(self) -> int:
        return max(1, len(self._decision.starts))  # without any sample, one job still writes the quarantine

    def _job(self, number: int) -> ShardJob:
        return shard_job(
            folder=self._folder, name=self._plan.name, written=self._written, starts=self._decision.starts,
            number=number, chunks=self._chunks, drops=self._state / "drops", recipe=self._plan.recipe,
            seed=self._plan.seed, rates=self._decision.rates,
        )  # fmt: skip

    def _result(self, number: int) -> ShardResult | None:
        """Return what became of a shard, or None if it is not there, whole."""
        try:
            result = ShardResult.from_json(state_path(self._written, number).read_bytes())
        except FileNotFoundError:
            return None
        info = result.info
        if info is None:
            return result
        tar = self._folder / info.name
        is_there = (self._folder / info.index_name).exists() and tar.exists() and tar.stat().st_size == info.size_bytes
        return result if is_there else None

    def finish(self, command: str) -> Manifest:
        """Write quarantine.jsonl and, at last, the manifest.

        Raises:
            DataError: reason too_many_bad.
        """
        results = [result for number in range(self._num_jobs) if (result := self._result(number))]
        refused, texts = _add(each.refused for each in results), _add(each.texts_refused for each in results)
        units = sum(result.units for result in results)
        read = sum_of_chunks(self._chunks)
        assert len(results) == self._num_jobs and units == read.units, (
            f"{read.units} units read, {units} written or refused"
        )
        quarantine_sha256 = self._write_quarantine()
        bad = read.bad + refused.get(KEY_TWICE, 0) + refused.get(GROUP_MIXED, 0)
        if bad > self._plan.recipe.max_bad_fraction * units or sum(refused.values()) == units:
            with (self._folder / schema.QUARANTINE_NAME).open("rb") as file:
                raise self._too_many_bad(units, refused, [json.loads(line) for line in itertools.islice(file, 1)])
        config = {
            "recipe": recipe_json(self._plan.recipe),
            "plan": self._plan.digest,
            "records_in": units,
            "refused": refused,
            "captions_refused": texts,
            "skipped": skipped_rows(self._chunks, len(self._plan.parts)),
            "left_out": self._plan.left_out,
            schema.QUARANTINE_HASH: quarantine_sha256,
        }
        infos = [result.info for result in results if result.info is not None]
        manifest = Manifest(view=self._plan.recipe.view, shards=infos, command=command, config=config)
        manifest.save(self._folder)
        shutil.rmtree(self._state)
        sync(self._folder)
        return manifest

    def _write_quarantine(self) -> str:
        """Write the lines of every shard's range; return the file's SHA-256."""
        digest = hashlib.sha256()
        path = self._folder / schema.QUARANTINE_NAME
        with temporary_path(path).open("wb") as file:
            for number in range(self._num_jobs):
                lines = quarantine_path(self._written, number).read_bytes()
                file.write(lines)
                digest.update(lines)
        sync(temporary_path(path))
        publish(temporary_path(path), path)
        return digest.hexdigest()

    def _check_bad_share(self, read: ChunkTotals, *, at_end: bool) -> None:
        """Raise when more records are bad than the recipe allows: before the end only if it allows none."""
        most = self._plan.recipe.max_bad_fraction
        if read.bad <= most * read.units or not (at_end or most == 0):
            return
        lines = [json.loads(line) for line in self._lines_so_far()]
        data = b"".join(canonical_json(line) + b"\n" for line in lines)
        replace_bytes(self._folder / schema.QUARANTINE_NAME, data, durable=True)
        raise self._too_many_bad(read.units, Counter(line["reason"] for line in lines), lines)

    def _lines_so_far(self) -> Iterator[bytes]:
        for name in list_chunks(self._chunks):
            with mapped(name.path(self._chunks)) as table:
                lines = table["line"].drop_null().to_pylist()
            yield from (line for line in lines if b'"stage":"make"' in line)

    def _nothing_read(self) -> str:
        passed = Counter[str]()
        for rows in skipped_rows(self._chunks, len(self._plan.parts)).values():
            passed.update(rows)
        languages = ", ".join(language for language, _ in passed.most_common(5))
        others = f"; {passed.total():,} rows in other languages were skipped ({languages}, …)"
        return "no records at all" + (others if passed else "")

    def _too_many_bad(self, units: int, refused: Mapping[str, int], lines: Sequence[Any] = ()) -> DataError:
        counts = Counter(refused).most_common(5)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in counts)
        path = self._folder / schema.QUARANTINE_NAME
        first = f"; the first: {lines[0]['message']}" if lines else ""
        most = f"{self._plan.recipe.max_bad_fraction:.2%}"
        return DataError(
            reason="too_many_bad",
            expected=f"at most {most} of {units:,} records broken, and one that is kept",
            got=f"{sum(refused.values()):,} refused ({reasons}){first}" if refused else self._nothing_read(),
            do=f"Read {path}, mend the corpus, or raise max_bad_fraction in the recipe.",
            where=self._plan.name,
        )


def _add(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
