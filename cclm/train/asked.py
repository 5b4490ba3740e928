"""What the ranks tell each other before a step: what they are asked for, and that all are about to do the same."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cclm.data.batch import Batch
from cclm.distributed.agreement import Request, agree_on_step, first_difference

if TYPE_CHECKING:
    from cclm.train.loop import Run

MOST_SAMPLES = 3
"""So many samples of each view are named where ranks disagree."""


def request_before(run: Run, step: int, taken: tuple[Batch, Batch] | None) -> Request:
    """Return what a rank is asked for before a step. One collective; ConfigError where ranks disagree on the step."""
    own = Request.NOTHING
    if taken is None or own_reason(run):
        own = Request.STOP
    elif run.engine.rank == 0 and not run.recorder.health.is_doubtful and run.checkpointer.is_asked():
        own = Request.SAVE
    if run.checkpointer.is_writing:
        own |= Request.WRITING
    parts = {} if taken is None else dict(enumerate(taken[1].parts))
    known = {
        "configuration": run.configuration,
        "bad steps": str(run.recorder.health.num_bad),
        "steps left out": str(run.left_out),
    }
    if run.engine.order is not None:
        known["modules of the step before"] = run.engine.order.text
    pace, ranks = run.recorder.pace, run.engine.collectives
    with pace.agreeing():
        explain = partial(what_modules_differ, run, step - 1)
        return agree_on_step(ranks, step, parts, own, known, figures=pace.own, hear=pace.hear, explain=explain)


def what_modules_differ(run: Run, step: int) -> str:
    """Say which module ranks ran otherwise in a step, and on which samples; "" if none. A collective."""
    order, ranks = run.engine.order, run.engine.collectives
    found = "" if order is None else first_difference(ranks, "module", order.names)
    if not found:
        return ""
    shown = run.recorder.bad_steps.samples_of(step)
    keys = [f"{view} {', '.join(sample['key'] for sample in of[:MOST_SAMPLES])}" for view, of in shown.items()]
    everyone = enumerate(ranks.exchange("; ".join(keys)))
    return f"{found}; first samples of step {step}: {' / '.join(f'rank {rank}: {text}' for rank, text in everyone)}"


def is_anybody_asked(run: Run) -> bool:
    """Return whether a rank is asked to stop, between micro-batches. A collective."""
    return any(asked for (asked,) in run.engine.collectives.numbers([bool(own_reason(run))]))


def own_reason(run: Run) -> str:
    """Return why this rank is asked to stop, or ""."""
    if run.engine.rank:
        return run.stop.reason(None)
    return run.stop.reason(run.folder) or run.checkpointer.time_is_up()
