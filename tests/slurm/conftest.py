"""Everything in this folder needs the cluster of `tests/slurm/cluster.py`: `make test-slurm` starts it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
