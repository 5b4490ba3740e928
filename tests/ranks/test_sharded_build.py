"""A model built and filled under ZeRO-3: the weights of a whole build, never the whole of it in one rank's memory."""

from __future__ import annotations

import ctypes
import gc
import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cclm.distributed.topology import Topology
from cclm.engine.ds_config import EngineFacts, resolve_ds_config
from cclm.engine.protocol import seed_initialisation
from cclm.model.configuration_cclm import CCLMConfig
from cclm.model.modeling_cclm import CCLMModel
from cclm.pretrained.initialise import start_model
from cclm.pretrained.source_files import read_tensors
from cclm.types import Precision
from tests.ranks.harness import on_ranks
from tests.tiny_families import TINY_BEIT, TINY_SWIN
from tests.unit.model.hf_texts import CONFIGS as TEXT_CONFIGS
from tests.unit.model.hf_texts import text_options
from tests.unit.model.hf_towers import CONFIGS
from tests.unit.model.tiny import tiny_config

pytestmark = pytest.mark.slow
WORLD = 2
MALLOPT_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""


def config_of(name: str) -> CCLMConfig:
    if name == "swin":
        return CCLMConfig(**asdict(TINY_SWIN))
    if name == "beit":
        return CCLMConfig(**asdict(TINY_BEIT))
    if name == "large":
        stack = {"num_layers": 6, "num_heads": 8, "feedforward_width": 2048}
        vision = {**stack, "architecture": "beit", "image_size": 32, "patch_size": 8}
        return CCLMConfig(width=512, vision=vision, text={**stack, "vocab_size": 4000}, fusion=stack)
    if name in TEXT_CONFIGS:
        return tiny_config(width=32, text=text_options(name))
    tower = json.loads(CONFIGS[name].to_json_string(use_diff=False))
    return tiny_config(width=32, vision={"architecture": "hf", "tower": tower, "image_size": 32})


def ds_config(precision: Precision) -> dict[str, Any]:
    raw: dict[str, Any] = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
    raw |= {"steps_per_print": 10**9, "bf16": {"enabled": precision == "bf16"}}
    facts = EngineFacts(micro_batch_size=1, world_size=WORLD, max_grad_norm=1.0, precision=precision)
    return resolve_ds_config(raw, facts)


def build(name: str, precision: Precision = "fp32") -> CCLMModel:
    from cclm.engine.deepspeed.construction import sharded_construction

    seed_initialisation(3)
    with sharded_construction(ds_config(precision), Topology.from_environment(device="cpu")):
        return CCLMModel(config_of(name))


def frequencies(model: CCLMModel) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_buffers() if "inv_freq" in name}


def whole_values(model: CCLMModel) -> dict[str, Tensor]:
    from cclm.engine.deepspeed.construction import whole_parameters

    values = {}
    for name, parameter in model.named_parameters():
        with whole_parameters([parameter]):
            values[name] = parameter.detach().clone()
    return values


def build_each(names: list[str]) -> dict[str, dict[str, Tensor]]:
    """On one rank: every model, made whole again at the end."""
    found = {}
    for name in names:
        model = build(name)
        assert all(parameter.numel() == 0 for parameter in model.parameters()), "nothing is whole in between"
        found[name] = whole_values(model)
    return found


def fill(path: str) -> dict[str, Tensor]:
    model = build("swin")
    assert start_model(model, read_tensors(Path(path))) == ["temperature.value"]
    return whole_values(model)


class AnonymousPeak:
    """Largest growth of this process's own memory (not of mapped files) while it runs, in bytes."""

    def __enter__(self) -> AnonymousPeak:
        gc.collect()  # what was let go before and is freed meanwhile would hide as much growth
        self.start, self.most, self.stopped = anonymous_bytes(), 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stopped.wait(0.001):
            self.look()

    def look(self) -> None:
        self.most = max(self.most, anonymous_bytes() - self.start)

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.look()


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024


def measure(path: str) -> dict[str, float]:
    """Peaks as shares of the weights: built whole, built sharded, filled from a file."""
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(MALLOPT_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back, so that it is not counted
    build("swin")  # loads what is loaded once
    with AnonymousPeak() as sharded:
        model = build("large")
    with AnonymousPeak() as filled:
        start_model(model, read_tensors(Path(path)))
    size = 4 * sum(parameter.ds_numel for parameter in model.parameters())
    del model
    with AnonymousPeak() as plain:
        whole = CCLMModel(config_of("large"))
    del whole  # it has lived to the last look
    peaks = {"sharded": sharded, "filled": filled, "plain": plain}
    return {name: peak.most / size for name, peak in peaks.items()}


def saved(name: str, path: Path, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    seed_initialisation(3)
    state = {key: change(value.detach()).contiguous() for key, value in CCLMModel(config_of(name)).named_parameters()}
    state.pop("temperature.value")
    save_file(state, path)
    return state


NAMES = ["swin", "beit", "siglip", "clip", "dinov3", "swinv2", "modernbert", "mdeberta"]
Outcome = tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, float], dict[str, Tensor]]


def everything(small: str, large: str) -> Outcome:
    return build_each(NAMES), fill(small), measure(large), frequencies(build("modernbert", "bf16").bfloat16())


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    return path, saved("swin", path, partial(torch.add, other=1.0))


@pytest.fixture(scope="module")
def outcomes(filler: tuple[Path, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    """What each rank found; one start of ranks, which costs more than what they do."""
    large = tmp_path_factory.mktemp("large") / "weights.safetensors"
    saved("large", large, torch.clone)
    return on_ranks(everything, WORLD, str(filler[0]), str(large))


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_a_whole_build(outcomes: list[Outcome], name: str) -> None:
    seed_initialisation(3)
    expected = dict(CCLMModel(config_of(name)).named_parameters())
    for built, *_ in outcomes:
        assert built[name].keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(built[name][key], value), key


def test_what_positions_are_turned_by_is_not_rounded_in_bf16(outcomes: list[Outcome]) -> None:
    expected = frequencies(CCLMModel(config_of("modernbert")))
    for *_, found in outcomes:
        assert found.keys() == expected.keys() != set()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_file_fills_it_parameter_by_parameter(
    outcomes: list[Outcome], filler: tuple[Path, dict[str, Tensor]]
) -> None:
    for _, values, *_ in outcomes:
        assert all(torch.equal(values[name], value) for name, value in filler[1].items())


def test_no_rank_ever_holds_the_whole_model(outcomes: list[Outcome]) -> None:
    for _, _, peaks, _ in outcomes:
        assert peaks["plain"] > 0.8, peaks  # some of the memory that was freed before is used again
        assert peaks["sharded"] < 0.7, peaks  # its half, and the largest module
        assert peaks["filled"] < 0.2, peaks  # one tensor at a time, beside that half
