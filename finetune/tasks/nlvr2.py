"""NLVR2 alone: is a sentence about two photographs true? Trained and tested in English."""

from __future__ import annotations

from pathlib import Path

from finetune.tasks import marvl
from finetune.tasks.task import Task


def draw(folder: Path) -> None:
    """Write NLVR2's part of the stand-in for MaRVL, with a test file."""
    marvl.draw_nlvr2(folder, ("train", "dev", "test"))


TASK = Task(title="is a sentence about two photographs true?", view="classify", metrics=("accuracy",), draw=draw)
