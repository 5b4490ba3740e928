"""kill -9 of any rank, or a request to stop, under `launch`: the same command again is bit-equal to a run that nobody
disturbed.

Equal are the losses, the ledger, the quarantine, and the last checkpoint's weights and moments. Many more of both, and
damaged checkpoints, disks, NaN, other numbers of ranks, without `launch`: tests/faults.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cclm.run.stop import STOPPED_CODE
from pretrain.__main__ import main as pretrain
from tests.ranks.harness import in_group, on_ranks
from tests.same_runs import different, different_losses, different_samples, different_weights, values_of
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
STEPS, EVERY = 40, 10
PATIENCE_S = 600.0
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken={11, 40, 71})


def command(settings: Path, run: Path, *changes: str) -> list[str]:
    train = ["python", "-m", "pretrain", "--recipe", str(settings), *changes]
    return [sys.executable, "-m", "launch", "run", "--ranks", "2", "--run-folder", str(run), "--", *train]


def settings(corpus: Path, run: Path) -> Path:
    content = recipe(corpus, run, optimizer={"total_steps": STEPS, "learning_rate": 0.002, "warmup_steps": 2})
    content["model"]["text"]["dropout"] = 0.1  # dropout must resume exactly, too
    content["data"]["bad_sample_limit"] = 0.2  # and so must the count of broken pictures
    content["checkpoint"]["every_steps"] = EVERY
    return write_recipe(run.parent / f"{run.name}.yaml", content)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert on_ranks(in_group, 2, pretrain, ["--recipe", str(settings(corpus, run))], timeout_s=600.0) == [0, 0]
    return run


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the run has a complete checkpoint at `step` or later."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        done = [path.parent.name for path in run.glob("checkpoints/step_*/complete")]
        if any(int(name.rpartition("_")[2]) >= step for name in done):
            return
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint at step {step}; the launcher's code is {process.poll()}")


def wait_for_training(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until both ranks say that they train."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        said = [json.loads(path.read_text(encoding="utf-8")) for path in (run / "status").glob("rank_*.json")]
        if [status["phase"] for status in said] == ["training", "training"]:
            return
        time.sleep(0.005)
    raise AssertionError(f"no training; the launcher's code is {process.poll()}")


def step_seconds(run: Path) -> float:
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["values"]["speed/step_s"])


def pid_of(run: Path, rank: int) -> int:
    for path in (run / "status").glob("*.json"):
        status = json.loads(path.read_text(encoding="utf-8"))
        if status["rank"] == rank:
            return int(status["pid"])
    raise AssertionError(f"rank {rank} has not said that it lives")


def start(corpus: Path, run: Path, *changes: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(settings(corpus, run), run, *changes),
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(run: Path, rank: int, process: subprocess.Popen[bytes]) -> None:
    """kill -9 of one rank; the launcher ends the others and says so."""
    os.kill(pid_of(run, rank), signal.SIGKILL)
    assert process.wait(timeout=PATIENCE_S) not in (0, STOPPED_CODE)
    assert not (run / "done.json").exists()


def test_killed_before_the_first_checkpoint_and_again_just_after_it(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(corpus, run, "--checkpoint.every_steps", str(STEPS))  # so that no kill comes too late
    wait_for_training(run, process)
    kill(run, 1, process)
    assert not list(run.glob("checkpoints/step_*"))

    process = start(corpus, run)
    wait_for_step(run, EVERY, process)
    kill(run, 0, process)

    finish(corpus, run)
    assert different(run, undisturbed) == ""
    assert any(path.read_bytes() for path in (run / "quarantine").glob("*.jsonl")), "the corpus has broken pictures"


def test_asked_to_stop(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings(corpus, run), run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for_step(run, EVERY, process)
    time.sleep(2.5 * step_seconds(run))
    os.kill(pid_of(run, 1), signal.SIGUSR1)  # one rank is told; all of them stop after the same step
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == STOPPED_CODE, said.decode()
    stopped = json.loads((run / "stopped.json").read_text())
    assert EVERY <= stopped["step"] < STEPS
    assert (run / f"checkpoints/step_{stopped['step']:09d}/complete").exists()
    assert {json.loads(path.read_text())["phase"] for path in (run / "status").glob("*.json")} == {"stopped"}

    finish(corpus, run)
    steps = [line["step"] for line in values_of(undisturbed)]  # the last step before is told, too
    assert different_losses(run, undisturbed, steps=steps) == "" == different_samples(run, undisturbed)
    assert different_weights(run, undisturbed) == []


def finish(corpus: Path, run: Path) -> None:
    """Give the same command again, and see the run done."""
    result = subprocess.run(
        command(settings(corpus, run), run),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((run / "done.json").read_text())["step"] == STEPS
    assert not (run / "stopped.json").exists()
