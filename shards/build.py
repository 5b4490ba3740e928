"""Builds shard sets: many processes or machines, the same bytes as one; killed and started again, it goes on.

    parts --scan--> .build/chunks --decide--> .build/drops, decision.json --write--> shards, .build/written --> manifest
    (every task)                  (once)                                  (any number of processes)          (last)

A set's folder keeps `.build/` until its manifest is written. Each step leaves files that are whole or not there, and
skips what is there: that is all that going on after a kill needs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console

from cclm.files.atomic import file_sha256, publish, replace_bytes, sync, temporary_path
from cclm.files.typed import nearest
from cclm.rows.guard import mistaken, refuse
from cclm.shardfile import schema
from cclm.shardfile.codec import canonical_json
from cclm.shardfile.manifest import Manifest
from shards.chunks import list_chunks, mapped
from shards.corpora.files import accounting
from shards.corpora.table import corpus_of
from shards.decide import GROUP_MIXED, KEY_TWICE, Bucket, decide
from shards.filters import read_benchmarks, read_scores
from shards.parts import Part
from shards.progress import Followed, WorkProgress
from shards.recipe import SetRecipe, content_hash
from shards.scan import WHOLE, Share, chunks_of, is_read, scan, scan_jobs, skipped_rows
from shards.workers import EXECUTORS, RunJobs, only_builder
from shards.write import result_of, shard_jobs, write_shard

_STATE_FOLDER = ".build"
Report = Callable[[str, int | None, str], WorkProgress]
"""Opens a bar: (what is done, how much there is, its unit)."""
_SILENT: Final = partial(WorkProgress, console=Console(quiet=True))


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """A set to build."""

    name: str
    recipe: SetRecipe
    parts: Sequence[Part]
    digest: str
    """Hash of the recipe, of the files its filters read, and of every part's name and stamp: equal digests give equal
    sets."""
    left_out: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Files under the corpus's paths that are not read: why -> {"files": how many, "first": one of them}."""

    @property
    def seed(self) -> bytes:
        """What the order of records is drawn from."""
        return f"{self.recipe.seed}:{self.name}".encode()


def plan_corpus(name: str, recipe: SetRecipe) -> SetPlan:
    """Return the plan of a set, with an account of the files that its corpus does not read.
    ConfigError: the files are not what the recipe says."""
    with accounting() as account:
        plan = plan_set(name, recipe, corpus_of(recipe.corpus, recipe.options).parts())
        read_benchmarks(recipe.filters)
        check_scores(recipe)
    return replace(plan, left_out=account.kinds())


def check_scores(recipe: SetRecipe) -> None:
    """Check that the filters' scores are of such a set, and have the languages that the recipe names."""
    if recipe.filters.model_scores is None:
        return
    scores = read_scores(recipe.filters.model_scores)
    if scores.summary.view != recipe.view.value:
        do = "Score a set of this view (`cclm score`), or correct filters.model_scores."
        mistaken(f"scores of {recipe.view.value} samples", f"of {scores.summary.view}", do, scores.folder)
    known = list(scores.summary.languages)
    for label in recipe.filters.min_score_percentiles:
        if label not in known:
            near = nearest(label, known, []) or ", ".join(known)
            do = "Pairs have both languages in alphabetical order (de-en)."
            mistaken("languages that have scores", f"{label} in min_score_percentiles (nearest: {near})", do)


def plan_set(name: str, recipe: SetRecipe, parts: Sequence[Part]) -> SetPlan:
    """Return the plan of a set. ConfigError: two parts have one name, or a file of the filters is missing."""
    names = [part.name for part in parts]
    if len(set(names)) != len(names):
        again, do = max(names, key=names.count), "Give the files of the corpus different names."
        mistaken("parts with names of their own", f"{again!r} again", do, name)
    digest = hashlib.sha256(canonical_json([recipe_json(recipe), content_hash(recipe.filters)]))
    for part in parts:
        digest.update(f"{part.name}\0{part.stamp}\0".encode("utf-8", "surrogatepass"))
    return SetPlan(name=name, recipe=recipe, parts=parts, digest=digest.hexdigest())


def recipe_json(recipe: SetRecipe) -> dict[str, Any]:
    """Return a set's recipe as JSON values. Where packages lie is left out: it does not change what is built."""
    options = {
        key: value if isinstance(value, (str, int, float, bool, list, dict, type(None))) else str(value)
        for key, value in recipe.options.items()
        if key != "packages"
    }
    return asdict(recipe) | {"view": recipe.view.value, "options": options}


def build_sets(
    plans: Sequence[SetPlan],
    out: Path,
    *,
    reads: bool = True,
    share: Share | None = None,
    workers: int = 1,
    command: str = "",
    executor: str = "processes",
    report: Report = _SILENT,
) -> dict[str, Manifest]:
    """Build every planned set into `out`/NAME; sets that are complete are left alone.

    Many tasks do it in two steps: each reads its share, then one writes, or several for sets so large that one machine
    is too slow. At last comes a build without a share, which finds the others' shards and writes the manifests.

    Args:
        reads: read the corpora; otherwise all tasks must have done it.
        share: do only this share of reading, or, without `reads`, of writing; then no manifest is written.
        workers: processes; the result is the same for any number.
        command: goes into the manifests.

    Raises:
        ConfigError: a folder holds another build, or one is running there, or a task has not finished reading.
        DataError: reasons too_many_bad, worker_died.
        MissingDependencyError: the executor or a filter needs an optional package.
    """
    with only_builder(out, shared=share is not None), EXECUTORS[executor](workers) as pool:
        for plan in plans:
            build = _SetBuild(plan, out / plan.name, pool.run, report)
            if build.is_complete():
                continue
            build.begin(alone=share is None)
            if reads:
                build.scan(share or WHOLE, workers)
            else:
                build.check_all_is_read()
            if share is None or not reads:
                build.write(share or WHOLE)
            if share is None:
                build.finish(command)
    return {} if share else {plan.name: Manifest.load(out / plan.name) for plan in plans}


class _SetBuild:
    def __init__(self, plan: SetPlan, folder: Path, run: RunJobs, report: Report) -> None:
        self._plan, self._folder, self._run, self._report = plan, folder, run, report
        self._state = folder / _STATE_FOLDER
        self._chunks = self._state / "chunks"
        self._quarantine = folder / schema.QUARANTINE_NAME

    def is_complete(self) -> bool:
        """Tell whether the folder already holds this very set. ConfigError: it holds another one, whole or begun."""
        manifest_path, plan_path = self._folder / schema.MANIFEST_NAME, self._state / "plan"
        if manifest_path.exists():
            digest = Manifest.load(self._folder).config.get("plan")
        elif plan_path.exists():
            digest = plan_path.read_text(encoding="utf-8")
        else:
            return False
        if digest != self._plan.digest:
            expected = "an empty folder, or the same build to go on with"
            got = "a build of another recipe or of a corpus that has changed"
            mistaken(expected, got, "Remove the folder, or choose another --out.", self._folder)
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

    def scan(self, share: Share, workers: int) -> None:
        """Read a share of the corpus. DataError: reason too_many_bad, as soon as it is sure."""
        plan = self._plan
        jobs = list(scan_jobs(plan.parts, self._chunks, plan.seed, plan.recipe, share, workers))
        with (
            self._report(f"{plan.name}: reading", None, "records") as progress,
            Followed(self._chunks, progress) as followed,
        ):
            for _ in self._run(scan, jobs):
                self._check_bad_share(followed.look(), at_end=False)
                ended = [part for part in range(len(plan.parts)) if chunks_of(self._chunks, part) is not None]
                if guess := followed.guess_of_all(ended, len(plan.parts)):
                    progress.expect(guess)
        if share == WHOLE:
            self._check_bad_share(followed.look(), at_end=True)

    def check_all_is_read(self) -> None:
        """Raise a ConfigError that names what the tasks have left."""
        parts = self._plan.parts
        left = [part.name for number, part in enumerate(parts) if not is_read(self._chunks, number)]
        if left:
            got = f"{len(left)} of {len(parts)} parts that are not finished ({', '.join(left[:3])}…)"
            do = "Run the tasks that failed again (`shards build … --task I/N`), then merge."
            mistaken("tasks that have read all of the corpus", got, do, self._folder)
        self._check_bad_share(Followed(self._chunks).facts, at_end=True)

    def write(self, share: Share) -> None:
        """Decide what stands in the set, unless that was done, and write a share of the shards."""
        plan = self._plan
        whole = Bucket(chunks=self._chunks, drops=self._state / "drops", recipe=plan.recipe, seed=plan.seed)
        starts, rates = decide(self._state / "decision.json", whole, self._run)
        self._jobs = shard_jobs(self._folder, starts, replace(whole, rates=rates))
        mine = self._jobs[share.number :: share.of]
        todo = [job for job in mine if result_of(job) is None]
        with self._report(f"{plan.name}: writing", len(mine), "shards") as progress:
            progress.advance(len(mine) - len(todo), done_before=True)
            for job, _ in self._run(write_shard, todo):
                progress.advance(1, note=f"{plan.name}-{job.number:06d}")

    def finish(self, command: str) -> None:
        """Write quarantine.jsonl and, at last, the manifest. DataError: reason too_many_bad."""
        results = [result for job in self._jobs if (result := result_of(job))]
        refused, texts = _sum(each.refused for each in results), _sum(each.texts_refused for each in results)
        units = sum(result.units for result in results)
        read = Followed(self._chunks).facts
        assert len(results) == len(self._jobs) and units == read["units"], (
            f"{read['units']} units read, {units} written or refused"
        )
        self._write_quarantine()
        bad = read["bad"] + refused.get(KEY_TWICE, 0) + refused.get(GROUP_MIXED, 0)
        if bad > self._plan.recipe.max_bad_fraction * units or sum(refused.values()) == units:
            self._fail(units, refused)
        config = {
            "recipe": recipe_json(self._plan.recipe),
            "plan": self._plan.digest,
            "records_in": units,
            "refused": refused,
            "captions_refused": texts,
            "skipped": skipped_rows(self._chunks, len(self._plan.parts)),
            "left_out": self._plan.left_out,
            schema.QUARANTINE_HASH: file_sha256(self._quarantine),
        }
        infos = [result.info for result in results if result.info is not None]
        Manifest(view=self._plan.recipe.view, shards=infos, command=command, config=config).save(self._folder)
        shutil.rmtree(self._state)
        sync(self._folder)

    def _write_quarantine(self) -> None:
        temporary = temporary_path(self._quarantine)
        with temporary.open("wb") as file:
            for job in self._jobs:
                file.write(job.written("quarantine").read_bytes())
        sync(temporary)
        publish(temporary, self._quarantine)

    def _check_bad_share(self, read: Mapping[str, int], *, at_end: bool) -> None:
        """Raise when more records are bad than the recipe allows: before the end only if it allows none."""
        most = self._plan.recipe.max_bad_fraction
        if read["bad"] <= most * read["units"] or not (at_end or most == 0):
            return
        lines: list[bytes] = []
        for name in list_chunks(self._chunks):
            with mapped(name.path(self._chunks)) as table:
                lines += (line for line in table["line"].drop_null().to_pylist() if b'"stage":"make"' in line)
        replace_bytes(self._quarantine, b"".join(line + b"\n" for line in lines), durable=True)
        self._fail(read["units"], Counter(json.loads(line)["reason"] for line in lines))

    def _nothing_read(self) -> str:
        skipped = Counter(_sum(skipped_rows(self._chunks, len(self._plan.parts)).values()))
        languages = ", ".join(language for language, _ in skipped.most_common(5))
        others = f"; {skipped.total():,} rows in other languages were skipped ({languages}, …)"
        return "no records at all" + (others if skipped else "")

    def _fail(self, units: int, refused: Mapping[str, int]) -> NoReturn:
        """Raise a DataError of reason too_many_bad; quarantine has been written."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in Counter(refused).most_common(5))
        with self._quarantine.open("rb") as file:
            first = f"; the first: {json.loads(line)['message']}" if (line := file.readline()) else ""
        most = f"{self._plan.recipe.max_bad_fraction:.2%}"
        expected = f"at most {most} of {units:,} records broken, and one that is kept"
        got = f"{sum(refused.values()):,} refused ({reasons}){first}" if refused else self._nothing_read()
        do = f"Read {self._quarantine}, mend the corpus, or raise max_bad_fraction in the recipe."
        refuse("too_many_bad", expected, got, self._plan.name, do)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))
