"""Frozen parts: two DeepSpeed ranks against the plain engine at every stage, checkpoints, and the real network."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cclm.checkpoint.collective import save_checkpoint
from cclm.cli.__main__ import main as cclm
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.engine.adamw import MOMENTS
from cclm.engine.parts import freeze
from cclm.engine.protocol import seed_initialisation
from cclm.engine.stored_weights import load_full_state
from cclm.run.checkpoints import newest_complete, step_folder
from pretrain.__main__ import main as pretrain
from tests.left_to_long import left_to_long
from tests.ranks.harness import Case, drive, gradient_errors, make_deepspeed, on_ranks, train_plain, train_ranks
from tests.ranks.toy import joint_batch, make_toy
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_of, module_on_one_thread, read

pytestmark = pytest.mark.slow
ENCODERS = ("model.patches", "model.vision", "model.words", "model.text", "model.fusion")
PARTS = {
    "image tower": ENCODERS[:2],
    "text tower": ENCODERS[2:4],
    "embeddings": ("model.words",),
    "fusion encoder": ENCODERS[4:],
    "all but the heads": ENCODERS,
}
SHIPPED_FOR_CPU = json.loads(Path("ds_configs/zero3_cpu.json").read_text())
LEAVES = SHIPPED_FOR_CPU["zero_optimization"]
STOP, END = 2, 4


def make_frozen(prefixes: tuple[str, ...], talk: Collectives) -> nn.Module:
    module = make_toy(talk)
    freeze(module, prefixes)
    return module


def case_of(prefixes: tuple[str, ...], **options: Any) -> Case:
    make_module = partial(make_frozen, prefixes)
    return Case(make_module=make_module, make_batch=joint_batch, num_steps=END, keeps_gradients=True, **options)


def frozen_values(case: Case) -> dict[str, Tensor]:
    """As they start."""
    seed_initialisation(case.seed)
    module = case.make_module(SINGLE)
    return {name: value.detach() for name, value in module.named_parameters() if not value.requires_grad}


def _train_each(cases: dict[str, Case], folder: Path) -> dict[str, Any]:
    """On a rank: each case with a checkpoint after two steps; its history, and what has moments here."""
    found = {}
    for name, case in cases.items():
        engine = make_deepspeed(case)
        history = drive(engine, case, range(STOP))
        save_checkpoint(engine, folder / name, STOP, {}, keep=1)
        rest = drive(engine, case, range(STOP, END))
        history.losses += rest.losses
        history.gradients += rest.gradients
        history.parameters = rest.parameters
        found[name] = history, {one.name for kind in MOMENTS for one in engine.state.fragments(kind)}
    return found


def _go_on_each(cases: dict[str, Case], folder: Path) -> dict[str, Any]:
    """On a rank: from the checkpoints to the end."""
    found = {}
    for name, case in cases.items():
        engine = make_deepspeed(case)
        engine.load(step_folder(folder / name, STOP))
        found[name] = drive(engine, case, range(STOP, END))
    return found


STAGES = {
    "0": {"stage": 0},
    "1": {"stage": 1},
    "2": {"stage": 2},
    "3": {"stage": 3, "persistence_threshold": 100},
    "3, leaves": {"stage": 3, "zero_options": LEAVES},
}
SOME = {"0": ("image tower", "text tower"), "1": ("embeddings", "all but the heads"), "2": ("fusion encoder",)}
FROZEN = [(stage, SOME.get(stage, tuple(PARTS))) for stage in STAGES]
EVERY = [(stage, tuple(PARTS)) for stage in SOME]


@pytest.mark.parametrize("frozen", left_to_long([*FROZEN, *EVERY], *EVERY), ids=lambda one: f"{one[0]}-{len(one[1])}")
def test_every_part_at_every_stage(frozen: tuple[str, tuple[str, ...]], tmp_path: Path) -> None:
    """As the plain engine; bit by bit as at the start; without moments; and on one rank from the two ranks' files."""
    cases = {name: case_of(PARTS[name], **STAGES[frozen[0]]) for name in frozen[1]}
    first, second = on_ranks(_train_each, 2, cases, tmp_path)
    alone = on_ranks(_go_on_each, 1, cases, tmp_path)[0]
    for name, case in cases.items():
        reference, ours = train_plain(case), first[name][0]
        assert ours.losses == pytest.approx(reference.losses, rel=1e-5), name
        for mine, expected in zip(ours.gradients, reference.gradients, strict=True):
            assert max(gradient_errors(mine, expected).values()) < 1e-5, name
        assert max(gradient_errors(ours.parameters, reference.parameters).values()) < 1e-4, name
        frozen, stored = frozen_values(case), load_full_state(step_folder(tmp_path / name, STOP))
        for key, value in frozen.items():
            for found in (ours.parameters, reference.parameters, alone[name].parameters, stored):
                assert torch.equal(found[key], value), f"{name}: {key}"
        assert (first[name][1] | second[name][1]) == reference.gradients[0].keys()
        assert not frozen.keys() & reference.gradients[0].keys()
        assert alone[name].losses == pytest.approx(reference.losses[STOP:], rel=1e-5), name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_frozen_parts_in_bf16_stay_the_rounded_ones(stage: int) -> None:
    case = case_of(PARTS["text tower"], stage=stage, precision="bf16")
    ours = train_ranks(replace(case, keeps_gradients=False))[0]
    for name, value in frozen_values(case).items():
        assert torch.equal(ours.parameters[name], value.bfloat16().float()), name


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize(
    "prefixes",
    [
        ["model.vision_encoder"],
        ["model.text_encoder"],
        ["model.text_encoder.embeddings"],
        ["model.vision_encoder", "model.text_encoder", "model.fusion_encoder"],
    ],
)
def test_the_network_trains_as_on_the_plain_engine(corpus: Path, tmp_path: Path, prefixes: list[str]) -> None:
    """With layers as leaf modules, in steps before and after the fusion encoder reaches the others."""
    settings = recipe(corpus, tmp_path / "run", start={"freeze": prefixes})
    path = str(write_recipe(tmp_path / "recipe.yaml", settings))
    case = Case(
        make_module=partial(module_on_one_thread, path),
        make_batch=partial(batch_of, path),
        num_steps=4,
        ds_options=SHIPPED_FOR_CPU,
    )
    plain, ranks = train_plain(case), train_ranks(case)
    assert ranks[0].losses == pytest.approx(plain.losses, rel=1e-5)
    assert max(gradient_errors(ranks[0].parameters, plain.parameters).values()) < 1e-4
    frozen = frozen_values(case)
    assert all(any(name.startswith(prefix) for name in frozen) for prefix in prefixes)
    for name, value in frozen.items():
        assert torch.equal(ranks[0].parameters[name], value), name


def _train_and_go_on(case: Case, folder: Path) -> list[Any]:
    """On a rank: all steps, a checkpoint in the middle; the second half again, by an engine that remembers nothing."""
    engine = make_deepspeed(case)
    drive(engine, case, range(STOP))
    save_checkpoint(engine, folder, STOP, {}, keep=1)
    whole = drive(engine, case, range(STOP, END))
    engine = make_deepspeed(case)
    engine.load(step_folder(folder, STOP))
    return [whole, drive(engine, case, range(STOP, END))]


def test_remembered_texts_change_nothing_on_two_ranks(corpus: Path, tmp_path: Path) -> None:
    """Under ZeRO-3, where ranks remember other texts: as without, and after a resume bit by bit."""
    frozen = ["model.text_encoder.embeddings", "model.text_encoder.stack.layers.0"]
    cases = []
    for size in (0, 10**6):
        start = {"freeze": frozen, "remember_bytes": size}
        settings = recipe(corpus, tmp_path / "run", start=start)
        # Its draws must not hear of the copy that is made in the first step.
        settings["model"]["fusion"] = {**settings["model"]["fusion"], "dropout": 0.2}
        path = str(write_recipe(tmp_path / f"{size}.yaml", settings))
        parts = partial(module_on_one_thread, path), partial(batch_of, path)
        cases.append(Case(make_module=parts[0], make_batch=parts[1], num_steps=END, ds_options=SHIPPED_FOR_CPU))
    plain = train_ranks(cases[0])[0]
    for whole, resumed in on_ranks(_train_and_go_on, 2, cases[1], tmp_path):
        assert whole.losses == pytest.approx(plain.losses[STOP:], rel=1e-5)
        assert whole.losses == resumed.losses and whole.metrics == resumed.metrics
        for name, value in whole.parameters.items():
            assert torch.equal(value, resumed.parameters[name]), name


def test_a_run_with_frozen_towers_is_resumed_and_exported_with_parity(corpus: Path, tmp_path: Path) -> None:
    towers = ["model.vision_encoder", "model.text_encoder"]
    settings = recipe(corpus, tmp_path / "run", start={"freeze": towers}, engine="plain")
    settings["optimizer"]["ema_decay"] = 0.5
    path = write_recipe(tmp_path / "recipe.yaml", settings)
    assert pretrain(["--recipe", str(path), "--optimizer.total_steps", "4"]) == 0
    assert pretrain(["--recipe", str(path), "--optimizer.total_steps", "6"]) == 0
    newest = newest_complete(tmp_path / "run")
    assert newest == step_folder(tmp_path / "run", 6)
    start = module_of(read(str(path))).model.state_dict()
    for weights in ("last", "ema"):
        assert cclm(["export", str(tmp_path / "run"), "--to", str(tmp_path / weights), "--weights", weights]) == 0
        exported = load_file(tmp_path / weights / "model.safetensors")
        moved = {name for name, value in exported.items() if not torch.equal(value, start[name])}
        assert moved and not any(name.startswith(("vision_encoder.", "text_encoder.")) for name in moved)
