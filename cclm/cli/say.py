"""What commands tell the user: lines on standard output, progress on a terminal."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
