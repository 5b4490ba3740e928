"""Any number of processes and tasks write the bytes of one process, and so does a build that was killed anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cclm.errors import ConfigError, DataError
from cclm.shardfile.manifest import Manifest
from cclm.shardfile.verify import find_faults
from shards.build import build_sets
from shards.scan import Share
from tests.unit.shards.conftest import no_waiting_for_the_disk
from tests.unit.shards.tiny_corpora import bytes_below, count_and_make, image_plan, text_plan, unlike_plan

__all__ = ["no_waiting_for_the_disk"]
REPOSITORY = Path(__file__).parents[2]


def plans() -> Any:
    return [image_plan(bad=(3, 11)), text_plan(), unlike_plan()]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("one")
    build_sets(plans(), out, workers=1, command="test")
    return bytes_below(out)


def test_few_open_files_write_the_bytes_of_many(
    tmp_path: Path, one_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.write.MOST_OPEN", 1)
    build_sets(plans(), tmp_path, workers=1, command="test")
    assert bytes_below(tmp_path) == one_process


@pytest.mark.slow
def test_three_processes_write_the_bytes_of_one(tmp_path: Path, one_process: Path) -> None:
    build_sets(plans(), tmp_path, workers=3, command="test")
    assert bytes_below(tmp_path) == one_process
    assert [name for name in one_process if name.endswith(".tar")] == [
        *(f"images/images-00000{number}.tar" for number in range(4)),
        *(f"texts/texts-00000{number}.tar" for number in range(3)),
        *(f"unlike/unlike-00000{number}.tar" for number in range(2)),
    ]
    assert not any(list(find_faults(tmp_path / plan.name)) for plan in plans())
    # What is compared byte by byte holds these counts, too.
    skipped = {plan.name: Manifest.load(tmp_path / plan.name).config["skipped"] for plan in plans()}
    unlike = {"lines": {"it": 9, "ja": sum(range(9)) + 1}, "more": {"it": 6, "th": 2}}
    assert skipped == {"images": {}, "texts": {}, "unlike": unlike}


@pytest.mark.slow
@settings(max_examples=4, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False), st.integers(0, 3), st.sampled_from([0, 1, 2, 3]))
def test_tasks_in_any_order_and_again_write_the_bytes_of_one(
    tmp_path_factory: pytest.TempPathFactory, one_process: Path, tasks: Any, draw: Any, again: Any, shares: Any
) -> None:
    out = tmp_path_factory.mktemp("tasks")
    numbers = [*range(tasks), *(draw.randrange(tasks) for _ in range(again))]
    draw.shuffle(numbers)
    for number in numbers:
        build_sets(plans(), out, share=Share(number=number, of=tasks))
    for number in range(shares):
        assert build_sets(plans(), out, reads=False, share=Share(number=number, of=shares)) == {}
    build_sets(plans(), out, reads=False, command="test")
    assert bytes_below(out) == one_process


@pytest.mark.slow
def test_tasks_of_two_processes_and_another_number_of_tasks_midway(tmp_path: Path, one_process: Path) -> None:
    build_sets(plans(), tmp_path, share=Share(number=1, of=2), workers=2)
    for number in range(3):
        build_sets(plans(), tmp_path, share=Share(number=number, of=3))
    build_sets(plans(), tmp_path, reads=False, workers=2, command="test")
    assert bytes_below(tmp_path) == one_process


def test_a_merge_names_what_the_tasks_have_left(tmp_path: Path) -> None:
    build_sets([text_plan()], tmp_path, share=Share(number=0, of=2))
    with pytest.raises(ConfigError) as caught:
        build_sets([text_plan()], tmp_path, reads=False)
    assert "expected tasks that have read all of the corpus, got 1 of 2 parts that are not finished (rest" in str(
        caught.value
    )
    assert "Run the tasks that failed again (`shards build … --task I/N`), then merge." in str(caught.value)
    assert not (tmp_path / "texts" / "manifest.json").exists()


@pytest.mark.slow
def test_a_worker_that_dies_is_named_and_what_is_finished_is_kept(tmp_path: Path, one_process: Path) -> None:
    plan = image_plan(bad=(3, 11))
    records = list(plan.parts[0].read())
    fatal = [*records[:-1], replace(records[-1], make=partial(os._exit, 1))]
    with pytest.raises(DataError) as caught:
        build_sets([replace(plan, parts=[replace(plan.parts[0], read=partial(iter, fatal))])], tmp_path, workers=2)
    assert caught.value.reason == "worker_died"
    build_sets([plan], tmp_path, command="test")
    assert bytes_below(tmp_path) == {name: data for name, data in one_process.items() if name.startswith("images/")}


class Stopped(BaseException):
    """What Control-C does, at a place of our choice."""


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> Any:
    """Let the build stop when it has made `number` files durable (every step of it ends in that)."""
    left = [number]

    def fsync(_descriptor: Any) -> None:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1

    monkeypatch.setattr(os, "fsync", fsync)
    return left


@pytest.mark.slow
def test_a_build_stopped_at_any_durable_write_goes_on_with_the_same_bytes(
    tmp_path: Path, one_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        left = stop_after(patch, 10**6)
        build_sets(plans(), tmp_path / "whole", command="test")
    total = 10**6 - left[0]
    assert total > 90
    for number in range(0, total, 23):
        out = tmp_path / f"after-{number}"
        with monkeypatch.context() as patch:
            stop_after(patch, number)
            with pytest.raises(Stopped):
                build_sets(plans(), out, command="test")
        build_sets(plans(), out, command="test")
        assert bytes_below(out) == one_process, number


def test_what_a_build_has_finished_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    plan = image_plan()
    counted = [replace(lazy, make=partial(count_and_make, made, lazy)) for lazy in plan.parts[0].read()]
    plan = replace(plan, parts=[replace(plan.parts[0], read=partial(iter, counted))])
    with monkeypatch.context() as patch:
        stop_after(patch, 30)
        with pytest.raises(Stopped):
            build_sets([plan], tmp_path)
    build_sets([plan], tmp_path)
    assert len(made) <= 20 + plan.recipe.chunk_records


KILLED = """
import os, signal, sys
from pathlib import Path
from shards.build import build_sets
from shards.scan import Share
from tests.parity.test_shard_build import plans

left = [int(sys.argv[2])]

def fsync(descriptor):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync
out = Path(sys.argv[1])
if sys.argv[3] == "tasks":
    for number in range(3):
        build_sets(plans(), out, share=Share(number=number, of=3))
    build_sets(plans(), out, reads=False, command="test")
else:
    build_sets(plans(), out, command="test")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "tasks"])
def test_a_build_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, one_process: Path, how: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    deaths = 0
    for life in range(20):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(37 + 3 * life), how]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
        deaths += 1
    assert deaths >= 3
    assert bytes_below(tmp_path / "out") == one_process


@pytest.mark.slow
def test_workers_die_with_their_build_and_two_builds_never_meet(tmp_path: Path) -> None:
    program = (
        "import sys; from dataclasses import replace; from functools import partial; from pathlib import Path\n"
        "from shards.build import build_sets\n"
        "from tests.parity.test_shard_build import say_and_sleep\n"
        "from tests.unit.shards.tiny_corpora import image_plan\n"
        "plan, place = image_plan(shards=2), Path(sys.argv[1])\n"
        "slow = [replace(d, make=partial(say_and_sleep, place)) for d in plan.parts[0].read()]\n"
        "plan = replace(plan, parts=[replace(plan.parts[0], read=partial(iter, slow))])\n"
        "if __name__ == '__main__':\n"
        "    build_sets([plan], place / 'out', workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    for start in (build_sets, partial(build_sets, share=Share(number=0, of=2))):
        with pytest.raises(ConfigError, match="expected no other build in this folder, got one that is running"):
            start([image_plan(shards=2)], tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    until(lambda: not any(is_running(worker) for worker in workers))


def say_and_sleep(folder: Path) -> None:
    (folder / f"worker-{os.getpid()}").touch()
    time.sleep(600)


def is_running(pid: int) -> Any:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def until(condition: Callable[[], Any]) -> None:
    give_up = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


@pytest.mark.parametrize("left", [".images-000001.index.arrow.12345.partial", ".build/chunks/.000000-000000.9.images"])
def test_temporary_files_of_a_killed_build_go(tmp_path: Path, one_process: Path, left: str) -> None:
    path = tmp_path / "images" / left
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    build_sets(plans(), tmp_path, command="test")
    assert bytes_below(tmp_path) == one_process


def test_a_kill_between_the_manifest_and_the_end_leaves_nothing(
    tmp_path: Path, one_process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_path: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", stop)
        with pytest.raises(Stopped):
            build_sets(plans()[:1], tmp_path, command="test")
    assert (tmp_path / "images" / ".build").exists()
    build_sets(plans(), tmp_path, command="test")
    assert bytes_below(tmp_path) == one_process
