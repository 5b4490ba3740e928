"""Memory that `python -m pretrain check` expects of a rank, beside what ranks of real runs then use, on a CPU.

    python -m benchmarks.forecast [--only NAME] [--json PATH]

Each case is a run of a few steps under `launch run`, with noise images and made-up sentences; "used" is the largest
resident memory of a rank (VmHWM), from its start to its last checkpoint. Other work on the machine changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import add_json_option, write_figures
from cclm.forecast.needs import forecast
from cclm.recipe.read import RECIPES, read_recipe
from cclm.run.machine import process_memory_bytes
from tests.tiny_run import recipe, write_corpus, write_recipe

PEAKS = "peak_{}.json"
"""In a run folder, one of each rank."""
ZERO3 = {"deepspeed": "zero3_cpu"}
LONG = {"activation_checkpointing": dict.fromkeys(("vision", "text", "fusion"), "none")}
FULL = {"activation_checkpointing": dict.fromkeys(("vision", "text", "fusion"), "full")}
CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "plain engine": (1, 16, {"engine": "plain"}),
    "ZeRO stage 1": (2, 16, {"deepspeed": "zero1_fp32"}),
    "ZeRO stage 2": (2, 16, {"deepspeed": "zero2_fp32"}),
    "ZeRO stage 3": (2, 16, ZERO3),
    "ZeRO stage 3, 4 ranks": (4, 16, ZERO3),
    "ZeRO stage 3, bf16": (2, 16, {"deepspeed": "zero3_bf16", "precision": "bf16"}),
    "ZeRO stage 3, frozen towers": (2, 16, {**ZERO3, "start.freeze": ["model.vision_encoder", "model.text_encoder"]}),
    "ZeRO stage 3, large batch, all kept": (2, 256, {**ZERO3, **LONG}),
    "ZeRO stage 3, large batch, blocks repeated": (2, 256, {**ZERO3, **FULL}),
    "ZeRO stage 3, large batch, 4 micro-batches": (2, 256, {**ZERO3, **LONG, "data.micro_batches": 4}),
}
"""Name → ranks, rows of each view, settings."""


def write_case(folder: Path, corpus: Path, rows: int, settings: dict[str, Any]) -> Path:
    """Write the recipe of a case: 57 million parameters, pictures of 64 tokens, sentences of 8."""
    layers = {"num_layers": 4, "num_heads": 8, "feedforward_width": 2048}
    model = {
        "width": 512, "projection_width": 256, "matching_width": 512,
        "vision": {**layers, "architecture": "beit", "image_size": 64, "patch_size": 8},
        "text": {**layers, "max_positions": 8},
        "fusion": {**layers, "num_layers": 6},
    }  # fmt: skip
    whole = recipe(corpus, folder / "run", model=model)
    for view in whole["views"].values():
        view |= {"batch_size": rows, "negative_group": 8, "matching_rows": rows // 2}
    whole["views"]["image_text"]["transform"]["size"] = 64
    whole["optimizer"]["total_steps"], whole["checkpoint"]["every_steps"] = 3, 1
    for key, value in settings.items():
        place, _, last = key.rpartition(".")
        (whole.setdefault(place, {}) if place else whole)[last] = value
    return write_recipe(folder / "recipe.yaml", whole)


def use(path: Path, ranks: int) -> float:
    """Run a recipe; return the megabytes of its largest rank."""
    run = Path(read_recipe(["--recipe", str(path)], RECIPES).run_folder)
    start = [sys.executable, "-m", "launch", "run", "--ranks", str(ranks), "--run-folder", str(run), "--"]
    command = [sys.executable, "-m", "benchmarks.forecast", "--rank-of", str(path)]
    subprocess.run(start + command if ranks > 1 else command, check=True, stdout=subprocess.DEVNULL)
    return max(float(json.loads(one.read_text())) for one in run.glob(PEAKS.format("*")))


def be_rank(path: Path) -> int:
    """Train as `python -m pretrain` does, and write down what it took."""
    from pretrain.__main__ import main as train

    code = train(["--recipe", str(path)])
    run = Path(read_recipe(["--recipe", str(path)], RECIPES).run_folder)
    (run / PEAKS.format(os.environ.get("RANK", "0"))).write_text(json.dumps(process_memory_bytes()[1] / 2**20))
    return code


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--rank-of", type=Path, metavar="RECIPE", help="be a rank of that run")
    add_json_option(parser)
    options = parser.parse_args()
    if options.rank_of is not None:
        sys.stdout.flush()
        os._exit(be_rank(options.rank_of))
    figures: dict[str, dict[str, float]] = {}
    print(f"{'case':44} {'expected MB':>12} {'used MB':>9} {'ratio':>7}")
    with tempfile.TemporaryDirectory() as name:
        corpus = write_corpus(Path(name, "corpus"))
        for number, case in enumerate(options.only or CASES):
            ranks, rows, settings = CASES[case]
            folder = Path(name, str(number))
            folder.mkdir()
            path = write_case(folder, corpus, rows, settings)
            expected = forecast(read_recipe(["--recipe", str(path)], RECIPES), ranks, None, 0.35)
            used = use(path, ranks)
            parts = {part: size / 1e6 for part, size in vars(expected.memory).items() if part != "returns_memory"}
            figures[case] = {"expected_mb": expected.memory_bytes / 1e6, "used_mb": used * 1.048576, **parts}
            one = figures[case]
            one["ratio"] = one["expected_mb"] / one["used_mb"]
            print(f"{case:44} {one['expected_mb']:12,.0f} {one['used_mb']:9,.0f} {one['ratio']:7.2f}", flush=True)
    write_figures(options.json, figures)


if __name__ == "__main__":
    main()
