"""Everything in this folder needs the cluster of `tests/slurm/cluster.py`: `make test-slurm` starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import NUM_NODES, wait_for_idle
from tests.slurm.jobs import ENVIRONMENT, ROOT, STEPS_ALONE, slurm, tiny
from tests.tiny_run import write_corpus

HERE = Path(__file__).parent
TABLE = pytest.StashKey[list[str]]()
"""What the campaign has to show at the end."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the campaign's table, which a captured test could not."""
    for line in terminalreporter.config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; without a cluster, skip them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)
            if "CCLM_SLURM_CLUSTER" not in os.environ:
                item.add_marker(pytest.mark.skip(reason="no Slurm cluster: `make test-slurm` starts one"))


@pytest.fixture(scope="session")
def cluster() -> Path:
    """The cluster's folder."""
    return Path(os.environ["CCLM_SLURM_CLUSTER"])


@pytest.fixture(autouse=True)
def idle_nodes(request: pytest.FixtureRequest) -> None:
    """Tests say which nodes they get: nothing of the test before is left on any. The campaign is one run over many."""
    if "campaign" not in request.fixturenames:
        slurm("scancel", "--user=root")
        wait_for_idle(request.getfixturevalue("cluster"), NUM_NODES)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny corpus for those who train."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process with the plain engine that runs on several nodes are compared with; eight steps."""
    run = tmp_path_factory.mktemp("alone") / "run"
    recipe = tiny(corpus, run, STEPS_ALONE, engine="plain")
    subprocess.run([sys.executable, "-m", "pretrain", "--recipe", str(recipe)], cwd=ROOT, env=ENVIRONMENT, check=True)
    return run
