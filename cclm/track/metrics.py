"""Metrics of a run: one JSON line per step in `log.jsonl`, and the same numbers in TensorBoard.

A run that resumes at step k repeats the steps from k on; lines with step >= k of the earlier life are dropped first,
so a step never stands in the log twice.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from cclm.errors import MissingDependencyError
from cclm.track.atomic import replace_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOG_NAME = "log.jsonl"
TENSORBOARD_NAME = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class MetricsLine:
    """One line of `log.jsonl`."""

    step: int
    """The step that the values belong to, counted from 0."""
    time: float
    """Seconds since 1970 when the line was written."""
    values: Mapping[str, float]
    """Numbers by name; NaN where a value was not finite."""


class MetricsLog:
    """Appends numbers to `folder/log.jsonl` and `folder/tensorboard`; a disabled log touches nothing.

    Enable it on rank 0 only. `resume_step`: the first step that this process will do (0 for a new run).
    """

    def __init__(
        self,
        folder: Path,
        enabled: bool,
        resume_step: int = 0,
        *,
        tensorboard: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.enabled = enabled
        self._clock = clock
        self._file: IO[str] | None = None
        self._board: SummaryWriter | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOG_NAME
        drop_lines_from(path, resume_step)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            self._board = _open_board(folder / TENSORBOARD_NAME, resume_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one step and hand them to the operating system, so that a kill loses none."""
        if self._file is None:
            return
        now = self._clock()
        line = {"step": step, "time": round(now, 3), "values": {name: _finite(value) for name, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, global_step=step, walltime=now)
            self._board.flush()

    def close(self) -> None:
        """Close both files; writing afterwards does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(folder: Path) -> list[MetricsLine]:
    """Read the log of a run folder, oldest first; empty if there is none. A torn last line is left out."""
    path = folder / LOG_NAME
    return [_parse(line) for line in _whole_lines(path)] if path.exists() else []


def drop_lines_from(path: Path, step: int) -> None:
    """Remove, atomically, the lines of `step` and later, and a last line that a kill cut short."""
    if not path.exists():
        return
    kept = [line for line in _whole_lines(path) if _parse(line).step < step]
    replace_text(path, "".join(line + "\n" for line in kept))


def _whole_lines(path: Path) -> list[str]:
    """Every line that ends in a newline: what follows the last one was cut short."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def _parse(line: str) -> MetricsLine:
    content = json.loads(line)
    values = {name: math.nan if value is None else float(value) for name, value in content["values"].items()}
    return MetricsLine(step=content["step"], time=content["time"], values=values)


def _finite(value: float) -> float | None:
    """JSON has no NaN: a value that is not finite is written as null."""
    number = float(value)
    return number if math.isfinite(number) else None


def _open_board(folder: Path, resume_step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            expected="the package `tensorboard`",
            got=str(error),
            do="Install it: python -m pip install tensorboard",
        ) from error
    # purge_step tells TensorBoard to hide what an earlier life wrote for steps that will be done again.
    purge_step = resume_step if folder.exists() else None
    return SummaryWriter(str(folder), purge_step=purge_step)
