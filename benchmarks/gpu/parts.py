"""The parts of the check, in the order of their worth: what each needs, how long it may take, and how it is run.

A part runs in a process of its own, so that one that fails, hangs or breaks the GPU's context leaves the others alone.
It writes what it finds line by line into `OUT/parts/NAME.jsonl`; what stands there when its time is over counts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MODEL = ("numpy", "jaxtyping", "transformers", "tokenizers", "safetensors", "pyarrow", "PIL", "yaml")
"""What the network and made-up data need besides torch."""
ALWAYS = ("torch",)
ENDING_S = 5.0
"""A part is told to end so long before it is killed."""
RESERVE_S = 10.0
"""For the report, and for what starts and ends processes."""
CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the check."""

    name: str
    function: str
    """Module and function, which takes a `Session` and `argument`."""
    argument: str = ""
    needs: tuple[str, ...] = ()
    """Modules besides torch."""
    seconds: float
    """Its budget when the whole has eight minutes. What is left over goes to those that come later."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a part."""

    name: str
    status: str
    """"passed", "failed", "out of time" or "skipped"."""
    reason: str = ""
    seconds: float = 0.0
    lines: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    """What it wrote: checks, rows of tables, notes."""


def recipe(name: str, seconds: float) -> Part:
    """Return the part that measures a shipped recipe."""
    needs = (*MODEL, "rich")
    return Part(
        name=name, function="benchmarks.gpu.recipes:measure_recipe", argument=name, needs=needs, seconds=seconds
    )


PARTS = (
    Part(name="machine", function="benchmarks.gpu.machine:look", seconds=20),
    Part(name="kernels", function="benchmarks.gpu.kernels:check", needs=("numpy", "jaxtyping"), seconds=40),
    Part(name="engines", function="benchmarks.gpu.engines:check", needs=(*MODEL, "deepspeed"), seconds=55),
    Part(name="resume", function="benchmarks.gpu.engines:check_resume", needs=(*MODEL, "rich"), seconds=45),
    Part(name="waits", function="benchmarks.gpu.waits:check", needs=(*MODEL, "rich"), seconds=25),
    recipe("cclm_3m", 60),
    Part(name="speed", function="benchmarks.gpu.kernels:measure", needs=("numpy", "jaxtyping"), seconds=45),
    recipe("cclm_x2vlm_base", 45),
    recipe("cclm_x2vlm_large", 50),
    recipe("template", 25),
    recipe("cclm_4m", 40),
    recipe("demo", 20),
)


def missing(modules: Sequence[str]) -> list[str]:
    """Return those that are not installed."""
    return [name for name in (*ALWAYS, *modules) if importlib.util.find_spec(name) is None]


def run_parts(parts: Sequence[Part], out: Path, seconds: float, *, is_dry: bool) -> Iterator[Outcome]:
    """Run one part after the other within so many seconds."""
    deadline = time.monotonic() + seconds - RESERVE_S
    for number, part in enumerate(parts):
        later = sum(one.seconds for one in parts[number + 1 :])
        left = deadline - time.monotonic()
        # what the parts before have saved is for this one; what they have overdrawn is shared by all that are left
        yield run_part(part, out, max(left - later, left * part.seconds / (part.seconds + later)), is_dry=is_dry)


def run_part(part: Part, out: Path, seconds: float, *, is_dry: bool) -> Outcome:
    """Run a part, and end it when its time is over."""
    if lacking := missing(part.needs):
        return Outcome(name=part.name, status="skipped", reason=f"not installed: {', '.join(lacking)}")
    if seconds < 2 * ENDING_S:
        return Outcome(name=part.name, status="skipped", reason="no time left")
    found = out / "parts" / f"{part.name}.jsonl"
    found.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu.session", part.name, str(out), f"{seconds - ENDING_S:.1f}"]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    began = time.monotonic()
    with (out / "parts" / f"{part.name}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*command, *(["--dry-run"] if is_dry else [])], cwd=CHECKOUT, env=environment, stdout=log, stderr=log
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    lines = read_lines(found)
    status, reason = judge(code, lines, out / "parts" / f"{part.name}.log")
    return Outcome(name=part.name, status=status, reason=reason, seconds=time.monotonic() - began, lines=lines)


def judge(code: int | None, lines: Sequence[Mapping[str, Any]], log: Path) -> tuple[str, str]:
    """Return a part's status and the reason for it, from its exit code (None: killed) and what it wrote."""
    wrong = [str(line["name"]) for line in lines if line["kind"] == "check" and not line["holds"]]
    if wrong:
        return "failed", f"does not hold: {'; '.join(wrong)}"
    if code is None:
        return "out of time", "killed; what it had found until then counts"
    if code != 0:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "failed", f"exit code {code}: {said[-1] if said else 'said nothing'} (parts/{log.name})"
    return "passed", ""


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a part's file; one that was being written when it was killed is left out."""
    if not path.exists():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in whole]
