from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module, invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cclm.engine.optimizer import build_adamw, parameter_groups
from cclm.engine.options import OptimizerConfig
from cclm.errors import ConfigError
from cclm.model.kernels import PLAIN, use_kernels
from cclm.model.modeling_cclm import CCLMModel
from cclm.ops import choice
from cclm.ops.choice import ModelKernels, choose_model_kernels, choose_optimizer, describe
from cclm.ops.linear_cross_entropy import linear_cross_entropy_reference
from cclm.ops.options import KernelConfig
from tests.stand_in_apex import write_apex
from tests.unit.model.tiny import tiny_config

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An importable stand-in."""
    monkeypatch.syspath_prepend(write_apex(tmp_path))
    invalidate_caches()
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "apex"]:
        del sys.modules[name]


def chosen(config: KernelConfig, device: torch.device) -> dict[str, str]:
    return {one.op: one.chosen for one in choose_model_kernels(config, device).choices}


def test_auto_on_a_cpu_and_on_a_gpu_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"layer_norm": "torch", "cross_entropy": "blocks", "contrastive": "blocks", "word_table": "shared"}
    plain["compile"] = "none"
    on_cpu = {"attention": "recomputed", "dropout": "bytes", "float32_products": "exact"}
    on_gpu = {"attention": "sdpa", "dropout": "torch", "float32_products": "tf32"}
    assert chosen(KernelConfig(), CPU) == plain | on_cpu
    assert chosen(KernelConfig(compile="blocks"), CPU)["attention"] == "sdpa"
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    assert chosen(KernelConfig(), GPU) == plain | on_gpu
    assert choose_model_kernels(KernelConfig(word_table="torch"), GPU).kernels == PLAIN
    assert choose_optimizer("auto", GPU, stage=3).chosen == "torch"
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    assert chosen(KernelConfig(), GPU)["contrastive"] == "triton"


@pytest.mark.parametrize("op", ["layer_norm", "contrastive", "optimizer"])
@pytest.mark.parametrize("device", [CPU, GPU])
def test_what_is_missing_and_asked_for_is_one_error(
    op: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    name = "triton" if op == "contrastive" else "apex"
    with pytest.raises(ConfigError) as caught:
        if op == "optimizer":
            choose_optimizer(name, device)
        else:
            choose_model_kernels(KernelConfig(**{op: name}), device)
    assert caught.value.where == f"kernels.{op}" and caught.value.got.startswith(f"{name}: ")


def test_another_package_of_apexs_name_is_not_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(write_apex(tmp_path, has_extensions=False))
    invalidate_caches()
    assert find_spec("apex") is not None
    for candidates in (choose_model_kernels(KernelConfig(), GPU).choices[1], choose_optimizer("auto", GPU)):
        assert candidates.candidates["apex"] and candidates.chosen == "torch"


def test_the_network_computes_with_apexs_layer_norm(apex: Path) -> None:
    assert chosen(KernelConfig(), GPU)["layer_norm"] == "torch", "there, but not asked for"
    found = choose_model_kernels(KernelConfig(layer_norm="apex"), GPU)
    model = CCLMModel(tiny_config()).eval()
    ids = torch.arange(5, 15).view(2, 5)
    with torch.no_grad():
        expected = model.encode_texts(ids, ids > 0)
        use_kernels(model, found.kernels)
        assert torch.equal(model.encode_texts(ids, ids > 0), expected)
    norms = sum(isinstance(module, nn.LayerNorm) for module in model.text_encoder.modules())
    assert len(import_module("apex.normalization.fused_layer_norm").calls) == norms > 1


def test_apexs_adam_updates_and_counts_for_each_tensor(apex: Path) -> None:
    config = OptimizerConfig(total_steps=10, weight_decay=0.1)
    assert choose_optimizer("apex", GPU).chosen == "apex"
    ours, theirs = nn.Linear(3, 3), nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        build_adamw(parameter_groups(module, config), config, kernel)
        for module, kernel in ((ours, "torch"), (theirs, "apex"))
    ]
    for step in range(3):
        gradient = torch.randn(3, 3)
        for module, optimizer in zip((ours, theirs), optimizers, strict=True):
            module.weight.grad, module.bias.grad = gradient * (step + 1), gradient[0].clone()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    assert import_module("apex.optimizers").calls == [1, 1, 2, 2, 3, 3]
    assert [state["step"] for state in optimizers[1].state.values()] == [3, 3]


@pytest.mark.parametrize(
    ("wanted", "facts", "expected"),
    [
        ("auto", {"stage": 3}, "torch"),
        ("auto", {"stage": 3, "is_offloaded": True}, "deepspeed"),
        ("torch", {"stage": 3, "is_offloaded": True}, "torch"),
        ("auto", {"stage": 3, "is_offloaded": True, "rule": "published"}, "torch"),
        ("deepspeed", {"stage": 1}, "deepspeed"),
        ("deepspeed", {"stage": 0}, None),
        ("deepspeed", {}, None),
        ("deepspeed", {"stage": 1, "rule": "published"}, None),
        ("apex", {"stage": 1, "rule": "published"}, None),
        ("apex", {"stage": 1, "is_offloaded": True}, None),
    ],
)
def test_the_optimizer_by_what_the_run_is(
    wanted: str, facts: dict[str, Any], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    if expected is None:
        with pytest.raises(ConfigError):
            choose_optimizer(wanted, GPU, **facts)
    else:
        assert choose_optimizer(wanted, GPU, **facts).chosen == expected


def contrast(found: ModelKernels) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    first, second = (nn.functional.normalize(torch.randn(6, 4, generator=noise), dim=1) for _ in range(2))
    identity = torch.arange(6) // 2
    return found.contrastive(first, second, identity, identity, torch.full((1,), 0.1))


def test_each_is_forced_by_its_name() -> None:
    slow = choose_model_kernels(
        KernelConfig(
            attention="math",
            cross_entropy="reference",
            contrastive="blocks",
            layer_norm="torch",
            dropout="torch",
            word_table="torch",
        ),
        CPU,
    )
    assert all(one.why == "asked for" for one in slow.choices if one.op != "float32_products")
    assert slow.cross_entropy == linear_cross_entropy_reference
    query, key, value = torch.randn(3, 2, 2, 5, 4)
    mask = torch.rand(2, 1, 1, 5) > 0.3
    torch.testing.assert_close(
        slow.kernels.attention(query, key, value, mask, 0.0), PLAIN.attention(query, key, value, mask, 0.0)
    )
    for config in (KernelConfig(), KernelConfig(contrastive="blocks")):
        torch.testing.assert_close(contrast(choose_model_kernels(config, CPU)), contrast(slow))


def test_blocks_are_taken_where_kernels_could_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from cclm.ops import contrastive_operator

    asked = list[str]()
    monkeypatch.setattr(contrastive_operator, "kernels_for", lambda features: asked.append("kernels"))
    contrast(choose_model_kernels(KernelConfig(contrastive="blocks"), CPU))
    assert not asked
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    contrast(choose_model_kernels(KernelConfig(), GPU))
    assert asked


@pytest.mark.parametrize("device", [CPU, GPU])
def test_compiling_needs_a_compiler(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    config = KernelConfig(compile="blocks")
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    monkeypatch.setattr(choice.shutil, "which", lambda name: name)
    assert choose_model_kernels(config, device).compiler == "inductor"
    assert choose_model_kernels(KernelConfig(), device).compiler == ""
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    monkeypatch.setattr(choice.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        choose_model_kernels(config, device)
    assert caught.value.where == "kernels.compile"


@pytest.mark.parametrize(("is_on", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_for_gpus(is_on: bool, precision: str) -> None:
    torch.set_float32_matmul_precision("medium")
    choose_model_kernels(KernelConfig(tf32=is_on), CPU)
    assert torch.get_float32_matmul_precision() == "medium", "a CPU is left alone"
    choose_model_kernels(KernelConfig(tf32=is_on), GPU)
    assert torch.get_float32_matmul_precision() == precision
    assert torch.backends.cudnn.allow_tf32 == is_on


def test_the_description_names_versions_and_devices() -> None:
    found = describe(choose_model_kernels(KernelConfig(), CPU).choices, CPU)
    assert found["versions"]["torch"] == torch.__version__ and found["devices"] == ["no GPU"]
    assert {"attention", "layer_norm", "contrastive"} < {one["op"] for one in found["choices"]}
