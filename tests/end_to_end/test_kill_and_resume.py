"""kill -9 of any rank, or a request to stop, and the same command again: bit-equal to a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cclm.track.stop import STOPPED_CODE
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
STEPS = 40
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken={11, 40, 71})


def command(settings: Path, run: Path) -> list[str]:
    train = ["python", "-m", "pretrain", "--recipe", str(settings)]
    return [sys.executable, "-m", "launch", "run", "--ranks", "2", "--run-folder", str(run), "--", *train]


def settings(corpus: Path, run: Path) -> Path:
    content = recipe(corpus, run, optimizer={"total_steps": STEPS, "learning_rate": 0.002, "warmup_steps": 2})
    content["model"]["text"]["dropout"] = 0.1  # dropout must resume exactly, too
    content["data"]["bad_sample_limit"] = 0.2  # and so must the count of broken pictures
    return write_recipe(run.parent / f"{run.name}.yaml", content)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    result = subprocess.run(
        command(settings(corpus, run), run), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return run


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has a complete checkpoint at `step` or later."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        done = [path.parent.name for path in run.glob("checkpoints/step_*/complete")]
        if any(int(name.rpartition("_")[2]) >= step for name in done):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}; the launcher's code is {process.poll()}")


def pid_of(run: Path, rank: int) -> int:
    for path in (run / "status").glob("*.json"):
        status = json.loads(path.read_text(encoding="utf-8"))
        if status["rank"] == rank:
            return int(status["pid"])
    raise AssertionError(f"rank {rank} has not said that it lives")


def values_of(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {"step": line["step"], **{k: v for k, v in line["values"].items() if not k.startswith("speed/")}}
        for line in lines
    ]


@pytest.mark.parametrize(("rank", "after"), [(1, 5), (0, 15)])
def test_killed_rank(corpus: Path, undisturbed: Path, tmp_path: Path, rank: int, after: int) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings(corpus, run), run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_step(run, after, process)
    os.kill(pid_of(run, rank), signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert not (run / "done.json").exists()

    finish(corpus, run)
    assert values_of(run) == values_of(undisturbed)
    assert_same_samples(run, undisturbed)


def test_asked_to_stop(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings(corpus, run), run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for_step(run, 5, process)
    os.kill(pid_of(run, 1), signal.SIGUSR1)  # one rank is told; all of them stop after the same step
    _, said = process.communicate(timeout=60)
    assert process.returncode == STOPPED_CODE, said.decode()
    stopped = json.loads((run / "stopped.json").read_text())
    assert 5 < stopped["step"] < STEPS
    assert (run / f"checkpoints/step_{stopped['step']:09d}/complete").exists()
    assert {json.loads(path.read_text())["phase"] for path in (run / "status").glob("*.json")} == {"stopped"}

    finish(corpus, run)
    expected = values_of(undisturbed)
    steps = [line["step"] for line in expected]
    assert [line for line in values_of(run) if line["step"] in steps] == expected  # the last step before is told, too
    assert_same_samples(run, undisturbed)


def finish(corpus: Path, run: Path) -> None:
    """Give the same command again, and see the run done."""
    result = subprocess.run(
        command(settings(corpus, run), run), env=ENVIRONMENT, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((run / "done.json").read_text())["step"] == STEPS
    assert not (run / "stopped.json").exists()


def assert_same_samples(run: Path, undisturbed: Path) -> None:
    names = ["ledger.jsonl", *(f"quarantine/rank_{rank}.jsonl" for rank in (0, 1))]
    for name in names:
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert any((run / name).read_bytes() for name in names[1:]), "the corpus has broken pictures"
