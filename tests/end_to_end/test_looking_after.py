"""What `launch` says and does about a real run on this machine: no note of an earlier start speaks for a later one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cclm.run.causes import EXIT_CODES, Cause
from cclm.run.launcher import ADDRESS, NUMBERS
from tests.tiny_run import recipe, write_corpus, write_recipe

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PATIENCE_S = 300.0
ENDLESS = 100_000
"""Steps of a run that only ends because it is stopped."""


class Runs:
    """Starts of one run."""

    def __init__(self, folder: Path) -> None:
        changes = {"optimizer": {"total_steps": ENDLESS, "learning_rate": 0.002}, "engine": "plain"}
        changes |= {"checkpoint": {"every_steps": 5, "keep": 2}, "track": {"every_steps": 1, "tensorboard": False}}
        self.run = folder / "run"
        self.recipe = write_recipe(folder / "recipe.yaml", recipe(write_corpus(folder), self.run, **changes))
        self.environment = {name: value for name, value in os.environ.items() if name not in (*NUMBERS, *ADDRESS)}
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *words]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self.started.append(process)
        return process

    def train(self) -> subprocess.Popen[str]:
        return self.start("pretrain", "--recipe", str(self.recipe))

    def launch(self) -> subprocess.Popen[str]:
        train = ("python", "-m", "pretrain", "--recipe", str(self.recipe))
        return self.start("launch", "run", "--ranks", "1", "--", *train)

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Give a command of `launch`, and wait for its end."""
        command = [sys.executable, "-m", "launch", *words]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    def status(self) -> dict[str, Any]:
        told = self.ask("status", str(self.run), "--json")
        assert told.returncode == 0, told.stderr
        return dict(json.loads(told.stdout)["runs"][0])

    def saved(self) -> int:
        steps = [int(path.parent.name.rpartition("_")[2]) for path in self.run.glob("checkpoints/step_*/complete")]
        return max(steps, default=0)

    def wait_for_checkpoint(self, process: subprocess.Popen[str], *, after: int) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while (step := self.saved()) <= after:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"no checkpoint after step {after}"
            time.sleep(0.05)
        return step


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    found = Runs(tmp_path)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    said = process.communicate(timeout=PATIENCE_S)[1]
    return process.returncode, said


def test_notes_of_an_earlier_start_say_nothing_of_a_later_one(runs: Runs) -> None:
    """Stopped, started without a launcher, killed: it ended by that. A request to stop from before is stale."""
    first = runs.train()
    runs.wait_for_checkpoint(first, after=0)
    first.send_signal(signal.SIGTERM)
    assert end(first)[0] == EXIT_CODES[Cause.STOPPED]
    stopped_at = json.loads((runs.run / "stopped.json").read_text())["step"]
    assert (runs.status()["state"], runs.saved()) == ("stopped", stopped_at)

    (runs.run / "stop").write_text("of yesterday\n")
    time.sleep(0.1)
    second = runs.train()
    runs.wait_for_checkpoint(second, after=stopped_at + 10)
    second.kill()
    assert end(second)[0] == -signal.SIGKILL
    status = runs.status()
    assert status["state"] == "not running", status
    assert not {Cause.STOPPED.value, f"step {stopped_at}:"} & set(status["last_word"].split())
    assert not (runs.run / "stopped.json").exists()


def test_a_launched_run_is_stopped_and_nobody_else_s_start_undoes_that(runs: Runs) -> None:
    launched = runs.launch()
    runs.wait_for_checkpoint(launched, after=0)
    assert runs.status()["state"] == "running"
    assert end(runs.launch())[0] == EXIT_CODES[Cause.FOLDER_LOCKED]
    launched.send_signal(signal.SIGSTOP)  # so that the second start finds the request still unanswered
    os.kill(int(json.loads((runs.run / "status/rank_0.json").read_text())["pid"]), signal.SIGSTOP)
    assert runs.ask("stop", str(runs.run)).returncode == 0
    assert end(runs.launch())[0] == EXIT_CODES[Cause.FOLDER_LOCKED]
    assert json.loads((runs.run / "stop").read_text())["kind"] == "user"
    os.kill(int(json.loads((runs.run / "status/rank_0.json").read_text())["pid"]), signal.SIGCONT)
    launched.send_signal(signal.SIGCONT)

    code, said = end(launched)
    assert code == EXIT_CODES[Cause.STOPPED], said
    stopped = json.loads((runs.run / "stopped.json").read_text())
    assert stopped["kind"] == "user"
    assert f"launch: stopped, and saved at step {stopped['step']} " in said
    assert f"saved at step {stopped['step']}" in runs.status()["last_word"]


def test_ctrl_c_saves(runs: Runs) -> None:
    launched = runs.launch()
    step = runs.wait_for_checkpoint(launched, after=0)
    launched.send_signal(signal.SIGINT)
    code, said = end(launched)
    assert code == EXIT_CODES[Cause.STOPPED], said
    assert json.loads((runs.run / "stopped.json").read_text())["step"] == runs.saved() >= step
    assert "Traceback" not in said
