"""Whether two runs saw the same samples and computed the same numbers, from what stands in their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cclm.data.ledger import verify_ledger
from cclm.engine.adamw import MOMENTS
from cclm.engine.stored_weights import StoredState, load_full_state
from cclm.files.lines import StepLines
from cclm.run.checkpoints import newest_complete


def values_of(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {"step": line["step"], **{k: v for k, v in line["values"].items() if not k.startswith("speed/")}}
        for line in lines
    ]


def different_losses(run: Path, reference: Path, tolerance: float = 0.0, steps: Iterable[int] | None = None) -> str:
    """Name the first logged value that differs, or ""; relative tolerance, of sums in another order; 0: no bit."""
    ours, theirs = ({line["step"]: line for line in values_of(folder)} for folder in (run, reference))
    wanted = theirs if steps is None else [step for step in theirs if step in set(steps)]
    if steps is None and ours.keys() != theirs.keys():
        return f"log.jsonl: other steps than in {reference}: {sorted(ours.keys() ^ theirs.keys())}"
    for step in wanted:
        for name, value in theirs[step].items():
            found = ours.get(step, {}).get(name, math.nan)
            if found != value and not math.isclose(found, value, rel_tol=tolerance, abs_tol=tolerance):
                return f"step {step}: {name} {found!r}, not {value!r}"
    return ""


def different_samples(run: Path, reference: Path) -> str:
    """Name the first step that saw other samples, or ""; the chain of both is recomputed."""
    for folder in (run, reference):
        verify_ledger(folder / "ledger.jsonl")
    ours, theirs = (list(StepLines(folder / "ledger.jsonl").read()) for folder in (run, reference))
    if len(ours) != len(theirs):
        return f"ledger.jsonl: {len(ours)} steps, not {len(theirs)}"
    return next((f"step {b['step']}: other samples" for a, b in zip(ours, theirs, strict=True) if a != b), "")


def different_weights(run: Path, reference: Path) -> list[str]:
    """Name what differs in the newest checkpoints: weights, moments, counts of updates; bit by bit."""
    ours, theirs = newest_complete(run), newest_complete(reference)
    assert ours is not None and theirs is not None and ours.name == theirs.name
    weights, expected = load_full_state(ours), load_full_state(theirs)
    assert weights.keys() == expected.keys() and expected
    found = [name for name in expected if not torch.equal(weights[name], expected[name])]
    states = StoredState(ours), StoredState(theirs)
    if states[0].facts.updates != states[1].facts.updates:
        found.append("updates")
    for kind in MOMENTS:
        moments, wanted = (state.tensors(kind) for state in states)
        assert moments.keys() == wanted.keys() and wanted
        found += [f"{kind}/{name}" for name in wanted if not torch.equal(moments[name].whole(), wanted[name].whole())]
    return found


def different(run: Path, reference: Path, tolerance: float = 0.0) -> str:
    """Say what differs between two runs that are done, or "". Without tolerance their last weights are compared, too,
    and what stands in quarantine."""
    found = different_samples(run, reference) or different_losses(run, reference, tolerance)
    if found or tolerance:
        return found
    for path in sorted((reference / "quarantine").glob("*.jsonl")):
        if (run / "quarantine" / path.name).read_bytes() != path.read_bytes():
            return f"quarantine/{path.name} differs"
    return ", ".join(different_weights(run, reference)[:3])
