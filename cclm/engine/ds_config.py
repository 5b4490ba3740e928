"""DeepSpeed's JSON, made one with our config: "auto" is filled in, a contradiction is an error, never a preference.

Needs neither torch nor deepspeed, so that a login node can check it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cclm.errors import Problem
from cclm.files.document import read_document
from cclm.files.node import Node, plain
from cclm.files.reading import raise_problems
from cclm.files.shipped import CHECKOUT, find_shipped
from cclm.files.text import nearest_word
from cclm.types import Precision

AUTO = "auto"


def _keys(*rows: tuple[str, str]) -> dict[str, str]:
    """Key → what to do about it, from rows of an advice and the keys that it is for."""
    return {key: advice for advice, keys in rows for key in keys.split()}


_MAY = ""
_IN_CODE, _REMOVED = "The engine does this itself: remove the key.", "DeepSpeed 0.19 has it no more: remove the key."
_UNUSED = "Nothing here uses that part of DeepSpeed: remove the key."
_CHECKPOINTS = "Checkpoints are not DeepSpeed's here (docs/architecture.md): remove the key."
_FOR_FP16 = "It is for the range of fp16: reduce in fp32 with communication_data_type."
_EXPORT = "`cclm export` writes the weights: remove the key."
_ONLY_CPU = "Only device, pin_memory (and, for the optimizer, cpuadam_cores_perc) are tried here: remove the key."
KEYS: dict[str, dict[str, str]] = {
    "": _keys(
        (_MAY, "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping"),
        (_MAY, "zero_optimization bf16 fp16 communication_data_type data_types gradient_allreduce_op"),
        (_MAY, "zero_allow_untested_optimizer zero_force_ds_cpu_optimizer disable_python_gc"),
        (_MAY, "steps_per_print log_level dump_state memory_breakdown wall_clock_breakdown timers"),
        (_MAY, "comms_logger flops_profiler tensorboard csv_monitor wandb comet"),
        ("The optimizer is built in code: set it under `optimizer` in the recipe.", "optimizer"),
        ("The learning rate is a function of the step: set it under `optimizer` in the recipe.", "scheduler"),
        ("Set precision in the recipe: bf16 switches autocast on.", "torch_autocast"),
        ("It is an old name: use bf16.", "bfloat16"),
        ("It would do nothing: set activation_checkpointing in the recipe.", "activation_checkpointing"),
        ("It would do nothing: only DeepSpeed's engine.compile() reads it, which is not called.", "compile"),
        (_FOR_FP16, "prescale_gradients gradient_predivide_factor"),
        ("It is for NVMe, where nothing is offloaded here: remove the key.", "aio"),
        (_IN_CODE, "managed_gradient_accumulation"),
        (_CHECKPOINTS, "checkpoint datastates_ckpt"),
        (_UNUSED, "disable_allgather vocabulary_size dataloader_drop_last data_efficiency weight_quantization"),
        (_UNUSED, "seq_parallel_communication_data_type use_data_before_expert_parallelism"),
        (_UNUSED, "pipeline tensor_parallel expert_parallel hybrid_engine autotuning"),
        (_REMOVED, "amp nebula compression_training quantize_training sparse_gradients eigenvalue sparse_attention"),
        (_REMOVED, "elasticity graph_harvesting curriculum_learning progressive_layer_drop"),
    ),
    "zero_optimization": _keys(
        (_MAY, "stage allgather_bucket_size allgather_partitions contiguous_gradients overlap_comm"),
        (_MAY, "ignore_unused_parameters leaf_module log_trace_cache_warnings memory_efficient_linear"),
        (_MAY, "offload_optimizer offload_param parameter_alignment reduce_bucket_size reduce_scatter"),
        (_MAY, "round_robin_gradients sub_group_size use_multi_rank_bucket_allreduce enable_sanity_checks"),
        (_MAY, "override_module_apply zero_hpz_partition_size zero_quantized_gradients zero_quantized_weights"),
        (_MAY, "zero_quantized_nontrainable_weights stage3_allgather_sequential stage3_max_live_parameters"),
        (_MAY, "stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold"),
        (_MAY, "stage3_param_persistence_threshold stage3_prefetch_bucket_size"),
        (_MAY, "stage3_use_all_reduce_for_fetch_params"),
        ("Use offload_optimizer and offload_param.", "cpu_offload cpu_offload_param cpu_offload_use_pin_memory"),
        (_CHECKPOINTS, "elastic_checkpoint load_from_fp32_weights pipeline_loading_checkpoint"),
        (_EXPORT, "stage3_gather_16bit_weights_on_model_save stage3_gather_fp16_weights_on_model_save"),
        ("The gradient norm is clipped and logged: remove the key.", "compute_grad_norm"),
        (_UNUSED, "zenflow save_muon_momentum_buffer_in_memory legacy_stage1"),
    ),
    "zero_optimization.offload_optimizer": _keys(
        (_MAY, "device pin_memory cpuadam_cores_perc"),
        (_ONLY_CPU, "nvme_path buffer_count pipeline_read pipeline_write fast_init ratio super_offload"),
    ),
    "zero_optimization.offload_param": _keys(
        (_MAY, "device pin_memory"), (_ONLY_CPU, "nvme_path buffer_count buffer_size max_in_cpu")
    ),
    "bf16": _keys(
        (_MAY, "enabled immediate_grad_update"),
        ("An update that is not finite is skipped at every stage: remove the key.", "check_grad_overflow"),
        (
            "Master weights and moments are fp32 here: remove the key.",
            "bf16_master_weights_and_grads bf16_optimizer_states",
        ),
    ),
    "fp16": _keys(
        (_MAY, "enabled loss_scale initial_scale_power loss_scale_window hysteresis consecutive_hysteresis"),
        (_MAY, "min_loss_scale"),
        ("Set precision in the recipe: fp16 switches autocast on.", "auto_cast"),
        ("Master weights and moments are fp32 here: remove the key.", "fp16_master_weights_and_grads"),
    ),
    "data_types": _keys((_MAY, "grad_accum_dtype param_dtype buffer_dtype keep_in_fp32_modules")),
}
"""By place ("" is the top): every key that DeepSpeed 0.19 reads there → "" if it does something here, else what to do
about it, because another place decides that or it would do nothing."""

OUR_AUTOS = frozenset({"data_types.keep_in_fp32_modules"})
""""auto" values that DeepSpeed itself understands."""


SUMS_OF_GRADIENTS = ("communication_data_type", "data_types.grad_accum_dtype")
"""Types in which gradients are summed over ranks, and over micro-batches."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What our own config already says about things that DeepSpeed's JSON names too."""

    micro_batch_size: int
    """Samples per rank and forward call."""
    world_size: int
    """Number of ranks."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 is off."""
    precision: Precision = "fp32"
    """What the module computes in; master weights and moments are always fp32."""
    accumulation_steps: int = 1
    """Forward/backward calls per optimizer update."""

    def by_path(self) -> dict[str, Any]:
        """Our value of every key that both sides know."""
        halves = {"fp16.enabled": True} if self.precision == "fp16" else {}
        return halves | {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation_steps,
            "train_batch_size": self.micro_batch_size * self.accumulation_steps * self.world_size,
            "gradient_clipping": float(self.max_grad_norm),
            "bf16.enabled": self.precision == "bf16",
        }

    def defaults(self) -> dict[str, Any]:
        """What we set where the JSON leaves it out: in bf16 DeepSpeed would sum gradients in bf16, with 8 bits;
        and in fp16 its first loss scale, 2^16, would skip about as many steps as `health` allows."""
        sums: dict[str, Any] = {key: "fp32" for key in SUMS_OF_GRADIENTS if self.precision != "fp32"}
        return sums | ({"fp16.initial_scale_power": 10} if self.precision == "fp16" else {})


_EXPECTED, _DO = "a DeepSpeed config that agrees with ours", 'Correct the JSON; write "auto" where our config decides.'


def resolve_ds_file(name: str, facts: EngineFacts) -> dict[str, Any]:
    """Read a DeepSpeed JSON by its path, or by the name of one in ds_configs/, and bring it in line with `facts`.

    Raises:
        ConfigError: there is none, it is broken or no JSON object, or `resolve_ds_config` refuses it; each problem has
            its line.
    """
    path = find_shipped(name, CHECKOUT / "ds_configs", ".json", where="deepspeed", do="Correct the path or name.")
    problems: list[Problem] = []
    root = read_document(path, problems)
    if root is not None and not isinstance(root.value, dict):
        problems.append(Problem(f"{root.place}: not a JSON object {{ … }}", kind="wrong_value", place=root.place))
    raise_problems(problems, str(path), _EXPECTED, _DO)
    assert root is not None, "without a problem there is a value"
    return resolve_ds_config(plain(root), facts, where=str(path), places=dict(_places(root)))


def _places(node: Node, key: str = "") -> Iterator[tuple[str, str]]:
    for name, child in node.value.items() if isinstance(node.value, dict) else ():
        yield f"{key}{name}", child.place
        yield from _places(child, f"{key}{name}.")


def resolve_ds_config(
    raw: Mapping[str, Any],
    facts: EngineFacts,
    *,
    where: str = "DeepSpeed JSON",
    places: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return a copy of `raw` without any "auto", in agreement with `facts`.

    Keys that `facts` know and the JSON leaves out are filled in too (DeepSpeed's own defaults would contradict us in
    silence). Raises one ConfigError with all validation errors, each at its key's place.
    """
    resolved: dict[str, Any] = json.loads(json.dumps(raw))
    errors = [*_key_errors(raw), *_fill(resolved, facts)]
    ours = ", ".join([*facts.by_path(), *facts.defaults()])
    errors += [(path, f'{path} is "auto", which only {ours} may be') for path in _autos(resolved)]
    errors = errors or [*_value_errors(resolved, facts)]
    found = [((places or {}).get(key, where), key, text) for key, text in errors]
    problems = [Problem(f"{place}: {text}", kind="rule", key=key, place=place) for place, key, text in found]
    raise_problems(problems, where, _EXPECTED, _DO)
    return resolved


def zero_stage(resolved: Mapping[str, Any]) -> int:
    """ZeRO stage 0 … 3 of a config."""
    return int((resolved.get("zero_optimization") or {}).get("stage", 0))


def offloads_optimizer(resolved: Mapping[str, Any]) -> bool:
    """Whether the optimizer state lives in host memory (or on disk) rather than beside the parameters."""
    offload = (resolved.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return str(offload.get("device", "none")) != "none"


Error = tuple[str, str]
"""A dotted key, and what is wrong with it."""


def _key_errors(raw: Mapping[str, Any]) -> Iterator[Error]:
    """Errors about keys at the top and in the blocks that are looked into."""
    for place, known in KEYS.items():
        block: Any = raw
        for key in place.split(".") if place else ():
            block = block.get(key) or {} if isinstance(block, Mapping) else {}
        if not isinstance(block, Mapping):
            yield place, f"{place} is not a JSON object"
            continue
        for key in block:
            path, advice = f"{place}.{key}".lstrip("."), known.get(key)
            if advice is None:
                nearest = nearest_word(key, sorted(one for one in known if known[one] == _MAY), cutoff=0.5)
                hint = (f", nearest {nearest}" if nearest else "") + ("" if place else " (DeepSpeed would ignore it)")
                yield path, f"unknown key {path}{hint}"
            elif advice != _MAY:
                yield path, f"{path} may not be set here. {advice}"


def _fill(resolved: dict[str, Any], facts: EngineFacts) -> Iterator[Error]:
    """Write our values where "auto" or nothing stands; yield an error where another value stands than must."""
    for path, ours in (facts.by_path() | facts.defaults()).items():
        *parents, key = path.split(".")
        place: Any = resolved
        for parent in parents:
            if place.get(parent) is None:  # null: as if it were left out
                place[parent] = {}
            place = place[parent]
        if not isinstance(place, dict):  # told already
            continue
        theirs = place.get(key, AUTO)
        if theirs == AUTO:
            place[key] = ours
        elif path in facts.defaults() or path in SUMS_OF_GRADIENTS:
            continue
        elif isinstance(theirs, bool) != isinstance(ours, bool) or theirs != ours:
            yield path, f'{path}: expected {ours} (from our config) or "auto", got {theirs}'


def _autos(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _autos(item, f"{path}.{key}" if path else key)
    elif value == AUTO and path not in OUR_AUTOS:
        yield path


def _value_errors(resolved: Mapping[str, Any], facts: EngineFacts) -> Iterator[Error]:
    zero = resolved.get("zero_optimization") or {}
    key, stage = "zero_optimization.stage", zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield key, f"{key}: expected 0, 1, 2 or 3, got {stage!r}"
    elif stage == 0 and facts.precision == "bf16":
        yield "bf16", "bf16 at ZeRO stage 0 loses accuracy (measured 4e-2 in the loss): use stage 1"
    elif stage == 0 and facts.precision == "fp16":
        yield "fp16", "fp16 at ZeRO stage 0 has another optimizer of DeepSpeed's around it: use stage 1"
    for name in ("offload_optimizer", "offload_param"):
        key, device = f"zero_optimization.{name}.device", (zero.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            yield key, f"{key}: expected none or cpu, got {device} (not tried here)"
    key, operation = "gradient_allreduce_op", resolved.get("gradient_allreduce_op", "mean")
    if operation != "mean":
        yield key, f"{key}: expected mean, got {operation} (losses are scaled for means over the ranks)"
    fp16 = resolved.get("fp16", {})
    if facts.precision != "fp16" and (fp16.get("enabled", False) if isinstance(fp16, Mapping) else fp16):
        yield "fp16.enabled", f"fp16.enabled: expected false with precision {facts.precision}, got true"
