"""A run submitted again from its own folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import CclmError, ConfigError
from cclm.run.checkpoints import Marker, step_folder, write_marker
from cclm.run.status import DoneMarker
from launch.plan.request import Profile, SlurmRequest
from launch.plan.slurm_job import plan_job, read_plan
from launch.slurm.history import Event, add_event, read_history
from launch.slurm.node_health import exclude
from launch.slurm.submit import resume, submit
from tests.unit.launch.slurm.fake_slurm import FakeSlurm
from tests.unit.launch.slurm.run_folders import rank_end


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def slurm(fake_slurm: FakeSlurm) -> FakeSlurm:
    """A cluster that takes every job as number 8, and has seen job 7 fail."""
    fake_slurm.program("sbatch", 'case "$*" in *--parsable*) echo 8 ;; *) echo "starts at noon" >&2 ;; esac')
    fake_slurm.queue(("8", "FAILED", "n1"))
    return fake_slurm


def request_in(folder: Path) -> SlurmRequest:
    (folder / "checkout/cclm").mkdir(parents=True)
    return SlurmRequest(
        name="run",
        run_folder=folder / "run",
        checkout=folder / "checkout",
        command=("python", "-m", "pretrain"),
        nodes=2,
        partition="gpu",
    )


@pytest.fixture
def run(tmp_path: Path, slurm: FakeSlurm) -> Path:
    """A run that was submitted with two ranks, which saved at step 10."""
    submit(plan_job(request_in(tmp_path), Profile(setup=("ulimit -n 65536",))), say=print)
    write_checkpoint(tmp_path / "run")
    return tmp_path / "run"


def write_checkpoint(run: Path) -> None:
    step_folder(run, 10).mkdir(parents=True)
    write_marker(step_folder(run, 10), Marker(step=10, world_size=2, files={}))


def test_as_it_was(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """Even if the user has edited the script."""
    script = run / "slurm/job.sh"
    script.write_text(script.read_text() + "# mine\n")
    assert resume(run, {}, say=said.append) == ("8", run / "logs/slurm.log")
    assert script.read_text().endswith("# mine\n")
    assert slurm.calls("sbatch")[-1] == f"--parsable {script}"
    last = read_history(run)[-1]
    assert (last.event, last.job, last.by_user) == ("submitted", "8", True)


def test_what_the_cluster_refuses_changes_nothing(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """Else the next `resume` would ask for it again, and a run submitted anew would go on with another recipe."""
    before = {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}
    slurm.program("sbatch", "echo 'Node count specification invalid' >&2; exit 1")
    for ask in (
        lambda: resume(run, {"nodes": 50}, say=said.append, new_code=True),
        lambda: submit(plan_job(request_in(run.parent / "new"), Profile()), say=said.append),
    ):
        with pytest.raises(CclmError):
            ask()
    assert {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()} == before
    assert not (run.parent / "new/run").exists()


def test_with_another_size(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """The other values stay, those of the profile too."""
    resume(run, {"nodes": 1, "tasks_per_node": 2, "time": "1:00:00"}, say=said.append)
    plan = json.loads((run / "slurm/plan.json").read_text())
    changed = {"nodes": "1", "ntasks-per-node": "2", "time": "1:00:00", "partition": "gpu"}
    assert changed.items() <= plan["directives"].items()
    assert plan["profile"]["setup"] == ["ulimit -n 65536"]
    assert "#SBATCH --time=1:00:00" in (run / "slurm/job.sh").read_text()
    assert said[0] == "now: run: 1 node(s) × 2 = 2 rank(s); a node: 2 task(s) × 1 core(s), 0 GPU(s)"


def test_with_another_number_of_ranks(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """The engine goes on from two ranks' checkpoint with three."""
    resume(run, {"nodes": 3}, say=said.append)
    assert said[0].startswith("now: run: 3 node(s) × 1 = 3 rank(s)")


def test_an_older_submission_is_not_judged_by_rules_for_new_ones(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """It may hold options of sbatch that are refused today; those that the plan decides give way to a change."""
    path = run / "slurm/plan.json"
    plan = json.loads(path.read_text())
    plan["request"]["sbatch"] = {"nodes": "2", "mem": "0", "gres": "gpu:1", "time": "2:00:00"}
    path.write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"submit: expected a job that can run, got --nodes 0 is below 1\. Nothing"):
        resume(run, {"nodes": 0}, say=said.append)
    resume(run, {"nodes": 1, "tasks_per_node": 2}, say=said.append)
    script = (run / "slurm/job.sh").read_text()
    assert "#SBATCH --nodes=1\n" in script and "--nodes=2" not in script
    assert "#SBATCH --time=2:00:00\n" in script and "#SBATCH --gres=gpu:1\n" in script


def test_what_cannot_be_resumed(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    slurm.queue(("8", "RUNNING", "n1"))
    with pytest.raises(ConfigError, match=r"got job 8 is RUNNING. Wait for it, or end it: python -m launch cancel"):
        resume(run, {}, say=said.append)
    by_hand = ("9", "PENDING", "", f"{run}/slurm/job.sh", "Priority")
    slurm.queue(("8", "FAILED", "n1"), by_hand)
    with pytest.raises(ConfigError, match=r"got job 9 is PENDING \(Priority\)"):
        resume(run, {}, say=said.append)
    DoneMarker(run).write(step=40, seconds=1.0)
    with pytest.raises(ConfigError, match="expected a run that is not done, got done at step 40"):
        resume(run, {"time": "1:00:00"}, say=said.append)


def test_a_command_that_is_done_is_not_done_again(tmp_path: Path, slurm: FakeSlurm, said: list[str]) -> None:
    run = tmp_path / "run"
    submit(plan_job(replace(request_in(tmp_path), is_training=False), Profile()), say=print)
    add_event(run, Event(event="end", job="8", attempt=0, exit_status="failed"))
    resume(run, {}, say=said.append)
    add_event(run, Event(event="end", job="8", attempt=1, exit_status="done"))
    with pytest.raises(ConfigError, match=r"expected a run that is not done, got done\. Choose another"):
        resume(run, {}, say=said.append)


def test_a_point_of_a_sweep_has_no_code_of_its_own(tmp_path: Path, slurm: FakeSlurm, said: list[str]) -> None:
    plan = plan_job(replace(request_in(tmp_path), code_folder=tmp_path / "code"), Profile())
    submit(plan, say=print)
    with pytest.raises(ConfigError, match="got a point of a sweep, which shares it"):
        resume(tmp_path / "run", {}, say=said.append, new_code=True)
    assert resume(tmp_path / "run", {}, say=said.append)[0] == "8"


def test_an_array_goes_on_with_what_is_left(tmp_path: Path, slurm: FakeSlurm, said: list[str]) -> None:
    request = replace(request_in(tmp_path), array=3, nodes=1, is_training=False)
    submit(plan_job(request, Profile()), say=print)
    for number, code in enumerate((0, 1)):
        rank_end(tmp_path / "run", number, code)
        (tmp_path / f"run/status/exit_rank_{number}.json").rename(tmp_path / f"run/status/exit_task_{number}.json")
    resume(tmp_path / "run", {}, say=said.append)
    assert slurm.calls("sbatch")[-1].startswith("--parsable --array=1,2 ")
    resume(tmp_path / "run", {"concurrent": 1}, say=said.append)
    assert slurm.calls("sbatch")[-1].startswith("--parsable --array=1,2%1 ")


def test_nodes_found_bad_are_left_out(tmp_path: Path, slurm: FakeSlurm, said: list[str]) -> None:
    run = tmp_path / "run"
    submit(plan_job(replace(request_in(tmp_path), replace_bad_nodes=True, exclude="n9"), Profile()), say=print)
    exclude(read_plan(run), ["n7"])
    resume(run, {}, say=said.append)
    assert slurm.calls("sbatch")[-1] == f"--parsable --exclude=n9,n7 {run}/slurm/job.sh"
    assert said[0] == f"leaves out n7, found bad before; remove {run}/slurm/excluded.json to use them again"


def test_a_run_of_another_version_goes_on_with_new_code_only(run: Path, slurm: FakeSlurm, said: list[str]) -> None:
    """Its copy of the code reads and writes other notes."""
    path = run / "slurm/plan.json"
    values = json.loads(path.read_text())
    del values["version"]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="expected a run submitted by this version, got another version's code"):
        resume(run, {}, say=said.append)
    assert resume(run, {}, say=said.append, new_code=True)[0] == "8"
    assert resume(run, {}, say=said.append)[0] == "8"
