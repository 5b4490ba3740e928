from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.scaling_model import MovedCounter, ScaledCase, scaled, sharding_of, step_of
from cclm.forecast.machines import GPUS
from tests.tiny_config import run_config

REPOSITORY = Path(__file__).parents[3]
DOCUMENT = REPOSITORY / "docs/performance.md"
SHARDING = sharding_of(REPOSITORY / "ds_configs/zero3_bf16.json", "bf16")


@pytest.fixture(scope="module")
def case() -> ScaledCase:
    """The usual small network: batches of 128 in groups of 64, images of 16 tokens, texts of 40 and 64 at most."""
    config = run_config(precision="bf16")
    return scaled(config, MovedCounter(config), SHARDING, "tiny", "")


@pytest.mark.slow
@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.name)
def test_more_gpus_take_more_time_to_talk_and_none_gains_efficiency(case: ScaledCase, gpu: scaling.Gpu) -> None:
    counts = (8, 16, 32, 64, 128)
    steps = [step_of(case, gpu, count) for count in counts]
    for name in ("features", "agreement"):
        values = [getattr(step, name) for step in steps]
        assert values == sorted(values) and values[0] < values[-1]
    for is_raised in (False, True):
        found = [speed.efficiency for speed in scaling.speeds(case, gpu, is_raised=is_raised) if speed]
        assert found[0] == 1.0 and found == sorted(found, reverse=True)
    assert [speed is None for speed in scaling.speeds(case, gpu, is_raised=False)] == [False] * 5 + [True] * 3


def numbers(text: str) -> list[list[object]]:
    """The cells of all tables; those that are numbers, as such."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    found = [[re.sub(r"[,%]| %", "", cell) for cell in row] for row in rows]
    return [[float(cell) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", cell) else cell for cell in row] for row in found]


@pytest.mark.slow
def test_the_documents_tables_are_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Operations, and with them what the host needs, differ a little between versions of torch."""
    scaling.main([])
    printed = numbers(capsys.readouterr().out)
    quoted = numbers(DOCUMENT.read_text(encoding="utf-8").split("## Scaling model")[1].split("\n## ")[0])
    assert len(printed) > 60 and [row[:1] for row in printed] == [row[:1] for row in quoted]
    for ours, theirs in zip(printed, quoted, strict=True):
        assert all(is_near(*pair) for pair in zip(ours, theirs, strict=True)), (ours, theirs)


def is_near(ours: object, theirs: object) -> bool:
    are_numbers = isinstance(ours, float) and isinstance(theirs, float)
    return ours == theirs or (are_numbers and math.isclose(ours, theirs, rel_tol=0.1, abs_tol=3))  # type: ignore[arg-type]
