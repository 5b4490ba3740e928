from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import ConfigError
from launch.watch.runs import find_run, find_runs, find_runs_of
from tests.unit.launch.slurm.run_folders import rank_says


def test_runs_and_those_one_level_below(tmp_path: Path) -> None:
    for name in ("a", "shards-x/read", "sweep/points/0", "too/deep/for/this"):
        rank_says(tmp_path / name, 0, step=1, time=1.0)
    (tmp_path / "a/code/status").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "done").mkdir()
    (tmp_path / "done/done.json").write_text("{}")
    found = [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)]
    assert found == ["a", "done", "shards-x/read", "sweep/points/0"]
    assert find_runs(tmp_path / "nowhere") == []


def test_a_run_by_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rank_says(tmp_path / "runs/a", 0, step=1, time=1.0)
    assert find_run("a") == find_run("runs/a") == find_run(str(tmp_path / "runs/a")) == tmp_path / "runs/a"
    with pytest.raises(ConfigError, match=r"the folder of a run, or a name in runs/ \(a\), got 'b'"):
        find_run("b")


def test_the_runs_of_a_sweep_or_of_several_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sweep/points/10", "sweep/points/9", "shards-x/read", "shards-x/merge", "alone"):
        rank_says(tmp_path / "runs" / name, 0, step=1, time=1.0)
    (tmp_path / "runs/sweep/code").mkdir()
    assert [path.name for path in find_runs_of("sweep")] == ["9", "10"]
    assert find_runs_of("sweep/points/9") == [tmp_path / "runs/sweep/points/9"]
    assert [path.name for path in find_runs_of("runs/shards-x")] == ["merge", "read"]
    assert find_runs_of("alone") == [tmp_path / "runs/alone"]
    with pytest.raises(ConfigError, match="got 'nothing'"):
        find_runs_of("nothing")
    with pytest.raises(ConfigError, match=r"expected one run, got 'sweep' with 2 runs in it\. Name one, as .*/points/"):
        find_run("sweep")


def test_a_folder_that_we_may_not_enter_may_be_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may enter any, so the system's refusal is played."""
    (tmp_path / "closed").mkdir()
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path.is_relative_to(tmp_path / "closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    assert find_runs(tmp_path) == [tmp_path / "closed"]


def test_a_run_that_has_logs_alone_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ranks failed before they said anything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a/logs").mkdir(parents=True)
    assert find_run("a") == tmp_path / "runs/a"
    assert find_runs(tmp_path / "runs") == []
