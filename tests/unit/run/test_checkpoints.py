from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cclm.errors import CheckpointError
from cclm.run import causes
from cclm.run.checkpoints import (
    DamagedError,
    Marker,
    Pins,
    complete_checkpoints,
    damage_of,
    list_files,
    newest_complete,
    partial_folder,
    pin,
    pinned,
    prune,
    publish,
    read_marker,
    record_file,
    remove_leftovers,
    set_aside,
    step_folder,
    step_of,
    verify,
    write_marker,
)
from tests import tiny_checkpoint


def _write(run: Path, step: int) -> Path:
    """A complete checkpoint with two files."""
    partial = partial_folder(run, step)
    (partial / "sub").mkdir(parents=True)
    (partial / "a.pt").write_bytes(b"a" * step)
    (partial / "sub" / "b.pt").write_bytes(b"b")
    files = {name: record_file(partial / name) for name in list_files(partial)}
    write_marker(partial, Marker(step=step, world_size=2, files=files))
    publish(partial, step_folder(run, step))
    return step_folder(run, step)


@pytest.mark.slow
def test_newest_by_number_not_by_name(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    for step in (900, 1_000_000_000, 1000):
        _write(tmp_path, step)
    assert newest_complete(tmp_path) == step_folder(tmp_path, 1_000_000_000)
    assert [read_marker(path).step for path in complete_checkpoints(tmp_path)] == [900, 1000, 1_000_000_000]


@pytest.mark.parametrize("damage", ["no marker", "half marker", "file short", "file missing", "other format"])
def test_a_damaged_checkpoint_is_never_the_newest(tmp_path: Path, damage: str) -> None:
    older, newer = _write(tmp_path, 10), _write(tmp_path, 20)
    marker = newer / "complete"
    if damage == "no marker":
        marker.unlink()
    elif damage == "half marker":
        marker.write_text(marker.read_text()[:40])
    elif damage == "file short":
        (newer / "a.pt").write_bytes(b"a" * 19)
    elif damage == "file missing":
        (newer / "sub" / "b.pt").unlink()
    else:
        write_marker(newer, replace(read_marker(newer), format_version=99))
    assert newest_complete(tmp_path) == older


def _flip(path: Path, byte: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def test_every_flipped_bit_is_found_by_the_rank_that_looks_at_the_file(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 10)
    assert damage_of(checkpoint) == [] == damage_of(checkpoint, 1, 2)
    for byte in range(10):
        for bit in range(8):
            _flip(checkpoint / "a.pt", byte, bit)
            assert damage_of(checkpoint) == damage_of(checkpoint, 0, 2) == ["a.pt has another sha256"]
            assert damage_of(checkpoint, 1, 2) == [], "that rank looks at the other file"
            _flip(checkpoint / "a.pt", byte, bit)
    assert damage_of(checkpoint) == []


def test_every_flipped_bit_of_the_marker_is_found(tmp_path: Path) -> None:
    """Of the step, the number of ranks and the version, too, which are as good numbers afterwards."""
    checkpoint = _write(tmp_path, 10)
    marker = checkpoint / "complete"
    for byte in range(marker.stat().st_size):
        _flip(marker, byte, byte % 8)
        assert [flaw[:8] for flaw in damage_of(checkpoint)] == ["marker: "], byte
        _flip(marker, byte, byte % 8)
    number = marker.read_bytes().index(b'"step": 10') + len(b'"step": 1')
    _flip(marker, number, 0)
    assert damage_of(checkpoint) == ["marker: ValueError: it has another digest"]


def test_damage_is_told_in_one_sentence(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 10)
    verify(checkpoint)
    (checkpoint / "a.pt").write_bytes(b"x" * 10)
    with pytest.raises(DamagedError, match=r"a\.pt has another sha256.*a run that resumes sets it aside by itself"):
        verify(checkpoint)
    (checkpoint / "a.pt").unlink()
    with pytest.raises(DamagedError, match=r"got a\.pt: missing\."):
        verify(checkpoint)


def test_another_format_is_no_damage(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 10)
    write_marker(checkpoint, replace(read_marker(checkpoint), format_version=99))
    with pytest.raises(CheckpointError, match=r"checkpoint format 2 or 3, got 99\. Use the version") as caught:
        damage_of(checkpoint)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_storage_that_does_not_answer_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    checkpoint, read, failures = _write(tmp_path, 10), Path.read_bytes, [number] * 2

    def read_or_fail(path: Path) -> bytes:
        if failures:
            raise OSError(failures.pop(), os.strerror(number))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_or_fail)
    monkeypatch.setattr(causes, "WAITS_S", (0.0, 0.0))
    assert damage_of(checkpoint) == [], "the third try succeeds"
    failures.extend([number] * 3)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        damage_of(checkpoint)


def test_set_aside_twice_keeps_both(tmp_path: Path) -> None:
    places = [set_aside(_write(tmp_path, 10)).name for _ in range(3)]
    assert places == ["step_000000010.damaged", "step_000000010.damaged1", "step_000000010.damaged2"]
    assert newest_complete(tmp_path) is None and prune(tmp_path, keep=1) == []
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == places


def test_unreadable_marker_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "complete").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected a readable marker file 'complete'.*Use another checkpoint"):
        read_marker(tmp_path)


def test_prune_keeps_the_newest_and_ignores_incomplete_ones(tmp_path: Path) -> None:
    paths = [_write(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[3] / "complete").unlink()
    assert prune(tmp_path, keep=2) == [paths[0]]
    assert complete_checkpoints(tmp_path) == paths[1:3]
    assert paths[3].exists()
    assert not [path for path in paths[0].parent.iterdir() if path.name.startswith(".")]


def test_the_pinned_checkpoint_outlives_newer_ones(tmp_path: Path) -> None:
    paths = [tiny_checkpoint.write_checkpoint(tmp_path, step, "x") for step in (1, 2, 3, 4)]
    assert pinned(tmp_path) is None
    pin(tmp_path, Pins(steps=[2, 1, 3]))
    assert pinned(tmp_path) == paths[1]
    assert prune(tmp_path, 1) == [paths[0], paths[2]]
    pin(tmp_path, Pins(steps=[5, 2, 1], proven=4))
    assert pinned(tmp_path) == paths[1], "the best is not written yet"
    assert prune(tmp_path, 1) == [], "until it is, what it will replace stays"
    five = tiny_checkpoint.write_checkpoint(tmp_path, 5, "x")
    assert pinned(tmp_path) == five
    assert prune(tmp_path, 1) == [paths[3]], "and on, until the best is proven"
    pin(tmp_path, Pins(steps=[5, 2], proven=5))
    assert prune(tmp_path, 1) == [paths[1]]


def test_several_of_the_best_stay(tmp_path: Path) -> None:
    for step in range(1, 10):
        tiny_checkpoint.write_checkpoint(tmp_path, step, "x")
    pin(tmp_path, Pins(steps=[7, 2, 3, 1], keep=2, proven=5))
    prune(tmp_path, keep=1, keep_every=4)
    assert [step_of(path) for path in complete_checkpoints(tmp_path)] == [2, 3, 4, 7, 8, 9]


def test_a_pin_of_an_older_version_is_understood(tmp_path: Path) -> None:
    paths = [tiny_checkpoint.write_checkpoint(tmp_path, step, "x") for step in (1, 2)]
    (tmp_path / "checkpoints" / "pinned.json").write_text('{"step": 1}\n')
    assert pinned(tmp_path) == paths[0] and prune(tmp_path, 1) == []


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    assert remove_leftovers(tmp_path) == []
    kept = _write(tmp_path, 5)
    partial = partial_folder(tmp_path, 6)
    removed = kept.with_name(f".{step_folder(tmp_path, 4).name}.removed")
    other = kept.with_name(".nfs0001")
    for folder in (partial, removed, other):
        folder.mkdir()
    assert remove_leftovers(tmp_path) == sorted([partial, removed])
    assert sorted(path.name for path in kept.parent.iterdir()) == [".nfs0001", kept.name]


def test_publish_sets_an_incomplete_folder_aside(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 7)
    (checkpoint / "complete").unlink()
    assert newest_complete(tmp_path) is None
    _write(tmp_path, 7)
    assert newest_complete(tmp_path) == checkpoint
    assert (checkpoint.with_name("step_000000007.damaged") / "a.pt").exists()
