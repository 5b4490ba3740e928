"""What a task is. No torch: a login node lists and checks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learned and measured; its recipe has its name."""

    title: str
    """In a few words."""
    view: str
    """Of the table of views: what a row is, and which head answers."""
    metrics: tuple[str, ...]
    """Of `cclm.evaluate.scores`; the first one chooses the best epoch."""
    draw: Callable[[Path], None]
    """Writes a little data of this form into a folder: images that can be drawn, texts that are about them."""
