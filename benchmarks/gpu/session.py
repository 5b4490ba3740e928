"""The process of one part: `python -m benchmarks.gpu.session PART OUT SECONDS [--dry-run]`, started by `parts`."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.parts import PARTS


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a part may ask, and where it writes what it finds."""

    out: Path
    """The folder of the whole check."""
    name: str
    device: torch.device
    is_dry: bool
    """On a CPU, with tiny shapes: only to see that everything runs."""
    deadline: float
    """By `time.monotonic`: it should have ended then."""

    @property
    def left_s(self) -> float:
        """Return how many seconds are left."""
        return self.deadline - time.monotonic()

    @property
    def scratch(self) -> Path:
        """Return a folder for the part's own files: empty at its start, and gone at the end of the check."""
        folder = self.out / "scratch" / self.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def check(self, name: str, found: float, allowed: float) -> bool:
        """Write down a number that must not be larger than another; NaN is."""
        holds = found <= allowed
        self._write(kind="check", name=name, found=found, allowed=allowed, holds=holds)
        return holds

    def row(self, table: str, **cells: Any) -> None:
        """Write down a row of a table; None: not measured here."""
        self._write(kind="row", table=table, cells=cells)

    def note(self, text: str) -> None:
        """Write down a sentence."""
        self._write(kind="note", text=text)

    @contextmanager
    def variant(self, name: str) -> Iterator[None]:
        """What is tried inside may fail, for want of memory or in somebody else's library: that is noted."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            sentence = str(error).strip().split("\n")[0]
            self.note(f"{name}: {type(error).__name__}: {sentence[:200]}")

    def _write(self, **line: Any) -> None:
        path = self.out / "parts" / f"{self.name}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line)) + "\n")


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=[part.name for part in PARTS])
    parser.add_argument("out", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU (--dry-run: tiny shapes on the CPU)")
    if arguments.dry_run:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(1)
    session = Session(
        out=arguments.out,
        name=arguments.part,
        device=torch.device("cpu") if arguments.dry_run else torch.device("cuda", 0),
        is_dry=arguments.dry_run,
        deadline=time.monotonic() + arguments.seconds,
    )
    shutil.rmtree(arguments.out / "scratch" / arguments.part, ignore_errors=True)
    part = next(one for one in PARTS if one.name == arguments.part)
    module, _, function = part.function.partition(":")
    run = getattr(importlib.import_module(module), function)
    run(session, part.argument) if part.argument else run(session)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the end of the interpreter could wait for threads of libraries
