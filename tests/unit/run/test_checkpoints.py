from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.errors import CheckpointError
from cclm.run.checkpoints import (
    Marker,
    check_hashes,
    check_sizes,
    complete_checkpoints,
    list_files,
    newest_complete,
    partial_folder,
    prune,
    publish,
    read_marker,
    record_file,
    remove_leftovers,
    step_folder,
    write_marker,
)


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
        marker.write_text(json.dumps({**json.loads(marker.read_text()), "format_version": 99}))
    assert newest_complete(tmp_path) == older


def test_other_bytes_of_the_same_size_are_found_by_hash(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 10)
    (checkpoint / "a.pt").write_bytes(b"x" * 10)
    marker = read_marker(checkpoint)
    check_sizes(checkpoint, marker)
    check_hashes(checkpoint, marker, ["sub/b.pt"])
    with pytest.raises(
        CheckpointError, match=r"a\.pt has another sha256.*remove this folder \(no older one is complete, .*"
    ):
        check_hashes(checkpoint, marker, ["a.pt"])


def test_damage_says_from_which_step_the_same_command_goes_on(tmp_path: Path) -> None:
    _write(tmp_path, 5)
    incomplete = _write(tmp_path, 7)
    (incomplete / "complete").unlink()
    checkpoint = _write(tmp_path, 10)
    _write(tmp_path, 20)
    (checkpoint / "a.pt").write_bytes(b"x" * 10)
    with pytest.raises(CheckpointError, match=r"remove this folder \(the same command then goes on from step 5\)"):
        check_hashes(checkpoint, read_marker(checkpoint), ["a.pt"])
    (tmp_path / "mail").mkdir()
    copied = checkpoint.rename(tmp_path / "mail" / checkpoint.name)
    with pytest.raises(CheckpointError, match="copy them again"):
        check_hashes(copied, read_marker(copied), ["a.pt"])


def test_unreadable_marker_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "complete").write_text("{}")
    with pytest.raises(CheckpointError, match=r"expected a readable marker file 'complete'.*resume from an older"):
        read_marker(tmp_path)


def test_prune_keeps_the_newest_and_ignores_incomplete_ones(tmp_path: Path) -> None:
    paths = [_write(tmp_path, step) for step in (1, 2, 3, 4)]
    (paths[3] / "complete").unlink()
    assert prune(tmp_path, keep=2) == [paths[0]]
    assert complete_checkpoints(tmp_path) == paths[1:3]
    assert paths[3].exists()
    assert not [path for path in paths[0].parent.iterdir() if path.name.startswith(".")]


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


def test_publish_replaces_an_incomplete_folder(tmp_path: Path) -> None:
    checkpoint = _write(tmp_path, 7)
    (checkpoint / "complete").unlink()
    assert newest_complete(tmp_path) is None
    _write(tmp_path, 7)
    assert newest_complete(tmp_path) == checkpoint
