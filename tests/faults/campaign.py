"""What happens to runs, event by event, and whether anything was lost by it.

    run 1    start ─ event ─ the same command ─ event ─ … ─ done ──► compared with the run that nobody disturbed
    run 2    start ─ event ─ …

Lost is: another ledger or loss than that of the unbroken run, a sound checkpoint that is gone, an exit code that
no page documents, a process that hangs or stays.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.checkpoints import DAMAGED, damage_of, newest_complete, read_marker
from cclm.run.status import DONE_NAME
from tests.faults.attempts import Attempt, Disturb, Fault
from tests.same_runs import different
from tests.tiny_run import recipe, write_corpus, write_recipe

STEPS, EVERY = 60, 3
"""Of a run, and between its checkpoints."""
TRIES = 3
"""To let something happen before a run is done."""
KILLED = 137
FAILED = frozenset(EXIT_CODES[cause] for cause in (Cause.TRANSIENT, Cause.ENDED, Cause.STOPPED)) | {KILLED}
"""Codes of ranks that end because another one has."""
DONE, STOPPED = EXIT_CODES[Cause.DONE], EXIT_CODES[Cause.STOPPED]
Tell = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened to a run."""

    kind: str
    what: str
    lost: str = ""
    """What was lost by it; "": nothing."""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """A kind of run."""

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, block by block."""
    tolerance: float = 0.0
    """Of its losses, relative."""


BIT_EQUAL = Flavour(name="bit equal", changes={"model": {"text": {"dropout": 0.1}}})
"""Dropout must resume exactly."""


@dataclass(kw_only=True)
class Campaign:
    """Where runs lie, and what was found."""

    folder: Path
    seed: int
    tell: Tell
    steps: int = STEPS
    """Of each run."""
    events: list[Event] = field(default_factory=list)
    _num_runs: int = 0
    _unbroken: dict[tuple[str, int], Path] = field(default_factory=dict)

    @cached_property
    def corpus(self) -> Path:
        """Shard sets with three broken images."""
        return write_corpus(self.folder / "corpus", broken={11, 40, 71})

    def random(self, kind: str) -> random.Random:
        """What decides a kind's events, whatever other kinds are done."""
        return random.Random(f"{self.seed} {kind}")

    def new_run(self, flavour: Flavour) -> tuple[Path, list[str]]:
        """Return a folder that does not exist yet, and the arguments of its command."""
        self._num_runs += 1
        run = self.folder / f"run_{self._num_runs:03d}" / "run"
        run.parent.mkdir(parents=True)
        settings = recipe(
            self.corpus,
            run,
            optimizer={"total_steps": self.steps, "learning_rate": 0.002, "warmup_steps": 2},
            checkpoint={"every_steps": EVERY, "keep": 2},
            track={"every_steps": 1, "tensorboard": False},
            deepspeed="zero3_cpu",
        )
        settings["data"]["bad_sample_limit"] = 0.2
        merge(settings, flavour.changes)
        return run, ["--recipe", str(write_recipe(run.parent / "recipe.yaml", settings))]

    def unbroken(self, flavour: Flavour, world_size: int = 2) -> Path:
        """Return a run of this kind that nobody disturbed."""
        known = self._unbroken.get((flavour.name, world_size))
        if known is None:
            known, arguments = self.new_run(flavour)
            codes = Attempt(arguments=arguments, run=known, world_size=world_size).start().wait()
            assert codes == [DONE] * world_size, f"the run that nobody disturbs ends with {codes}: {known.parent}"
            self._unbroken[flavour.name, world_size] = known
        return known

    def add(self, event: Event, *, is_told: bool = True) -> None:
        """Take note of an event, and say it."""
        self.events.append(event)
        if is_told:
            self.tell(f"{event.kind:18} {event.what}" + (f"  LOST: {event.lost}" if event.lost else ""))

    def table(self) -> Iterator[str]:
        """Yield the lines of the table, the sum last."""
        lost = sum(bool(event.lost) for event in self.events)
        yield f"{'kind':18} {'events':>6} {'found or recovered':>19} {'lost':>5}"
        for kind in dict.fromkeys(event.kind for event in self.events):
            found = [bool(event.lost) for event in self.events if event.kind == kind]
            yield f"{kind:18} {len(found):6} {len(found) - sum(found):19} {sum(found):5}"
        yield from (f"lost: {event.kind}: {event.what}: {event.lost}" for event in self.events if event.lost)
        yield f"{len(self.events)} events, {lost} lost"


@dataclass(kw_only=True)
class Disturbed:
    """Runs of one flavour, each disturbed until it is done, then compared; all of them for one kind of event."""

    campaign: Campaign
    kind: str
    flavour: Flavour = BIT_EQUAL
    run: Path | None = None
    """The present one; None: the next event begins one."""
    arguments: list[str] = field(default_factory=list)
    reference: Callable[[], Path] | None = None
    """Another run to compare with than the unbroken one."""
    always: Sequence[Fault] = ()
    """Faults of each start, beside those of an event."""

    @property
    def present(self) -> Path:
        """The folder of the run that the next event happens to."""
        if self.run is None:
            self.run, self.arguments = self.campaign.new_run(self.flavour)
        return self.run

    def happens(
        self,
        what: str,
        *,
        codes: frozenset[int],
        faults: Callable[[Path], Sequence[Fault]] = lambda run: (),
        disturb: Callable[[], Disturb] = lambda: lambda attempt: None,
        world_size: int = 2,
        more: Sequence[str] = (),
        of_rank: Mapping[int, Sequence[str]] | None = None,
        damaged: Path | None = None,
        is_certain: bool = False,
    ) -> None:
        """Start the run's command, let something happen to it, and look at what is left.

        If the run was done before it happened, nothing counts, and it is tried again with the next run.

        Args:
            codes: that are right for a rank, besides 0 and those of ranks that end because of another.
            faults: in the ranks of the run in a folder; `disturb`: what is done to the ranks from outside.
            more: arguments, besides the run's own; `of_rank`: of one rank.
            damaged: the newest checkpoint, which is to be set aside.
            is_certain: it happens in any case.
        """
        for _ in range(TRIES):
            run = self.present
            before = step_of(newest_complete(run)) if damaged is None else 0
            attempt = Attempt(
                arguments=[*self.arguments, *more], run=run, world_size=world_size,
                faults=[*self.always, *faults(run)], of_rank=of_rank or {},
            )  # fmt: skip
            found = attempt.start().wait(disturb())
            lost = self._lost(attempt, found, codes | FAILED, before)
            if damaged is not None and not lost and not damaged.with_name(f"{damaged.name}{DAMAGED}").exists():
                lost = f"{damaged.name} was not set aside"
            has_happened = attempt.has_met or is_certain
            if has_happened or lost:
                self.campaign.add(Event(kind=self.kind, what=f"{what}: {' '.join(map(str, found))}", lost=lost))
            if lost:
                self.run = None
            elif (run / DONE_NAME).exists():
                self._compare()
            if has_happened or lost:
                return

    def through(self, faults: Sequence[Fault]) -> Path:
        """Let a run come to its end at once, whatever happens in it; return its folder."""
        run = self.present
        codes = Attempt(arguments=self.arguments, run=run, world_size=2, faults=faults).start().wait()
        if codes != [DONE, DONE]:
            self.campaign.add(Event(kind=self.kind, what=f"a run to its end: {codes}", lost=f"logs beside {run}"))
        return run

    def finish(self, world_size: int = 2) -> None:
        """Let the present run come to its end, and compare it."""
        if self.run is None:
            return
        codes = (
            Attempt(arguments=self.arguments, run=self.run, world_size=world_size, faults=self.always).start().wait()
        )
        if codes == [DONE] * world_size:
            self._compare()
        else:
            self._blame(f"the same command ended with {codes}")

    def _lost(self, attempt: Attempt, found: Sequence[int], codes: frozenset[int], before: int) -> str:
        assert self.run is not None
        if attempt.is_hung:
            return f"hung for {time.monotonic() - attempt.began:.0f} s"
        if wrong := [code for code in found if code not in {DONE, *codes}]:
            return f"ended with {wrong}; logs in {self.run.parent / 'logs'}"
        if left := attempt.left_behind():
            return f"processes stay: {left}"
        newest = newest_complete(self.run)
        if step_of(newest) < before:
            return f"the checkpoint of step {before} is gone"
        if newest is not None and (flaws := damage_of(newest)):
            return f"{newest.name} is damaged: {flaws}"
        return ""

    def _compare(self) -> None:
        assert self.run is not None
        reference = self.campaign.unbroken(self.flavour) if self.reference is None else self.reference()
        if found := different(self.run, reference, self.flavour.tolerance):
            self._blame(found)
        else:
            shutil.rmtree(self.run.parent)
            self.run = None

    def _blame(self, lost: str) -> None:
        """The last event of the run has lost something, as far as anybody can tell."""
        events = self.campaign.events
        last = events.pop() if events and events[-1].kind == self.kind else Event(kind=self.kind, what="a whole run")
        self.campaign.add(replace(last, lost=f"{lost}; see {self.run}"))
        self.run = None


def step_of(checkpoint: Path | None) -> int:
    """Return the updates of a checkpoint; 0: there is none."""
    return 0 if checkpoint is None else read_marker(checkpoint).step


def merge(settings: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Change settings in place, block by block."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), dict):
            merge(settings[key], value)
        else:
            settings[key] = value
