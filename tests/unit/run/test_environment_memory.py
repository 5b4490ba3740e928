from __future__ import annotations

from pathlib import Path

import pytest

from cclm.run.environment import available_memory_bytes


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:      64 kB\n")
    (folder / "self/cgroup").write_text("0::/job/step\n")
    return folder


def group(folder: Path, limit: str, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")


def test_the_machine_or_the_smallest_group_decides(proc: Path, tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    assert available_memory_bytes(proc, groups) == 64 * 1024
    group(groups / "job/step", "max", 10, 0)
    assert available_memory_bytes(proc, groups) == 64 * 1024
    group(groups / "job", "20000", 12000, 2000)
    assert available_memory_bytes(proc, groups) == 10000
    group(groups / "job", "10000", 12000, 0)
    assert available_memory_bytes(proc, groups) == 0


def test_this_machine_has_some() -> None:
    assert 0 < available_memory_bytes() < 1 << 50


def test_where_nobody_says_it_is_not_the_limit(tmp_path: Path) -> None:
    assert available_memory_bytes(tmp_path, tmp_path) > 1 << 60
