from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.scaling_model import (
    MovedCounter,
    Ranks,
    ScaledCase,
    Step,
    exchange_bytes,
    fetch_units,
    read_published,
    scaled,
    sharding_of,
    step_of,
)
from cclm.costs.network import build_on_meta, count_parameters, parameters_by_part
from cclm.costs.recipe import Counter
from cclm.engine.ds_config import EngineFacts, resolve_ds_config
from cclm.forecast.machines import GPUS
from cclm.forecast.memory import Case, Memory, checkpoint_bytes, kept_share, memory_of
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.model.options import ModelOptions, TextOptions, VisionOptions
from tests.tiny_config import run_config

REPOSITORY = Path(__file__).parents[3]
A100 = GPUS[0]
SWIN = VisionOptions(
    architecture="swin", image_size=32, patch_size=4, window=2, stage_layers=(1, 2), stage_heads=(1, 2), num_heads=2
)
BEIT = VisionOptions(architecture="beit", image_size=32, patch_size=16, num_layers=2, num_heads=2)
SHARDING = sharding_of(REPOSITORY / "ds_configs/zero3_bf16.json", "bf16")


def options(vision: VisionOptions) -> ModelOptions:
    return ModelOptions(width=32, vision=vision, text=TextOptions(vocab_size=50), tie_decoder=vision is not BEIT)


@pytest.fixture(scope="module")
def case() -> ScaledCase:
    """The usual small network: batches of 128 in groups of 64, images of 16 tokens, texts of 40 and 64 at most."""
    config = run_config(precision="bf16")
    return scaled(config, MovedCounter(config), SHARDING, "tiny", "")


def in_fp32(case: ScaledCase) -> ScaledCase:
    return replace(case, config=replace(case.config, precision="fp32"))


@pytest.mark.parametrize("vision", [VisionOptions(), SWIN, BEIT], ids=lambda vision: vision.architecture)
def test_parameters_are_those_of_a_network_that_is_really_built(vision: VisionOptions) -> None:
    built = CCLMModel(CCLMConfig(**json.loads(json.dumps(asdict(options(vision))))))
    counted = build_on_meta(options(vision))
    assert count_parameters([counted]) == sum(value.numel() for value in built.parameters())
    assert parameters_by_part(counted) == parameters_by_part(built)
    assert sum(parameters_by_part(counted).values()) == count_parameters([counted])


@pytest.mark.slow
def test_published_recipes_have_the_published_number_of_parameters() -> None:
    for name, number in (("cclm_x2vlm_base", 615_540_825), ("cclm_x2vlm_large", 1_225_073_817)):
        assert count_parameters([build_on_meta(read_published(name).model)]) == number


@pytest.mark.slow
def test_flops_of_a_text_are_the_formulas(case: ScaledCase) -> None:
    width, hidden, layers, length = 128, 256, 2, 7
    cost = Counter(case.config).text(length)
    products = layers * length * 2 * (4 * width**2 + 2 * width * hidden)
    scores = layers * 2 * 2 * length**2 * width
    assert cost.forward_flops == products + scores
    assert cost.flops == pytest.approx(3 * products + 3.5 * scores)  # attention's backward computes its scores again
    kept = cost.kept_bytes
    assert kept["full"] < kept["selective"] < kept["elementwise"] < kept["none"]
    assert kept["none"] - kept["elementwise"] == layers * length * hidden * 2, "values of an activation function, bf16"
    assert 0 < cost.block_bytes < kept["none"]


def test_a_memory_costs_its_keys_and_values(case: ScaledCase) -> None:
    counter, width, length, memory = Counter(case.config), 128, 5, 17
    alone, fused = (counter.fused(length, read, length) for read in (0, memory))
    layers = case.config.model.fusion.num_layers
    cross = 2 * (2 * length + 2 * memory) * width**2 + 4 * length * memory * width
    assert fused.forward_flops - alone.forward_flops == layers * cross


def test_the_last_layer_costs_what_is_read_of_it(case: ScaledCase) -> None:
    counter, width, length = Counter(case.config), 128, 5
    every, first = (counter.fused(length, 17, wanted) for wanted in (length, 1))
    of_a_token = 2 * (3 * width**2 + 2 * width * case.config.model.fusion.feedforward_width)
    assert every.forward_flops - first.forward_flops == (length - 1) * of_a_token
    assert all(first.kept_bytes[mode] < every.kept_bytes[mode] for mode in ("none", "elementwise"))


def test_one_gpu_communicates_nothing(case: ScaledCase) -> None:
    step = step_of(case, A100, 1)
    assert (step.zero, step.features, step.states, step.agreement) == (0.0, 0.0, 0.0, 0.0)
    assert all(exchange_bytes(case, one, Ranks(count=1))[:2] == (0.0, 0.0) for one in case.exchanges)
    assert Ranks(count=1).ring_s(A100, 1e9, 10) == Ranks(count=1).all_reduce_s(A100, 1e9, 10) == 0.0


def test_a_step_is_the_sum_of_its_parts() -> None:
    step = Step(compute=1, zero=2, features=4, states=8, agreement=16, data=32, checkpoint=64)
    assert step.total == 127


def test_groups_travel_only_if_ranks_share_them(case: ScaledCase) -> None:
    (one, _) = case.exchanges
    assert (one.batch, one.group, one.states_per_row) == (128, 64, 20 + 17)
    features = 128 * (2 * 4 * 128 + 2 * 8 + 2 * 4)
    assert exchange_bytes(case, one, Ranks(count=2)) == (features, 0.0, 1)
    assert exchange_bytes(case, one, Ranks(count=8)) == (features, 64 * 37 * 128 * 2, 5)
    assert exchange_bytes(case, replace(one, batch=192), Ranks(count=2))[1] > 0  # one and a half groups a rank


def test_memory_shrinks_with_ranks_and_with_what_is_not_kept(case: ScaledCase) -> None:
    one, many = memory_of(case, 8), memory_of(case, 64)
    assert one.moments == 8 * case.num_parameters / 8
    assert many.total < one.total
    kept = [memory_of(case, 8, checkpointing=mode).activations for mode in ("full", "selective", "elementwise", "none")]
    assert kept == sorted(kept) and kept[0] < kept[-1]
    double = memory_of(in_fp32(case), 8)
    assert double.activations == 2 * one.activations


def test_memory_at_its_peak_is_before_or_in_the_update() -> None:
    parts = {"process": 1, "weights": 2, "gradients": 4, "moments": 8, "activations": 16, "logits": 32, "snapshot": 0}
    parts["buckets"] = 64
    assert Memory(**parts, updating=111, returns_memory=True).total == 15 + 112
    assert Memory(**parts, updating=113, returns_memory=True).total == 15 + 113
    assert Memory(**parts, updating=113, returns_memory=False).total == 15 + 112 + 113


@pytest.mark.parametrize("mode", ["none", "full"])
def test_kept_memory_holds_a_block_of_each_encoder_and_its_gradients(case: ScaledCase, mode: str) -> None:
    kernels = (replace(case.config.kernels, freed_memory=way) for way in ("kept", "returned"))
    cases = (replace(case, config=replace(case.config, kernels=one)) for one in kernels)
    kept, returned = (memory_of(one, 2, device="cpu", checkpointing=mode).activations for one in cases)
    (update,) = case.updates
    blocks = [call.rows // 2 * call.cost.block_bytes for call in update.calls if call.part != "heads"]
    assert kept - returned == (sum(blocks) if mode == "none" else 2 * sum(blocks) - max(blocks))


@pytest.mark.slow
def test_frozen_parameters_have_neither_gradient_nor_moments(case: ScaledCase) -> None:
    config = replace(case.config, start=replace(case.config.start, freeze=("model.text_encoder",)))
    frozen = Case.of(config, Counter(config), SHARDING)
    assert frozen.num_trained < frozen.num_parameters == case.num_parameters == case.num_trained
    assert memory_of(frozen, 2).moments == 8 * frozen.num_trained / 2
    assert checkpoint_bytes(case) - checkpoint_bytes(frozen) == 8 * (case.num_trained - frozen.num_trained)
    assert frozen.flops < case.flops


@pytest.mark.parametrize(
    ("stage", "expected"),
    [(0, 4 + 4 + 8), (1, 4 + 2 + 2 + 4), (2, 4 + 2 + 2 + 4), (3, 2 + 2 + 4)],
)
def test_states_of_each_stage_in_bytes_a_parameter(case: ScaledCase, stage: int, expected: int) -> None:
    """On two ranks in fp32, without buckets and what ZeRO-3 gathers."""
    one = replace(in_fp32(case), sharding=replace(SHARDING, stage=stage, max_reuse=0))
    two = replace(one, config=replace(one.config, data=replace(case.config.data, micro_batches=2)))
    found, several = memory_of(one, 2), memory_of(two, 2)
    assert (found.weights + found.gradients + found.moments) / case.num_parameters == expected
    added = (several.gradients - found.gradients) / case.num_parameters
    assert added == (4 if stage == 1 else 0), "gradients of micro-batches wait whole"


@pytest.mark.parametrize("way", ["kept", "returned"])
@pytest.mark.parametrize(("stage", "buckets", "updating"), [(0, 0, 1), (1, 3, 1.5), (2, 3, 1.5), (3, 3, 0.5)])
def test_what_an_update_makes_on_a_cpu(case: ScaledCase, stage: int, buckets: int, updating: float, way: str) -> None:
    """On two ranks in fp32: buckets and copies of a half of all parameters; the rest in values a parameter."""
    half = case.num_parameters / 2
    sharding = replace(SHARDING, stage=stage, overlaps=True, gradient_bytes=4, reduce_bucket=half)
    config = replace(case.config, precision="fp32", kernels=replace(case.config.kernels, freed_memory=way))
    found = memory_of(replace(case, config=config, sharding=sharding), 2, device="cpu")
    assert found.buckets / half == 4 * buckets
    assert found.updating / case.num_parameters == 4 * updating
    assert found.returns_memory == (way == "returned")


def test_zero3_keeps_what_is_used_again_soon(case: ScaledCase) -> None:
    assert kept_share(case, 10**9) == 0.5
    assert kept_share(replace(case, sharding=replace(SHARDING, max_reuse=0)), 10**9) == 0.0
    assert kept_share(replace(case, sharding=replace(SHARDING, max_live=10**8)), 10**9) == 0.1
    assert kept_share(replace(case, sharding=replace(SHARDING, max_reuse=2e9)), 10**9) == 1.0


def test_a_leaf_is_gathered_as_one_and_small_parameters_stay() -> None:
    class Layer(nn.Sequential):
        pass

    with torch.device("meta"):
        stack = nn.Sequential(Layer(nn.Linear(100, 100), nn.Linear(100, 100)), nn.LayerNorm(100))
    assert fetch_units([stack, None], 1000, ()) == (2, 4)
    assert fetch_units([stack], 0, ()) == (3, 0)
    assert fetch_units([stack], 0, ("Layer",)) == (2, 0)


def test_raising_the_batch_keeps_each_rows_cost(case: ScaledCase) -> None:
    more = case.raised(4)
    assert more.flops == 4 * case.flops and more.samples == 4 * case.samples
    assert not case.fits(256) and more.fits(256)


def test_sharding_is_what_deepspeed_reads() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    for path in sorted((REPOSITORY / "ds_configs").glob("*bf16*.json")):
        resolved = resolve_ds_config(
            json.loads(path.read_text()), EngineFacts(micro_batch_size=1, world_size=1, precision="bf16")
        )
        theirs, ours = DeepSpeedConfig(resolved).zero_config, sharding_of(path, "bf16")
        assert (ours.stage, ours.hpz) == (theirs.stage, theirs.zero_hpz_partition_size)
        assert (ours.max_live, ours.max_reuse) == (theirs.max_live_parameters, theirs.max_reuse_distance)
        assert (ours.reduce_bucket, ours.threshold) == (theirs.reduce_bucket_size, theirs.param_persistence_threshold)
        assert ours.allgather_bucket == theirs.allgather_bucket_size
