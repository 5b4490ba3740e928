from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cclm.engine.ds_config import (
    EngineFacts,
    load_ds_config,
    offloads_optimizer,
    resolve_ds_config,
    write_ds_config,
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
    raw = load_ds_config(path)
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
    assert len(SHIPPED) == 8
    assert all(f"`{path.name}`" in table for path in SHIPPED)


def test_deepspeed_accepts_every_shipped_config() -> None:
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    for path in SHIPPED:
        zero = load_ds_config(path)["zero_optimization"]
        assert DeepSpeedZeroConfig(**zero).stage == zero["stage"]


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


def test_equal_values_are_no_contradiction() -> None:
    resolved = resolve_ds_config({"gradient_clipping": 0.5, "train_batch_size": 128, **_zero()}, FACTS)
    assert resolved["gradient_clipping"] == 0.5


def test_all_complaints_come_at_once() -> None:
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
        ({"bfloat16": {}, **_zero()}, FACTS, "old name"),
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
    ("content", "message"), [("{,}", "got line 1: broken JSON"), ("[]", "got line 1: not a JSON object")]
)
def test_unreadable_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_ds_config(path)
    with pytest.raises(ConfigError, match="one of zero1_bf16"):
        load_ds_config(tmp_path / "missing.json")


def test_written_config_reads_back_and_leaves_no_partial(tmp_path: Path) -> None:
    resolved = resolve_ds_config(_zero(), FACTS)
    path = write_ds_config(resolved, tmp_path)
    assert load_ds_config(path) == resolved
    assert [item.name for item in tmp_path.iterdir()] == ["ds_config.json"]


def test_offload_to_none_is_no_offload() -> None:
    assert not offloads_optimizer(_zero(offload_optimizer={"device": "none"}))
    assert not offloads_optimizer({})
    assert zero_stage({}) == 0
