"""Text files that people bring, one text a line: UTF-8, and a line ends at \\n (or \\r\\n) only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cclm.errors import ConfigError


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, in bounded memory; other characters that break lines on paper stay inside them.

    Raises:
        ConfigError: it cannot be read, or a line is not UTF-8 (it is named).
    """
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
