"""`python -m pretrain.demo`: the whole system on real data, on one small machine, in one go.

    fetch ─► shards ─► tokenizer ─► pre-train (2 ZeRO-3 ranks) ─► measure ─► verified export ─► report

Every stage is a public command that this file only calls, prints and times. After a stop the same command goes on:
commands that know themselves what is done (fetch, build, pretrain) are always called; measuring and exporting are
skipped only if what is there belongs to the run's newest checkpoint. `--ablation` trains the same recipe without
parallel text.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cclm.errors import CclmError
from cclm.files.atomic import make_folder, replace_text
from cclm.files.command_line import Parser, open_output
from cclm.files.reading import read_json
from cclm.report.facts import PARITY_NAME, RESULTS_NAME, STAGES_NAME
from cclm.run.checkpoints import identify_newest
from cclm.track.progress import spell_duration, stage

DATA = Path("data/demo")
SETS = ("image-train", "image-dev", "image-test", "text-train")
GROUPS = "pretrain/demo_groups.yaml"
STOPPED_CODE = 130
SECONDS_BETWEEN_NOTES = 10.0
"""So much of a stage's time is forgotten at most when the demo is killed."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the demo: what a person reads, and the commands that do it."""

    name: str
    """Key of its seconds in stages.json and results.json."""
    explanation: str
    commands: tuple[str, ...]
    """As a person types them, after `python -m`."""
    home: Path
    """Folder whose stages.json remembers its time: the data's, or the run's."""
    is_done: Callable[[], bool] = lambda: False
    """Whether an earlier attempt has done it; asked when its turn comes."""
    is_always_called: bool = False
    """Call the commands even then: they look closer, refuse what contradicts, and are quick."""
    outdates: Path | None = None
    """A file that says something about this stage's product, and goes when that is made anew."""

    @property
    def command(self) -> str:
        """Its commands, one a line."""
        return "\n".join(f"python -m {command}" for command in self.commands)


def plan(run: Path, *, ablation: bool, seed: int, overrides: Sequence[str] = ()) -> list[Stage]:
    """List the stages of a demo run in `run`."""
    folder, data = shlex.quote(str(run)), shlex.quote(str(DATA))
    without = "--views.text_pair null " if ablation else ""
    train = f"pretrain --recipe demo {without}--run_folder {folder} --seed {seed} {shlex.join(overrides)}".rstrip()
    return [
        *data_stages(data),
        Stage(
            name="train",
            explanation="from scratch on two DeepSpeed ZeRO-3 ranks: ITC, ITM and MLM on English captions"
            + ("" if ablation else "; TTC, TTM and MLM on sentence pairs"),
            commands=(f"launch run --ranks 2 --run-folder {folder} -- python -m {train}",),
            home=run,
            is_done=(run / "done.json").exists,
            is_always_called=True,
        ),
        Stage(
            name="measure",
            explanation="zero-shot retrieval of images by an artist never seen, in 25 languages",
            commands=(
                f"cclm.cli evaluate {folder} --shards {data}/image-test --groups {GROUPS} "
                f"--choose-rerank-on {data}/image-dev --rerank-groups english parallel_non_latin "
                f"--out {shlex.quote(str(run / RESULTS_NAME))}",
            ),
            home=run,
            is_done=lambda: is_measured(run),
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


def is_measured(run: Path) -> bool:
    """Return whether results and gallery are there, of the newest checkpoint, on the demo's test set."""
    newest = identify_newest(run)
    results = read_json(run / RESULTS_NAME, {})
    return (
        newest is not None
        and (results.get("model") or {}).get("checkpoint") == newest.identity
        and (results.get("set") or {}).get("shards") == str(DATA / "image-test")
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
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--run", type=Path, default=None, help="run folder; default runs/demo or runs/demo-ablation")
    parser.add_argument(
        "overrides", nargs="*", help="after --: overrides for the training, such as --optimizer.total_steps 100"
    )
    options = parser.parse(arguments)
    open_output()
    run = options.run or Path("runs/demo-ablation" if options.ablation else "runs/demo")
    began = time.monotonic()
    try:
        for item in plan(run, ablation=options.ablation, seed=options.seed, overrides=options.overrides):
            code = run_stage(item, run)
            if code:
                sys.stderr.write(f"error: stage {item.name} ended with code {code}; see above\n")
                return code
        from cclm.evaluate.tables import text_table

        sys.stdout.write(f"\n{text_table(read_json(run / RESULTS_NAME, {}))}\n")
        sys.stdout.write(f"\nDone in {spell_duration(time.monotonic() - began)}. Open {run / 'report.html'}\n")
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on\n")
        return STOPPED_CODE
    except CclmError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run_stage(item: Stage, run: Path) -> int:
    """Print, run and time one stage.

    Raises:
        KeyboardInterrupt: somebody stopped it; its child has ended.
    """
    stage("Pre-train" if item.name == "train" else item.name.title(), item.explanation)
    before = read_rows(item.home).get(item.name, {})
    is_same = before.get("command", item.command) == item.command
    before = before if is_same else {}
    is_done = item.is_done()
    if is_done and is_same and not item.is_always_called:
        sys.stdout.write("  done before\n")
        note_stage(run, item, seconds=before.get("seconds"), is_finished=True)
        return 0
    if item.outdates is not None:
        item.outdates.unlink(missing_ok=True)
    # Time adds up over the attempts of a stage; another look at what is done costs seconds that nobody wants to know.
    is_repeated = is_done and item.is_always_called and before.get("finished", True)
    earlier = 0.0 if before.get("finished", True) else before.get("seconds") or 0.0
    began = time.monotonic()

    def note(*, is_finished: bool = False) -> None:
        if is_repeated and not is_finished:
            return  # what is done stays so, even if this command line contradicts it and is refused
        spent = before.get("seconds") if is_repeated else earlier + time.monotonic() - began
        note_stage(run, item, seconds=spent, is_finished=is_finished)

    note()
    for command in item.commands:
        sys.stdout.write(f"  $ python -m {command}\n")
        sys.stdout.flush()
        code = run_command(command, note)
        if code:
            note()
            return code
    note(is_finished=True)
    return 0


def run_command(command: str, on_wait: Callable[[], None]) -> int:
    """Run `python -m command` with this interpreter to its end, whatever the keyboard says; return its exit code.

    Raises:
        KeyboardInterrupt: the keyboard interrupted it. The child, which got the same signal, has ended.
    """
    words = shlex.split(command)
    if "--" in words:  # the "python" behind it means this interpreter too, and nothing that PATH knows
        program = words.index("--") + 1
        words[program] = sys.executable if words[program] == "python" else words[program]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **quiet})
    is_stopped = False
    while True:
        try:
            process.wait(timeout=SECONDS_BETWEEN_NOTES)
            break
        except subprocess.TimeoutExpired:
            on_wait()
        except KeyboardInterrupt:  # it may be saving: a second one hurries it, and it ends in any case
            is_stopped = True
    if is_stopped:
        on_wait()
        raise KeyboardInterrupt
    return process.returncode


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a folder's stages.json by name."""
    return {row["name"]: row for row in read_json(folder / STAGES_NAME, [])}


def note_stage(run: Path, item: Stage, *, seconds: float | None, is_finished: bool) -> None:
    """Remember what a stage ran and how long it took: stages.json for the report, and `seconds` in results.json."""
    spent = None if seconds is None else round(seconds, 1)
    row = {"name": item.name, "command": item.command, "seconds": spent, "finished": is_finished}
    for folder in {item.home, run}:  # the data's stages stand in the run's list as well
        rows = {**read_rows(folder), item.name: row}
        make_folder(folder)
        replace_text(folder / STAGES_NAME, json.dumps(list(rows.values()), indent=1) + "\n")
    path = run / RESULTS_NAME
    results = read_json(path, None)
    if is_finished and results is not None:
        known = {name: row["seconds"] for name, row in read_rows(run).items() if row["seconds"] is not None}
        results["seconds"] = {**results.get("seconds", {}), **known}
        replace_text(path, json.dumps(results, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
