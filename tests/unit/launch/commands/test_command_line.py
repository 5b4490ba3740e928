from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cclm.files.lock import run_lock
from cclm.run.causes import EXIT_CODES, Cause
from launch.__main__ import main
from launch.commands.run import number_or_auto
from launch.plan.recipe import recipes_of

ROOT = Path(__file__).resolve().parents[4]


def test_plan_prints_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--ranks", "2", "--port", "4000", "--", "python", "-m", "pretrain"]) == 0
    text = capsys.readouterr().out
    assert "2 rank(s)" in text
    assert "MASTER_PORT=4000" in text


def test_plan_prints_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--json", "--ranks", "3", "--threads-per-rank", "2", "--bind", "none", "--run-folder", str(tmp_path)]
    assert main(["plan", *options, "--", "true", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["threads_per_rank"] == 2
    assert content["run_folder"] == str(tmp_path)
    assert [rank["command"] for rank in content["ranks"]] == [["true", "--json"]] * 3
    assert [rank["cores"] for rank in content["ranks"]] == [[], [], []]


def test_run_gives_the_ranks_code(tmp_path: Path) -> None:
    options = ["--ranks", "1", "--run-folder", str(tmp_path)]
    assert main(["run", *options, "--", "python", "-S", "-c", "import sys; sys.exit(7)"]) == 7


TELL_FOLDER = "import os; print(os.environ['CCLM_CLEARED'])"
WAIT = (
    "import os, sys, time; from pathlib import Path; Path('begun').touch()\n"
    "while not Path('enough').exists(): time.sleep(0.01)"
)


def run_python(code: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "launch", "run", "--ranks", "1", *options, "--", "python", "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


@pytest.mark.slow
def test_two_jobs_side_by_side_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = run_python(WAIT)
    try:
        while not Path("begun").exists():
            assert first.poll() is None
            time.sleep(0.01)
        out, errors = run_python(TELL_FOLDER).communicate(timeout=120)
        assert out == f"{tmp_path}/runs/launch-2\n"
        assert errors == f"launch: another job uses {tmp_path}/runs/launch: this one's logs are in {out.strip()}/logs\n"
        out, errors = run_python("", "--run-folder", "runs/launch").communicate(timeout=120)
        assert "expected a run folder that no other run is using" in errors, "the default was named: it is meant"
    finally:
        Path("enough").touch()
    assert first.wait(timeout=120) == 0
    assert run_python(TELL_FOLDER).communicate(timeout=120) == (f"{tmp_path}/runs/launch\n", "")


def test_a_folder_in_use_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with run_lock(tmp_path / "a"):
        assert main(["run", "--ranks", "1", "--run-folder", "a", "--", "true"]) == EXIT_CODES[Cause.FOLDER_LOCKED]
    assert f"{tmp_path}/a: expected a run folder that no other run is using, got one that process" in (
        capsys.readouterr().err
    )


def test_logs_of_a_training_are_in_its_own_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the recipe says: `launch logs NAME` finds them there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("run_folder: runs/mine\n")
    (tmp_path / "pretrain.py").write_text("import os\nprint('rank', os.environ['RANK'])\n")
    words = ["--", "python", "-m", "pretrain", "--recipe", "mine.yaml", "--seed", "3"]
    assert main(["plan", "--ranks", "2", "--json", *words]) == 0
    assert json.loads(capsys.readouterr().out)["run_folder"] == str(tmp_path / "runs/mine")
    assert main(["run", "--ranks", "2", *words]) == 0
    assert main(["logs", "mine", "--rank", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "rank 1"
    assert main(["logs", "mine"]) == 0
    assert main(["run", "--ranks", "2", *words[:4], "--recipe", "yours.yaml"]) == 2
    assert "got 'yours.yaml'" in capsys.readouterr().err, "before any rank starts"


def test_a_grace_time_that_is_no_number_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--ranks", "1", "--run-folder", str(tmp_path), "--grace-s", "nan", "--", "true"]) == 2
    assert "launch: expected --grace-s of at least 0, got nan." in capsys.readouterr().err


def test_a_port_in_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["run", "--ranks", "1", "--run-folder", str(tmp_path), "--port", str(port), "--", "true"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"launch: --port: expected a port that is free, got {port}: Address already in use. Leave it"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, "process 1 of 2 that srun started"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "process 0 of 4 that torchrun"),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, "process 1 of 2 that"),
    ],
)
def test_under_another_launcher_each_would_start_the_whole_job(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    words: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "--ranks", "1", "--run-folder", str(tmp_path / "a"), "--", "true"]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_a_run_folder_behind_a_link_that_leads_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "unmounted")
    assert main(["run", "--ranks", "1", "--run-folder", str(tmp_path / "a"), "--", "true"]) == 2
    assert f"got {tmp_path}/a, a link to {tmp_path}/unmounted, where there is nothing." in capsys.readouterr().err


def test_outside_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipes_of("pretrain") == ROOT / "pretrain/recipes", "shipped recipes are found from any working folder"
    monkeypatch.setattr(
        "launch.commands.submit.read_recipe", lambda *_, **__: ({"run_folder": "runs/x"}, Path("r.yaml"))
    )
    assert main(["submit", "mine.yaml", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert f"expected the checkout as working folder, got {tmp_path}. cd {ROOT}" in said, said
    assert main(["shards", "demo", "--out", str(tmp_path / "x"), "--tasks", "2", "--dry-run"]) == 2
    assert "expected the checkout as working folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "no job without its code is queued"


def test_a_forgotten_command_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--ranks", "2"]) == 2
    assert capsys.readouterr().err.startswith("launch: expected a command after `--`, got none.")


@pytest.mark.parametrize(("text", "number"), [("auto", None), ("4", 4)])
def test_number_or_auto(text: str, number: int | None) -> None:
    assert number_or_auto(text) == number


def test_doctor_reports(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--folder", str(tmp_path / "not" / "yet")]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path} is writable" in text
    assert "torch" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["status", "--jsn"], "python -m launch status: error: unrecognized arguments: --jsn; did you mean --json?"),
        (["resume", "x", "y"], "python -m launch resume: error: unrecognized arguments: y\n"),
    ],
)
def test_a_typo_in_an_option(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert sentence in capsys.readouterr().err
