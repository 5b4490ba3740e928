"""Check and measure everything on one GPU, in at most eight minutes.

    python -m benchmarks.gpu --out DIR [--minutes 8] [--only PART] [--dry-run]

Needs torch with CUDA and Triton; what else is missing is said, and the parts that need it are skipped (without
DeepSpeed recipes are measured on the plain engine). Nothing is installed, downloaded or compiled but Triton's kernels.
Writes DIR/gpu.json and DIR/gpu.md after every part; exit code 1 if a check does not hold, 2 if a part could not be run.
`--dry-run` runs every part with tiny shapes on the CPU: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from benchmarks.gpu.parts import PARTS, Outcome, missing, run_parts
from benchmarks.gpu.report import write_report


def main() -> int:
    """Run the parts; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what is found")
    parser.add_argument("--minutes", type=float, default=8.0, help="for the whole")
    parser.add_argument("--only", action="append", choices=[part.name for part in PARTS])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, on the CPU")
    arguments = parser.parse_args()
    if missing([]):
        sys.stderr.write("torch is not installed: a CUDA build of it is what this needs\n")
        return 2
    out: Path = arguments.out.resolve()
    (out / "parts").mkdir(parents=True, exist_ok=True)
    parts = [part for part in PARTS if arguments.only is None or part.name in arguments.only]
    outcomes = list[Outcome]()
    for outcome in run_parts(parts, out, 60 * arguments.minutes, is_dry=arguments.dry_run):
        outcomes.append(outcome)
        sys.stdout.write(f"{outcome.name:18} {outcome.status:12} {outcome.seconds:5.0f} s  {outcome.reason}\n")
        sys.stdout.flush()
        write_report(out, outcomes, is_dry=arguments.dry_run)
    shutil.rmtree(out / "scratch", ignore_errors=True)
    sys.stdout.write(f"{out / 'gpu.md'}\n")
    if any(outcome.status == "failed" for outcome in outcomes):
        return 1
    return 2 if any(outcome.status == "skipped" for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
