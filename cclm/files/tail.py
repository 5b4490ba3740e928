"""The end of a file that grows: its last lines, and what is added, over rotation, truncation and a late beginning."""

from __future__ import annotations

import os
from pathlib import Path

BLOCK_BYTES = 2**16


def last_lines(path: Path, count: int) -> list[str]:
    """Return the last `count` lines of a file, however long it is; bytes that are no UTF-8 are replaced."""
    return _last_bytes(path, count)[0].decode("utf-8", "replace").splitlines()


def read_since(path: Path, start: int, most_bytes: int = BLOCK_BYTES) -> str:
    """Return what was written into a file since it had `start` bytes; of a long text the end."""
    with path.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read().decode("utf-8", "replace")


class Tail:
    """The end of a file, of which each byte is read once; at first the last `num_lines` lines."""

    def __init__(self, path: Path, num_lines: int) -> None:
        self.path = path
        self._inode, self._position = 0, 0
        self._begin = b""
        if path.exists():
            self._begin, self._position = _last_bytes(path, num_lines)
            self._inode = path.stat().st_ino

    def news(self) -> bytes | None:
        """Return what has been added since the last call; None: there is no file. A new or cut file is read whole."""
        begin, self._begin = self._begin, b""
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if stat.st_ino != self._inode or stat.st_size < self._position:
                    self._inode, self._position = stat.st_ino, 0
                file.seek(self._position)
                added = file.read(BLOCK_BYTES)
        except FileNotFoundError:
            return None
        self._position += len(added)
        return begin + added


def _last_bytes(path: Path, count: int) -> tuple[bytes, int]:
    """The last lines, and the place behind them."""
    with path.open("rb") as file:
        size = end = file.seek(0, os.SEEK_END)
        text = b""
        while end > 0 and text.count(b"\n", 0, -1) < count:
            start = max(end - BLOCK_BYTES, 0)
            file.seek(start)
            text, end = file.read(end - start) + text, start
    lines = text.split(b"\n")
    kept = lines[-count - (not lines[-1]) :] if count else []
    return b"\n".join(kept), size
