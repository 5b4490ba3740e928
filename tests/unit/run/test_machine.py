from __future__ import annotations

import os
from pathlib import Path

import pytest

from cclm.run.machine import Machine, count_gpus, file_system_of, read_quota, this_machine


def machine(cores: int, quota: float | None) -> Machine:
    return Machine(host="h", cores=tuple(range(cores)), quota_cores=quota, num_gpus=0, free_port=1)


@pytest.mark.parametrize(
    ("text", "quota"), [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", None)]
)
def test_container_limit(tmp_path: Path, text: str, quota: float | None) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert read_quota(tmp_path / "cpu.max") == quota


def test_no_container_limit_without_a_file(tmp_path: Path) -> None:
    assert read_quota(tmp_path / "missing") is None


@pytest.mark.parametrize(("cores", "quota", "usable"), [(8, None, 8), (8, 2.5, 2), (8, 0.5, 1), (2, 64.0, 2)])
def test_usable_cores(cores: int, quota: float | None, usable: int) -> None:
    assert machine(cores, quota).num_usable_cores == usable


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({}, 3),
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, 0),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4"}, 3),
    ],
)
def test_gpus_are_device_files_that_cuda_may_see(tmp_path: Path, environment: dict[str, str], count: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert count_gpus(tmp_path, environment) == count


def test_this_machine_offers_only_the_cores_it_may_use() -> None:
    assert set(this_machine().cores) == os.sched_getaffinity(0)


MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
server:/export /mine nfs4 rw 0 0
tmpfs /mine/me/with\\040space tmpfs rw 0 0
scratch@tcp:/one /scratch lustre rw 0 0
tmpfs /scratch tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data", "ext4"),
        ("/mine/me/run", "nfs4"),
        ("/mine/me/with space/run", "tmpfs"),
        ("/mineral", "ext4"),
        ("/scratch/x", "tmpfs"),
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert file_system_of(Path(path), MOUNTS) == kind
