"""Files of lines: texts that people bring, logs that grow, and JSONL whose lines belong to steps."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cclm.errors import ConfigError
from cclm.files.atomic import sync

BLOCK_BYTES = 2**16


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, in bounded memory; a line ends at \\n (or \\r\\n) only.
    ConfigError: it cannot be read, or a line is not UTF-8 (it is named)."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                # a byte-order mark, as editors on Windows write it, is no part of the text
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                yield text.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        encoding = "UTF-16" if number == 1 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"
        raise ConfigError(
            where=f"{path}:{number}",
            expected="a text file in UTF-8",
            got=f"byte 0x{error.object[error.start]:02x} at position {error.start} of the line",
            do=f"Convert it, as with iconv -f {encoding} -t UTF-8.",
        ) from error
    except OSError as error:
        raise ConfigError(
            where=str(path), expected="a text file", got=str(error.strerror), do="Correct the path."
        ) from error


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


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file in a single write, so that several processes may add to it.
    OSError: with the file's name; what a full disk leaves of a line, no reader takes for one."""
    data = (json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8", "backslashreplace")
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        while data:  # a disk that is nearly full takes a part, and refuses only the next one
            data = data[os.write(descriptor, data) :]
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


class StepLines:
    """A JSONL file that a resumed run continues without repeating a line: its steps never decrease."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line {"step": step, …}; see `append_line`."""
        append_line(self.path, {"step": step, **values})

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
