"""ZeRO-3 ranks of which one runs a module more than the other: every rank names the module, and the samples.

In a test that module is only noted: if it had run, DeepSpeed would have waited for the other rank inside of the step.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from cclm.config import RunConfig
from cclm.engine.module_order import ModuleOrder
from cclm.errors import ConfigError
from cclm.run.signals import StopRequest
from cclm.train.build import open_run
from cclm.train.loop import train
from tests.ranks.harness import on_ranks
from tests.tiny_run import recipe, write_corpus
from tests.tiny_training import as_config


def _train(config: RunConfig) -> str:
    end = ModuleOrder.end

    def with_one_more(self: ModuleOrder) -> None:
        if torch.distributed.get_rank() == 1:
            self._ran.append(2)
        end(self)

    with (
        patch("cclm.train.build.process_group", lambda topology: nullcontext()),  # the harness has met already
        patch.object(ModuleOrder, "end", with_one_more),
        open_run(config, StopRequest()) as run,
    ):
        assert run is not None
        try:
            train(run)
        except ConfigError as error:
            return error.got
    return ""


@pytest.mark.slow
def test_another_order_of_modules_stops_the_run_before_the_next_step(tmp_path: Path) -> None:
    changes = {"deepspeed": "zero3_cpu", "track": {"every_steps": 1, "tensorboard": False}}
    config = as_config(recipe(write_corpus(tmp_path), tmp_path / "run", **changes))
    got, other = on_ranks(_train, 2, config)
    assert got == other
    number = int(re.search(r"; module (\d+) none on rank 0, \S+ on rank 1; first samples of step 0: rank 0: ", got)[1])
    assert number > 40, "all that ran before, alike on both"
    assert got.startswith(f"modules of the step before {number - 1} modules (")
    ours, theirs = got.rpartition("rank 0: ")[2].split(" / rank 1: ")
    assert ours != theirs and all("image_text k" in keys and "text_pair g" in keys for keys in (ours, theirs))


def test_a_module_that_runs_twice_or_elsewhere_gives_another_text() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    order, ran = ModuleOrder(network), list[str]()

    class Offload:
        def pre_sub_module_forward_function(self, module: torch.nn.Module) -> None:
            ran.append(type(module).__name__)

    offload = Offload()
    order.watch(offload)
    assert (order.text, order.now()) == ("none", "")
    texts = []
    for modules in ([network, network[0], network[1]], [network, network[0], network[1]], [network, network[1]]):
        order.begin()
        for module in modules:
            offload.pre_sub_module_forward_function(module)
        assert order.now() == f"module {len(modules)} (1)"
        order.end()
        texts.append(order.text)
    assert texts[0] == texts[1] != texts[2] and texts[0].startswith("3 modules (")
    assert order.names == ["the whole", "1"]
    assert ran == ["Sequential", "Linear", "ReLU"] * 2 + ["Sequential", "ReLU"]
