"""NaN in loss, gradient, images and a parameter, on one rank: skipped, named, and rolled back from, with kills between.

run A   NaN at some steps ─────────────────────► done    the numbers before the first bad step are the unbroken run's
run B   the same, killed ─ the same command ─ …► done    bit-equal to A
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

from cclm.files.lines import StepLines
from tests.faults import troubles
from tests.faults.campaign import BIT_EQUAL, Campaign, Disturbed, Event, Flavour
from tests.faults.kills import KILLS, moment, sending
from tests.same_runs import different_losses

KINDS = ("loss", "gradient", "input", "parameter")
SUSPECTED = 2
"""Steps before a bad one that a rollback leaves out, too."""
FLAVOUR = Flavour(
    name="NaN",
    changes={
        **BIT_EQUAL.changes,
        "health": {"max_skipped": 3, "window": 12, "suspect_steps": SUSPECTED, "max_rollbacks": 9},
    },
)
APART = 13
"""Steps between bad ones, more than the window: only a parameter that stays NaN uses the budget up."""


def not_finite(campaign: Campaign, number: int) -> None:
    """Four kinds a run, in another order each time."""
    chance = campaign.random("NaN")
    for first in range(0, number, len(KINDS)):
        kinds = chance.sample(KINDS, k=min(len(KINDS), number - first))
        steps = {8 + APART * place + chance.randrange(3): kind for place, kind in enumerate(kinds)}
        fault = partial(troubles.not_finite, steps, chance.randrange(2))
        whole = Disturbed(campaign=campaign, kind="NaN", flavour=FLAVOUR)
        run = whole.through([fault])
        for step, kind in steps.items():
            campaign.add(Event(kind="NaN", what=f"{kind} at step {step}", lost=lost_at(run, step, kind)))
        if found := different_losses(run, campaign.unbroken(FLAVOUR), steps=range(min(steps) - SUSPECTED)):
            campaign.add(Event(kind="NaN", what="the steps before", lost=found))
        again = Disturbed(
            campaign=campaign, kind="NaN, killed", flavour=FLAVOUR, reference=lambda run=run: run, always=[fault]
        )
        for event in range(3):
            *when, words = moment(chance)
            again.happens(
                f"rank {event % 2} {words}", codes=KILLS, disturb=partial(sending, signal.SIGKILL, *when, event % 2)
            )
        again.finish()


def lost_at(run: Path, step: int, kind: str) -> str:
    """Return what is wrong with what a run that is done wrote about a bad step, or ""."""
    lines = [line for line in StepLines(run / "bad_steps.jsonl").read() if line["step"] == step]
    rollbacks = list(StepLines(run / "rollbacks.jsonl").read())
    if not lines:
        return "bad_steps.jsonl does not name it"
    is_left_out = any(one["first"] <= step < one["step"] for one in rollbacks)
    if is_left_out is not (kind == "parameter"):
        return f"left out: {is_left_out}, after {lines[0]['why']}"
    expected = "gradient_not_finite" if kind == "gradient" else "loss_not_finite"
    return "" if lines[0]["why"] == expected else f"bad_steps.jsonl says {lines[0]['why']}, not {expected}"
