"""What a rank holds in memory, and a run on disk, as arithmetic: N parameters, T of them trained, on W ranks.

    ZeRO stage   weights in the forward pass   fp32 weights that are updated   gradients   moments
    plain, 0     N                             (the same)                      T           2 T
    1            N                             T / W                           T / W       2 T / W
    2            N                             T / W                           T / W       2 T / W
    3            N / W, and what is gathered   T / W; in fp32 (the same)       T / W       2 T / W

All but the weights are fp32. ZeRO 1 adds up T gradients where a step has several micro-batches. Besides: the buckets in
which gradients are summed over ranks, what autograd keeps, the block of masked-LM logits with the gradient of the word
table, and what a process has before it holds a tensor. Left out: the fp32 copy that ZeRO-3's update makes of gradients
that were summed in bf16.

A CPU whose freed memory is kept (`kernels.freed_memory`) finds no room for a large piece where another has been: what
is needed in turns adds up there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cclm.config import RunConfig
from cclm.costs.network import count_parameters
from cclm.costs.recipe import Call, Counter, Update, updates_of
from cclm.forecast.machines import A, Sharding
from cclm.ops.linear_cross_entropy import MAX_LOGITS

FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe on some ranks."""

    config: RunConfig
    counter: Counter
    updates: Sequence[Update]
    sharding: Sharding

    @classmethod
    def of(
        cls, config: RunConfig, counter: Counter, sharding: Sharding, text_fill: Mapping[str, float] | None = None
    ) -> Case:
        """Count a recipe; how long texts are is assumed where `text_fill` does not say it by view."""
        updates = updates_of(config, counter, {**dict.fromkeys(config.views, A["text_fill"]), **(text_fill or {})})
        return cls(config=config, counter=counter, updates=updates, sharding=sharding)

    @property
    def value_bytes(self) -> int:
        """Of a parameter in the forward pass, and of an activation."""
        return 4 if self.config.precision == "fp32" else 2

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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank by part."""

    process: float
    """Before there is a model: the context of a GPU; on a CPU interpreter and libraries."""
    weights: float
    """For the forward pass (of ZeRO-3 a share, and what is gathered at once), and those that are updated."""
    gradients: float
    """What stays of them till the update."""
    buckets: float
    """In which they are summed over ranks, and what is copied for it; beside activations and logits."""
    moments: float
    """AdamW's, and the moving average."""
    activations: float
    """What autograd keeps of the update that needs most."""
    logits: float
    """The block of masked-LM logits that exists at once, and the gradient of the word table that it makes."""
    updating: float
    """Instead of what a backward pass needs: of stage 0 on several ranks gradients in a row for their sum; of ZeRO 1
    and 2 gradients in a row while weights are updated, and weights that gloo gathers; of ZeRO-3 on a CPU the row of
    zeros with which it begins."""

    snapshot: float
    """The copy from which a checkpoint is written in the background; on a GPU it is the node's memory."""
    returns_memory: bool
    """Whether what was freed is there for others at once."""

    @property
    def total(self) -> float:
        """At the peak."""
        before, inside = self.activations + self.logits + self.buckets, self.updating
        peak = max(before, inside) if self.returns_memory else before + inside
        return self.process + self.weights + self.gradients + self.moments + self.snapshot + peak


def memory_of(case: Case, count: int, *, device: str = "cuda", checkpointing: str | None = None) -> Memory:
    """Return the bytes on one of `count` ranks; `checkpointing`: of all encoders, instead of the configuration's."""
    size, value, sharding = case.num_parameters, case.value_bytes, case.sharding
    trained, stage = case.num_trained, sharding.stage
    returns_memory = device == "cuda" or case.config.kernels.freed_memory == "returned"
    held = FP32 * trained / (count if stage else 1)
    if stage == 3:
        apart = 0.0 if value == FP32 and not sharding.offloads else held
        weights = size / count * value + apart
        gathered = kept_share(case, size) * size * value if count > 1 else 0.0
        weights += gathered
        if device == "cpu":  # pieces that DeepSpeed puts together elsewhere: the C library keeps their memory, too
            weights += size / count * value + gathered
        if sharding.hpz > 1:
            weights += size * value / min(sharding.hpz, count)
    else:
        weights = size * value + (held if stage else 0.0)
    gradients = held + (trained * sharding.gradient_bytes if stage == 1 and case.parts > 1 else 0.0)
    moments = (2 + bool(case.config.optimizer.ema_decay)) * held
    if sharding.offloads:  # on a GPU it is the node's memory; on a CPU the same
        weights, moments = weights - held, 0.0
    if case.config.start.remember_bytes:  # at most: a copy of all that is frozen, and the memory when it is full
        weights += (size - trained) * value + case.config.start.remember_bytes
    words = case.config.model.text.vocab_size
    slots = max(update.slots for update in case.updates) // case.parts
    logits = min(FP32 * MAX_LOGITS[device], FP32 * words * math.ceil(slots / count))
    return Memory(
        process=A["cuda_process_bytes"] if device == "cuda" else A["cpu_process_bytes"],
        weights=weights,
        gradients=gradients,
        buckets=_buckets(case, count, device, returns_memory),
        moments=moments,
        activations=_activations(case, count, checkpointing, returns_memory),
        logits=logits + FP32 * words * case.config.model.width,
        updating=_updating(case, count, device, held),
        snapshot=checkpoint_bytes(case) / count if device == "cpu" and case.config.checkpoint.background else 0.0,
        returns_memory=returns_memory,
    )


def kept_share(case: Case, parameters: int) -> float:
    """Share of gathered parameters that ZeRO-3 does not let go between their forward and backward pass: DeepSpeed keeps
    what is used again within `stage3_max_reuse_distance` parameters (from a layer's forward pass to its backward pass
    lie twice those of the layers after it), and no more than `stage3_max_live_parameters` at once."""
    return min(1.0, case.sharding.max_reuse / 2 / parameters, case.sharding.max_live / parameters)


def _buckets(case: Case, count: int, device: str, returns_memory: bool) -> float:
    """Of gradients that are summed over ranks: the buckets, and one more in a row for the collective; of ZeRO-3 on
    CPUs another, of what the ranks exchange."""
    sharding, trained = case.sharding, case.num_trained
    values = sharding.reduce_bucket if device == "cuda" else min(sharding.reduce_bucket, trained)
    bucket = values * sharding.gradient_bytes
    if sharding.stage == 3:
        return bucket * (3 if device == "cpu" else 2) if count > 1 else 0.0
    if sharding.stage == 0:
        return 0.0
    filled = bucket * (2 if sharding.overlaps else 1)
    if device == "cpu" and returns_memory:  # what nobody has written to is not there
        filled = min(filled, trained * sharding.gradient_bytes)
    return filled + bucket


def _updating(case: Case, count: int, device: str, held: float) -> float:
    """Of gradients in a row, and of all weights, which gloo gathers beside those that they replace."""
    if case.sharding.stage == 0:
        return case.num_trained * case.sharding.gradient_bytes if count > 1 else 0.0
    if case.sharding.stage == 3:
        return held if device == "cpu" else 0.0
    return held + (case.num_parameters * case.value_bytes if device == "cpu" and count > 1 else 0.0)


def _activations(case: Case, count: int, checkpointing: str | None, returns_memory: bool) -> float:
    """Of the update that needs most; every count was made in bf16. Where memory is kept, values of a block that are
    computed again, and the gradients that replace them, have places of their own in each encoder."""
    modes = case.config.activation_checkpointing
    found = []
    for update in case.updates:
        rows: list[tuple[int, Call]] = [(math.ceil(call.rows / count / case.parts), call) for call in update.calls]
        kept = again = replaced = 0.0
        for number, call in rows:
            mode = "none" if call.part == "heads" else checkpointing or getattr(modes, call.part)
            kept += number * call.cost.kept_bytes[mode]
            block = number * call.cost.block_bytes
            repeated = block if mode in ("selective", "full") else 0.0
            again, replaced = max(again, repeated), replaced + repeated + block
        found.append(kept + (again if returns_memory else replaced))
    return case.value_bytes / 2 * max(found)


def checkpoint_bytes(case: Case) -> float:
    """Return the size of a checkpoint: fp32 weights, of the trained ones two moments, and the moving average."""
    averages = bool(case.config.optimizer.ema_decay)
    return float(FP32 * (case.num_parameters + (2 + averages) * case.num_trained))
