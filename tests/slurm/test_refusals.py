"""What a job does when it should not go on: a full disk, an impossible request, a bad node, nothing but crashes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.slurm.cluster import sh
from tests.slurm.jobs import (
    attempts,
    ended,
    known_jobs,
    launch,
    read_done,
    said,
    slurm,
    start_now,
    state,
    steps_saved,
    submit,
    tiny,
    wait,
)
from tests.tiny_run import write_corpus

STEPS = 60
SMALL = ("--time", "5", "--save-s", "60")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_a_full_disk(corpus: Path, cluster: Path) -> None:
    """The job gives up with a reason, the older checkpoint stays, and with room again the run goes on to its end."""
    run, filler = cluster / "small/run", cluster / "small/filler"
    path = tiny(corpus, run, STEPS, checkpoint={"every_steps": 5, "keep": 2})
    job = submit(path, "--nodes", "2", "--preflight", "none")
    wait(lambda: steps_saved(run), "a checkpoint", run)
    sh(f"cat /dev/zero > {filler} || true")
    assert ended(job, run) == "FAILED"
    kept = steps_saved(run)
    assert kept
    assert (attempts(run)[-1].exit_status, attempts(run)[-1].cause) == ("failed", "disk_full")
    assert attempts(run)[-1].reason in said(run)
    filler.unlink()

    job = submit(path, "--nodes", "2", "--preflight", "none")
    assert ended(job, run) == "COMPLETED", said(run)
    assert attempts(run)[0].first_step == kept[-1]
    assert read_done(run) == STEPS
    shutil.rmtree(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nodes", "9"], "expected a job that this cluster can run, got"),
        (["--gpus-per-node", "5"], "expected a job that this cluster can run, got"),
        (["--partition", "nowhere"], "invalid partition"),
    ],
)
def test_an_impossible_request(tmp_path: Path, options: list[str], words: str) -> None:
    before = known_jobs()
    told = launch("submit", *SMALL, "--run-folder", str(tmp_path / "run"), *options, "--", "true")
    assert told.returncode == 2
    assert words in told.stderr
    assert known_jobs() == before


def test_a_bad_node_is_named_and_replaced(cluster: Path, tmp_path: Path) -> None:
    """The scratch disk of n2 can only be read; the job goes on as another, on n1 and n3."""
    run, profile = tmp_path / "run", tmp_path / "site.yaml"
    profile.write_text(f"scratch: {cluster}/local\n")
    (slurmd,) = (cluster / "run/slurmd-n2.pid").read_text().split()
    remount = f"nsenter --target {slurmd} --mount mount -o remount,"
    sh(f"{remount}ro {cluster}/local")
    try:
        options = ["--nodes", "2", "--profile", str(profile), "--preflight", "quick", "--replace-bad-nodes", *SMALL]
        told = launch("submit", *options, "--run-folder", str(run), "--", "hostname")
        assert told.returncode == 0, told.stderr
        assert ended(told.stdout.strip(), run) == "FAILED", said(run)
        assert f"unhealthy: n2: cannot write into {cluster}/local: Read-only file system" in said(run)
        wait(lambda: len(attempts(run)) == 2 and attempts(run)[1].exit_status, "the second job", run)
    finally:
        sh(f"{remount}rw {cluster}/local")
    first, second = attempts(run)
    assert (first.nodes, first.exit_status) == ("n[1-2]", "bad nodes")
    assert (second.nodes, second.exit_status) == ("n[1,3]", "done")
    assert ended(second.job, run) == "COMPLETED"


def test_a_program_that_only_crashes(corpus: Path, tmp_path: Path) -> None:
    """Two attempts, no checkpoint: enough. The code that runs is the copy in the run folder: it can be spoilt there."""
    run = tmp_path / "run"
    path = tiny(corpus, run, STEPS)
    told = launch(
        "submit", str(path), "--nodes", "1", "--preflight", "none", "--max-tries", "2", "--sbatch", "hold", *SMALL
    )
    assert told.returncode == 0, told.stderr
    job = told.stdout.strip()
    (run / "code/pretrain/__main__.py").write_text("raise RuntimeError('spoilt')\n")
    slurm("scontrol", "release", job)
    wait(lambda: state(job) == "PENDING" and attempts(run), "the first requeue", run)
    start_now(job)
    assert ended(job, run) == "FAILED", said(run)
    assert [attempt.exit_status for attempt in attempts(run)] == ["failed", "failed"]
    assert attempts(run)[-1].reason == (
        "2 attempts began at step 0 and none saved a newer checkpoint; "
        "the last: rank 0 on n1: exit code 1: RuntimeError: spoilt"
    )
