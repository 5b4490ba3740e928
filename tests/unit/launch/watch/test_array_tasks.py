from __future__ import annotations

from launch.slurm.jobs import JobNow
from launch.watch.status import count_tasks


def test_every_task_is_in_one_place() -> None:
    states = {1: "RUNNING", 2: "PENDING", 3: "FAILED", 4: "COMPLETED", 6: "COMPLETING"}
    jobs = [JobNow(job=f"7_{number}", state=state) for number, state in states.items()]
    found = count_tasks(8, {0: 0, 1: 1, 3: 9, 4: 0}, jobs)
    assert found.done == (0, 4)
    assert found.running == (1, 6), "it failed before, and is being tried again"
    assert (found.waiting, found.failed, found.silent) == ((2,), (3,), (5, 7))
    assert str(found) == "2 done, 2 running, 1 failed, 1 waiting, 2 without a word"
    assert found.failed_in_words() == "failed: 3; without a word: 5,7"
    assert count_tasks(2, {0: 0, 1: 0}, []).failed_in_words() == ""
