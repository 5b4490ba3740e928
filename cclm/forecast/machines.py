"""The machines that the scaling model assumes: GPUs and their network, ranks on nodes, what a DeepSpeed JSON shards.

Collectives are rings: every node sends and receives all bytes but its own through its network cards, every GPU through
NVLink, and each collective pays a latency for each hop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.engine.ds_config import offloads_optimizer, zero_stage


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU, and the network of a machine with eight of them. Dense peaks, without sparsity."""

    name: str
    flops: Mapping[str, float]
    """By precision; fp32 runs as TF32, fp16 as fast as bf16."""
    hbm_bytes_per_s: float
    memory_bytes: float
    nvlink_bytes_per_s: float
    """In one direction."""
    nic_bytes_per_s: float
    """Of a GPU's share of its machine's network cards, in one direction."""
    source: str


GPUS = (
    Gpu(
        name="A100-80", flops={"bf16": 312e12, "fp32": 156e12}, hbm_bytes_per_s=2.039e12, memory_bytes=80e9,
        nvlink_bytes_per_s=300e9, nic_bytes_per_s=25e9, source="NVIDIA A100 80GB SXM datasheet; 8 × 200 Gb/s a node",
    ),
    Gpu(
        name="H100", flops={"bf16": 989e12, "fp32": 494e12}, hbm_bytes_per_s=3.35e12, memory_bytes=80e9,
        nvlink_bytes_per_s=450e9, nic_bytes_per_s=50e9, source="NVIDIA H100 SXM datasheet; 8 × 400 Gb/s a node",
    ),
)  # fmt: skip

CPU = "cpu"
"""In place of a GPU's name."""

ASSUMPTIONS: dict[str, tuple[float, str]] = {
    "gpus_per_node": (8, "DGX and the like"),
    "text_fill": (0.5, "real tokens as a share of max_tokens; captions of 10 to 20 words"),
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
    "cuda_process_bytes": (1e9, "of a GPU's memory: CUDA context, workspaces of libraries, NCCL's buffers"),
    "cpu_process_bytes": (0.6e9, "of a rank on a CPU: interpreter, torch, deepspeed (python -m benchmarks.forecast)"),
}  # fmt: skip
"""Name → value, and where it is from. What a run measures takes their place."""
A = {name: value for name, (value, _) in ASSUMPTIONS.items()}


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """What a DeepSpeed JSON says about sharding."""

    name: str
    stage: int
    gradient_bytes: int
    """Of a value when gradients are summed over ranks."""
    reduce_bucket: float
    allgather_bucket: float
    overlaps: bool
    """Whether ZeRO 1 and 2 fill a second bucket while the first one is summed."""
    threshold: int
    leaves: tuple[str, ...]
    hpz: int
    max_live: float
    max_reuse: float
    offloads: bool
    """Whether fp32 weights and moments lie in the node's memory."""

    @classmethod
    def read(cls, path: Path, precision: str) -> Sharding:
        """Read a file; what it does not say has DeepSpeed's default."""
        return cls.of(path.stem, json.loads(path.read_text(encoding="utf-8")), precision)

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], precision: str) -> Sharding:
        """Take it from a file's contents; without any it is that of the plain engine."""
        zero = values.get("zero_optimization") or {}
        return cls(
            name=name,
            stage=zero_stage(values),
            gradient_bytes=4 if precision == "fp32" or values.get("communication_data_type") == "fp32" else 2,
            reduce_bucket=zero.get("reduce_bucket_size", 5e8),
            allgather_bucket=zero.get("allgather_bucket_size", 5e8),
            overlaps=zero.get("overlap_comm", False),
            threshold=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            leaves=tuple(zero.get("leaf_module", {}).get("classes", ())),
            hpz=zero.get("zero_hpz_partition_size", 1),
            max_live=zero.get("stage3_max_live_parameters", 1e9),
            max_reuse=zero.get("stage3_max_reuse_distance", 1e9),
            offloads=offloads_optimizer(values),
        )


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
