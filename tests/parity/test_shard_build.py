"""The parallel build and its slow twin (one process, in order) write the same bytes; so does a killed build."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cclm.errors import ConfigError, DataError
from cclm.shardfile.verify import find_faults
from shards import build
from shards.build import build_sets
from tests.unit.shards.tiny_corpora import bytes_below, image_plan, text_plan

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    build_sets([image_plan(bad=(3, 11)), text_plan()], out, workers=1, command="test")
    return bytes_below(out)


def test_three_processes_write_the_bytes_of_one(tmp_path, one_process):
    build_sets([image_plan(bad=(3, 11)), text_plan()], tmp_path, workers=3, command="test")
    assert bytes_below(tmp_path) == one_process
    assert [name for name in one_process if name.endswith(".tar")] == [
        *(f"images/images-00000{number}.tar" for number in range(4)),
        *(f"texts/texts-00000{number}.tar" for number in range(3)),
    ]
    assert not list(find_faults(tmp_path / "images")) and not list(find_faults(tmp_path / "texts"))


def test_a_worker_that_dies_is_named_and_finished_shards_are_kept(tmp_path, one_process):
    plan = image_plan(bad=(3, 11))
    last = [replace(draft, make=partial(os._exit, 1)) for draft in plan.shards[3]]
    with pytest.raises(DataError, match="Run the same command again: finished shards are kept") as caught:
        build_sets([replace(plan, shards=[*plan.shards[:3], last])], tmp_path, workers=2, command="test")
    assert caught.value.reason == "worker_died"
    build_sets([plan], tmp_path, command="test")
    assert bytes_below(tmp_path) == {name: data for name, data in one_process.items() if name.startswith("images/")}


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_build_that_stops_goes_on_with_the_same_bytes(tmp_path, one_process, monkeypatch, stop_after):
    built: list[str] = []
    real = build.build_shard

    def build_some(job):
        if len(built) == stop_after:
            raise KeyboardInterrupt
        built.append(job.name)
        return real(job)

    plans = [image_plan(bad=(3, 11)), text_plan()]
    monkeypatch.setattr(build, "build_shard", build_some)
    with pytest.raises(KeyboardInterrupt):
        build_sets(plans, tmp_path, command="test")
    monkeypatch.setattr(build, "build_shard", lambda job: built.append(job.name) or real(job))
    build_sets(plans, tmp_path, command="test")
    assert len(built) == 7  # no shard was built twice
    assert bytes_below(tmp_path) == one_process


def test_a_build_killed_at_any_moment_goes_on_with_the_same_bytes(tmp_path, one_process):
    program = (
        "import sys; from pathlib import Path\n"
        "from shards.build import build_sets\n"
        "from tests.unit.shards.tiny_corpora import image_plan, text_plan\n"
        "report = lambda *_: print('shard', flush=True)\n"
        "build_sets([image_plan(bad=(3, 11)), text_plan()], Path(sys.argv[1]), command='test', on_shard=report)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    for delay_s in (0.0, 0.004, 0.009):
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # the first shard of this run is there
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        for tar in tmp_path.glob("*/[!.]*.tar"):
            assert tar.read_bytes() == one_process[str(tar.relative_to(tmp_path))]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    assert bytes_below(tmp_path) == one_process


def test_workers_end_with_the_build_that_started_them(tmp_path):
    program = (
        "import sys, time; from dataclasses import replace; from functools import partial; from pathlib import Path\n"
        "from shards.build import build_sets\n"
        "from tests.parity.test_shard_build import say_and_sleep\n"
        "from tests.unit.shards.tiny_corpora import image_plan\n"
        "if __name__ == '__main__':\n"
        "    plan, place = image_plan(shards=2), Path(sys.argv[1])\n"
        "    slow = [replace(shard[0], make=partial(say_and_sleep, place)) for shard in plan.shards]\n"
        "    build_sets([replace(plan, shards=[[draft] for draft in slow])], place / 'out', workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(program, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    until(lambda: len(list(tmp_path.glob("worker-*"))) == 2)
    with pytest.raises(ConfigError, match="expected no other build in this folder, got one that is running"):
        build_sets([image_plan(shards=2)], tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    workers = [int(path.name.split("-")[1]) for path in tmp_path.glob("worker-*")]
    until(lambda: not any(is_running(worker) for worker in workers))


def say_and_sleep(folder):
    (folder / f"worker-{os.getpid()}").touch()
    time.sleep(60)


def is_running(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def until(condition):
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_temporary_files_of_a_killed_build_go(tmp_path, one_process):
    left = tmp_path / "images" / ".images-000001.index.arrow.12345.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    build_sets([image_plan(bad=(3, 11)), text_plan()], tmp_path, command="test")
    assert bytes_below(tmp_path) == one_process
