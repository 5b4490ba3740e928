"""What `ssh` and `plan --hostfile` make of their options."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.__main__ import main
from launch.commands.ssh import environment_of
from launch.ssh.connect import NO_FOLDER_CODE, NO_PYTHON_CODE, agent_command

RUN = ["--", "python", "-m", "pretrain"]


def test_a_hostfile_becomes_a_plan(stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts.txt").write_text("one slots=2\ntwo slots=3 # three of four\n")
    options = ["--hostfile", str(tmp_path / "hosts.txt"), "--ssh-program", str(stand_in), "--interface", "lo"]
    options += ["--run-folder", str(tmp_path / "run"), "--port", "41000", "--threads-per-rank", "1"]
    assert main(["plan", "--json", *options, *RUN]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [rank["host"] for rank in content["ranks"]] == ["one"] * 2 + ["two"] * 3
    assert (content["master_address"], content["master_port"]) == ("127.0.0.1", 41000)
    assert content["ranks"][0]["environment"]["GLOO_SOCKET_IFNAME"] == "lo"
    assert main(["plan", *options, "--ranks-per-host", "1", *RUN]) == 0
    assert "rank 1 on two, cores" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_the_first_hosts_name_is_where_they_meet(
    stand_in: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--hosts", "me@localhost:2", "--ssh-program", str(stand_in), "--run-folder", str(tmp_path)]
    assert main(["plan", "--json", *options, *RUN]) == 0
    assert json.loads(capsys.readouterr().out)["master_address"] == "localhost"
    assert main(["plan", "--json", *options, "--master-address", "127.0.0.5", *RUN]) == 0
    assert json.loads(capsys.readouterr().out)["master_address"] == "127.0.0.5"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ssh", *RUN], "ssh: expected --hostfile or --hosts, got neither. Name the hosts"),
        (["ssh", "--hosts", "a", "--hostfile", "b", *RUN], "ssh: expected --hostfile or --hosts, got both."),
        (
            ["ssh", "--hosts", "a:2,b", "--ranks-per-host", "4", "--threads-per-rank", "0"],
            "ssh: expected a job that these hosts can take, got no command after `--`; --threads-per-rank 0 is below "
            "1; a has 2 slot(s) for 4 rank(s). For example",
        ),
        (
            ["plan", "--hosts", "a", "--ranks", "2", "--nodes", "2"],
            "plan: expected one place to run, got hosts with --ranks, --nodes.",
        ),
    ],
)
def test_mistakes_are_told_before_anybody_is_asked(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"launch: {sentence}")


def test_variables_with_a_value_or_the_one_that_they_have_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "a=b")
    assert environment_of(["HERE", "X=1=2", "EMPTY="]) == {"HERE": "a=b", "X": "1=2", "EMPTY": ""}
    with pytest.raises(ConfigError) as caught:
        environment_of(["RANK=3", "2X=1", "NOWHERE_SET"])
    assert "got RANK is set by the plan; '2X' is no name of a variable; NOWHERE_SET has no value here." in str(
        caught.value
    )


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_folders_with_any_name_reach_the_hosts_shell_whole(tmp_path: Path, shell: str) -> None:
    folder = tmp_path / 'it\'s $HOME; "a b"'
    python = folder / "my python"
    folder.mkdir()
    python.write_text('#!/bin/sh\npwd; echo "$@"\n')
    python.chmod(0o755)

    def run(code_folder: Path, program: Path) -> tuple[int, list[str]]:
        command = [shell, "-c", agent_command(code_folder, str(program))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.returncode, done.stdout.splitlines()

    assert run(folder, python) == (0, [str(folder), "-S -m launch.ssh.agent"])
    assert run(folder / "gone", python) == (NO_FOLDER_CODE, [])
    assert run(folder, folder / "gone") == (NO_PYTHON_CODE, [])
