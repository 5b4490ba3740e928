"""DeepSpeed, ZeRO stages 0 to 3, behind the Engine protocol. Only this and `sharded_build` import deepspeed.

What DeepSpeed 0.19 gets wrong, and what is done here about it:

- ZeRO-3 reuses stale gradients: a parameter that the first backward of a step does not reach keeps the gradient of an
  earlier step (`partition_grads` overwrites at micro-step 0 and nothing ever clears the buffer). Guard: zero the
  buffer before the first backward of each update. With the optimizer offloaded there is no such buffer, so then every
  step must use every parameter (`uses_all_parameters`).
- Parameters without dimensions crash its broadcast: refused with their names.
- It compiles a shared-memory extension for CPU collectives at start (a minute, or for ever on a stale lock): off.
- Its pre-backward hook finds tensors in dicts and tuples but not in our dataclass: the module's output is the loss
  alone while DeepSpeed looks, and the metrics take another way.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from cclm.data.batch import Batch
from cclm.distributed.agreement import check_agreement
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import offloads_optimizer, refuse_unguarded_offload, zero_stage
from cclm.engine.ema import start_average
from cclm.engine.fragments import Fragment, fill
from cclm.engine.optimizer import adamw_groups, build_adamw, num_dimensions, parameter_groups, set_learning_rates
from cclm.engine.options import OptimizerConfig
from cclm.engine.plain import autocast, evaluation_mode, stack_scalars
from cclm.engine.protocol import Losses, StepStatistics
from cclm.engine.reshape import fill_buffers, make_moments
from cclm.engine.seeding import seed_step
from cclm.engine.stored_weights import MOMENTS, TAG, StoredState, ranks_of_shares, stored_state
from cclm.errors import CheckpointError, ConfigError


class DeepSpeedEngine:
    """This rank's share of the training state. Make it inside `cclm.distributed.topology.process_group`."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: OptimizerConfig,
        *,
        ds_config: Mapping[str, Any],
        topology: Topology,
        seed: int = 0,
        uses_all_parameters: bool = True,
        config_hash: str = "",
        equal_rows: bool = True,
        has_stale_gradient_guard: bool = True,
    ) -> None:
        """Shard `module` (built alike on every rank) and its AdamW state.

        Args:
            module: maps a Batch to Losses; a parameter may be touched only inside its forward.
            optimizer: AdamW and its schedule.
            ds_config: resolved by `ds_config.resolve_ds_config`.
            topology: this process's place.
            seed: for dropout.
            uses_all_parameters: False if some steps may leave a trainable parameter without gradient.
            config_hash: compared over the ranks before every forward call.
            equal_rows: every rank always has as many samples as the others.
            has_stale_gradient_guard: False only in the test that shows what happens without the guard.
        """
        self.rank, self.world_size = topology.rank, topology.world_size
        self.device = topology.device
        self.stage = zero_stage(ds_config)
        self._config = optimizer
        self._seed, self._config_hash = seed, config_hash
        self.precision = "bf16" if ds_config.get("bf16", {}).get("enabled") else "fp32"
        self._accumulation_steps = int(ds_config["gradient_accumulation_steps"])
        self._num_backwards = 0
        self._metrics: Mapping[str, Tensor] = {}
        self._question: Callable[[nn.Module], dict[str, Tensor]] | None = None
        self._collectives = collectives(equal_rows)
        _refuse_parameters_without_dimensions(module)
        refuse_unguarded_offload(ds_config, uses_all_parameters)
        self._has_guard = has_stale_gradient_guard and self.stage == 3 and not offloads_optimizer(ds_config)
        self._group_rules = [
            {"name": group.name, "multiplier": group.multiplier, "weight_decay": group.weight_decay}
            for group in parameter_groups(module, optimizer)
        ]
        self._engine = _initialize(self._return_only_the_loss(module), optimizer, ds_config, topology)
        beside = torch.device("cpu") if offloads_optimizer(ds_config) else self.device
        self._average = start_average(optimizer.ema_decay, self._fragments, beside)

    def forward(self, batch: Batch) -> Losses:
        """Run the module on this rank's samples; raises ConfigError if the ranks do not see the same step."""
        check_agreement(self._collectives, step=batch.step, config_hash=self._config_hash, batch=batch)
        seed_step(self._seed, batch.step, self.rank, batch.update * self._accumulation_steps + self._num_backwards)
        total = self._engine(batch)
        return Losses(total=total, metrics=self._metrics)

    def backward(self, losses: Losses) -> None:
        """Back-propagate; the last of an update's backward calls averages gradients over the ranks."""
        assert self._num_backwards < self._accumulation_steps, "more backward calls than accumulation_steps"
        if self._num_backwards == 0 and self._has_guard:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        self._engine.backward(losses.total)
        self._num_backwards += 1
        if self._num_backwards < self._accumulation_steps:
            self._engine.step()  # counts the micro-step; the update comes at the boundary

    def update(self, step: int) -> StepStatistics:
        """Clip and update. A gradient that is not finite leaves every parameter as it is (fp32, stages 1 to 3)."""
        assert self._num_backwards == self._accumulation_steps, "update before accumulation_steps backward calls"
        self._num_backwards = 0
        rates = set_learning_rates(self._engine.optimizer, self._config, step)
        norm = self._prepare_stage_0() if self.stage == 0 else 0.0
        self._engine.step()
        if self.stage > 0:
            norm = float(self._engine.get_global_grad_norm())
        if self._average is not None:
            self._average.update(self._fragments())
        return StepStatistics(grad_norm=norm if math.isfinite(norm) and norm >= 0 else math.inf, learning_rates=rates)

    def reduce_mean(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over the ranks of each scalar, in one all-reduce of float32 (float64 on CPU)."""
        if not values:
            return {}
        dtype = torch.float64 if self.device.type == "cpu" else torch.float32
        stacked = stack_scalars([values[name] for name in sorted(values)], self.device, dtype)
        means = (self._collectives.sum(stacked) / self.world_size).tolist()
        by_name = dict(zip(sorted(values), means, strict=True))
        return {name: by_name[name] for name in values}

    def full_gradients(self) -> dict[str, Tensor]:
        """Averaged, unclipped gradients by parameter name, on every rank. A collective."""
        from deepspeed.utils import safe_get_full_grad

        gradients = {}
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                gradient = safe_get_full_grad(parameter)
                shape = getattr(parameter, "ds_shape", parameter.shape)
                gradients[name] = torch.zeros(shape) if gradient is None else gradient.float().cpu().clone()
        return gradients

    def full_parameters(self) -> dict[str, Tensor]:
        """fp32 values by parameter name on rank 0; empty on the others. A collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        values = {}
        for name, parameter in self._engine.module.named_parameters():
            value = safe_get_full_fp32_param(parameter) if self.stage > 0 and parameter.requires_grad else None
            if value is None:
                value = _gathered(parameter)
            if self.rank == 0:
                values[name] = value.detach().float().cpu().clone()
        return values

    @property
    def description(self) -> str:
        """In words."""
        return f"DeepSpeed, ZeRO stage {self.stage}, {self.world_size} ranks, {self.precision}"

    def evaluate(self, function: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
        """`function(module)` inside the engine's own forward, without dropout and gradients. A collective."""
        self._question = function
        try:
            with evaluation_mode(self._engine), torch.no_grad():
                self._engine(None)
        finally:
            self._question = None
        answer, self._metrics = dict(self._metrics), {}
        return answer

    def save(self, folder: Path, client_state: Mapping[str, Any]) -> None:
        """Write this rank's files under `folder`/deepspeed, in DeepSpeed's own format, and its share of averages."""
        if self._average is not None:
            self._average.save(folder, self.rank)
        self._engine.save_checkpoint(
            str(folder), tag=TAG, client_state={"client_state": dict(client_state)}, save_latest=False
        )

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore parameters, moments and client state bit by bit, whatever the number of ranks that wrote them."""
        if not (folder / TAG).is_dir():
            raise CheckpointError(
                expected=f"a folder {TAG!r} (a checkpoint of the DeepSpeed engine)",
                got=", ".join(sorted(item.name for item in folder.iterdir())),
                do="Resume with the engine that wrote the checkpoint.",
                where=str(folder),
            )
        if ranks_of_shares(folder) in (0, self.world_size):
            path, loaded = self._engine.load_checkpoint(str(folder), tag=TAG, load_lr_scheduler_states=False)
            assert path is not None, f"DeepSpeed found nothing in {folder}"
            client_state: dict[str, Any] = loaded["client_state"]
        else:
            client_state = self._load_reshaped(stored_state(folder))
        for group, rules in zip(self._engine.optimizer.param_groups, self._group_rules, strict=True):
            group.update(rules)  # a changed config wins over what the checkpoint remembers
        if self._average is not None:
            self._average.load(folder)
        return client_state

    def _load_reshaped(self, stored: StoredState) -> dict[str, Any]:
        """Take this rank's share of what another number of ranks wrote; returns the client state."""
        engine, zero = self._engine, self._engine.optimizer
        if self.stage == 0 or getattr(zero, "swap_optimizer", False):
            raise CheckpointError(
                expected="ZeRO stage 1, 2 or 3 with the optimizer in memory, to resume with another number of ranks",
                got="stage 0" if self.stage == 0 else "an optimizer on NVMe",
                do=f"Resume with {stored.ranks} ranks, or with another DeepSpeed JSON.",
                where="DeepSpeed",
            )
        flat = zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups
        make_moments(zero.optimizer, flat, stored)
        if self.stage == 3:
            zero.checkpoint_event_prologue()  # parameters that are kept whole are cut, too
        else:
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()
        where = f"checkpoint of {stored.ranks} ranks"
        fill([*self._fragments(), *self._frozen()], stored.weights, where)
        for key in MOMENTS:
            fill(self._fragments(key), stored.moments[key], where)
        fill_buffers(engine.module, stored.weights)
        if self.stage == 3:  # its own way to bring what the ranks compute with in line with the fp32 values
            zero.load_state_dict({self.rank: zero.state_dict()}, load_optimizer_states=False)
            zero.checkpoint_event_epilogue()
        else:
            zero.update_lp_params()
        for name, count in stored.counters.items():
            setattr(engine, name, count)
        return stored.client_state

    def _fragments(self, key: str | None = None) -> list[Fragment]:
        """What this rank holds, by parameter: the fp32 master values, or the moment `key`."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        found = []
        for name, parameter in self._engine.module.named_parameters():
            if not parameter.requires_grad:
                continue
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            if self.stage == 3:
                start = self.rank * parameter.ds_tensor.ds_numel
                values = safe_get_local_optimizer_state(parameter, key) if key else safe_get_local_fp32_param(parameter)
                values = values[: max(0, math.prod(shape) - start)]  # the last rank's share ends in padding
            elif self.stage > 0:
                place = parameter._hp_mapping  # DeepSpeed's own link to the optimizer's flat values
                start = 0 if place is None else place.lp_fragment_address.start
                values = torch.zeros(0) if place is None else place.get_hp_fragment(key)
            else:
                start, values = 0, parameter.detach().flatten() if self.rank == 0 else torch.zeros(0)
            if values.numel():
                found.append(Fragment(name=name, shape=shape, start=start, values=values))
        return found

    def _frozen(self) -> Iterator[Fragment]:
        """What this rank holds of the parameters that no update moves, which have no fp32 master values."""
        for name, parameter in self._engine.module.named_parameters():
            if parameter.requires_grad:
                continue
            shape, start, values = tuple(parameter.shape), 0, parameter.detach().flatten()
            if self.stage == 3:
                shape, start = tuple(parameter.ds_shape), self.rank * parameter.ds_tensor.ds_numel
                values = parameter.ds_tensor[: max(0, math.prod(shape) - start)]
            yield Fragment(name=name, shape=shape, start=start, values=values)

    def _return_only_the_loss(self, module: nn.Module) -> nn.Module:
        """Make DeepSpeed's hooks see a tensor: metrics are put aside; computes under autocast in bf16."""
        run = module.forward

        def run_and_keep_metrics(batch: Batch | None) -> Tensor:
            if self._question is not None:
                with autocast(self.device, self.precision):
                    self._metrics = self._question(module)
                return torch.zeros((), device=self.device)
            with autocast(self.device, self.precision):
                losses = run(batch)
            assert isinstance(losses, Losses)
            self._metrics = losses.metrics
            return losses.total

        module.forward = run_and_keep_metrics
        return module

    def _prepare_stage_0(self) -> float:
        """Fill missing gradients, so that all stages update alike; the gradient norm, which stage 0 does not tell."""
        parameters = [parameter for parameter in self._engine.module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return float(
            nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        )


def _initialize(module: nn.Module, optimizer: OptimizerConfig, ds_config: Mapping[str, Any], topology: Topology) -> Any:
    assert torch_dist.is_initialized(), "make the engine inside cclm.distributed.topology.process_group"
    deepspeed = start_deepspeed(topology.device)
    _gather_whole(module)
    groups = parameter_groups(module, optimizer)
    if optimizer.update_rule == "published":
        _refuse_published_offload(ds_config)
        ds_config = {**ds_config, "zero_allow_untested_optimizer": True}
    if offloads_optimizer(ds_config) and ds_config.get("zero_force_ds_cpu_optimizer", True):
        client: Any = deepspeed.ops.adam.DeepSpeedCPUAdam(
            adamw_groups(groups), lr=optimizer.learning_rate, betas=optimizer.betas, eps=optimizer.eps, adamw_mode=True
        )
    else:
        client = build_adamw(groups, optimizer)
    engine, *_ = deepspeed.initialize(model=module, optimizer=client, config=dict(ds_config))
    return engine


def _gather_whole(module: nn.Module) -> None:
    """Let ZeRO-3 gather at once what a module names as `gathered_whole`: its parts are read from outside of them."""
    from deepspeed.utils import set_z3_leaf_module

    for owner in module.modules():
        for part in getattr(owner, "gathered_whole", ()):
            set_z3_leaf_module(part, True)


def start_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed with its workarounds and let it join the ranks; returns the module.

    It is told the accelerator, which it would otherwise guess aloud, and muted where it calls torch by old names.
    """
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if device.type == "cpu":
        deepspeed.utils.nvtx.enable_nvtx = False  # marks for a GPU profiler, some hundred a step
    _import_muon_without_compiler()
    deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo")
    return deepspeed


def _import_muon_without_compiler() -> None:
    """DeepSpeed asks whether our optimizer is Muon; that file calls torch.compile, which loads it for seconds."""
    compile_function = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    except ImportError:  # another DeepSpeed without it
        pass
    finally:
        torch.compile = compile_function


def _gathered(parameter: nn.Parameter) -> Tensor:
    """A parameter's full value, whether or not ZeRO-3 holds only a share of it here."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters([parameter]):
        return parameter.detach().clone()


def _refuse_parameters_without_dimensions(module: nn.Module) -> None:
    names = [name for name, parameter in module.named_parameters() if num_dimensions(parameter) == 0]
    if names:
        raise ConfigError(
            expected="parameters with at least one dimension (DeepSpeed cannot broadcast others)",
            got=f"parameters of shape (): {', '.join(names)}",
            do="Give them the shape (1,).",
            where="training module",
        )


def _refuse_published_offload(ds_config: Mapping[str, Any]) -> None:
    if offloads_optimizer(ds_config):
        raise ConfigError(
            expected="update_rule: torch when the optimizer is offloaded (DeepSpeed's CPU Adam knows no other)",
            got="update_rule: published together with offload_optimizer",
            do="Switch offload_optimizer off, or use update_rule: torch.",
            where="optimizer",
        )
