"""Build models that no rank could hold, and hand them to DeepSpeed.

Under ZeRO-3 each module gives its shares away as soon as it is made:

    with sharded_construction(ds_config, topology):       the weights are those of a whole build, number by number
        model = CCLMModel(config)
    with whole_parameters([parameter]) as writes:         whole again for a moment; what rank 0 writes is kept
        if writes: parameter.copy_(…)

A rank holds its shares, and besides them the parameters of the one module that is being made, drawn or filled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as torch_dist
from torch import nn
from transformers import PreTrainedModel

from cclm.distributed.topology import Topology
from cclm.engine.deepspeed.quirks import (
    let_leaves_see_gradients,
    one_thread,
    owns_boundary,
    spare_copies,
    start_deepspeed,
)
from cclm.engine.ds_config import offloads_optimizer, zero_stage
from cclm.engine.optimizer import build_adamw, parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.engine.protocol import Door
from cclm.errors import ConfigError
from cclm.ops.choice import Choice, choose_optimizer


@contextmanager
def sharded_construction(ds_config: Mapping[str, Any] | None, topology: Topology) -> Iterator[None]:
    """Shard every module that is made inside; below ZeRO-3, and without DeepSpeed, change nothing.

    Seed all ranks alike before: transformers draws a model's weights when its modules are made already, so each module
    is made whole again while its weights are drawn, on every rank with the same numbers.
    """
    if ds_config is None or zero_stage(ds_config) != 3:
        yield
        return
    deepspeed, exact = _started(ds_config, topology), torch.arange
    with (
        one_thread(),
        deepspeed.zero.Init(config_dict_or_path=dict(ds_config)),  # with any `dtype` it is bf16 on a CPU (0.19)
        _drawn_whole(),
        patch.object(torch, "arange", exact),  # rotary towers compute of it what positions are turned by
    ):
        yield


def initialise(
    door: Door, optimizer: OptimizerConfig, ds_config: Mapping[str, Any], topology: Topology, kernel: str
) -> Any:
    """Return DeepSpeed's engine around the training module behind `door`, with an AdamW of its parameter groups.

    `kernel`: as `choose_kernel` chose it.
    """
    groups = parameter_groups(door.training_module, optimizer)
    deepspeed = _started(ds_config, topology)
    from deepspeed.utils import set_z3_leaf_module

    # Gather at once what modules name as `zero3_leaf_modules`: its parts are read from outside of them.
    for owner in door.modules():
        for part in getattr(owner, "zero3_leaf_modules", ()):
            set_z3_leaf_module(part, True)
    config, is_offloaded = dict(ds_config), offloads_optimizer(ds_config)
    if owns_boundary(ds_config):
        config["managed_gradient_accumulation"] = False
    if kernel != "torch" or optimizer.update_rule == "published":
        config["zero_allow_untested_optimizer"] = True
    if is_offloaded:
        config["zero_force_ds_cpu_optimizer"] = kernel == "deepspeed"
    if is_offloaded and kernel == "deepspeed":
        settings: dict[str, Any] = {"lr": optimizer.learning_rate, "betas": optimizer.betas, "eps": optimizer.eps}
        client: Any = deepspeed.ops.adam.DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    else:
        client = build_adamw(groups, optimizer, kernel, deepspeed.ops.adam.FusedAdam)
    with one_thread():
        engine, *_ = deepspeed.initialize(model=door, optimizer=client, config=config)
    if zero_stage(ds_config) == 3:
        let_leaves_see_gradients(door)
        spare_copies(engine.optimizer, topology.device)
    scaler: Any = getattr(engine.optimizer, "loss_scaler", None)
    if getattr(scaler, "dynamic", False):
        scaler.raise_error_at_min_scale = False  # how many updates may be skipped is told by `health`
    return engine


def _started(ds_config: Mapping[str, Any], topology: Topology) -> Any:
    """Start DeepSpeed (ConfigError: it has no fp16 on this device)."""
    deepspeed = start_deepspeed(topology.device)
    if ds_config.get("fp16", {}).get("enabled") and not deepspeed.accelerator.get_accelerator().is_fp16_supported():
        raise ConfigError(
            where="precision", expected="bf16 or fp32 on this device", got="fp16, which DeepSpeed does not do here",
            do="Set precision to bf16 or fp32, or train on a GPU.",
        )  # fmt: skip
    return deepspeed


def choose_kernel(wanted: str, optimizer: OptimizerConfig, ds_config: Mapping[str, Any], topology: Topology) -> Choice:
    """Choose the optimizer's kernel. A DeepSpeed JSON without its AdamW for the CPU asks for torch's.

    Raises:
        ConfigError: the one that is asked for cannot run here.
    """
    is_offloaded = offloads_optimizer(ds_config)
    if wanted == "auto" and is_offloaded and not ds_config.get("zero_force_ds_cpu_optimizer", True):
        wanted = "torch"
    return choose_optimizer(
        wanted,
        topology.device,
        rule=optimizer.update_rule,
        stage=zero_stage(ds_config),
        is_offloaded=is_offloaded,
    )


@contextmanager
def whole_parameters(parameters: Sequence[nn.Parameter]) -> Iterator[bool]:
    """Make these parameters whole inside; yield whether this rank is to write. Call it on all ranks.

    What rank 0 writes into a sharded parameter is shared out at the end. A parameter that is whole anyway is written on
    every rank.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        yield True
        return
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(sharded, modifier_rank=0):
        yield torch_dist.get_rank() == 0


def _drawn_whole() -> AbstractContextManager[Any]:
    """Let transformers draw the weights of modules whose parameters are already shared out."""
    draw = PreTrainedModel._initialize_weights

    def draw_whole(model: PreTrainedModel, module: nn.Module, *arguments: Any, **options: Any) -> None:
        # Some models of the library draw for a module's children, too; none reaches deeper.
        near = [module, *module.children()]
        parameters = [parameter for owner in near for parameter in owner.parameters(recurse=False)]
        with whole_parameters(parameters), torch.no_grad():
            draw(model, module, *arguments, **options)

    return patch.object(PreTrainedModel, "_initialize_weights", draw_whole)
