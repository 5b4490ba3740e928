"""How the proportions of the sources change over the steps: planned weights, and sources that are used up.

The plan is made once, at the start, by arithmetic over the draws; nothing is counted while training, so every rank and
every resumed run has the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cclm.data.dealing import Dealing
from cclm.data.mixture import Mixture

FOREVER = 1 << 62
"""A limit that no run reaches."""


@dataclass(frozen=True, kw_only=True)
class MixStage:
    """Other proportions from a step on."""

    start_step: int
    """The first step with these proportions."""
    weights: tuple[float, ...] | None = None
    """One for each source, 0 to leave it out; None: as before."""
    language_weights: Mapping[str, float] | None = None
    """As in MixConfig; None: as before."""


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """How the sources and languages of a view are mixed, beside the view's `weights`."""

    temperature: float = 1.0
    """Without `weights`: a source's weight is its size to the power 1/temperature. 1: by size; 3.3 lifts small sources,
    as for parallel text in many languages; very large: all alike."""
    repeats: tuple[float, ...] | None = None
    """Without `weights`: factor on each source's size: 2 shows its samples twice as often as 1 does."""
    max_epochs: tuple[float | None, ...] | None = None
    """How often each source's samples are shown at most, null for no limit. A source that is used up leaves the
    mixture, and the others share its place."""
    language_weights: Mapping[str, float] | None = None
    """Proportions of the languages of captions (of a group's translations), dealt exactly where the records have all
    of them; languages without a weight are not shown. None: all alike."""
    schedule: tuple[MixStage, ...] = field(default=())
    """Other proportions from later steps on, in the order of their start."""


@dataclass(frozen=True, kw_only=True)
class MixPlan:
    """A mixture for all steps of a run."""

    mixture: Mixture
    """Which source each draw takes."""
    end_step: int | None
    """The first step for which every source is used up; None: there is none."""


def base_weights(totals: Sequence[int], weights: Sequence[float] | None, mix: MixConfig) -> list[float]:
    """The weights of step 0: as given, or (size · repeats) ^ (1 / temperature)."""
    if weights is not None:
        return list(weights)
    repeats = mix.repeats or [1.0] * len(totals)
    if mix.temperature == 1.0:
        return [total * repeat for total, repeat in zip(totals, repeats, strict=True)]
    powers = [(total * repeat) ** (1.0 / mix.temperature) for total, repeat in zip(totals, repeats, strict=True)]
    return [power / max(powers) for power in powers]


def plan_mixture(
    weights: Sequence[float], schedule: Sequence[MixStage], limits_SL: NDArray[np.int64], dealing: Dealing
) -> MixPlan:
    """Lay out every change of the weights.

    Args:
        weights: of step 0.
        schedule: planned changes.
        limits_SL: how many draws each source can give to each lane; `FOREVER` for no limit.
        dealing: of slots to lanes.
    """
    pending = [(stage.start_step, list(stage.weights)) for stage in schedule if stage.weights is not None]
    current, used_up = list(weights), np.zeros(len(weights), dtype=bool)
    mixture, step = Mixture(current, dealing.num_lanes), 0
    while True:
        until = pending[0][0] if pending else None
        found = _next_end(mixture, limits_SL, used_up, dealing, step, until)
        if found is not None:
            step, ended = found
            used_up = used_up | ended
        elif pending:
            step, current = pending.pop(0)
        else:
            return MixPlan(mixture=mixture, end_step=None)
        left = [0.0 if gone else weight for weight, gone in zip(current, used_up, strict=True)]
        if not any(left):
            return MixPlan(mixture=mixture, end_step=step)
        mixture.change(left, [dealing.turns_before(step, lane) for lane in range(dealing.num_lanes)])


def _next_end(
    mixture: Mixture,
    limits_SL: NDArray[np.int64],
    used_up: NDArray[np.bool_],
    dealing: Dealing,
    step: int,
    until: int | None,
) -> tuple[int, NDArray[np.bool_]] | None:
    """The first step before `until` that would draw more from a source than it has, and the sources this is true of."""

    def overdrawn(steps: int) -> NDArray[np.bool_]:
        """By source: would the steps before `steps` draw too much?"""
        lanes = range(dealing.num_lanes)
        drawn_LS = np.stack([mixture.drawn(lane, dealing.turns_before(steps, lane)) for lane in lanes])
        over: NDArray[np.bool_] = (limits_SL < drawn_LS.T).any(axis=1) & ~used_up
        return over

    limited = (limits_SL < FOREVER).any(axis=1) & ~used_up & (np.array(mixture.counts) > 0)
    if not limited.any():
        return None
    low, reach = step, 1  # the steps before `low` are fine
    while not overdrawn(low + reach).any():
        low, reach = low + reach, 2 * reach
        if until is not None and low >= until:
            return None
    high = low + reach  # the steps before `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if overdrawn(middle).any() else (middle, high)
    if until is not None and low >= until:
        return None
    return low, overdrawn(low + 1)


def mix_complaints(name: str, mix: MixConfig, num_sources: int) -> list[str]:
    """Everything wrong with a view's mix, a sentence each."""
    found = []
    if mix.temperature <= 0:
        found.append(f"{name}.mix.temperature must be positive, is {mix.temperature}")
    given = {"repeats": mix.repeats, "max_epochs": mix.max_epochs}
    given |= {f"schedule[{index}].weights": stage.weights for index, stage in enumerate(mix.schedule)}
    for option, values in given.items():
        if values is not None and len(values) != num_sources:
            found.append(f"{name}.mix.{option} must be one for each of the {num_sources} shards, are {len(values)}")
    if any(value is not None and value <= 0 for value in (*(mix.repeats or ()), *(mix.max_epochs or ()))):
        found.append(f"{name}.mix: repeats and max_epochs are positive")
    for stage in mix.schedule:
        if stage.weights is not None and (min(stage.weights, default=1.0) < 0 or not any(stage.weights)):
            found.append(f"{name}.mix.schedule: weights must be 0 or more, not all 0, are {stage.weights}")
    for table in (mix.language_weights, *(stage.language_weights for stage in mix.schedule)):
        if table is not None and (min(table.values(), default=0.0) < 0 or not any(table.values())):
            found.append(f"{name}.mix.language_weights must be 0 or more, not all 0, are {dict(table)}")
    starts = [stage.start_step for stage in mix.schedule]
    if starts != sorted(set(starts)) or min(starts, default=0) < 0:
        found.append(f"{name}.mix.schedule must be one stage after the other, from step 0 on; starts are {starts}")
    return found
