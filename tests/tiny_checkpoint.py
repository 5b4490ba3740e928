"""A complete checkpoint with one file, for tests that need nothing in it."""

from __future__ import annotations

from pathlib import Path

from cclm.run.checkpoints import Marker, list_files, record_file, step_folder, write_marker


def write_checkpoint(run: Path, step: int, content: str) -> Path:
    """Write `run`/checkpoints/step_…; equal content and step give equal bytes."""
    folder = step_folder(run, step)
    folder.mkdir(parents=True)
    (folder / "weights").write_text(content)
    files = {name: record_file(folder / name) for name in list_files(folder)}
    write_marker(folder, Marker(step=step, world_size=1, files=files))
    return folder
