"""Every published recipe at tiny sizes, with pictures, regions and sentence pairs: two ZeRO-3 ranks against the plain
engine, step by step with all their updates, and a resumed run against one that went through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.config import RunConfig
from cclm.distributed.collectives import collectives
from cclm.distributed.topology import Topology
from cclm.engine.ds_config import resolve_ds_file
from cclm.engine.plain import PlainEngine
from cclm.engine.protocol import Engine
from cclm.train.network import build_engine
from cclm.train.updates import merge_metrics, updates_of
from tests.engine_values import full_parameters
from tests.ranks.harness import on_ranks
from tests.tiny_run import shrink, write_corpus, write_recipe
from tests.tiny_training import dataset_of, module_of, read

NAMES = ("cclm_3m", "cclm_4m", "cclm_x2vlm_base", "cclm_x2vlm_large")
STEPS, STOP = 3, 2
History = dict[str, Any]


def train(config: RunConfig, engine: Engine, steps: range) -> list[dict[str, float]]:
    """Metrics of each step."""
    dataset, log = dataset_of(config, engine.rank, engine.world_size), []
    for step in steps:
        metrics, norms = [], []
        for part in updates_of(dataset[step], config.data.schedule):
            losses = engine.forward(part)
            engine.backward(losses)
            norms.append(float(engine.update(step).grad_norm))
            metrics.append(losses.metrics)
        log.append({**engine.reduce_mean(merge_metrics(metrics)), "grad_norm": max(norms), "updates": len(norms)})
    return log


def make(config: RunConfig) -> Engine:
    """This rank's engine, as a run makes it."""
    torch.set_num_threads(1)
    topology = Topology.from_environment(device="cpu")
    talk, ds_config = collectives(), resolve_ds_file(config.deepspeed, config.engine_facts(topology.world_size))
    return build_engine(config, module_of(config, talk), topology, ds_config)


def train_rank(paths: dict[str, str], folder: Path) -> dict[str, History]:
    """On one rank, all recipes one after the other: straight through, and resumed after two steps."""
    found = {}
    for name, path in paths.items():
        config, engine = read(path), make(read(path))
        log = train(config, engine, range(STOP))
        if engine.rank == 0:
            (folder / name).mkdir()
        collectives().barrier()
        engine.save(folder / name, {})
        log += train(config, engine, range(STOP, STEPS))
        again = make(config)
        again.load(folder / name)
        found[name] = {"log": log, "resumed": train(config, again, range(STOP, STEPS)), "end": full_parameters(engine)}
        found[name]["end_resumed"] = full_parameters(again)
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = write_corpus(tmp_path_factory.mktemp("corpus"))
    return {
        name: str(
            write_recipe(
                folder / f"{name}.yaml",
                shrink(name, folder, folder / "run", total_steps=STEPS, warmup_steps=1, learning_rate=0.002)
                | {"deepspeed": "ds_configs/zero3_cpu.json"},
            )
        )
        for name in NAMES
    }


@pytest.mark.slow
def test_recipes_train_alike_on_zero_3_and_on_the_plain_engine(paths: dict[str, str], tmp_path: Path) -> None:
    quiet = {name: without_dropout(path, tmp_path) for name, path in paths.items()}
    ranks = on_ranks(train_rank, 2, quiet, tmp_path, timeout_s=600.0)
    for name, path in quiet.items():
        config, of_ranks = read(path), ranks[0][name]
        plain = PlainEngine(module_of(config), config.optimizer, seed=config.seed)
        log = train(config, plain, range(STEPS))
        assert [line["updates"] for line in of_ranks["log"]] == updates_per_step(name)
        for ours, theirs in zip(of_ranks["log"], log, strict=True):
            assert ours.keys() == theirs.keys()
            for key, value in ours.items():
                assert value == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), f"{name} {key}"
        for value in views_of(name):
            assert any(f"{value}/mlm" in line for line in log), f"{name} {value}"
        assert of_ranks["resumed"] == of_ranks["log"][STOP:], name
        assert all(torch.equal(value, of_ranks["end_resumed"][key]) for key, value in of_ranks["end"].items()), name


def without_dropout(path: str, folder: Path) -> str:
    """Ranks draw dropout of their own, so only without it do they compute what one process does."""
    import yaml

    settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    for part in ("text", "fusion"):
        settings["model"][part] |= {"dropout": 0.0, "attention_dropout": 0.0}
    settings["model"]["vision"]["drop_path"] = 0.0
    return str(write_recipe(folder / Path(path).name, settings))


def updates_per_step(name: str) -> list[int]:
    return {"cclm_3m": [2] * STEPS, "cclm_4m": [3] + [2] * (STEPS - 1)}.get(name, [1] * STEPS)


def views_of(name: str) -> tuple[str, ...]:
    return ("image_text", "text_pair") if name == "cclm_3m" else ("image_text", "regions", "text_pair")
