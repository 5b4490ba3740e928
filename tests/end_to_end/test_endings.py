"""How a run ends when the world around it is not as it should be: nothing hangs or is lost, and the code tells why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cclm.data.workers import state_of
from cclm.engine.plain import PlainEngine
from cclm.errors import Cause
from cclm.run.causes import EXIT_CODES
from pretrain.__main__ import main
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""For a start on a machine that does other things, too."""
STOPPED = EXIT_CODES[Cause.STOPPED]
STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """A test that fails leaves nobody who trains for ever."""
    yield
    while STARTED:
        with STARTED.pop() as process, suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the leader of its group, with a prefix that forks too


def write(corpus: Path, tmp_path: Path, **changes: Any) -> list[str]:
    """Write a recipe; returns the arguments of pretrain."""
    settings = recipe(corpus, tmp_path / "run", **changes)
    settings["track"] = {"every_steps": 1, "tensorboard": False}
    return ["--recipe", str(write_recipe(tmp_path / "recipe.yaml", settings)), "--engine", "plain"]


def start(arguments: Sequence[str], prefix: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
    command = [*prefix, sys.executable, "-m", "pretrain", *arguments]
    quiet = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **quiet, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=listen_to_everything,
    )
    STARTED.append(process)
    return process


def listen_to_everything() -> None:
    """These tests may run under nohup, or in the background of a script, and what is ignored is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for the end; returns the code and everything that was said."""
    try:
        said, errors = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        said, errors = process.communicate()
        raise AssertionError(f"it hangs: {said.decode()}{errors.decode()}") from None
    return process.returncode, (said + errors).decode()


def wait_for(process: subprocess.Popen[bytes], reached: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline, f"never {what}"
        time.sleep(0.02)


def wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    log = run / "log.jsonl"
    wait_for(process, lambda: log.exists() and log.read_text().count("\n") > step, f"came to step {step}")


def listens(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process catches TERM by now."""
    caught = Path(f"/proc/{process.pid}/status").read_text().partition("SigCgt:\t")[2].split()[0]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status(run: Path) -> dict[str, Any]:
    path = run / "status" / "rank_0.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def steps_saved(run: Path) -> list[int]:
    return sorted(int(path.name.rpartition("_")[2]) for path in run.glob("checkpoints/step_*"))


def last_step(run: Path) -> int:
    return int(json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"])


ENDLESS_IMPORT = """
import sys, time
class Finder:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            time.sleep(600)
sys.meta_path.insert(0, Finder())
"""
"""So that no signal can come after the imports."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_request_in_the_imports_ends_it_at_once(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENDLESS_IMPORT)
    process = start(write(corpus, tmp_path), PYTHONPATH=str(tmp_path))
    wait_for(process, lambda: listens(process), "listened")
    process.send_signal(number)
    code, said = end(process)
    assert code == STOPPED
    assert "nothing to save" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_a_request_before_the_first_checkpoint_saves(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = write(corpus, tmp_path, checkpoint={"every_steps": 1000, "keep": 2})
    process = start([*arguments, "--optimizer.total_steps", "100000"])
    wait_for_step(process, run, 3)
    process.send_signal(signal.SIGINT)
    code, said = end(process)
    assert code == STOPPED, said
    [step] = steps_saved(run)
    assert last_step(run) == step - 1 >= 3
    assert json.loads((run / "stopped.json").read_text())["step"] == step
    assert (status(run)["phase"], status(run)["cause"]) == ("stopped", "stopped")

    process = start([*arguments, "--optimizer.total_steps", "100000"])
    wait_for_step(process, run, step + 1)
    assert not (run / "stopped.json").exists(), "the note of an earlier start"
    process.send_signal(signal.SIGHUP)
    code, said = end(process)
    assert code == STOPPED, said
    assert steps_saved(run)[-1] > step + 1


def test_a_request_is_obeyed_while_it_waits_for_a_batch_and_no_worker_stays(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = write(corpus, tmp_path, checkpoint={"every_steps": 1000, "keep": 2})
    process = start([*arguments, "--optimizer.total_steps", "100000", "--data.num_workers", "2"])
    wait_for_step(process, run, 3)
    workers = children(process.pid)
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    wait_for(process, lambda: "sleeping" in state_of(process.pid), "waited")
    time.sleep(2.0)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == STOPPED, said
    assert steps_saved(run) == [last_step(run) + 1]
    assert all(state_of(worker) in ("gone", "dead") for worker in workers)


def test_a_worker_that_stands_still_ends_the_run_with_its_name(corpus: Path, tmp_path: Path) -> None:
    """A shard that never opens is what a dead file server looks like."""
    own = write_corpus(tmp_path)
    tar = sorted((own / "images").glob("*.tar"))[0]
    tar.unlink()
    os.mkfifo(tar)
    arguments = [*write(own, tmp_path), "--data.num_workers", "1"]
    code, said = end(start([*arguments, "--data.batch_timeout_s", "8"]))
    assert code == EXIT_CODES[Cause.TRANSIENT], said
    assert "loader worker 0 (process" in said and "cclm/shardfile/reader.py" in said
    assert status(tmp_path / "run")["cause"] == "transient"

    process = start(arguments)  # with the usual patience: TERM, and RUN/stop, are obeyed at once
    run = tmp_path / "run"
    wait_for(process, lambda: status(run).get("pid") == process.pid and children(process.pid), "trained")
    (run / "stop").touch()
    code, said = end(process)
    assert code == STOPPED, said


def test_a_loader_in_the_process_is_interrupted_too(tmp_path: Path) -> None:
    own = write_corpus(tmp_path)
    tar = sorted((own / "images").glob("*.tar"))[0]
    tar.unlink()
    os.mkfifo(tar)
    process = start(write(own, tmp_path))
    wait_for(process, lambda: (tmp_path / "run/status/rank_0.json").exists(), "trained")
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    code, said = end(process)
    assert code == STOPPED, said
    assert json.loads((tmp_path / "run/stopped.json").read_text())["step"] == 0


def namespace(*mounts: str) -> list[str]:
    """Run what follows where some folders are small file systems of their own."""
    script = " && ".join(
        f"mount -t tmpfs -o size={mount.partition(':')[0]} none {mount.partition(':')[2]}" for mount in mounts
    )
    prefix = ["unshare", "-rm", "sh", "-c", f'{script} && exec "$@"', "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs mounts of its own (unshare)")
    return prefix


def test_workers_need_neither_shared_memory_nor_a_folder_for_temporary_files(corpus: Path, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    arguments = [*write(corpus, tmp_path), "--data.num_workers", "2", "--optimizer.total_steps", "4"]
    code, said = end(start(arguments, namespace("64k:/dev/shm"), TMPDIR=str(long)))
    assert code == 0, said
    assert (tmp_path / "run/done.json").exists()


def test_a_disk_that_fills_up_under_the_log_is_one_sentence(corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    fill = ["sh", "-c", f'dd if=/dev/zero of={run}/fill bs=1k count=980 2>/dev/null; exec "$@"', "sh"]
    arguments = [
        *write(corpus, tmp_path, checkpoint={"every_steps": 1000, "keep": 2}),
        "--optimizer.total_steps",
        "900",
    ]
    code, said = end(start(arguments, [*namespace(f"1m:{run}"), *fill]))
    assert code == EXIT_CODES[Cause.DISK_FULL], said
    assert "Free space" in said and "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.parametrize("streams", ["| head -n 0", ">&- 2>&-", "> /dev/full"])
def test_output_does_not_change_the_end(corpus: Path, tmp_path: Path, streams: str) -> None:
    arguments = [*write(corpus, tmp_path), "--optimizer.total_steps", "3"]
    shell = ["bash", "-c", f'set -o pipefail; "$@" {streams}', "bash"]
    code, said = end(start(arguments, shell, PYTHONIOENCODING="ascii"))
    assert code == 0, said
    assert json.loads((tmp_path / "run/done.json").read_text())["step"] == 3


def test_tasks_of_a_launcher_that_do_not_know_each_other_are_refused(corpus: Path, tmp_path: Path) -> None:
    code, said = end(start(write(corpus, tmp_path), SLURM_PROCID="1", SLURM_NTASKS="2", SLURM_STEP_ID="0"))
    assert code == EXIT_CODES[Cause.USER_ERROR]
    assert "process 1 of 2 that srun started" in said
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_diverged_keeps_its_healthy_checkpoints(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = PlainEngine.update

    def diverge(self: PlainEngine, step: int, max_norm: float) -> Any:
        return update(self, step, -1.0 if step >= 11 else max_norm)

    arguments = write(corpus, tmp_path, checkpoint={"every_steps": 5, "keep": 1}, health={"max_rollbacks": 0})
    monkeypatch.setattr(PlainEngine, "update", diverge)
    assert main([*arguments, "--optimizer.total_steps", "16"]) == EXIT_CODES[Cause.DIVERGED]
    assert "none in the last 5 updates" in capsys.readouterr().err
    assert steps_saved(tmp_path / "run") == [10]
    assert not (tmp_path / "run/done.json").exists()
    assert status(tmp_path / "run")["cause"] == "diverged"
    monkeypatch.setattr(PlainEngine, "update", update)
    assert main([*arguments, "--optimizer.total_steps", "16"]) == 0
    assert steps_saved(tmp_path / "run") == [16]


def test_a_learning_rate_that_is_much_too_high_is_told_and_a_lower_one_goes_on(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*write(corpus, tmp_path), "--optimizer.total_steps", "12", "--optimizer.weight_decay", "0"]
    assert main([*arguments, "--optimizer.learning_rate", "1e5"]) == EXIT_CODES[Cause.DIVERGED]
    assert "lower --optimizer.learning_rate" in capsys.readouterr().err
    assert not steps_saved(tmp_path / "run") and not (tmp_path / "run/done.json").exists()
    assert main([*arguments, "--optimizer.learning_rate", "1e-3"]) == 0


def test_out_of_memory_says_what_to_lower(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: PlainEngine, batch: object) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr(PlainEngine, "forward", fail)
    assert main(write(corpus, tmp_path)) == EXIT_CODES[Cause.USER_ERROR]
    text = capsys.readouterr().err
    assert "data.micro_batches" in text and "Traceback" not in text


def test_what_nobody_foresaw_has_a_traceback_and_code_1(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PlainEngine, "update", None)
    assert main(write(corpus, tmp_path)) == EXIT_CODES[Cause.EXIT] == 1
    assert "Traceback" in capsys.readouterr().err
    assert status(tmp_path / "run")["cause"] == "exit"
