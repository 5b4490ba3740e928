"""Checkpointed activations change no bit of losses and gradients: dropout on, every kind of tower, engine and stage."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.left_to_long import left_to_long
from tests.parity.test_families import BEIT, MODELS, SWIN, model, tower
from tests.ranks.harness import Case, History, drive, make_deepspeed, on_ranks, train_plain
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_on_one_thread

pytestmark = pytest.mark.slow
MODES = ("none", "elementwise", "selective", "full")
DROPOUT = {"num_layers": 3, "dropout": 0.1, "attention_dropout": 0.1}
CONV = {"stem_channels": [8, 16], "num_layers": 2, "dropout": 0.1}
NETWORKS: dict[str, dict[str, Any]] = {
    "conv_vit": model(CONV),
    "swin": model({**SWIN, "stage_layers": [2, 2], "drop_path": 0.2}),
    "beit": model({**BEIT, "num_layers": 2, "drop_path": 0.2}),
    "siglip": MODELS["siglip"],
    "dinov2": tower("dinov2", image_size=16, patch_size=4, drop_path_rate=0.2),
}
EVERY_MODE = dict.fromkeys(NETWORKS, MODES)
MODES_OF = {"conv_vit": MODES, "swin": ("none", "full"), "beit": ("none", "selective")}
MODES_OF |= {"siglip": ("none", "elementwise"), "dinov2": ("none", "full")}
"""On ranks: each mode with a network, each network with a mode."""
ALONE = [(network, precision) for network in NETWORKS for precision in ("fp32", "bf16")]
SHIPPED = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
"""As the demo trains: among others, whole layers as leaf modules."""
RANKS: dict[str, dict[str, Any]] = {
    "zero3": {},
    "zero3, whole layers": {"ds_options": SHIPPED},
    "zero3, bf16": {"precision": "bf16", "ds_options": {**SHIPPED, "bf16": {"enabled": "auto"}}},
    **{f"zero{stage}": {"stage": stage} for stage in (0, 1, 2)},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """By network and mode, a recipe."""
    folder = tmp_path_factory.mktemp("checkpointing")
    corpus = write_corpus(folder / "corpus")
    written: dict[str, dict[str, str]] = {}
    for name, network in NETWORKS.items():
        options = {**network, **{part: {**network[part], **DROPOUT} for part in ("text", "fusion")}}
        for mode in MODES:
            settings = recipe(corpus, folder / "run", model=options)
            settings["activation_checkpointing"] = dict.fromkeys(("vision", "text", "fusion"), mode)
            path = write_recipe(folder / f"{name}-{mode}.yaml", settings)
            written.setdefault(name, {})[mode] = str(path)
    return written


def case_of(path: str, **changes: Any) -> Case:
    make = {"make_module": partial(module_on_one_thread, path), "make_batch": partial(batch_of, path)}
    return Case(**{**make, "num_steps": 2, "keeps_gradients": True, **changes})


def train_all(cases: list[Case]) -> list[History]:
    """On one rank: every case in turn, because starting ranks costs more than these steps."""
    return [drive(make_deepspeed(case), case, range(case.num_steps)) for case in cases]


def assert_equal(histories: dict[str, History]) -> None:
    kept = histories["none"]
    for history in histories.values():
        assert history.losses == kept.losses
        for ours, reference in zip(history.gradients, kept.gradients, strict=True):
            assert [name for name in reference if not torch.equal(ours[name], reference[name])] == []


@pytest.mark.parametrize(
    "of_one", left_to_long(ALONE, ("beit", "bf16"), ("siglip", "bf16"), ("dinov2", "bf16")), ids="-".join
)
def test_plain_engine(paths: dict[str, dict[str, str]], of_one: tuple[str, str]) -> None:
    network, precision = of_one
    cases = {mode: case_of(paths[network][mode], precision=precision) for mode in MODES}
    assert_equal({mode: train_plain(case) for mode, case in cases.items()})


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_layouts_of_texts(paths: dict[str, dict[str, str]], tmp_path: Path, layout: str) -> None:
    histories = {}
    for mode in MODES:
        settings = yaml.safe_load(Path(paths["conv_vit"][mode]).read_text())
        settings["model"]["token_layout"] = layout
        histories[mode] = train_plain(case_of(str(write_recipe(tmp_path / f"{mode}.yaml", settings))))
    assert_equal(histories)


@pytest.mark.parametrize("modes_of", left_to_long([MODES_OF, EVERY_MODE], EVERY_MODE), ids=["one of all", "all"])
def test_two_ranks(paths: dict[str, dict[str, str]], modes_of: dict[str, tuple[str, ...]]) -> None:
    """ZeRO-3 with every network; other stages, leaf modules and bf16 with one."""
    wanted = [(network, "zero3", modes) for network, modes in modes_of.items()]
    wanted += [("conv_vit", kind, ("none", "full")) for kind in RANKS if kind != "zero3"]
    cases = [
        case_of(paths[network][mode], **RANKS[kind], num_steps=1) for network, kind, modes in wanted for mode in modes
    ]
    histories = iter(on_ranks(train_all, 2, cases, timeout_s=900.0)[0])
    for _, _, modes in wanted:
        assert_equal({mode: next(histories) for mode in modes})


def test_ranks_compute_what_one_process_does(paths: dict[str, dict[str, str]], tmp_path: Path) -> None:
    settings = yaml.safe_load(Path(paths["swin"]["full"]).read_text())
    for part in ("text", "fusion"):
        settings["model"][part] |= {"dropout": 0.0, "attention_dropout": 0.0}
    settings["model"]["vision"]["drop_path"] = 0.0
    case = case_of(str(write_recipe(tmp_path / "recipe.yaml", settings)))
    plain, (sharded, *_) = train_plain(case), on_ranks(train_all, 2, [case])[0]
    assert max(abs(a - b) for a, b in zip(plain.losses, sharded.losses, strict=True)) < 1e-5
