"""Forward and backward let the host run ahead of a GPU; tests/unit/train/test_waits.py has places and reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu.engines import tiny_config
from tests.tiny_training import dataset_of, module_of
from tests.waits import waits_on_gpu

pytestmark = pytest.mark.gpu
ALLOWED = "cclm/model/packing.py"
"""The fusion encoder's layout."""


def test_a_step_waits_only_where_there_is_a_reason(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, device="cuda")
    module, batch = module_of(config).cuda(), dataset_of(config)[0].to("cuda", non_blocking=False)
    module(batch).total.backward()  # kernels are compiled, workspaces allocated
    with waits_on_gpu() as waits:
        module(batch).total.backward()
    assert [place for _, place in waits.found if not place.startswith(ALLOWED)] == []
