"""`python -m pretrain replay RUN --step K`: a step of a run again, bit by bit, beside what the run wrote down about it.

    newest checkpoint at or before K ─► steps up to K, those that were left out are not done ─► step K ─► compare

A bad step that is bad again was made so by its samples or by the weights; one that is good now, or that differs when it
is computed twice, met a fault of the machine. Start it on as many ranks as the run had, on the same kind of machine.
Nothing is written into the run.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cclm.checkpoint.collective import flaws_of
from cclm.config import RunConfig
from cclm.distributed.agreement import check_same_values, made_by_first
from cclm.distributed.collectives import Collectives
from cclm.errors import CheckpointError, ConfigError
from cclm.files.command_line import Parser, say
from cclm.files.lines import StepLines
from cclm.recipe.read import read_run_config
from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.checkpoints import Rollback, complete_checkpoints, read_marker, read_rollbacks
from cclm.run.launcher import adopt_place
from cclm.run.progress import LOG_NAME
from cclm.train.build import Parts, build_parts, deterministic, joined
from cclm.train.folder import CHANGES_FILE
from cclm.train.health import BAD_STEPS_FILE, Health, finite
from cclm.train.recorder import WindowMeans
from cclm.train.rollback import LeftOut
from cclm.train.updates import update
from cclm.views.table import VIEWS, Table

Values = Mapping[str, float | None]
"""By name; None: not finite."""
EQUAL, DIFFERENT = 0, 1
"""Exit codes; what could not be compared ends with that of a user's mistake."""


@dataclass(frozen=True, kw_only=True)
class History:
    """How a run came to a step, and what it wrote down about it."""

    checkpoint: Path | None
    """None: it starts anew."""
    rollbacks: Sequence[Rollback]
    """What was left out then."""
    start: int
    world_size: int | None
    """Ranks that wrote it."""
    written: Values | None
    source: str
    """The file that says it; "" for nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step gave."""

    own: Values
    """Of the step alone, as `bad_steps.jsonl` has it."""
    line: Values
    """As `log.jsonl` has it: means over the steps since the line before."""
    gradients: Sequence[str]
    """Parameters whose gradients on this rank are not finite."""
    is_good: bool


def history_of(folder: Path, step: int) -> History:
    """Return a step's history. One that a rollback left out later is looked at as it was done before."""
    rollbacks = read_rollbacks(folder)
    undone = next((number for number, one in enumerate(rollbacks) if one.first <= step < one.stop), None)
    latest = step if undone is None else min(step, *(one.to for one in rollbacks[undone:]))
    markers = {path: read_marker(path) for path in complete_checkpoints(folder)}
    checkpoint = max(
        (path for path, marker in markers.items() if marker.step <= latest),
        key=lambda path: markers[path].step,
        default=None,
    )
    written, source = None, ""
    for line in StepLines(folder / LOG_NAME).read():
        if line["step"] == step and undone is None and "grad_norm" in line["values"]:  # else it tells an evaluation
            written, source = line["values"], LOG_NAME
    for line in StepLines(folder / BAD_STEPS_FILE).read():
        was_good = written is not None and not written.get("skipped_updates")  # when it was done again
        if line["step"] == step and not was_good:
            written, source = line["values"], BAD_STEPS_FILE
    return History(
        checkpoint=checkpoint,
        rollbacks=rollbacks[:undone],
        start=0 if checkpoint is None else markers[checkpoint].step,
        world_size=None if checkpoint is None else markers[checkpoint].world_size,
        written=written,
        source=source,
    )


def replay(parts: Parts, history: History, step: int) -> Outcome:
    """Compute the steps up to `step`. A collective."""
    config, engine, max_loss = parts.config, parts.engine, parts.config.health.max_loss
    health, window = Health(run_folder=Path(), config=config.health), WindowMeans()
    if history.checkpoint is not None:
        loaded = engine.load(history.checkpoint)
        health.restore(loaded["state"].get("health", {}))
        window.restore(loaded["state"].get("window", {}))
    every = (config.track.every_steps, config.checkpoint.every_steps)
    left_out = LeftOut(history.rollbacks)
    with closing(parts.batches(history.start, left_out)) as batches:
        for number in range(history.start, step + 1):
            result = None
            if number not in left_out:
                _, batch = next(batches)
                result = update(engine, batch, config.data.schedule, max_loss=max_loss, max_norm=health.max_norm)
                assert result is not None, "nobody asks it to stop"
                norms = result.grad_norms.read()
                health.add_norms(number, norms)
                window.add(result.metrics, is_good=all(result.applied))
                if all(result.applied):
                    window.add_value("grad_norm", max(norms))
            if number < step and any((number + 1) % steps == 0 for steps in every):
                window.close()
    assert result is not None, "a step that is left out is replayed as it was before"
    norm = {"grad_norm": max(result.grad_norms.read())}
    line, own = window.means(engine, {}), engine.reduce_mean(result.metrics)
    return Outcome(
        own={name: finite(value) for name, value in (own | norm).items()},
        line={name: finite(value) for name, value in (norm | line).items()},
        gradients=[name for one in result.skipped for name in one.bad_gradients],
        is_good=all(result.applied),
    )


def main(words: Sequence[str], command: str, table: Table = VIEWS) -> int:
    """Replay a step of a run; return the exit code: 0 if all is equal to what was written, and to itself."""
    parser = Parser(prog=f"{command} replay", description=(__doc__ or "").partition("\n\n")[0].partition(": ")[2])
    parser.add_argument("run_folder", metavar="run", type=Path, help="a run folder; it is only read")
    parser.add_argument("--step", type=int, required=True, help="the step, counted from 0 as in log.jsonl")
    parser.add_argument("--twice", action="store_true", help="compute it twice, and compare these, too")
    options = parser.parse(words)
    adopt_place(os.environ)
    with tempfile.TemporaryDirectory() as place:
        return _replay(options.run_folder, options.step, 1 + options.twice, table, place)


def _replay(folder: Path, step: int, times: int, table: Table, place: str) -> int:
    config = read_run_config(folder, table)
    if not 0 <= step < config.steps:
        raise ConfigError(
            where="--step", expected=f"a step of this run, 0 to {config.steps - 1}", got=str(step), do="Name another."
        )
    here = replace(config, run_folder=str(folder), checkpoint=replace(config.checkpoint, copy_to=None))
    with deterministic(config.deterministic), joined(here, table) as start:
        ranks, parts, outcomes = start.ranks, None, list[Outcome]()
        start.watch.begin()  # nobody knows how long the steps up to that one may take
        check_same_values(ranks, {"step": str(step), "times": str(times)})
        history = made_by_first(ranks, partial(history_of, folder, step))
        if history.checkpoint is not None and (flaws := flaws_of(ranks, history.checkpoint)):
            raise CheckpointError(
                where=str(history.checkpoint), expected="files as they were written", got="; ".join(flaws),
                do="Put them back from a copy, or rename this folder: then the one before is taken.",
            )  # fmt: skip
        if ranks.rank == 0:
            say_history(folder, history, step, ranks.world_size)
        elsewhere = replace(
            start, config=replace(start.config, run_folder=place)
        )  # a start from sources is noted there
        for _ in range(times):
            if parts is None or history.checkpoint is None:
                parts = build_parts(elsewhere, is_fresh=history.checkpoint is None)
            outcomes.append(replay(parts, history, step))
        return _report(config, ranks, history, step, outcomes)


def say_history(folder: Path, history: History, step: int, world_size: int) -> None:
    """Say what is going to be computed, and what keeps it from being equal."""
    say(f"steps {history.start} to {step}, on {world_size} rank(s); left out: {LeftOut(history.rollbacks)}")
    if history.world_size not in (None, world_size):
        say(f"note: {history.world_size} ranks wrote the checkpoint; on {world_size} all is equal but for rounding")
    if changed := sorted({key for line in StepLines(folder / CHANGES_FILE).read() for key in line["changed"]}):
        say(f"note: it computes with the newest settings; changed once ({CHANGES_FILE}): {', '.join(changed)}")


def _report(config: RunConfig, ranks: Collectives, history: History, step: int, outcomes: Sequence[Outcome]) -> int:
    """Say on rank 0 what the step gave, and whether it is what was written; return the exit code. A collective."""
    gradients = list(dict.fromkeys(name for of_rank in ranks.exchange(outcomes[0].gradients) for name in of_rank))
    is_bad_step = history.source == BAD_STEPS_FILE
    found = [one.own if is_bad_step or history.written is None else one.line for one in outcomes]
    written = history.written or {}
    names = [name for name in found[0] if history.written is None or name in written]
    columns = [*found, written] if history.written is not None else found
    differing = [name for name in names if any(column.get(name) != found[0][name] for column in columns[1:])]
    code = DIFFERENT if differing else EQUAL if len(columns) > 1 else EXIT_CODES[Cause.USER_ERROR]
    if ranks.rank:
        return code
    titles = [*(["replayed"] if len(found) == 1 else ["first", "second"]), *([history.source] if written else [])]
    say(f"{'':32}" + "".join(f"{title:>24}" for title in titles))
    for name in names:
        row = "".join(f"{_spelled(column.get(name)):>24}" for column in columns)
        say(f"{name:32}{row}" + ("  differs" if name in differing else ""))
    if gradients:
        say(f"gradients that are not finite: {len(gradients)}, such as {', '.join(gradients[:3])}")
    if not written:
        every = config.track.every_steps
        say(f"not compared with the run: it wrote nothing about step {step} by itself (track.every_steps {every})")
    if is_bad_step:
        say("bad then, and bad again" if not outcomes[0].is_good else "bad then, good now: a fault of the machine")
    if len(columns) > 1:
        say(f"{len(differing)} of {len(names)} values differ" if differing else f"equal: all {len(names)} values")
    return code


def _spelled(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else repr(value)
