"""DeepSpeed's JSON, made one with our config: "auto" is filled in, a contradiction is an error, never a preference.

Needs neither torch nor deepspeed, so that a login node can check it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cclm.errors import ConfigError, Problem
from cclm.files.atomic import replace_text
from cclm.files.document import read_document
from cclm.files.node import Node, plain
from cclm.files.reading import raise_problems
from cclm.files.shipped import CHECKOUT, find_shipped
from cclm.files.text import nearest_word

AUTO = "auto"
_KEY = re.compile(r"[\w.]+")
FILE_NAME = "ds_config.json"
"""The resolved config's name in a run folder."""

KNOWN_KEYS = frozenset(
    {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"}
    | {"zero_optimization", "bf16", "fp16", "communication_data_type", "data_types", "gradient_allreduce_op"}
    | {"zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "disable_python_gc"}
    | {"steps_per_print", "log_level", "dump_state", "memory_breakdown", "wall_clock_breakdown", "timers"}
    | {"comms_logger", "flops_profiler", "tensorboard", "csv_monitor", "wandb", "comet"}
)
"""Top-level keys of DeepSpeed 0.19 that do something here."""

_IN_CODE, _REMOVED = "The engine does this itself: remove the key.", "DeepSpeed 0.19 has it no more: remove the key."
_UNUSED = "Nothing here uses that part of DeepSpeed: remove the key."
_CHECKPOINTS = "Checkpoints are not DeepSpeed's here (docs/architecture.md): remove the key."
REFUSED_KEYS = {
    "optimizer": "The optimizer is built in code: set it under `optimizer` in the recipe.",
    "scheduler": "The learning rate is a function of the step: set it under `optimizer` in the recipe.",
    "torch_autocast": "Set precision in the recipe: bf16 switches autocast on.",
    "bfloat16": "It is an old name: use bf16.",
    "activation_checkpointing": "It would do nothing: it configures functions that the model does not call.",
    "compile": "It would do nothing: only DeepSpeed's engine.compile() reads it, which is not called.",
    "prescale_gradients": "It is for the range of fp16: reduce in fp32 with communication_data_type.",
    "gradient_predivide_factor": "It is for the range of fp16: reduce in fp32 with communication_data_type.",
    "aio": "It is for NVMe, where nothing is offloaded here: remove the key.",
    "managed_gradient_accumulation": _IN_CODE,
    **dict.fromkeys(("checkpoint", "datastates_ckpt"), _CHECKPOINTS),
    **dict.fromkeys(("disable_allgather", "vocabulary_size", "dataloader_drop_last", "data_efficiency"), _UNUSED),
    **dict.fromkeys(("seq_parallel_communication_data_type", "use_data_before_expert_parallelism"), _UNUSED),
    **dict.fromkeys(("pipeline", "tensor_parallel", "expert_parallel", "hybrid_engine", "autotuning"), _UNUSED),
    "weight_quantization": _UNUSED,
    **dict.fromkeys(("amp", "nebula", "compression_training", "quantize_training", "sparse_gradients"), _REMOVED),
    **dict.fromkeys(("eigenvalue", "sparse_attention", "elasticity", "graph_harvesting"), _REMOVED),
    **dict.fromkeys(("curriculum_learning", "progressive_layer_drop"), _REMOVED),
}
"""Keys that DeepSpeed reads, but that another place decides here, or that would do nothing: key → what to do."""

KNOWN_KEYS_OF = {
    "zero_optimization": frozenset(
        {"stage", "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm"}
        | {"ignore_unused_parameters", "leaf_module", "log_trace_cache_warnings", "memory_efficient_linear"}
        | {"offload_optimizer", "offload_param", "parameter_alignment", "reduce_bucket_size", "reduce_scatter"}
        | {"round_robin_gradients", "sub_group_size", "use_multi_rank_bucket_allreduce", "enable_sanity_checks"}
        | {"override_module_apply", "zero_hpz_partition_size", "zero_quantized_gradients"}
        | {"zero_quantized_nontrainable_weights", "zero_quantized_weights", "stage3_allgather_sequential"}
        | {"stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold"}
        | {"stage3_module_granularity_threshold", "stage3_param_persistence_threshold"}
        | {"stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params"}
    ),
    "zero_optimization.offload_optimizer": frozenset({"device", "pin_memory", "cpuadam_cores_perc"}),
    "zero_optimization.offload_param": frozenset({"device", "pin_memory"}),
    "bf16": frozenset({"enabled", "check_grad_overflow", "immediate_grad_update"}),
    "data_types": frozenset({"grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"}),
}
"""Keys of blocks that change numbers or memory, by the block's place."""

_OFFLOAD = "Use offload_optimizer and offload_param."
_ONLY_CPU = "Only device, pin_memory (and, for the optimizer, cpuadam_cores_perc) are tried here: remove the key."
REFUSED_KEYS_OF = {
    "zero_optimization": {
        **dict.fromkeys(("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"), _OFFLOAD),
        **dict.fromkeys(("elastic_checkpoint", "load_from_fp32_weights", "pipeline_loading_checkpoint"), _CHECKPOINTS),
        "stage3_gather_16bit_weights_on_model_save": "`cclm export` writes the weights: remove the key.",
        "stage3_gather_fp16_weights_on_model_save": "`cclm export` writes the weights: remove the key.",
        "compute_grad_norm": "The gradient norm is clipped and logged: remove the key.",
        **dict.fromkeys(("zenflow", "save_muon_momentum_buffer_in_memory", "legacy_stage1"), _UNUSED),
    },
    "zero_optimization.offload_optimizer": dict.fromkeys(
        ("nvme_path", "buffer_count", "pipeline_read", "pipeline_write", "fast_init", "ratio", "super_offload"),
        _ONLY_CPU,
    ),
    "zero_optimization.offload_param": dict.fromkeys(
        ("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"), _ONLY_CPU
    ),
    "bf16": dict.fromkeys(
        ("bf16_master_weights_and_grads", "bf16_optimizer_states"),
        "Master weights and moments are fp32 here: remove the key.",
    ),
}
"""Keys of those blocks that DeepSpeed knows and that are refused: key → what to do."""

OUR_AUTOS = frozenset({"data_types.keep_in_fp32_modules"})
""""auto" values that DeepSpeed itself understands."""


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """What our own config already says about things that DeepSpeed's JSON names too."""

    micro_batch_size: int
    """Samples per rank and forward call."""
    world_size: int
    """Number of ranks."""
    max_grad_norm: float = 1.0
    """Gradient clipping; 0 is off."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the module computes in; master weights and moments are always fp32."""
    accumulation_steps: int = 1
    """Forward/backward calls per optimizer update."""

    def by_path(self) -> dict[str, Any]:
        """Our value of every key that both sides know."""
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch_size,
            "gradient_accumulation_steps": self.accumulation_steps,
            "train_batch_size": self.micro_batch_size * self.accumulation_steps * self.world_size,
            "gradient_clipping": float(self.max_grad_norm),
            "bf16.enabled": self.precision == "bf16",
        }


_EXPECTED, _DO = "a DeepSpeed config that agrees with ours", 'Correct the JSON; write "auto" where our config decides.'


def load_ds_config(name: Path | str) -> dict[str, Any]:
    """Read a DeepSpeed JSON by its path, or by the name of one in ds_configs/.

    Raises:
        ConfigError: there is none, it is broken or no JSON object, or a key stands twice.
    """
    values: dict[str, Any] = plain(_read(str(name))[1])
    return values


def resolve_ds_file(name: str, facts: EngineFacts) -> dict[str, Any]:
    """Read a DeepSpeed JSON and bring it in line with `facts`.

    Raises:
        ConfigError: what `load_ds_config` and `resolve_ds_config` refuse; each problem has its line.
    """
    path, root = _read(name)
    try:
        return resolve_ds_config(plain(root), facts, where=str(path))
    except ConfigError as error:
        places = dict(_places(root))
        named = [next((word for word in _KEY.findall(text) if word in places), "") for text in error.problems]
        found = [places.get(key, str(path)) for key in named]
        problems = [
            Problem(f"{place}: {text}", kind="rule", key=key, place=place)
            for key, place, text in zip(named, found, error.problems, strict=True)
        ]
        raise_problems(problems, str(path), _EXPECTED, _DO)
        raise


def _read(name: str) -> tuple[Path, Node]:
    path = find_shipped(name, CHECKOUT / "ds_configs", ".json", where="deepspeed", do="Correct the path or name.")
    problems: list[Problem] = []
    root = read_document(path, problems)
    if root is not None and not isinstance(root.value, dict):
        problems.append(Problem(f"{root.place}: not a JSON object {{ … }}", kind="wrong_value", place=root.place))
    raise_problems(problems, str(path), _EXPECTED, _DO)
    assert root is not None, "without a problem there is a value"
    return path, root


def _places(node: Node, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, place) of everything inside."""
    for name, child in node.value.items() if isinstance(node.value, dict) else ():
        yield f"{key}{name}", child.place
        yield from _places(child, f"{key}{name}.")


def resolve_ds_config(raw: Mapping[str, Any], facts: EngineFacts, *, where: str = "DeepSpeed JSON") -> dict[str, Any]:
    """Return a copy of `raw` without any "auto", in agreement with `facts`.

    Keys that `facts` know and the JSON leaves out are filled in too (DeepSpeed's own defaults would contradict us in
    silence). Raises one ConfigError with all validation errors.
    """
    errors = [*_key_errors(raw)]
    resolved: dict[str, Any] = json.loads(json.dumps(raw))
    errors += _fill(resolved, facts)
    errors += [f'{path} is "auto", which only {", ".join(facts.by_path())} may be' for path in _autos(resolved)]
    if not errors:
        errors += _value_errors(resolved, facts)
    if errors:
        raise ConfigError(
            expected=_EXPECTED,
            problems=errors,
            do=_DO,
            where=where,
        )
    return resolved


def write_ds_config(resolved: Mapping[str, Any], run_folder: Path) -> Path:
    """Write the resolved config into the run folder, whole or not at all; returns its path."""
    path = run_folder / FILE_NAME
    replace_text(path, json.dumps(resolved, indent=2, sort_keys=True) + "\n")
    return path


def zero_stage(resolved: Mapping[str, Any]) -> int:
    """ZeRO stage 0 … 3 of a config."""
    return int(resolved.get("zero_optimization", {}).get("stage", 0))


def offloads_optimizer(resolved: Mapping[str, Any]) -> bool:
    """Whether the optimizer state lives in host memory (or on disk) rather than beside the parameters."""
    offload = resolved.get("zero_optimization", {}).get("offload_optimizer") or {}
    return str(offload.get("device", "none")) != "none"


def _key_errors(raw: Mapping[str, Any]) -> Iterator[str]:
    """Errors about keys at the top and in the blocks that are looked into."""
    yield from _errors_of_block("", raw, KNOWN_KEYS, REFUSED_KEYS)
    for place, known in KNOWN_KEYS_OF.items():
        block: Any = raw
        for key in place.split("."):
            block = block.get(key) or {} if isinstance(block, Mapping) else {}
        if isinstance(block, Mapping):
            yield from _errors_of_block(f"{place}.", block, known, REFUSED_KEYS_OF.get(place, {}))
        else:
            yield f"{place} is not a JSON object"


def _errors_of_block(
    prefix: str, block: Mapping[str, Any], known: frozenset[str], refused: Mapping[str, str]
) -> Iterator[str]:
    for key in block:
        if key in refused:
            yield f"{prefix}{key} may not be set here. {refused[key]}"
        elif key not in known:
            yield f"unknown key {prefix}{key}{_nearest(key, known)}{'' if prefix else ' (DeepSpeed would ignore it)'}"


def _nearest(key: str, known: frozenset[str]) -> str:
    found = nearest_word(key, sorted(known), cutoff=0.5)
    return f", nearest {found}" if found else ""


def _fill(resolved: dict[str, Any], facts: EngineFacts) -> Iterator[str]:
    """Write our values where "auto" or nothing stands; yield an error where another value stands."""
    for path, ours in facts.by_path().items():
        *parents, key = path.split(".")
        place = resolved
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):  # told already
                break
        else:
            theirs = place.get(key, AUTO)
            if theirs == AUTO:
                place[key] = ours
            elif isinstance(theirs, bool) != isinstance(ours, bool) or theirs != ours:
                yield f'{path}: expected {ours} (from our config) or "auto", got {theirs}'


def _autos(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _autos(item, f"{path}.{key}" if path else key)
    elif value == AUTO and path not in OUR_AUTOS:
        yield path


def _value_errors(resolved: Mapping[str, Any], facts: EngineFacts) -> Iterator[str]:
    zero = resolved.get("zero_optimization", {})
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield f"zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}"
    elif stage == 0 and facts.precision == "bf16":
        yield "bf16 at ZeRO stage 0 loses accuracy (measured 4e-2 in the loss): use stage 1"
    for name in ("offload_optimizer", "offload_param"):
        device = (zero.get(name) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            yield f"zero_optimization.{name}.device: expected none or cpu, got {device} (not tried here)"
    operation = resolved.get("gradient_allreduce_op", "mean")
    if operation != "mean":
        yield f"gradient_allreduce_op: expected mean, got {operation} (losses are scaled for means over the ranks)"
    if resolved.get("fp16", {}).get("enabled", False):
        yield "fp16.enabled: expected false, got true (use precision bf16)"
