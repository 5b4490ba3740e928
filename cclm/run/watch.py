"""A rank's own watch, under whatever launcher: a rank that does not go on ends, and so do the others of one that ended.

    main thread    section("step", 12) ─► where this rank is
    thread "watch" once a second: is it there for too long? does another rank's word end the job? ─► exit code 76, 143
    thread "board" tells the others' watches, and hears them (`cclm.run.talk`)

    rank 3 raises         the others end within seconds (`ended`, 143), and name it and its error
    rank 3 does not go on a section is over its deadline on some rank: all write their stacks and say where they stand;
                          the one that does not wait for others is `hung`, the rest are `waiting` (76)
    rank 3 is gone        no sign of life: the others end (`ended`)

No collective takes part: one that waits for ever is what this is for. A deadline is a floor, or so many times the
slowest of the first ones of its section (`Limits`). What launchers watch from outside stays: a process whose threads
do not run any more cannot end itself.
"""

from __future__ import annotations

import faulthandler
import math
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cclm.errors import Cause, CclmError
from cclm.run.causes import CONSEQUENCES, EXIT_CODES, GOOD_ENDS
from cclm.run.ending import GOES_ON, explain
from cclm.run.status import STATUS_FOLDER, note_end, read_status
from cclm.run.talk import LOOK_S, MOST_GAP_S, Ending, Stuck, Talk, judge_hang

GRACE_S = 3.0
"""A rank has so long to end by itself, when it hears that another has ended: its own error may be a better one."""
LOST_S = 10.0
"""The same, when the board is gone: at the end of a run rank 0 may be earlier than the others."""
REPORT_S = 10.0
"""So long the ranks wait for each other's word about a hang."""
START = "start"
STACKS_FOLDER = "stacks"
"""In the run folder: what ranks that were ended as hung left behind."""
COLLECTIVE = re.compile(r"torch/distributed|cclm/distributed/|deepspeed/(comm|utils/nvtx|runtime/zero/)")
NUM_INNERMOST = 3
"""A rank waits for others if one of so many innermost frames is a collective, or ZeRO's own wait for one."""
FRAME = re.compile(r'File "(.*)", line (\d+) in (.*)')
BEGIN = "(most recent call first)"
BACKWARD = "torch/autograd/graph.py"
"""The main thread waits in here for the threads that compute a backward pass on a GPU."""
WATCH = "cclm/run/watch.py"


@dataclass(kw_only=True)
class Limits:
    """How long a section may last: its floor, or `factor` times the slowest of the first `num_first` of its kind."""

    floors_s: Mapping[str, float] = field(default_factory=dict)
    """By section; without one, or with 0, it may last for ever."""
    first_s: float = 0.0
    """At least so long the first of a section may last, of which nobody knows yet how long it takes; 0: for ever."""
    factor: float = 10.0
    num_first: int = 10
    _seen: dict[str, tuple[int, float]] = field(default_factory=dict)

    def learn(self, section: str, seconds: float) -> None:
        """Take note of one that is over."""
        count, slowest = self._seen.get(section, (0, 0.0))
        if count < self.num_first:
            self._seen[section] = count + 1, max(slowest, seconds)

    def limit_s(self, section: str) -> float:
        """Return how long the next may last."""
        floor_s = self.floors_s.get(section, 0.0)
        if not floor_s:
            return math.inf
        if section == START:
            return floor_s
        if section not in self._seen:
            return max(floor_s, self.first_s or math.inf)
        return max(floor_s, self.factor * self._seen[section][1])


@dataclass(kw_only=True)
class Position:
    """A section that the main thread is in."""

    section: str
    step: int
    began: float
    inner_s: float = 0.0
    """Spent in sections inside of it; written by the main thread."""
    elapsed_s: float = 0.0
    """Without those, and without time in which the process did not run; written by the watch."""


class Watch:
    """See above. Without `talk` (one process) it watches this rank alone."""

    def __init__(
        self, folder: Path, rank: int = 0, limits: Limits | None = None, talk: Talk | None = None,
        *, silent_s: float = 0.0, recorded: Callable[[Path], str] = lambda path: "",
        clock: Callable[[], float] = time.monotonic, leave: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        """`recorded` writes what torch knows of this rank's collectives, and returns the last; `leave` ends it."""
        self._folder, self._rank, self._limits, self._talk = folder, rank, limits or Limits(), talk
        self._silent_s, self._recorded, self._clock, self._exit = silent_s, recorded, clock, leave
        self.module_now: Callable[[], str] = str
        """Says which module of the network this rank runs."""
        self._host = socket.gethostname()
        self._now: Position | None = Position(section=START, step=0, began=clock())
        self._looked, self._waited_s = clock(), 0.0
        self._heard, self._unanswered_s = 0, 0.0
        self._report: Stuck | None = None
        self._has_said = False
        self._is_ending, self._is_leaving, self._over = False, False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Watch for the length of the `with` block; an error that leaves it is told to the others. Raise CclmError
        (cause ENDED) where it ends with a lost connection because another rank told of its end."""
        self._thread.start()
        if self._talk is not None:
            self._talk.start()
        try:
            yield self
        except Exception as error:
            if self._is_leaving or (self._talk is not None and self._talk.first is not None and self._talk.first.hangs):
                self._thread.join()  # it knows why, and ends this process: a rank to blame has closed a connection
            cause, reason = explain(error, self._folder)
            first = self.tell(cause, reason)
            if first is not None and first.rank != self._rank and cause in CONSEQUENCES:
                raise _ended_by(first) from error
            raise
        finally:
            self.close()

    def close(self) -> None:
        """Watch no longer: this rank needs the others no more."""
        if self._over.is_set():
            return
        self._over.set()
        if self._talk is not None:
            self._talk.close()
        if threading.current_thread() is not self._thread and self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """Say that the start is over."""
        self._now = None

    @contextmanager
    def section(self, name: str, step: int) -> Iterator[None]:
        """Say what the `with` block does; the section around it stands still meanwhile."""
        outer, began = self._now, self._clock()
        self._now = Position(section=name, step=step, began=began)
        try:
            yield
            self.beat()
        finally:
            self._now = outer
            if outer is not None:
                outer.inner_s += self._clock() - began

    def beat(self) -> None:
        """Say that this section goes on: its time is counted anew."""
        if (position := self._now) is not None:
            now = self._clock()
            self._limits.learn(position.section, now - position.began - position.inner_s)
            self._now = replace(position, began=now, inner_s=0.0, elapsed_s=0.0)

    def tell(self, cause: Cause, reason: str) -> Ending | None:
        """Tell the others that this rank ends; return what the first said that told anything (this may be the one)."""
        self._is_ending = True
        if self._talk is None or self._over.is_set():
            return None
        self._talk.say_end(Ending(rank=self._rank, host=self._host, cause=cause, reason=reason))
        self._talk.leave()
        return self._talk.first

    def look(self) -> tuple[Cause, str] | None:
        """Look once; return why this rank must end, if it must."""
        now = self._clock()
        gap_s, self._looked = min(now - self._looked, MOST_GAP_S), now
        position, talk = self._now, self._talk
        if self._is_ending:
            return None
        if position is not None:
            position.elapsed_s += gap_s
        if talk is None:
            return self._blame({self._rank: self._stuck()}, 1) if self._is_late(position) else None
        talk.where = f"{position.section} {position.step}" if position is not None else "between two sections"
        self._unanswered_s = 0.0 if talk.num_answers != self._heard else self._unanswered_s + gap_s
        self._heard = talk.num_answers
        if talk.first is not None or talk.is_lost or 0 < self._silent_s < self._unanswered_s:
            self._waited_s += gap_s
            return self._obey(talk)
        self._waited_s = 0.0
        if self._is_late(position):
            told = str(self._stuck())
            talk.say_end(Ending(rank=self._rank, host=self._host, cause=Cause.HUNG, reason=told, hangs=True))
        return None

    def _is_late(self, position: Position | None) -> bool:
        return position is not None and position.elapsed_s > self._limits.limit_s(position.section)

    def _obey(self, talk: Talk) -> tuple[Cause, str] | None:
        """Return why this rank must end because of what others said, or do not say any more; None: not yet."""
        first = talk.first
        if first is None:
            return None if self._waited_s < LOST_S else (Cause.ENDED, self._without_board())
        if first.hangs:
            if not self._has_said:
                self._has_said = True
                talk.say(f"stuck {self._rank}", self._stuck().text)
            is_over = len(talk.stuck) == talk.world_size or self._waited_s >= REPORT_S * talk.slowness
            return self._blame(talk.stuck, talk.world_size) if is_over else None
        if self._waited_s < GRACE_S:
            return None
        if first.rank == self._rank:  # the others have given it up
            return first.cause, first.reason
        return (first.cause if first.cause in GOOD_ENDS else Cause.ENDED), str(_ended_by(first))

    def _without_board(self) -> str:
        said = read_status(self._folder / STATUS_FOLDER / "rank_0.json")
        why = f": {said.cause}: {said.reason}" if said is not None and said.cause else " without a word"
        host = "" if said is None else f" on {said.host}"
        return f"rank 0{host}, or the launcher that serves its store, has ended{why}; {GOES_ON}"

    def _blame(self, found: Mapping[int, Stuck], world_size: int) -> tuple[Cause, str]:
        blamed, said = judge_hang(found, world_size)
        stacks = self._folder / STACKS_FOLDER
        return Cause.HUNG if blamed == self._rank else Cause.WAITING, f"{said}; stacks in {stacks}; {GOES_ON}"

    def _stuck(self) -> Stuck:
        """Write the stacks, once, and say where this rank stands."""
        if self._report is None:
            position = self._now or Position(section="between two sections", step=0, began=0.0)
            path = self._folder / STACKS_FOLDER / f"rank_{self._rank}.txt"
            heading = f"rank {self._rank} on {self._host}: {position.section} {position.step}"
            cause, place = where_it_stands(write_stacks(path, heading))
            self._report = Stuck(
                rank=self._rank, host=self._host, section=position.section, step=position.step,
                seconds=round(position.elapsed_s, 1), cause=cause, place=place, module=self.module_now(),
                collective=self._recorded(path.with_name(f"rank_{self._rank}_collectives.json")),
            )  # fmt: skip
        return self._report

    def _run(self) -> None:
        while not self._over.wait(LOOK_S):
            if (end := self.look()) is not None:
                self._leave(*end)
                return

    def _leave(self, cause: Cause, reason: str) -> None:
        """End this process from here: its main thread may never come back."""
        self._is_leaving = True
        note_end(self._folder, self._rank, cause, reason)
        os.write(2, f"error: {reason}\n".encode(errors="replace"))
        if self._talk is not None:
            self._talk.leave()
        if cause is Cause.WAITING:
            time.sleep(LOOK_S)  # who is to blame ends first: some launchers know no more than that
        self._exit(EXIT_CODES[cause])


def _ended_by(first: Ending) -> CclmError:
    """Why a rank ends that did nothing wrong."""
    return CclmError(
        expected="every rank to go on", got=str(first), do=f"Mend that; {GOES_ON}", cause=Cause.ENDED,
        where="another rank has ended",
    )  # fmt: skip


def where_it_stands(said: str) -> tuple[Cause, str]:
    """Return what a traceback of all threads says: of the main one, which stands last."""
    threads = [FRAME.findall(text) for text in said.split(BEGIN)[1:]]
    if not threads or not threads[-1]:
        return Cause.HUNG, "it does not even print a traceback"
    place, line, function = threads[-1][0]
    judged = [frames for frames in threads if not any(frame[0].endswith(WATCH) for frame in frames)]
    judged = judged if place.endswith(BACKWARD) else threads[-1:]
    is_waiting = any(COLLECTIVE.search(frame[0]) for frames in judged for frame in frames[:NUM_INNERMOST])
    how = "waits for other ranks" if is_waiting else "stands"
    return Cause.WAITING if is_waiting else Cause.HUNG, f"{how} in {function} ({place}:{line})"


def write_stacks(path: Path, heading: str) -> str:
    """Append every thread's traceback to a file, below a line; return it, also if the file cannot be written."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode(errors="replace")
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"=== {when} {heading}\n{text}\n")
    except OSError as error:
        return f"{text}\n{path}: {error}\n"
    return text
