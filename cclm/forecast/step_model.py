"""A step on N GPUs as arithmetic: seconds of computing, communication, data and checkpoints.

    recipe ── costs.recipe ──► updates ──┐
    GPU and network, ASSUMPTIONS ────────┼── step_of ──► Step: seconds by part
    DeepSpeed JSON ── Sharding ──────────┘

Nothing here was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from cclm.config import RunConfig
from cclm.costs.network import count_parameters, fetch_units, parameters_by_part, parts_of
from cclm.costs.recipe import Counter, Exchange, Update, updates_of
from cclm.forecast.machines import A, Gpu, Ranks, Sharding


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of one step by part; what is hidden behind computing is left out of the sum."""

    compute: float
    """Of the GPU, or of the host that launches its kernels if that is slower."""
    zero: float
    """ZeRO's gathers and reductions that nothing hides."""
    features: float
    """Features, identities and log-sum-exps of all rows to all ranks."""
    states: float
    """States of negative groups that several ranks share, and their gradients."""
    agreement: float
    """Do all ranks hold the same step? Over gloo."""
    data: float
    """Waiting for images."""
    checkpoint: float
    """A step's share of a save that nothing hides."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(float(getattr(self, field.name)) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe on so many GPUs."""

    name: str
    config: RunConfig
    counter: Counter
    updates: Sequence[Update]
    precision: str
    sharding: Sharding

    @classmethod
    def of(
        cls,
        name: str,
        config: RunConfig,
        counter: Counter,
        precision: str,
        sharding: Sharding,
        text_fill: Mapping[str, float] | None = None,
    ) -> Case:
        """Count a recipe; how long texts are is assumed where `text_fill` does not say it by view."""
        updates = updates_of(config, counter, {**dict.fromkeys(config.views, A["text_fill"]), **(text_fill or {})})
        return cls(name=name, config=config, counter=counter, updates=updates, precision=precision, sharding=sharding)

    @property
    def value_bytes(self) -> int:
        """Of a parameter in the forward pass, and of an activation."""
        return 4 if self.precision == "fp32" else 2

    @property
    def num_parameters(self) -> int:
        """All of the network's."""
        return count_parameters([self.counter.model])

    @property
    def num_trained(self) -> int:
        """Those that are not frozen."""
        return sum(value.numel() for value in self.counter.model.parameters() if value.requires_grad)

    @property
    def parts(self) -> int:
        """Micro-batches."""
        return self.config.data.micro_batches

    @property
    def flops(self) -> float:
        """Of a step."""
        return sum(call.rows * call.cost.flops for update in self.updates for call in update.calls)

    @property
    def moved_bytes(self) -> float:
        """By what is no matrix product, in a step, on one GPU."""
        return sum(_moved(update, self, 1) for update in self.updates)

    @property
    def samples(self) -> int:
        """Rows of all views in a step."""
        return sum(one.batch for one in self.exchanges)

    @property
    def exchanges(self) -> list[Exchange]:
        """Of all updates of a step."""
        return [one for update in self.updates for one in update.exchanges]

    def raised(self, factor: float) -> Case:
        """Return the same with batches `factor` times as large."""

        def more(update: Update) -> Update:
            calls = tuple(replace(call, rows=round(call.rows * factor)) for call in update.calls)
            exchanges = tuple(replace(one, batch=round(one.batch * factor)) for one in update.exchanges)
            return replace(update, calls=calls, exchanges=exchanges, slots=round(update.slots * factor))

        return replace(self, updates=[more(update) for update in self.updates])

    def fits(self, ranks: int) -> bool:
        """Whether each rank has a row of each view."""
        return all(one.batch >= ranks for one in self.exchanges)


def _moved(update: Update, case: Case, ranks: int) -> float:
    """Bytes that a rank's element-wise kernels move; every count was made in bf16."""
    tables = {call.part: call.cost.table_bytes for call in update.calls}
    rows = sum(math.ceil(call.rows / ranks) * call.cost.moved_bytes for call in update.calls)
    return (rows + sum(tables.values())) * case.value_bytes / 2


def _kernels(update: Update) -> int:
    """Each part of the network runs once in an update, each head once."""
    once: dict[str, int] = {}
    for call in update.calls:
        key = call.what if call.part == "heads" else call.part
        once[key] = max(once.get(key, 0), call.cost.num_operations)
    return sum(once.values())


def kept_share(case: Case, parameters: int) -> float:
    """Share of gathered parameters that ZeRO-3 does not let go between their forward and backward pass.

    DeepSpeed keeps what is used again within `stage3_max_reuse_distance` parameters; from a layer's forward pass to its
    backward pass lie twice those of the layers after it. No more than `stage3_max_live_parameters` are there at once.
    """
    return min(1.0, case.sharding.max_reuse / 2 / parameters, case.sharding.max_live / parameters)


def zero_s(case: Case, update: Update, gpu: Gpu, ranks: Ranks) -> tuple[float, float]:
    """Return the seconds of an update's ZeRO collectives that can overlap with computing, and of those that cannot."""
    sizes, modules, sharding = parameters_by_part(case.counter.model), parts_of(case.counter.model), case.sharding
    used = sum(sizes[part] for part in update.parts)
    gradients = used * sharding.gradient_bytes
    reductions = math.ceil(used / sharding.reduce_bucket)
    if sharding.stage < 3:
        gathers = math.ceil(case.num_parameters / sharding.allgather_bucket)
        after = ranks.ring_s(gpu, case.num_parameters * case.value_bytes, gathers)
        return ranks.all_reduce_s(gpu, gradients, reductions), after
    counts = [fetch_units(modules[part], sharding.threshold, sharding.leaves) for part in sorted(update.parts)]
    units, small = (sum(column) for column in zip(*counts, strict=True))
    forward = ranks.ring_s(gpu, used * case.value_bytes, units)
    again = 1 - kept_share(case, used)
    near = Ranks(count=min(sharding.hpz, ranks.count)) if sharding.hpz > 1 else ranks
    backward = near.ring_s(gpu, again * used * case.value_bytes, again * units)
    after = ranks.ring_s(gpu, 0.0, small)  # what is not sharded is gathered one by one after each update
    return forward + backward + ranks.ring_s(gpu, gradients, reductions), after


def exchange_bytes(case: Case, one: Exchange, ranks: Ranks) -> tuple[float, float, int]:
    """Return the bytes of a view's feature exchange (of all ranks together), those of the states of one negative group
    that ranks share (0 if each holds whole groups), and how many ranks share it."""
    if ranks.count == 1:
        return 0.0, 0.0, 1
    per_row = 2 * 4 * case.config.model.projection_width + 2 * 8 + 2 * 4  # both sides' features, ids, log-sum-exps
    rows = one.batch / ranks.count
    if rows >= one.group and rows % one.group == 0:
        return one.contrasts * one.batch * per_row, 0.0, 1
    states = one.group * one.states_per_row * case.config.model.width * case.value_bytes
    return one.contrasts * one.batch * per_row, states, min(ranks.count, math.ceil(one.group / rows) + 1)


def exchange_s(case: Case, update: Update, gpu: Gpu, ranks: Ranks) -> tuple[float, float]:
    """Return the seconds of an update's feature exchange (features with identities; then log-sum-exps), and of the
    states of shared groups (a gather forward, a reduce-scatter backward). Both stand between encoders and losses."""
    features = states = 0.0
    for one in update.exchanges:
        size, shared, sharing = exchange_bytes(case, one, ranks)
        features += ranks.ring_s(gpu, size, 0.0)
        if shared:
            states += 2 * Ranks(count=sharing).ring_s(gpu, shared, 1.0)
    return features + ranks.ring_s(gpu, 0.0, 2.0), states


def step_of(case: Case, gpu: Gpu, count: int) -> Step:
    """Return the seconds of a step on `count` GPUs; a rank with the most rows sets the pace."""
    ranks = Ranks(count=count)
    compute = zero = features = states = 0.0
    images = 0
    for update in case.updates:
        flops = sum(math.ceil(call.rows / count) * call.cost.flops for call in update.calls)
        optimizer = (
            case.num_parameters / count * 28
        )  # gradient, weight and two moments read; weights and moments written
        busy = flops / (gpu.flops[case.precision] * A["matmul_share"])
        busy += (_moved(update, case, count) + optimizer) / (gpu.hbm_bytes_per_s * A["hbm_share"])
        launch = _kernels(update) * A["host_operation_s"]
        if case.sharding.stage == 3 and count > 1:
            modules = parts_of(case.counter.model)
            units = sum(fetch_units(modules[part], 0, case.sharding.leaves)[0] for part in update.parts)
            launch += 2 * units * A["host_fetch_s"]
        now = max(busy, launch)
        hideable, exposed = zero_s(case, update, gpu, ranks)
        compute, zero = compute + now, zero + exposed + max(0.0, hideable - A["overlap_share"] * now)
        told = exchange_s(case, update, gpu, ranks)
        features, states = features + told[0], states + told[1]
        images += sum(math.ceil(call.rows / count) for call in update.calls if call.part == "vision")
    agreement = (count - 1) * A["gloo_hop_s"]
    others = compute + zero + features + states + agreement
    decode = images / (A["images_per_core_s"] * (A["cores_per_gpu"] - 1))
    saved = 12 * case.num_parameters / min(A["storage_bytes_per_s"], count * A["rank_storage_bytes_per_s"])
    return Step(
        compute=compute, zero=zero, features=features, states=states, agreement=agreement,
        data=max(0.0, decode - others), checkpoint=saved / case.config.checkpoint.every_steps,
    )  # fmt: skip
