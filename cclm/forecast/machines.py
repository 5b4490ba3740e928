"""The machines that a forecast assumes: GPUs and their network, and what a DeepSpeed JSON shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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

    def peak(self, precision: str) -> float:
        """Return its FLOP/s in a precision."""
        return self.flops["fp32" if precision == "fp32" else "bf16"]


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
    "text_fill": (0.5, "real tokens as a share of max_tokens; captions of 10 to 20 words"),
    "cuda_process_bytes": (1e9, "of a GPU's memory: CUDA context, workspaces of libraries, NCCL's buffers"),
    "cpu_process_bytes": (0.6e9, "of a rank on a CPU: interpreter, torch, deepspeed (python -m benchmarks.forecast)"),
}  # fmt: skip
"""Name → value, and where it is from. What a run measures takes their place."""
A = {name: value for name, (value, _) in ASSUMPTIONS.items()}


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """What a DeepSpeed JSON says about sharding."""

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
    def of(cls, values: Mapping[str, Any], precision: str) -> Sharding:
        """Take it from a file's contents, which may leave it to DeepSpeed's defaults; empty: of the plain engine."""
        zero = values.get("zero_optimization") or {}
        return cls(
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
