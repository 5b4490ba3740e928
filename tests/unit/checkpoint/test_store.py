"""Copies of a run: complete or absent, kept by the same rule as in the run folder; a store that fails ends no run."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cclm.checkpoint.copies import Copier, bring_in
from cclm.checkpoint.store import COPIED, Store, copy_run
from cclm.distributed.collectives import SINGLE, collectives
from cclm.errors import CheckpointError, MissingDependencyError
from cclm.files.lines import append_line
from cclm.run import causes
from cclm.run.checkpoints import (
    Pins,
    complete_checkpoints,
    pin,
    prune,
    read_pins,
    remove_newer,
    step_folder,
    step_of,
    verify,
)
from cclm.run.identity import run_identity
from cclm.run.rollbacks import ROLLBACKS_FILE
from cclm.shardfile import cache as fetch_module
from cclm.shardfile.cache import FetchError
from tests.ranks.harness import on_ranks
from tests.tiny_checkpoint import write_checkpoint
from tests.unit.shardfile.servers import s3_server

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "WAITS_S", (0.0, 0.0))
    monkeypatch.setattr(fetch_module, "FIRST_PAUSE_S", 0.001)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    place = (
        f"memory://store-{uuid.uuid4().hex}/runs/one" if request.param == "memory" else f"file://{tmp_path}/store/one"
    )
    yield place
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        write_checkpoint(folder, step, f"state of {step}")
    (folder / "config.yaml").write_text("seed: 3\n")
    (folder / "ledger.jsonl").write_text('{"step": 0}\n')
    (folder / "done.json").write_text("{}")
    return folder


def steps_at(url: str) -> list[int]:
    return sorted(Store(url).copies())


def test_what_is_copied_can_be_brought_in(run: Path, url: str, tmp_path: Path) -> None:
    assert copy_run(run, url, keep=2) == [3, 2, 1]
    assert copy_run(run, url, keep=2) == [], "nothing is copied twice"
    other = tmp_path / "other"
    bring_in(SINGLE, other, url)
    assert [step_of(path) for path in complete_checkpoints(other)] == [3]
    verify(step_folder(other, 3))
    assert (other / "config.yaml").read_text() == "seed: 3\n" and (other / "ledger.jsonl").exists()
    assert not (other / "done.json").exists(), "the copy may be older than the end"
    files = {path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()}
    assert not [name for name in files if "partial" in name or ".run" in name]


def test_the_best_come_along(run: Path, url: str, tmp_path: Path) -> None:
    pin(run, Pins(steps=[1, 3], proven=3))
    copy_run(run, url, keep=1)
    bring_in(SINGLE, tmp_path / "other", url)
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "other")] == [1, 3]


def test_a_folder_with_a_checkpoint_is_left_alone(run: Path, url: str, tmp_path: Path) -> None:
    copy_run(run, url, keep=2)
    own = write_checkpoint(tmp_path / "other", 1, "another")
    bring_in(SINGLE, tmp_path / "other", url)
    assert complete_checkpoints(tmp_path / "other") == [own]


def test_an_empty_store_is_a_beginning(url: str, tmp_path: Path) -> None:
    bring_in(SINGLE, tmp_path / "other", url)
    assert complete_checkpoints(tmp_path / "other") == [] and steps_at(url) == []
    assert copy_run(tmp_path / "other", url, keep=1) == []


def test_half_a_copy_is_none(run: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_run(run, url, keep=3)
    write_checkpoint(run, 4, "state of 4")
    write = Store._write

    def fail_before_the_marker(self: Store, name: str, content: bytes) -> None:
        if name.endswith(COPIED):
            raise OSError("the network is gone")
        write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="network is gone"):
        patch.setattr(Store, "_write", fail_before_the_marker)
        copy_run(run, url, keep=3)
    assert steps_at(url) == [1, 2, 3]
    bring_in(SINGLE, tmp_path / "other", url)
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "other")] == [3]
    assert copy_run(run, url, keep=3) == [4]


def test_copies_go_by_the_same_rule(run: Path, url: str) -> None:
    copy_run(run, url, keep=9)
    pin(run, Pins(steps=[2], proven=9))
    for step in (4, 5, 6):
        write_checkpoint(run, step, f"state of {step}")
        prune(run, 1, keep_every=4)
        copy_run(run, url, 1, 4)
    assert steps_at(url) == [2, 4, 6] == [step_of(path) for path in complete_checkpoints(run)]


def test_a_run_that_went_back_takes_its_copies_back(run: Path, url: str, tmp_path: Path) -> None:
    copy_run(run, url, keep=3)
    append_line(run / ROLLBACKS_FILE, {"step": 3, "to": 1, "first": 1, "stop": 3})
    remove_newer(run, 1)
    write_checkpoint(run, 2, "another state of 2")
    assert copy_run(run, url, keep=3) == [2]
    assert steps_at(url) == [1, 2]
    bring_in(SINGLE, tmp_path / "other", url)
    verify(step_folder(tmp_path / "other", 2))
    assert (step_folder(tmp_path / "other", 2) / "weights").read_text() == "another state of 2"


def test_copies_that_are_newer_than_a_restored_folder_stay(run: Path, url: str) -> None:
    copy_run(run, url, keep=3)
    remove_newer(run, 1)
    assert copy_run(run, url, keep=1) == []
    assert steps_at(url) == [1, 2, 3]


def test_copies_of_another_run_are_left_alone(run: Path, url: str, tmp_path: Path) -> None:
    copy_run(run, url, keep=3)
    other = tmp_path / "another run"
    for step in (1, 2, 3, 4):
        write_checkpoint(other, step, "of another run")
    with pytest.raises(FetchError, match="those of another one"):
        copy_run(other, url, keep=1)
    assert steps_at(url) == [1, 2, 3]
    bring_in(SINGLE, tmp_path / "moved", url)
    assert run_identity(tmp_path / "moved") == run_identity(run), "who goes on elsewhere is the same run"


def test_a_checkpoint_that_is_pruned_meanwhile_is_passed_over(
    run: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Store._send

    def prune_first(self: Store, source: Path, name: str) -> None:
        if name.startswith("step_000000002"):
            prune(run, keep=1)
        send(self, source, name)

    monkeypatch.setattr(Store, "_send", prune_first)
    assert copy_run(run, url, keep=1) == [3], "of step 2 the files are gone, of step 1 the marker, too"
    assert steps_at(url) == [3]


def damage(url: str, step: int, path: str = "checkpoint/weights", content: bytes | None = b"other") -> None:
    system, root = fsspec.core.url_to_fs(f"{url}/{step_folder(Path(), step).name}/{path}")
    system.rm_file(root)
    if content is not None:
        system.pipe_file(root, content)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("checkpoint/weights", b"state of 4"),
        ("checkpoint/weights", None),
        ("copied.json", b"{"),
        ("run/ledger.jsonl", b""),
    ],
)
def test_a_damaged_copy_is_passed_over_and_set_aside(
    run: Path, url: str, tmp_path: Path, path: str, content: bytes | None
) -> None:
    copy_run(run, url, keep=2)
    damage(url, 3, path, content)
    bring_in(SINGLE, tmp_path / "other", url)
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "other")] == [2]
    assert 3 not in steps_at(url)
    assert copy_run(run, url, keep=2) == [3] and 3 in steps_at(url), "made again"
    bring_in(SINGLE, tmp_path / "again", url)
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "again")] == [3]


def test_a_damaged_best_copy_leaves_the_newest_whole(
    run: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(run, Pins(steps=[1, 3], proven=3))
    copy_run(run, url, keep=1)
    damage(url, 1)
    fetched: list[str] = []
    fetch = Store.fetch
    monkeypatch.setattr(
        Store,
        "fetch",
        lambda self, copy, name, target: (fetched.append(f"{copy.step}/{name}"), fetch(self, copy, name, target)),
    )
    bring_in(SINGLE, tmp_path / "other", url)
    assert [step_of(path) for path in complete_checkpoints(tmp_path / "other")] == [3]
    assert fetched.count("3/checkpoint/weights") == 1


def test_the_pins_of_a_damaged_copy_are_not_taken(run: Path, url: str, tmp_path: Path) -> None:
    copy_run(run, url, keep=3)
    pin(run, Pins(steps=[1, 4], proven=4))
    write_checkpoint(run, 4, "state of 4")
    copy_run(run, url, keep=3)
    damage(url, 4)
    bring_in(SINGLE, tmp_path / "other", url)
    assert not read_pins(tmp_path / "other").steps


@pytest.mark.parametrize("path", ["checkpoint/weights", "copied.json"])
def test_damaged_copies_alone_are_an_error_each_time(run: Path, url: str, tmp_path: Path, path: str) -> None:
    copy_run(run, url, keep=1)
    for step in steps_at(url):
        damage(url, step, path)
    for _ in range(2):
        with pytest.raises(CheckpointError) as error:
            bring_in(SINGLE, tmp_path / "other", url)
        assert "damaged ones only" in str(error.value)
        assert not complete_checkpoints(tmp_path / "other")


def _bring_in(folder: Path, url: str) -> list[int]:
    bring_in(collectives(), folder, url)
    return [step_of(path) for path in complete_checkpoints(folder)]


@pytest.mark.slow
def test_three_ranks_pass_over_a_damaged_copy(run: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    copy_run(run, url, keep=2)
    damage(url, 3)
    assert on_ranks(_bring_in, 3, tmp_path / "other", url) == [[2]] * 3


def test_a_place_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"a place that can be read and written \(checkpoint.copy_to\)"):
        bring_in(SINGLE, tmp_path / "other", f"file://{tmp_path}/file/below")
    with pytest.raises(FetchError, match="another protocol of fsspec"):
        Store("nonsense://bucket")
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match="pip install fsspec gcsfs"):
        Store("gs://bucket/run")


def finish(copier: Copier) -> None:
    while copier.is_busy:
        copier.look()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_store_that_fails_is_a_note_and_a_number(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").write_text("no folder")
    noted: dict[str, float] = {}
    copier = Copier(run, f"file://{tmp_path}/store", 2, None, noted.__setitem__)

    copier.begin()
    copier.begin()  # asked again while it is busy
    finish(copier)
    assert copier.num_failed == 2 == noted["checkpoint/failed_copies"]
    assert capfd.readouterr().err.count("was given up") == 2
    (tmp_path / "store").unlink()
    copier.begin()
    finish(copier)
    copier.close()
    assert noted["checkpoint/failed_copies"] == 2 and noted["speed/checkpoint_copy_s"] > 0
    assert steps_at(f"file://{tmp_path}/store") == [1, 2, 3]


@pytest.mark.slow
def test_a_real_s3_server(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        with pytest.raises(CheckpointError, match="a place that can be read and written"):
            bring_in(SINGLE, tmp_path / "other", "s3://no-such-bucket/run")
        assert not s3fs.S3FileSystem().exists("no-such-bucket"), "none is made by mistake"
        assert copy_run(run, "s3://bucket/run", keep=2) == [3, 2, 1]
        prune(run, keep=2)
        write_checkpoint(run, 4, "state of 4")
        copy_run(run, "s3://bucket/run", keep=2)
        assert steps_at("s3://bucket/run") == [2, 3, 4]
        bring_in(SINGLE, tmp_path / "other", "s3://bucket/run")
        assert [step_of(path) for path in complete_checkpoints(tmp_path / "other")] == [4]
    s3fs.S3FileSystem.clear_instance_cache()
