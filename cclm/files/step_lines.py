"""A JSONL file whose lines belong to steps, so that a resumed run continues it without repeating a line."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cclm.files.atomic import sync


class StepLines:
    """Appends one complete line per write; the steps never decrease from line to line.

    Args:
        path: the file; made with the first line.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line {"step": step, …} in a single write.

        Raises:
            OSError: with the file's name; what a full disk leaves of a line, no reader takes for one.
        """
        line = json.dumps({"step": step, **values}, ensure_ascii=False, separators=(",", ":")) + "\n"
        data = line.encode("utf-8", "backslashreplace")
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while data:  # a disk that is nearly full takes a part, and refuses only the next one
                data = data[os.write(descriptor, data) :]
        except OSError as error:
            error.filename = str(self.path)
            raise
        finally:
            os.close(descriptor)

    def sync(self) -> None:
        """Force what was written to disk: call it before a checkpoint that counts on these lines is complete."""
        if self.path.exists():
            sync(self.path)
            sync(self.path.parent)

    def read(self) -> Iterator[dict[str, Any]]:
        """The complete lines in order; a last line that a kill cut short is left out."""
        for line, _ in self._walk():
            yield line

    def last(self) -> dict[str, Any] | None:
        """The last complete line, if there is one."""
        lines = deque(self.read(), maxlen=1)
        return lines[0] if lines else None

    def truncate(self, step: int) -> None:
        """Cut off everything that belongs to `step` or later, and a broken last line."""
        if not self.path.exists():
            return
        keep = 0
        for line, end in self._walk():
            if int(line["step"]) >= step:
                break
            keep = end
        if keep < self.path.stat().st_size:
            os.truncate(self.path, keep)

    def _walk(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each complete line, and the byte offset of its end."""
        if not self.path.exists():
            return
        end = 0
        with self.path.open("rb") as stream:
            for raw in stream:
                end += len(raw)
                if not raw.endswith(b"\n"):
                    return
                try:
                    line = json.loads(raw)
                except ValueError:
                    return
                if not isinstance(line, dict) or not isinstance(line.get("step"), int):
                    return
                yield line, end
