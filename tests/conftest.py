"""What holds for every test."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a machine that stands still for a while is no failure


def pytest_configure() -> None:
    """Programs that tests start hear Ctrl-C and a lost terminal, even where the tests run in a script's background or
    under `nohup`, which ignore them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.disable()


def pytest_xdist_setupnodes() -> None:
    """What hands tests out to two processes collects none itself."""
    gc.enable()


def pytest_collection_finish() -> None:
    """What was imported and collected stays to the end; looking through it for garbage took a quarter of the time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def pytest_runtest_setup() -> None:
    """Whatever tests this process has done before: each, and what it sets up, has torch draw the same numbers (CPU)."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.default_generator.manual_seed(0)  # torch.manual_seed takes milliseconds: it notes the stack, for GPUs


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """Also where another test of the file has had it set up."""
    pytest_runtest_setup()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As on the ranks that a test starts: with more threads, sums are rounded otherwise."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
