"""What the ranks' watches (`cclm.run.watch`) tell each other, over a board that all of them reach. No torch.

    end        why the job ends: what the first rank said that had to say anything; nobody's word replaces it
    at N       a counter, host and section of rank N, once a second: its sign of life
    stuck N    where rank N stands, once somebody has found that the job hangs
    left N     rank N has read "end", and goes

The board is not the run folder: a network file system shows a new file when it likes, after a minute say.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, TypeVar

from cclm.errors import Cause

LOOK_S = 1.0
"""Between two looks of a watch, and two exchanges."""
MANY_RANKS = 256
"""More ranks than this talk the less often the more they are: one store answers all of them."""
MOST_GAP_S = 5.0
"""Of a longer time between two looks only so much counts: then this process did not run, but was suspended."""
SAY_S = 5.0
"""Whoever ends waits at most so long until what it said has gone out."""
GOODBYE_LOOK_S = 0.05
OVER = "over"
Word = TypeVar("Word", bound="Told")


class Board(Protocol):
    """A few short texts by name, which all ranks see. Each method raises ConnectionError if it is gone."""

    def put(self, name: str, text: str) -> None:
        """Let a text stand there."""

    def claim(self, name: str, text: str) -> str:
        """Put it unless something stands there already; return what stands there."""

    def get(self, names: Sequence[str]) -> list[str]:
        """Return the texts; "" where nothing stands."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a rank puts on the board."""

    rank: int
    host: str
    cause: Cause

    @property
    def text(self) -> str:
        """For the board."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls: type[Word], text: str) -> Word:
        """Read what stands on the board."""
        values = json.loads(text)
        return cls(**{**values, "cause": Cause(values["cause"])})


@dataclass(frozen=True, kw_only=True)
class Ending(Told):
    """Why a job ends."""

    reason: str
    hangs: bool = False
    """The job does not go on, as this rank found; which one is to blame is seen by what all say."""

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.cause.value.replace('_', ' ')}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Stuck(Told):
    """Where a rank of a job stands that hangs; its cause is HUNG, or WAITING for other ranks."""

    section: str
    step: int
    seconds: float
    """In this section."""
    place: str
    """In words: function, file, line."""
    collective: str = ""
    """The last one that it began, where torch recorded them."""
    module: str = ""
    """The last one that it began in this step, where that is known."""

    def __str__(self) -> str:
        last = f", {self.module}" if self.module else ""
        last += f", last collective {self.collective}" if self.collective else ""
        when = f"in {self.section} {self.step} since {self.seconds:.0f} s"
        return f"rank {self.rank} on {self.host} {self.place}, {when}{last}"


def judge_hang(found: Mapping[int, Stuck], world_size: int) -> tuple[int, str]:
    """Return the rank that is to blame for a hang, and a sentence; every rank comes to the same. One that does not
    answer; else one that does not wait for others; else one of the fewest that stand at the same place; of several the
    one at the earliest step."""
    silent = [rank for rank in range(world_size) if rank not in found]
    if silent:
        blamed, said = silent[0], f"rank {silent[0]} does not say where it stands"
    else:
        groups = dict[tuple[str, str, int, str], list[Stuck]]()
        for one in found.values():
            groups.setdefault((one.cause, one.section, one.step, one.place), []).append(one)
        odd = min(groups.values(), key=lambda of: (of[0].cause is Cause.WAITING, len(of), of[0].step, of[0].rank))
        blamed, said = odd[0].rank, str(odd[0])
    others = [one for one in found.values() if one.rank != blamed]
    if others:
        first = min(others, key=lambda one: (one.cause is not Cause.WAITING, one.rank))
        said += f"; {first}" + (f"; and {len(others) - 1} more" if len(others) > 1 else "")
    return blamed, said


class Talk:
    """One rank's part, in a thread of its own: a board may not answer, and the watch must go on."""

    def __init__(
        self, board: Board, rank: int, world_size: int, host: str, silent_s: float,
        *, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`silent_s`: without a sign of life for so long a rank is gone; 0: never."""
        self.world_size, self.where = world_size, ""
        self.first: Ending | None = None
        """Why the job ends, as soon as anybody says it."""
        self.stuck: dict[int, Stuck] = {}
        self.is_lost = False
        """The board is gone: rank 0, or the launcher that serves it, has ended."""
        self._board, self._rank, self._host, self._silent_s, self._clock = board, rank, host, silent_s, clock
        self.slowness = max(1.0, world_size / MANY_RANKS)
        """How many times less often than few ranks so many talk."""
        self.num_answers = 0
        """Times that the board has answered."""
        self._period_s = LOOK_S * self.slowness
        self._counter = itertools.count()
        self._outbox: deque[tuple[str, str, threading.Event]] = deque()
        self._wake, self._is_over = threading.Event(), False
        self._judged = clock()
        self._signs = [""] * world_size
        self._silence_s = [0.0] * world_size
        self._all_left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board", daemon=True)

    def start(self) -> None:
        """Begin to talk."""
        self._thread.start()

    def close(self) -> None:
        """Say goodbye, so that nobody misses this rank."""
        self._is_over = True
        self._wake.set()
        self._thread.join(2 * SAY_S)

    def say(self, name: str, text: str) -> None:
        """Put it on the board unless something stands there, and wait until that has been done, but not for ever."""
        sent = threading.Event()
        self._outbox.append((name, text, sent))
        self._wake.set()
        if self._thread.is_alive():
            sent.wait(SAY_S)

    def say_end(self, ending: Ending) -> None:
        """Say why the job ends; `first` is then this, or what somebody has said before."""
        self.say("end", ending.text)

    def leave(self) -> None:
        """Say that this rank goes. Rank 0 may serve the board, and waits until the others have read it."""
        self.say(f"left {self._rank}", OVER)
        if self._rank == 0 and self._thread.is_alive():
            self._all_left.wait(SAY_S)

    def exchange(self) -> None:
        """Say what there is to say, and hear what others said."""
        while self._outbox:
            name, text, sent = self._outbox[0]
            self._board.claim(name, text)
            self._outbox.popleft()
            self._hear()
            sent.set()
        self._board.put(f"at {self._rank}", f"{next(self._counter)} {self._host} {self.where}")
        self._hear()
        if self._rank == 0 and self.first is None and self._silent_s:
            self._judge()
        self.num_answers += 1

    def _hear(self) -> None:
        if self.first is None:
            (end,) = self._board.get(["end"])
            self.first = Ending.of(end) if end else None
        if self.first is None:
            return
        if self.first.hangs:
            missing = [rank for rank in range(self.world_size) if rank not in self.stuck]
            texts = self._board.get([f"stuck {rank}" for rank in missing])
            found = {rank: Stuck.of(text) for rank, text in zip(missing, texts, strict=True) if text}
            self.stuck = {**self.stuck, **found}
        if self._rank == 0 and all(self._board.get([f"left {rank}" for rank in range(1, self.world_size)])):
            self._all_left.set()

    def _judge(self) -> None:
        now = self._clock()
        gap_s, self._judged = min(now - self._judged, MOST_GAP_S * self._period_s), now
        signs = self._board.get([f"at {rank}" for rank in range(self.world_size)])
        for rank, (before, sign) in enumerate(zip(self._signs, signs, strict=True)):
            is_alive = sign != before or sign == OVER or rank == self._rank
            self._silence_s[rank] = 0.0 if is_alive else self._silence_s[rank] + gap_s
        self._signs = signs
        longest = max(range(self.world_size), key=lambda rank: self._silence_s[rank])
        if self._silence_s[longest] > self._silent_s:
            _, host, where = signs[longest].split(" ", 2) if signs[longest] else ("", "a host", "its start")
            reason = f"no sign of it for {self._silence_s[longest]:.0f} s; it was in {where}"
            self._board.claim("end", Ending(rank=longest, host=host, cause=Cause.HUNG, reason=reason).text)

    def _run(self) -> None:
        try:
            while not self._is_over:
                self.exchange()
                self._wake.wait(self._period_s)
                self._wake.clear()
            self._board.put(f"at {self._rank}", OVER)
            self._wait_for_goodbyes()
        except ConnectionError:
            self.is_lost = True

    def _wait_for_goodbyes(self) -> None:
        """Rank 0 may serve the board: it goes last, if the job ends well."""
        until = self._clock() + SAY_S
        names = [f"at {rank}" for rank in range(self.world_size)]
        while self._rank == 0 and self.first is None and self._clock() < until:
            if all(sign == OVER for sign in self._board.get(names)):
                return
            time.sleep(GOODBYE_LOOK_S)
