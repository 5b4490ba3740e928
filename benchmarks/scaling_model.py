"""A step on N GPUs as arithmetic: seconds of computing, communication, data and checkpoints.

    recipe ── costs.recipe, moved bytes ──► updates ──┐
    GPU and network, ASSUMPTIONS ─────────────────────┼── step_of ──► Step: seconds by part
    DeepSpeed JSON ── Sharding ───────────────────────┘

Collectives are rings: every node sends and receives all bytes but its own through its network cards, every GPU through
NVLink, and each collective pays a latency for each hop. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cclm.config import RunConfig
from cclm.costs.network import Cost, parameters_by_part, parts_of
from cclm.costs.recipe import XLM_R_WORDS, Call, Counter, Update, rows_of
from cclm.data.config import ViewConfig
from cclm.forecast.machines import ASSUMPTIONS as OF_FORECASTS
from cclm.forecast.machines import Gpu, Sharding
from cclm.forecast.memory import Case, kept_share
from cclm.recipe.read import read_recipe

ASSUMPTIONS: dict[str, tuple[float, str]] = {
    "gpus_per_node": (8, "DGX and the like"),
    "text_fill": OF_FORECASTS["text_fill"],
    "matmul_share": (0.6, "of the peak that matrix products reach by themselves (public reports: 0.5 to 0.75)"),
    "hbm_share": (0.8, "of the memory's peak that element-wise kernels reach"),
    "network_share": (0.8, "of the network's peak that large collectives reach (nccl-tests)"),
    "overlap_share": (0.8, "of computing behind which gathers and reductions can hide (overlap_comm)"),
    "host_operation_s": (6e-6, "to launch a kernel from Python in eager mode"),
    "host_fetch_s": (1e-4, "ZeRO-3's hooks around a module, a pass"),
    "base_latency_s": (14e-6, "of a collective; NCCL's own tuning table, ring, LL128"),
    "intra_hop_s": (1.9e-6, "the same, over NVLink"),
    "inter_hop_s": (4e-6, "the same, over the network"),
    "tree_hop_s": (8.5e-6, "the same, an all-reduce's tree between nodes"),
    "gloo_hop_s": (40e-6, "TCP between nodes, a hop of gloo's ring"),
    "images_per_core_s": (768, "decoded and augmented (docs/performance.md)"),
    "cores_per_gpu": (12, "96 cores a node"),
    "storage_bytes_per_s": (20e9, "of a parallel file system, all ranks together"),
    "rank_storage_bytes_per_s": (1e9, "of one rank"),
    "cuda_process_bytes": OF_FORECASTS["cuda_process_bytes"],
    "cpu_process_bytes": OF_FORECASTS["cpu_process_bytes"],
}  # fmt: skip
"""Name → value, and where it is from. What a run measures takes their place."""
A = {name: value for name, (value, _) in ASSUMPTIONS.items()}


def read_published(name: str, *overrides: str) -> RunConfig:
    """Read a shipped recipe, with the vocabulary that its tokenizer has."""
    config = read_recipe(["--recipe", name, *overrides])
    return replace(config, model=replace(config.model, text=replace(config.model.text, vocab_size=XLM_R_WORDS)))


def sharding_of(path: Path, precision: str) -> Sharding:
    """Read a DeepSpeed JSON."""
    return Sharding.of(json.loads(path.read_text(encoding="utf-8")), precision)


@dataclass(frozen=True, kw_only=True)
class MovedCost(Cost):
    """With what a row moves besides."""

    moved_bytes: float
    """Read and written by all operations that are no matrix product or attention, forward and backward, each on its own
    (nothing fused)."""
    table_bytes: int
    """Moved for the dense gradients of embedding tables in one call, whatever the rows."""
    num_operations: int
    """Kernels of one call, whatever the rows."""


class MovedCounter(Counter):
    """Costs with what is moved."""

    def count(self, function: Callable[..., Tensor], *inputs: Tensor) -> MovedCost:
        """Count one call of the network."""
        with _Traffic() as traffic:
            cost, rows = super().count(function, *inputs), inputs[0].shape[0]
        return MovedCost(
            **vars(cost), moved_bytes=traffic.moved_bytes / rows, table_bytes=traffic.table_bytes,
            num_operations=traffic.num_operations,
        )  # fmt: skip


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of everything that is neither a view nor counted in FLOPs, and the number of kernels."""

    HAVE_FLOPS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "_efficient_attention", "convolution_backward")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved_bytes, self.table_bytes, self.num_operations = 0, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count it."""
        result = func(*args, **(kwargs or {}))
        name = str(func.overloadpacket.__name__)
        if func.is_view or name in ("_unsafe_view", "detach", "empty", "empty_like", "new_empty"):
            return result
        self.num_operations += 1
        if name == "embedding_dense_backward":  # zero fill and sum of the whole table, whatever the rows
            self.table_bytes += 3 * _bytes_of(result)
        elif name == "embedding":  # reads rows, not the table
            self.moved_bytes += 2 * _bytes_of(result)
        elif name not in self.HAVE_FLOPS and "efficient_attention" not in name:
            self.moved_bytes += _bytes_of((args, kwargs or {}, result))
        return result


def _bytes_of(values: object) -> int:
    return sum(leaf.numel() * leaf.itemsize for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def fetch_units(modules: Sequence[nn.Module | None], threshold: int, leaves: Sequence[str]) -> tuple[int, int]:
    """Return how many times a pass of ZeRO-3 gathers (modules with weights of their own above the persistence
    threshold; a leaf module is one), and how many parameters lie below it."""
    units, small = 0, 0
    for module in (module for module in modules if module is not None):
        if type(module).__name__ in leaves:
            sizes = [value.numel() for value in module.parameters()]
            children: Sequence[nn.Module] = ()
        else:
            sizes = [value.numel() for value in module.parameters(recurse=False)]
            children = list(module.children())
        inner = fetch_units(children, threshold, leaves)
        units += inner[0] + any(size > threshold for size in sizes)
        small += inner[1] + sum(size <= threshold for size in sizes)
    return units, small


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """How many GPUs, and how they lie on nodes."""

    count: int

    @property
    def nodes(self) -> int:
        """Machines."""
        return math.ceil(self.count / A["gpus_per_node"])

    def ring_s(self, gpu: Gpu, size: float, launches: float = 1.0) -> float:
        """Seconds of all-gathers (or reduce-scatters) of `size` bytes in all, over all ranks, in so many launches."""
        if self.count == 1:
            return 0.0
        inter = size * (self.nodes - 1) / self.nodes / (A["gpus_per_node"] * gpu.nic_bytes_per_s)
        intra = size * (self.count - 1) / self.count / gpu.nvlink_bytes_per_s
        hops = (self.count - self.nodes) * A["intra_hop_s"] + (self.nodes - 1) * A["inter_hop_s"]
        return max(inter, intra) / A["network_share"] + launches * (A["base_latency_s"] + hops)

    def all_reduce_s(self, gpu: Gpu, size: float, launches: float = 1.0) -> float:
        """Seconds of all-reduces: twice the bytes, by a tree between nodes."""
        if self.count == 1:
            return 0.0
        hops = 2 * (min(self.count, A["gpus_per_node"]) - 1) * A["intra_hop_s"]
        hops += 2 * math.ceil(math.log2(self.nodes)) * A["tree_hop_s"]
        return 2 * self.ring_s(gpu, size, 0.0) + launches * (A["base_latency_s"] + hops)


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
class Exchange:
    """What a view's rows exchange between ranks in an update."""

    batch: int
    group: int
    contrasts: int
    states_per_row: float
    """Token states of a row that its negative group shares: its text's, and its image's or other text's."""


@dataclass(frozen=True, kw_only=True)
class ScaledUpdate(Update):
    """With what its views exchange."""

    exchanges: tuple[Exchange, ...]

    @property
    def parts(self) -> frozenset[str]:
        """Parts of the network that it uses."""
        return frozenset(call.part for call in self.calls)


@dataclass(frozen=True, kw_only=True)
class ScaledCase(Case):
    """A recipe on so many GPUs, counted by a `MovedCounter`."""

    updates: Sequence[ScaledUpdate]
    name: str
    file: str
    """Name of its DeepSpeed JSON."""

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

    def raised(self, factor: float) -> ScaledCase:
        """Return the same with batches `factor` times as large."""

        def more(update: ScaledUpdate) -> ScaledUpdate:
            calls = tuple(replace(call, rows=round(call.rows * factor)) for call in update.calls)
            exchanges = tuple(replace(one, batch=round(one.batch * factor)) for one in update.exchanges)
            return replace(update, calls=calls, exchanges=exchanges, slots=round(update.slots * factor))

        return replace(self, updates=[more(update) for update in self.updates])

    def fits(self, ranks: int) -> bool:
        """Whether each rank has a row of each view."""
        return all(one.batch >= ranks for one in self.exchanges)


def exchange_of(view: ViewConfig, counter: Counter) -> Exchange:
    """Return what a view's rows exchange."""
    rows = {(call.part, call.what): call.rows for call in rows_of(view, counter, A["text_fill"])[0]}
    length, grid = math.ceil(A["text_fill"] * view.longest_text), counter.options.vision.grid_side or 0
    states = length * rows["text", "clean"] + (1 + grid * grid) * rows.get(("vision", "images"), 0)
    contrasts = 3 if getattr(view, "captions_per_image", 1) == 2 else getattr(view, "pairs_per_sample", 1)
    batch = view.batch_size
    return Exchange(batch=batch, group=view.negative_group, contrasts=contrasts, states_per_row=states / batch)


def scaled(config: RunConfig, counter: MovedCounter, sharding: Sharding, name: str, file: str) -> ScaledCase:
    """Count a recipe; `file`: name of the DeepSpeed JSON."""
    case, found = Case.of(config, counter, sharding), [exchange_of(view, counter) for view in config.views.values()]
    groups = [found] if len(case.updates) == 1 else [[one] for one in found]
    pairs = zip(case.updates, groups, strict=True)
    updates = [ScaledUpdate(**vars(update), exchanges=tuple(group)) for update, group in pairs]
    return ScaledCase(**{**vars(case), "updates": updates}, name=name, file=file)


def _cost(call: Call) -> MovedCost:
    assert isinstance(call.cost, MovedCost), "a MovedCounter has counted it"
    return call.cost


def _moved(update: Update, case: ScaledCase, ranks: int) -> float:
    """Bytes that a rank's element-wise kernels move; every count was made in bf16."""
    costs = [(call, _cost(call)) for call in update.calls]
    tables = {call.part: cost.table_bytes for call, cost in costs}
    rows = sum(math.ceil(call.rows / ranks) * cost.moved_bytes for call, cost in costs)
    return (rows + sum(tables.values())) * case.value_bytes / 2


def _kernels(update: Update) -> int:
    """Each part of the network runs once in an update, each head once."""
    once: dict[str, int] = {}
    for call in update.calls:
        key = call.what if call.part == "heads" else call.part
        once[key] = max(once.get(key, 0), _cost(call).num_operations)
    return sum(once.values())


def zero_s(case: ScaledCase, update: ScaledUpdate, gpu: Gpu, ranks: Ranks) -> tuple[float, float]:
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


def exchange_bytes(case: ScaledCase, one: Exchange, ranks: Ranks) -> tuple[float, float, int]:
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


def exchange_s(case: ScaledCase, update: ScaledUpdate, gpu: Gpu, ranks: Ranks) -> tuple[float, float]:
    """Return the seconds of an update's feature exchange (features with identities; then log-sum-exps), and of the
    states of shared groups (a gather forward, a reduce-scatter backward). Both stand between encoders and losses."""
    features = states = 0.0
    for one in update.exchanges:
        size, shared, sharing = exchange_bytes(case, one, ranks)
        features += ranks.ring_s(gpu, size, 0.0)
        if shared:
            states += 2 * Ranks(count=sharing).ring_s(gpu, shared, 1.0)
    return features + ranks.ring_s(gpu, 0.0, 2.0), states


def step_of(case: ScaledCase, gpu: Gpu, count: int) -> Step:
    """Return the seconds of a step on `count` GPUs; a rank with the most rows sets the pace."""
    ranks = Ranks(count=count)
    compute = zero = features = states = 0.0
    images = 0
    for update in case.updates:
        flops = sum(math.ceil(call.rows / count) * call.cost.flops for call in update.calls)
        optimizer = (
            case.num_parameters / count * 28
        )  # gradient, weight and two moments read; weights and moments written
        busy = flops / (gpu.peak(case.config.precision) * A["matmul_share"])
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
