from __future__ import annotations

from pathlib import Path

import pytest

from cclm.errors import Cause
from cclm.run.watch import where_it_stands, write_stacks


@pytest.mark.parametrize(
    ("said", "cause", "place"),
    [
        ("", Cause.HUNG, "it does not even print a traceback"),
        ('(most recent call first):\n  File "a/b.py", line 3 in read\n', Cause.HUNG, "stands in read (a/b.py:3)"),
        (
            '(most recent call first):\n  File "torch/distributed/c10d.py", line 9 in wait\n  File "l", line 1 in f\n',
            Cause.WAITING,
            "waits for other ranks in wait (torch/distributed/c10d.py:9)",
        ),
        (
            '(most recent call first):\n  File "x/deepspeed/utils/nvtx.py", line 33 in wrapped_fn\n',
            Cause.WAITING,
            "waits for other ranks in wrapped_fn (x/deepspeed/utils/nvtx.py:33)",
        ),
        (
            "(most recent call first):\n"
            + "".join(f'  File "a/b.py", line {line} in read\n' for line in range(3))
            + '  File "deepspeed/runtime/zero/stage3.py", line 9 in backward\n',
            Cause.HUNG,
            "stands in read (a/b.py:0)",
        ),
        (
            'Thread 1 (most recent call first):\n  File "cclm/distributed/topology.py", line 3 in get\n'
            '  File "cclm/run/watch.py", line 1 in look\n'
            'Thread 2 (most recent call first):\n  File "x/torch/autograd/graph.py", line 5 in run\n',
            Cause.HUNG,
            "stands in run (x/torch/autograd/graph.py:5)",
        ),
        (
            'Thread 1 (most recent call first):\n  File "torch/distributed/c10d.py", line 3 in reduce\n'
            'Thread 2 (most recent call first):\n  File "x/torch/autograd/graph.py", line 5 in run\n',
            Cause.WAITING,
            "waits for other ranks in run (x/torch/autograd/graph.py:5)",
        ),
    ],
)
def test_tracebacks_are_understood(said: str, cause: Cause, place: str) -> None:
    assert where_it_stands(said) == (cause, place)


def test_stacks_are_appended_below_a_line_and_name_this_function(tmp_path: Path) -> None:
    path = tmp_path / "stacks/rank_0.txt"
    texts = [write_stacks(path, f"step {number}") for number in range(2)]
    said = path.read_text()
    assert [line.rpartition(" step ")[2] for line in said.splitlines() if line.startswith("=== ")] == ["0", "1"]
    assert all("in test_stacks_are_appended" in text and text in said for text in texts)


def test_stacks_that_cannot_be_written_are_returned_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "stacks").touch()
    said = write_stacks(tmp_path / "stacks/rank_0.txt", "step 1")
    assert "in test_stacks_that_cannot" in said and "File exists" in said
