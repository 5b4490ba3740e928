"""`python -m pretrain.demo`: the whole system on real data, on one small machine, in one go.

    fetch ─► shards ─► tokenizer ─► pre-train (2 ZeRO-3 ranks) ─► measure ─► verified export ─► report

Every stage is a public command that this file only calls, prints and times. After a stop the same command goes on:
commands that know themselves what is done (fetch, build, pretrain) are always called; measuring and exporting are
skipped only if what is there belongs to the run's newest checkpoint. `--ablation` trains the same recipe without
parallel text; `--second-stage` trains the fusion encoder and its heads alone, on the finished demo's frozen encoders.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cclm.files.command_line import Parser, open_output
from cclm.files.reading import read_json
from cclm.report.facts import PARITY_NAME, RESULTS_NAME
from cclm.report.stages import Stage, run_stages
from cclm.run.checkpoints import identify_newest

DATA = Path("data/demo")
SETS = ("image-train", "image-dev", "image-test", "text-train")
GROUPS = "pretrain/demo_groups.yaml"
RUN = Path("runs/demo")
FROZEN = ("vision_encoder", "text_encoder", "image_projection", "text_projection", "temperature")
SECOND_STAGE = (
    *("--start.freeze", json.dumps([f"model.{name}" for name in FROZEN])),
    *("--objectives.hardness", "1.0", "--objectives.hardness_start_step", "0", "--objectives.hardness_full_step", "0"),
    *("--objectives.fusion_warmup_steps", "0", "--optimizer.total_steps", "300"),
)
"""Overrides of the recipe: what the encoders have learnt stays, and wrong pairs are as hard as they find them."""


def plan(run: Path, *, ablation: bool, seed: int, overrides: Sequence[str] = ()) -> list[Stage]:
    """List the stages of a demo run in `run`."""
    data = shlex.quote(str(DATA))
    explanation = "fusion encoder" if SECOND_STAGE[0] in overrides else "from scratch"
    explanation += " on two DeepSpeed ZeRO-3 ranks: ITC, ITM and MLM on English captions"
    return [
        *data_stages(data),
        *run_stages_of(
            run,
            f"demo{' --views.text_pair null' if ablation else ''}",
            seed,
            overrides,
            explanations=(
                explanation + ("" if ablation else "; TTC, TTM and MLM on sentence pairs"),
                "zero-shot retrieval of images by an artist never seen, in 25 languages",
            ),
            measured=f"--shards {data}/image-test --groups {GROUPS} --choose-rerank-on {data}/image-dev "
            "--rerank-groups english parallel_non_latin",
        ),
    ]


def run_stages_of(
    run: Path, recipe: str, seed: int, overrides: Sequence[str], *, explanations: tuple[str, str], measured: str
) -> list[Stage]:
    """List the stages of a demonstration's run, behind those of its data; `explanations`: of training and measuring."""
    folder = shlex.quote(str(run))
    train = f"pretrain --recipe {recipe} --run_folder {folder} --seed {seed} {shlex.join(overrides)}".rstrip()
    return [
        Stage(
            name="train",
            explanation=explanations[0],
            commands=(f"launch run --ranks 2 --run-folder {folder} -- python -m {train}",),
            home=run,
            is_done=(run / "done.json").exists,
            is_always_called=True,
        ),
        Stage(
            name="measure",
            explanation=explanations[1],
            commands=(f"cclm.cli evaluate {folder} {measured} --out {shlex.quote(str(run / RESULTS_NAME))}",),
            home=run,
            is_done=lambda: is_measured(run, Path(shlex.split(measured)[1])),
            outdates=run / PARITY_NAME,  # the exported model card quotes the results
        ),
        Stage(
            name="export",
            explanation="a Hugging Face folder, loaded again by a fresh process that has no cclm",
            commands=(f"cclm.cli export {folder} --to {shlex.quote(str(run / 'export'))}",),
            home=run,
            is_done=lambda: is_exported(run),
        ),
        Stage(
            name="report",
            explanation="one self-contained page: curves, recall by language, a gallery, the data card",
            commands=(f"cclm.cli report {folder}",),
            home=run,
        ),
    ]


def second_stage(first: Path) -> list[str]:
    """Return the overrides of a second stage on a finished demo."""
    return ["--start.sources", json.dumps([str(first / "export")]), *SECOND_STAGE]


def data_stages(data: str) -> list[Stage]:
    """List the stages that make the data, for all runs alike."""
    return [
        Stage(
            name="fetch",
            explanation="pinned npm packages with emoji of six artists and their CLDR names, verified by hash",
            commands=(f"shards fetch-demo --to {data}/cache",),
            home=DATA,
            is_done=(DATA / "cache").exists,
            is_always_called=True,
        ),
        Stage(
            name="shards",
            explanation="render the images; write image-text and parallel-text WebDataset shards; count them",
            commands=(f"shards build shards/recipes/demo.yaml --out {data} --workers 2", f"shards stats {data}"),
            home=DATA,
            is_done=lambda: all((DATA / name / "manifest.json").exists() for name in SETS),
            is_always_called=True,
        ),
        Stage(
            name="tokenizer",
            explanation="one Unigram vocabulary for all languages, from the training texts",
            commands=(
                f"shards tokenizer {data}/text-train {data}/image-train --out {data}/tokenizer --vocab-size 14000",
            ),
            home=DATA,
            is_done=(DATA / "tokenizer" / "tokenizer.json").exists,
        ),
    ]


def is_measured(run: Path, test_set: Path) -> bool:
    """Return whether results and gallery are there, of the newest checkpoint, on this test set."""
    newest = identify_newest(run)
    results = read_json(run / RESULTS_NAME, {})
    return (
        newest is not None
        and (results.get("model") or {}).get("checkpoint") == newest.identity
        and (results.get("set") or {}).get("shards") == str(test_set)
        and (run / "gallery.json").exists()
    )


def is_exported(run: Path) -> bool:
    """Return whether the newest checkpoint was exported with the results that are there."""
    newest = identify_newest(run)
    return newest is not None and all(
        read_json(folder / PARITY_NAME, {}).get("checkpoint") == newest.identity for folder in (run, run / "export")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; the exit code is that of the first stage that fails."""
    parser = Parser(prog="python -m pretrain.demo", description=__doc__)
    parser.add_argument("--ablation", action="store_true", help="leave the parallel text out")
    parser.add_argument(
        "--second-stage",
        type=Path,
        nargs="?",
        const=RUN,
        metavar="RUN",
        help="train the fusion encoder of this demo on",
    )
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run", type=Path, default=None, help="run folder; default runs/demo, or one beside it")
    parser.add_argument(
        "overrides", nargs="*", help="after --: overrides for the training, such as --optimizer.total_steps 100"
    )
    options = parser.parse(arguments)
    open_output()
    first: Path | None = options.second_stage
    if first is not None and not is_exported(first):
        parser.error(f"{first} is no finished demo: run `make demo`, or name one behind --second-stage")
    run = options.run or RUN.with_name(RUN.name + ("-second" if first else "-ablation" if options.ablation else ""))
    overrides = [*(second_stage(first) if first else ()), *options.overrides]

    stages = plan(run, ablation=options.ablation, seed=options.seed, overrides=overrides)
    return run_stages(stages, run, run / "report.html", lambda: results_table(run))


def results_table(run: Path) -> str:
    """Return the table of a measured run."""
    from cclm.evaluate.tables import text_table

    return text_table(read_json(run / RESULTS_NAME, {}))


if __name__ == "__main__":
    sys.exit(main())
