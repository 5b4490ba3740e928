from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_a_seed(one_thread: None) -> None:
    """Tiny tensors gain nothing from threads, and failures must repeat."""
    torch.manual_seed(0)
