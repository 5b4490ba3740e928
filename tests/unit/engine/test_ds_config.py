from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cclm.engine.ds_config import (
    KEYS,
    EngineFacts,
    offloads_optimizer,
    resolve_ds_config,
    resolve_ds_file,
    zero_stage,
)
from cclm.errors import ConfigError

FACTS = EngineFacts(micro_batch_size=16, world_size=4, max_grad_norm=0.5, precision="bf16", accumulation_steps=2)
SHIPPED = sorted(Path("ds_configs").glob("*.json"))


def _zero(**zero: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": 3, **zero}}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_resolves(path: Path) -> None:
    precision = "fp32" if "fp32" in path.stem or "cpu" in path.stem else "bf16"
    facts = EngineFacts(micro_batch_size=8, world_size=2, precision=precision)  # type: ignore[arg-type]
    raw = json.loads(path.read_text())
    resolved = resolve_ds_config(raw, facts, where=str(path))
    assert '"auto"' not in json.dumps(resolved)
    assert zero_stage(resolved) == int(path.stem[4])
    assert offloads_optimizer(resolved) == ("offload" in path.stem)
    assert resolved["train_batch_size"] == 16
    other = EngineFacts(micro_batch_size=8, world_size=2, precision="bf16" if precision == "fp32" else "fp32")
    with pytest.raises(ConfigError, match=r"bf16\.enabled"):
        resolve_ds_config(raw, other)


def test_there_are_configs_and_their_table_names_each() -> None:
    table = Path("ds_configs/README.md").read_text(encoding="utf-8")
    assert len(SHIPPED) == 10
    assert all(f"`{path.name}`" in table for path in SHIPPED)


def test_deepspeed_accepts_every_shipped_config() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    for path in SHIPPED:
        raw = json.loads(path.read_text())
        facts = EngineFacts(micro_batch_size=8, world_size=1, precision="bf16" if raw["bf16"]["enabled"] else "fp32")
        assert DeepSpeedConfig(resolve_ds_config(raw, facts)).zero_optimization_stage == int(path.stem[4])


def test_shipped_bf16_configs_reduce_and_accumulate_gradients_in_fp32() -> None:
    for path in SHIPPED:
        raw = json.loads(path.read_text())
        types = (raw.get("communication_data_type"), raw.get("data_types", {}).get("grad_accum_dtype"))
        assert types == (("fp32", "fp32") if raw["bf16"]["enabled"] else (None, None)), path


class Asked(dict[str, Any]):
    """Notes which keys DeepSpeed asks for."""

    keys_asked: ClassVar[set[str]] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:  # DeepSpeed writes `key in config.keys()`
        return self


def test_top_level_keys_are_those_that_deepspeed_reads() -> None:
    """With a new DeepSpeed this names the keys to sort into those that do something here and those that do not."""
    from deepspeed.runtime.config import DeepSpeedConfig

    Asked.keys_asked.clear()
    DeepSpeedConfig(Asked(train_batch_size=1))
    assert KEYS[""].keys() == Asked.keys_asked


def test_keys_of_blocks_are_those_of_deepspeeds_own_models() -> None:
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    models: dict[str, Any] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "zero_optimization.offload_optimizer": DeepSpeedZeroOffloadOptimizerConfig,
        "zero_optimization.offload_param": DeepSpeedZeroOffloadParamConfig,
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
    }
    for place, model in models.items():
        theirs = {field.alias or name for name, field in model.model_fields.items()}
        assert KEYS[place].keys() == theirs, place


def test_keys_of_data_types_are_those_that_deepspeed_reads() -> None:
    from deepspeed.runtime import constants

    names = ("GRAD_ACCUM_DTYPE", "PARAM_DTYPE", "BUFFER_DTYPE", "KEEP_IN_FP32_MODULES")
    assert KEYS["data_types"].keys() == {getattr(constants, name) for name in names}


def test_autos_and_missing_keys_are_filled_and_the_input_is_left_alone() -> None:
    raw = {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}, **_zero()}
    before = json.dumps(raw)
    resolved = resolve_ds_config(raw, FACTS)
    assert resolved["train_micro_batch_size_per_gpu"] == 16
    assert resolved["gradient_accumulation_steps"] == 2
    assert resolved["train_batch_size"] == 128
    assert resolved["gradient_clipping"] == 0.5
    assert resolved["bf16"] == {"enabled": True}
    assert json.dumps(raw) == before


def test_null_is_as_if_it_were_left_out() -> None:
    assert resolve_ds_config({"bf16": None, **_zero()}, FACTS)["bf16"] == {"enabled": True}


def test_equal_values_are_no_contradiction() -> None:
    resolved = resolve_ds_config({"gradient_clipping": 0.5, "train_batch_size": 128, **_zero()}, FACTS)
    assert resolved["gradient_clipping"] == 0.5


def test_all_errors_come_at_once() -> None:
    raw = {
        "gradient_cliping": 1.0,
        "gradient_clipping": 1.0,
        "optimizer": {"type": "AdamW"},
        "train_batch_size": 64,
        "steps_per_print": "auto",
        "bf16": {"enabled": False},
        **_zero(stage3_param_persistance_threshold=0),
    }
    with pytest.raises(ConfigError) as caught:
        resolve_ds_config(raw, FACTS, where="my.json")
    text = str(caught.value)
    assert text.startswith("my.json: expected a DeepSpeed config that agrees with ours, got 7 problems")
    for part in (
        "unknown key gradient_cliping, nearest gradient_clipping (DeepSpeed would ignore it)",
        'gradient_clipping: expected 0.5 (from our config) or "auto", got 1.0',
        "optimizer may not be set here. The optimizer is built in code",
        'train_batch_size: expected 128 (from our config) or "auto", got 64',
        'steps_per_print is "auto"',
        "bf16.enabled: expected True",
        "zero_optimization.stage3_param_persistance_threshold, nearest stage3_param_persistence_threshold",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("raw", "facts", "message"),
    [
        (_zero(stage=4), FACTS, "stage: expected 0, 1, 2 or 3, got 4"),
        (_zero(stage=0), FACTS, "bf16 at ZeRO stage 0"),
        ({"fp16": {"enabled": True}, **_zero()}, FACTS, "fp16.enabled"),
        ({"bf16": {"check_grad_overflow": False}, **_zero()}, FACTS, "bf16.check_grad_overflow may not be set here"),
        ({"bfloat16": {}, **_zero()}, FACTS, "bfloat16 may not be set here. It is an old name: use bf16."),
        ({"activation_checkpointing": {}, **_zero()}, FACTS, "activation_checkpointing may not be set here"),
        ({"compile": {}, **_zero()}, FACTS, "compile may not be set here. It would do nothing"),
        ({"gradient_allreduce_op": "sum", **_zero()}, FACTS, "gradient_allreduce_op: expected mean, got sum"),
        (_zero(cpu_offload=True), FACTS, "zero_optimization.cpu_offload may not be set here. Use offload_optimizer"),
        (
            _zero(offload_optimizer={"device": "nvme"}),
            FACTS,
            "offload_optimizer.device: expected none or cpu, got nvme",
        ),
        (
            _zero(offload_param={"device": "cpu", "nvme_path": "/x"}),
            FACTS,
            "offload_param.nvme_path may not be set here",
        ),
        ({"bf16": {"bf16_master_weights_and_grads": True}, **_zero()}, FACTS, "Master weights and moments are fp32"),
        ({"data_types": {"grad_acum_dtype": "fp32"}, **_zero()}, FACTS, "grad_acum_dtype, nearest grad_accum_dtype"),
        ({"bf16": True, **_zero()}, FACTS, "bf16 is not a JSON object"),
        ({"zero_optimization": 3}, FACTS, "zero_optimization is not a JSON object"),
        (
            {"train_micro_batch_size_per_gpu": True, **_zero()},
            EngineFacts(micro_batch_size=1, world_size=1),
            "got True",
        ),
    ],
)
def test_bad_values(raw: dict[str, Any], facts: EngineFacts, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        resolve_ds_config(raw, facts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{,}", "got line 1: broken JSON"),
        ("[]", "got line 1: not a JSON object"),
        (
            '{"bf16": {"enabled": true, "enabled": false}, "aio": 1, "aio": 2}',
            "got 2 problems:\n  - line 1: enabled: this key stands twice",
        ),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        resolve_ds_file(str(path), FACTS)
    with pytest.raises(ConfigError, match="one of zero1_bf16"):
        resolve_ds_file(str(tmp_path / "missing.json"), FACTS)


def test_offload_to_none_is_no_offload() -> None:
    assert not offloads_optimizer(_zero(offload_optimizer={"device": "none"}))
    assert not offloads_optimizer({})
    assert zero_stage({}) == 0
