from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest

from cclm.distributed.bandwidth import leaders_of, pairs_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_pair_meets_once_and_nobody_twice_in_a_round(count: int) -> None:
    rounds = list(pairs_of(count))
    assert sorted(tuple(sorted(pair)) for pairs in rounds for pair in pairs) == list(combinations(range(count), 2))
    assert all(len({player for pair in pairs for player in pair}) == 2 * len(pairs) for pairs in rounds)


def test_the_first_rank_of_each_machine_leads() -> None:
    assert leaders_of(["n1", "n1", "n2", "n2", "n3"]) == [0, 2, 4]


@pytest.mark.slow
def test_two_ranks_measure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch", "run", "--ranks", "2", "--run-folder", str(tmp_path / "run"), "--"]
    command += [
        "bash",
        "-c",
        f'CCLM_ATTEMPT=4 SLURMD_NODENAME=n$RANK exec "{sys.executable}" -m cclm.distributed.bandwidth "$0" 110',
        str(tmp_path),
    ]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)
    found = json.loads((tmp_path / "preflight/4/bandwidth.json").read_text())
    assert found["bytes_per_s"] > 0
    ((first, second, speed),) = found["pairs"]
    assert (first, second) == ("n0", "n1")
    assert speed > 0
