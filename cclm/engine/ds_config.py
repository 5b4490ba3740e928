"""DeepSpeed's JSON, made one with our config: "auto" is filled in, a contradiction is an error, never a preference.

Needs neither torch nor deepspeed, so that a login node can check it.
"""

from __future__ import annotations

import difflib
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

AUTO = "auto"
_KEY = re.compile(r"[\w.]+")
FILE_NAME = "ds_config.json"
"""The resolved config's name in a run folder."""

_KNOWN_KEYS = """
    activation_checkpointing aio bf16 bfloat16 checkpoint comms_logger communication_data_type compile
    csv_monitor data_types disable_allgather disable_python_gc dump_state flops_profiler fp16
    gradient_accumulation_steps gradient_allreduce_op gradient_clipping gradient_predivide_factor log_level
    memory_breakdown prescale_gradients seq_parallel_communication_data_type steps_per_print tensorboard timers
    train_batch_size train_micro_batch_size_per_gpu wall_clock_breakdown wandb zero_allow_untested_optimizer
    zero_force_ds_cpu_optimizer zero_optimization
"""
KNOWN_KEYS = frozenset(_KNOWN_KEYS.split())
"""Top-level keys of DeepSpeed 0.19 that this code base works with. DeepSpeed ignores unknown ones in silence."""

_KNOWN_ZERO_KEYS = """
    allgather_bucket_size allgather_partitions contiguous_gradients ignore_unused_parameters
    leaf_module
    load_from_fp32_weights log_trace_cache_warnings memory_efficient_linear offload_optimizer offload_param
    overlap_comm parameter_alignment reduce_bucket_size reduce_scatter round_robin_gradients stage
    stage3_allgather_sequential stage3_gather_16bit_weights_on_model_save stage3_max_live_parameters
    stage3_max_reuse_distance stage3_model_persistence_threshold stage3_module_granularity_threshold
    stage3_param_persistence_threshold stage3_prefetch_bucket_size stage3_use_all_reduce_for_fetch_params
    sub_group_size use_multi_rank_bucket_allreduce zero_hpz_partition_size zero_quantized_gradients
    zero_quantized_nontrainable_weights zero_quantized_weights
"""
KNOWN_ZERO_KEYS = frozenset(_KNOWN_ZERO_KEYS.split())
"""Keys of `zero_optimization`."""

REFUSED_KEYS = {
    "optimizer": "The optimizer is built in code: set it under `optimizer` in the recipe.",
    "scheduler": "The learning rate is a function of the step: set it under `optimizer` in the recipe.",
    "amp": "apex is gone: use precision bf16.",
    "torch_autocast": "Set precision in the recipe: bf16 switches autocast on.",
    "managed_gradient_accumulation": "The engine counts micro-batches itself: remove the key.",
}
"""DeepSpeed knows these keys, but here another place decides: key → what to do."""

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
    silence). Raises one ConfigError with all complaints.
    """
    complaints = [*_key_complaints(raw)]
    resolved: dict[str, Any] = json.loads(json.dumps(raw))
    complaints += _fill(resolved, facts)
    complaints += [f'{path} is "auto", which only {", ".join(facts.by_path())} may be' for path in _autos(resolved)]
    if not complaints:
        complaints += _value_complaints(resolved, facts)
    if complaints:
        raise ConfigError(
            expected=_EXPECTED,
            problems=complaints,
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


def refuse_unguarded_offload(ds_config: Mapping[str, Any], uses_all_parameters: bool) -> None:
    """ZeRO-3 reuses the gradients of earlier steps for parameters that an update does not use, and with the optimizer
    offloaded there is no buffer to clear before.

    Raises:
        ConfigError: both come together.
    """
    if zero_stage(ds_config) == 3 and offloads_optimizer(ds_config) and not uses_all_parameters:
        raise ConfigError(
            expected="steps that use every parameter when ZeRO-3 offloads the optimizer",
            got="offload_optimizer together with steps that leave parameters unused",
            do="Use joint steps (data.schedule: joint, with images, and box_head only with regions), or switch "
            "offload_optimizer off: DeepSpeed would reuse gradients of earlier steps.",
            where="DeepSpeed JSON",
        )


def _key_complaints(raw: Mapping[str, Any]) -> Iterator[str]:
    for key in raw:
        if key in REFUSED_KEYS:
            yield f"{key} may not be set here. {REFUSED_KEYS[key]}"
        elif key not in KNOWN_KEYS:
            yield f"unknown key {key}{_nearest(key, KNOWN_KEYS)} (DeepSpeed would ignore it)"
    zero = raw.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield "zero_optimization is not a JSON object"
        return
    for key in zero:
        if key not in KNOWN_ZERO_KEYS:
            yield f"unknown key zero_optimization.{key}{_nearest(key, KNOWN_ZERO_KEYS)}"


def _nearest(key: str, known: frozenset[str]) -> str:
    found = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
    return f", nearest {found[0]}" if found else ""


def _fill(resolved: dict[str, Any], facts: EngineFacts) -> Iterator[str]:
    """Write our values where "auto" or nothing stands; yield a complaint where another value stands."""
    for path, ours in facts.by_path().items():
        *parents, key = path.split(".")
        place = resolved
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                yield f"{parent} is not a JSON object"
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


def _value_complaints(resolved: Mapping[str, Any], facts: EngineFacts) -> Iterator[str]:
    stage = resolved.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        yield f"zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}"
    elif stage == 0 and facts.precision == "bf16":
        yield "bf16 at ZeRO stage 0 loses accuracy (measured 4e-2 in the loss): use stage 1"
    if resolved.get("fp16", {}).get("enabled", False):
        yield "fp16.enabled: expected false, got true (use precision bf16)"
    if "bfloat16" in resolved:
        yield "bfloat16 is an old name: use bf16"
