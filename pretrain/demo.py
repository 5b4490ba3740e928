"""`python -m pretrain.demo`: the whole system on real data, on one small machine, in one go.

    fetch ─► shards ─► tokenizer ─► pre-train (2 ZeRO-3 ranks) ─► measure ─► export with proof ─► report

Every stage is a public command that this file only calls, prints and times; what a killed run has finished is not
done again. `--ablation` trains the same recipe without parallel text.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.track.atomic import replace_text
from cclm.track.progress import spell_duration, stage

DATA = Path("data/demo")
GROUPS = "pretrain/demo_groups.yaml"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the demo: what a person reads, and the commands that do it."""

    name: str
    """Key of its seconds in stages.json and results.json."""
    title: str
    explanation: str
    commands: tuple[tuple[str, ...], ...]
    """Arguments after `python -m`."""
    product: Path | None = None
    """Where this exists already, the stage is skipped."""


def plan(run: Path, *, ablation: bool, seed: int, overrides: Sequence[str] = ()) -> list[Stage]:
    """List the stages of a demo run in `run`."""
    recipe = "demo_ablation" if ablation else "demo"
    train = ("pretrain", "--recipe", recipe, "--run_folder", str(run), "--seed", str(seed), *overrides)
    return [
        Stage(
            name="fetch",
            title="Fetch",
            explanation="pinned npm packages with emoji of six artists and their CLDR names, verified by hash",
            commands=(("shards", "fetch-demo", "--to", str(DATA / "cache")),),
        ),
        Stage(
            name="shards",
            title="Shards",
            explanation="render the pictures; write image-text and parallel-text WebDataset shards; count them",
            commands=(
                ("shards", "build", "shards/recipes/demo.yaml", "--out", str(DATA), "--workers", "2"),
                ("shards", "stats", str(DATA)),
                (
                    *("shards", "tokenizer", str(DATA / "text-train"), str(DATA / "image-train")),
                    *("--out", str(DATA / "tokenizer"), "--vocab-size", "14000"),
                ),
            ),
            product=DATA / "tokenizer" / "tokenizer.json",
        ),
        Stage(
            name="train",
            title="Pre-train",
            explanation="from scratch on two DeepSpeed ZeRO-3 ranks: ITC, ITM and MLM on English captions"
            + ("" if ablation else "; TTC, TTM and MLM on sentence pairs"),
            commands=(("launch", "run", "--ranks", "2", "--run-folder", str(run), "--", "python", "-m", *train),),
            product=run / "done.json",
        ),
        Stage(
            name="measure",
            title="Measure",
            explanation="zero-shot retrieval of pictures by an artist never seen, in 25 languages",
            commands=(
                (
                    *("cclm.cli", "evaluate", str(run), "--shards", str(DATA / "image-test"), "--groups", GROUPS),
                    *("--choose-rerank-on", str(DATA / "image-dev"), "--out", str(run / "results.json")),
                ),
            ),
            product=run / "gallery.json",
        ),
        Stage(
            name="export",
            title="Export",
            explanation="a Hugging Face folder, loaded again by a fresh process that has no cclm",
            commands=(("cclm.cli", "export", str(run), "--to", str(run / "export")),),
            product=run / "export" / "parity.json",
        ),
        Stage(
            name="report",
            title="Report",
            explanation="one self-contained page: curves, recall by language, a gallery, the data card",
            commands=(("cclm.cli", "report", str(run)),),
        ),
    ]


def main() -> int:
    """Run the demo; the exit code is that of the first stage that fails."""
    parser = argparse.ArgumentParser(prog="python -m pretrain.demo", description=__doc__)
    parser.add_argument("--ablation", action="store_true", help="leave the parallel text out")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run", type=Path, default=None, help="run folder; default runs/demo or runs/demo-ablation")
    parser.add_argument(
        "overrides", nargs="*", help="after --: overrides for the training, such as --optimizer.total_steps 100"
    )
    options = parser.parse_args()
    run = options.run or Path("runs/demo-ablation" if options.ablation else "runs/demo")
    run.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    for item in plan(run, ablation=options.ablation, seed=options.seed, overrides=options.overrides):
        code = carry_out(item, run)
        if code:
            sys.stderr.write(
                f"error: stage {item.name} ended with code {code}; mend it and run the same command again\n"
            )
            return code
    sys.stdout.write(f"\nDone in {spell_duration(time.monotonic() - began)}. Open {run / 'report.html'}\n")
    return 0


def carry_out(item: Stage, run: Path) -> int:
    """Print, run and time one stage."""
    stage(item.title, item.explanation)
    if item.product is not None and item.product.exists():
        sys.stdout.write(f"  already there: {item.product}\n")
        return 0
    began = time.monotonic()
    for command in item.commands:
        sys.stdout.write("  $ python -m " + shlex.join(command) + "\n")
        sys.stdout.flush()
        code = subprocess.run([sys.executable, "-m", *command], check=False, env=environment()).returncode
        if code:
            return code
    note_stage(run, item, time.monotonic() - began)
    return 0


def environment() -> dict[str, str]:
    """Quiet the libraries' own chatter."""
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def note_stage(run: Path, item: Stage, seconds: float) -> None:
    """Remember what a stage ran and how long it took: stages.json for the report, and `seconds` in results.json."""
    path = run / "stages.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    command = "\n".join("python -m " + shlex.join(command) for command in item.commands)
    row = {"name": item.name, "command": command, "seconds": round(seconds, 1)}
    rows = [other for other in known if other["name"] != item.name] + [row]
    replace_text(path, json.dumps(rows, indent=1) + "\n")
    path = run / "results.json"
    if path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
        results["seconds"] = {row["name"]: row["seconds"] for row in rows}
        replace_text(path, json.dumps(results, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
