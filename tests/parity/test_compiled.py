"""Compiled blocks in training: losses and gradients are those of the network as it is, by kind of tower and engine.

Graphs are made and differentiated as always (`aot_eager`), but for one test without the compiler's own kernels: those
take a minute for each kind of block.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cclm.data.batch import Batch
from cclm.distributed.collectives import SINGLE, Collectives
from cclm.ops.choice import ModelKernels, why_not_compile
from tests.parity.test_activation_checkpointing import CONV, DROPOUT, NETWORKS, SHIPPED
from tests.parity.test_families import model
from tests.ranks.harness import Case, History, drive, gradient_errors, make_deepspeed, on_ranks, train_plain
from tests.tiny_run import recipe, with_regions, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_of, read

pytestmark = pytest.mark.slow
TOLERANCE = {"": 0.0, "aot_eager": 1e-6, "inductor": 1e-5}
"""Of a loss, and of a gradient's entry relative to the largest: sums in another order."""


@pytest.fixture(autouse=True)
def nothing_is_counted_yet() -> None:
    counters.clear()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("compiled"))


def written(corpus: Path, network: str, mode: str = "none", **changes: Any) -> str:
    """A recipe with dropout, of one layer in each encoder of texts."""
    options = {**NETWORKS, "conv_vit": model({**CONV, "num_layers": 1})}[network] | {"token_layout": "packed"}
    options |= {part: {**options[part], **DROPOUT, "num_layers": 1} for part in ("text", "fusion")}
    settings = recipe(corpus, corpus / "run", model=options)
    settings["activation_checkpointing"] = dict.fromkeys(("vision", "text", "fusion"), mode)
    path = corpus / f"{network}-{mode}-{'-'.join(changes)}.yaml"
    return str(write_recipe(path, settings | {key: {**settings[key], **value} for key, value in changes.items()}))


def make_compiled(path: str, compiler: str, talk: Collectives) -> nn.Module:
    torch.set_num_threads(1)
    return module_of(read(path), talk, kernels=ModelKernels(compiler=compiler))


def case_of(path: str, compiler: str = "", **changes: Any) -> Case:
    case = Case(
        make_module=partial(make_compiled, path, compiler),
        make_batch=partial(batch_of, path),
        num_steps=2,
        keeps_gradients=True,
    )
    return replace(case, **changes)


def assert_equal(found: History, expected: History, tolerance: float) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=tolerance, abs=0.0)
    for ours, reference in zip(found.gradients, expected.gradients, strict=True):
        assert max(gradient_errors(ours, reference).values()) <= tolerance


@pytest.mark.parametrize(("network", "mode"), [("conv_vit", "full"), ("swin", "none"), ("siglip", "selective")])
def test_plain_engine(corpus: Path, network: str, mode: str) -> None:
    path = written(corpus, network, mode)
    found = train_plain(case_of(path, "aot_eager"))
    assert_equal(found, train_plain(case_of(path)), TOLERANCE["aot_eager"])
    assert counters["graph_break"] == {}


def test_thirty_steps_of_all_lengths_are_a_handful_of_graphs(corpus: Path) -> None:
    """Tokens, masked ones and images (of regions) differ in number from step to step."""
    options: dict[str, Any] = model({**CONV, "num_layers": 1}) | {"token_layout": "packed"}
    options["fusion"] = {**options["fusion"], "num_layers": 2}
    path = write_recipe(corpus / "thirty.yaml", with_regions(recipe(corpus, corpus / "run", model=options), corpus))
    module, sizes, found = make_compiled(str(path), "eager", SINGLE), list[Any](), list[int]()
    module.register_forward_pre_hook(lambda _, inputs: sizes.append(sizes_of(inputs[0])))
    torch.compiler.reset()
    for step in range(30):
        module(batch_of(str(path), step, 0, 1))
        found.append(counters["stats"]["unique_graphs"])
    assert len(set(sizes)) > 20 and all(len(set(column)) > 2 for column in zip(*sizes, strict=True)), sizes
    assert found[-1] <= 7 and found[9:] == found[-1:] * 21, f"graphs after each step: {found}"
    assert counters["graph_break"] == {}


def sizes_of(batch: Batch) -> tuple[int, ...]:
    """Numbers of masked texts' tokens, of slots and of images."""
    views = batch.views.values()
    images = sum(len(view.images) for view in views if view.images is not None)
    return sum(view.masked.tokens.num_tokens for view in views), sum(len(view.masked.slot_T) for view in views), images


@pytest.mark.long
def test_kernels_of_the_compiler(corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if trouble := why_not_compile(torch.device("cpu")):
        pytest.skip(trouble)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    path = written(corpus, "conv_vit", "full")
    assert_equal(train_plain(case_of(path, "inductor")), train_plain(case_of(path)), TOLERANCE["inductor"])


def train_all(cases: list[Case]) -> list[History]:
    return [drive(make_deepspeed(case), case, range(case.num_steps)) for case in cases]


def test_two_ranks(corpus: Path) -> None:
    """ZeRO-3 that shards every parameter; as the demo trains, in bf16."""
    path = written(corpus, "conv_vit", "full")
    kinds: list[dict[str, Any]] = [
        {},
        {"precision": "bf16", "ds_options": {**SHIPPED, "bf16": {"enabled": "auto"}}},
    ]
    cases = [case_of(path, compiler, **kind, num_steps=1) for kind in kinds for compiler in ("", "aot_eager")]
    found = on_ranks(train_all, 2, cases, timeout_s=1500.0)[0]
    for kind, expected, history in zip(kinds, found[::2], found[1::2], strict=True):
        assert_equal(history, expected, 2e-2 if "precision" in kind else TOLERANCE["aot_eager"])
