"""Steps that drop patches: ZeRO-3 on two ranks draws and computes what one process does, checkpointed or not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.parity.test_families import BEIT, MODELS, model
from tests.ranks.harness import Case, History, drive, gradient_errors, make_deepspeed, on_ranks, train_plain
from tests.tiny_run import recipe, write_corpus, write_recipe
from tests.tiny_training import batch_of, module_on_one_thread

pytestmark = pytest.mark.slow
NETWORKS: dict[str, dict[str, Any]] = {
    "conv_vit": model({"stem_channels": [8, 16]}),
    "beit": model(BEIT),
    "siglip": MODELS["siglip"],
    "siglip2": MODELS["siglip2"],
}


def train_each(cases: list[Case]) -> list[History]:
    """On one rank: every case in turn, because starting ranks costs more than these steps."""
    return [drive(make_deepspeed(case), case, range(case.num_steps)) for case in cases]


def test_two_ranks_draw_what_one_process_does(tmp_path: Path) -> None:
    corpus, cases, whole = write_corpus(tmp_path / "corpus"), [], []
    for name, network in NETWORKS.items():
        for share, found in ((0.5, cases), (1.0, whole)):
            options = {**network, "vision": {**network["vision"], "keep_patches": share}}
            settings = recipe(corpus, tmp_path / "run", model=options)
            settings["activation_checkpointing"] = {"vision": "full" if name == "siglip" else "none"}
            path = str(write_recipe(tmp_path / f"{name}-{share}.yaml", settings))
            make = {"make_module": partial(module_on_one_thread, path), "make_batch": partial(batch_of, path)}
            found.append(Case(**make, num_steps=2, keeps_gradients=True))
    ranks = on_ranks(train_each, 2, cases, timeout_s=600.0)[0]
    for case, kept, history in zip(cases, whole, ranks, strict=True):
        plain = train_plain(case)
        assert max(abs(a - b) for a, b in zip(plain.losses, history.losses, strict=True)) < 1e-5
        for ours, reference in zip(history.gradients, plain.gradients, strict=True):
            errors = gradient_errors(ours, reference)
            assert errors.pop("model.temperature.value") < 1e-4
            assert max(errors.values()) < 1e-5
        assert train_plain(kept).losses[0] != plain.losses[0]
