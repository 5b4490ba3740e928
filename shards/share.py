"""A task's share of a build. Standard library only: the command line reads it."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class Share:
    """Task `number` of `of`, counted from 0 as Slurm does with `--array=0-N`."""

    number: int
    of: int


WHOLE: Final = Share(number=0, of=1)


def read_share(text: str) -> Share:
    """Return the share that a command line names as "I/N"."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return Share(number=int(match[1]), of=int(match[2]))
