"""kill -9 of any rank, or a request to stop, and the same command again: bit-equal to a run that nobody disturbed.

Equal are the losses, the ledger, the quarantine, and the last checkpoint's weights and moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.engine.adamw import MOMENTS
from cclm.engine.fragments import share_path
from cclm.engine.stored_weights import StoredState, load_full_state
from cclm.run.checkpoints import newest_complete
from cclm.run.stop import STOPPED_CODE
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
STEPS, EVERY = 40, 10
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), broken={11, 40, 71})


def command(settings: Path, run: Path, ranks: int = 2) -> list[str]:
    train = ["python", "-m", "pretrain", "--recipe", str(settings)]
    return [sys.executable, "-m", "launch", "run", "--ranks", str(ranks), "--run-folder", str(run), "--", *train]


def settings(corpus: Path, run: Path) -> Path:
    content = recipe(corpus, run, optimizer={"total_steps": STEPS, "learning_rate": 0.002, "warmup_steps": 2})
    content["model"]["text"]["dropout"] = 0.1  # dropout must resume exactly, too
    content["data"]["bad_sample_limit"] = 0.2  # and so must the count of broken pictures
    content["checkpoint"]["every_steps"] = EVERY
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


def wait_for_training(run: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until both ranks say that they train."""
    deadline = time.monotonic() + 120
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


def values_of(run: Path) -> list[dict[str, Any]]:
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [
        {"step": line["step"], **{k: v for k, v in line["values"].items() if not k.startswith("speed/")}}
        for line in lines
    ]


def start(corpus: Path, run: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(settings(corpus, run), run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def kill(run: Path, rank: int, process: subprocess.Popen[bytes]) -> None:
    """kill -9 of one rank; the launcher ends the others and says so."""
    os.kill(pid_of(run, rank), signal.SIGKILL)
    assert process.wait(timeout=60) not in (0, STOPPED_CODE)
    assert not (run / "done.json").exists()


def test_killed_before_the_first_checkpoint_and_again_just_after_it(
    corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start(corpus, run)
    wait_for_training(run, process)
    kill(run, 1, process)
    assert not list(run.glob("checkpoints/step_*")), "killed too late: this was to be before the first checkpoint"

    process = start(corpus, run)
    wait_for_step(run, EVERY, process)
    kill(run, 0, process)

    finish(corpus, run)
    assert_same_run(run, undisturbed)


def test_killed_at_a_random_moment_of_a_step(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Somewhere in the steps after a checkpoint; how long these last is what the run itself says."""
    run = tmp_path / "run"
    process = start(corpus, run)
    wait_for_step(run, EVERY, process)
    time.sleep(random.Random(2006).uniform(1.0, EVERY - 2) * step_seconds(run))
    kill(run, 0, process)

    finish(corpus, run)
    assert_same_run(run, undisturbed)


def test_asked_to_stop(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(settings(corpus, run), run), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    wait_for_step(run, EVERY, process)
    time.sleep(2.5 * step_seconds(run))
    os.kill(pid_of(run, 1), signal.SIGUSR1)  # one rank is told; all of them stop after the same step
    _, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED_CODE, said.decode()
    stopped = json.loads((run / "stopped.json").read_text())
    assert EVERY <= stopped["step"] < STEPS
    assert (run / f"checkpoints/step_{stopped['step']:09d}/complete").exists()
    assert {json.loads(path.read_text())["phase"] for path in (run / "status").glob("*.json")} == {"stopped"}

    finish(corpus, run)
    expected = values_of(undisturbed)
    steps = [line["step"] for line in expected]
    assert [line for line in values_of(run) if line["step"] in steps] == expected  # the last step before is told, too
    assert_same_samples(run, undisturbed)
    assert_same_weights(run, undisturbed)


def test_a_flipped_bit_in_the_newest_checkpoint(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The run goes on from the older one, with a line that says so, and the damaged one is kept."""
    run = tmp_path / "run"
    process = start(corpus, run)
    wait_for_step(run, 2 * EVERY, process)
    kill(run, 1, process)
    newest = newest_complete(run)
    assert newest is not None
    content = bytearray(share_path(newest, 1).read_bytes())
    content[-1] ^= 1
    share_path(newest, 1).write_bytes(content)

    said = finish(corpus, run)
    assert f"set aside as {newest.name}.damaged: state/rank_00001.safetensors has another sha256" in said
    assert newest.with_name(f"{newest.name}.damaged").is_dir()
    assert_same_run(run, undisturbed)


def test_another_number_of_ranks(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Killed on two ranks, gone on with one: the same samples in the same steps, none lost in the counts."""
    run = tmp_path / "run"
    process = start(corpus, run)
    wait_for_step(run, EVERY, process)
    kill(run, 0, process)

    finish(corpus, run, ranks=1)
    assert (run / "ledger.jsonl").read_bytes() == (undisturbed / "ledger.jsonl").read_bytes()
    assert len(list((run / "status").glob("rank_*.json"))) == 1
    for name in ("bad_share", *(key for key in values_of(run)[-1] if key.startswith("seen/"))):
        assert [line[name] for line in values_of(run)] == pytest.approx(
            [line[name] for line in values_of(undisturbed)]
        ), name
    losses, expected = ([line["loss"] for line in values_of(folder)] for folder in (run, undisturbed))
    assert losses == pytest.approx(expected, rel=0.05), "dropout differs, so the runs are alike and not the same"


def finish(corpus: Path, run: Path, ranks: int = 2) -> str:
    """Give the same command again, and see the run done; return what it said."""
    result = subprocess.run(
        command(settings(corpus, run), run, ranks),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((run / "done.json").read_text())["step"] == STEPS
    assert not (run / "stopped.json").exists()
    return result.stdout + result.stderr + "".join(path.read_text() for path in (run / "logs").glob("*.log"))


def assert_same_run(run: Path, undisturbed: Path) -> None:
    assert values_of(run) == values_of(undisturbed)
    assert_same_samples(run, undisturbed)
    assert_same_weights(run, undisturbed)


def assert_same_weights(run: Path, undisturbed: Path) -> None:
    """The last checkpoint bit by bit: all weights, and the moments."""
    ours, theirs = (folder / f"checkpoints/step_{STEPS:09d}" for folder in (run, undisturbed))
    weights, expected = load_full_state(ours), load_full_state(theirs)
    assert weights.keys() == expected.keys() and len(expected) > 50
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    states = StoredState(ours), StoredState(theirs)
    assert states[0].facts.world_size == states[1].facts.world_size == 2, "one a rank"
    assert states[0].facts.updates == states[1].facts.updates == STEPS
    for kind in MOMENTS:
        moments, wanted = (state.tensors(kind) for state in states)
        assert moments.keys() == wanted.keys() and wanted
        assert [name for name in wanted if not torch.equal(moments[name].whole(), wanted[name].whole())] == [], kind


def assert_same_samples(run: Path, undisturbed: Path) -> None:
    names = ["ledger.jsonl", *(f"quarantine/rank_{rank}.jsonl" for rank in (0, 1))]
    for name in names:
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert any((run / name).read_bytes() for name in names[1:]), "the corpus has broken pictures"
