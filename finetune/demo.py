"""`python -m finetune.demo`: fine-tuning on real data, behind `make demo`: two tasks, 20 languages, three seeds.

    data ─► before ─► retrieval ─► few-shot ─► statements ─► few-shot ─► tables ─► galleries

Trained in English, tested in 20 other languages (zero-shot); then a few rows in each of these (few-shot). Every stage
is a public command that this file only calls, prints and times; after a stop the same command goes on.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from cclm.evaluate.published import AVERAGE
from cclm.files.command_line import Parser, open_output
from cclm.files.reading import read_json
from cclm.files.text import table
from cclm.report.stages import Stage, run_stages
from finetune.demo_data import SHOTS

IMAGES: Final = Path("data/demo")
DATA: Final = Path("data/demo-finetune")
TABLE_NAME: Final = "table.json"
METRICS: Final = ("t2i_r1", "t2i_r10", "accuracy")
CHANCE: Final = {"t2i_r1": 0.06, "t2i_r10": 0.63, "accuracy": 50.0}
"""In percent: of 1,579 images, and of yes and no in equal parts."""
FEW_SHOT: Final = {
    "finetune.protocol": "few-shot",
    "finetune.shots": f"{SHOTS}x20",
    "finetune.name": "demo",
    "finetune.epochs": "6",
    "optimizer.learning_rate": "2.0e-4",
}
"""From the English fine-tuned model of the same seed, on a few rows in each of 20 languages together. The epoch is not
chosen: rows in these languages to choose it on would be more than it learns from."""


def plan(run: Path, model: Path, *, seeds: int) -> list[Stage]:
    """List the stages of a fine-tuning demonstration in `run`, of the pre-trained `model`."""
    folder, many = shlex.quote(str(run)), f"--seeds {seeds} --ranks 2"
    of_model = shlex.join(["--start.sources", json.dumps([str(model)])])
    retrieval = f"{many} {_words({**FEW_SHOT, **_few_images(run)})}"
    statements = f"{many} {_words({**FEW_SHOT, **_few_statements(run)})}"
    compared = f"--baseline {shlex.quote(model.name)}:zero-shot --no-published --metric {' '.join(METRICS)}"

    stages = {
        "data": ("statements about pairs of images, few-shot rows, a test set", f"finetune.demo_data {IMAGES} {DATA}"),
        "before": (
            "retrieval before any fine-tuning",
            f"launch run --ranks 2 --run-folder {folder}/before -- python -m finetune --recipe demo_retrieval "
            f"--run_folder {folder}/before --finetune.epochs 0 {of_model}",
        ),
        "retrieval": (
            "fine-tuned on images with English names; tested on an artist never seen",
            f"finetune --recipe demo_retrieval --run_folder {folder}/retrieval {many} {of_model}",
        ),
        "retrieval few-shot": (
            "some images with a name in each language",
            f"finetune --recipe demo_retrieval {retrieval}",
        ),
        "statements": (
            "is one of two images called so? Fine-tuned in English, on other concepts than those of the test",
            f"finetune --recipe demo_statements --run_folder {folder}/statements {many} {of_model}",
        ),
        "statements few-shot": ("some statements in each language", f"finetune --recipe demo_statements {statements}"),
        "tables": (
            "all runs, per language, with significance; what fine-tuning in English changed in each language",
            f"finetune table {folder} {compared} --format json html --to {folder}/{TABLE_NAME} {folder}/table.html",
            f"finetune forgetting {folder}/before {folder}/retrieval {folder}/retrieval-few_shot --metric t2i_r10 "
            f"--format html --to {folder}/forgetting.html",
        ),
        "galleries": (
            "best, worst and most surprising answers, as pages",
            f"finetune gallery {folder}/statements/seed_42 --to {folder}/statements.html",
            f"finetune gallery {folder}/retrieval/seed_42 --to {folder}/retrieval.html",
        ),
    }
    return [
        Stage(
            name=name, explanation=explanation, commands=tuple(commands), home=run, is_always_called=name in _GO_ON,
            is_done=partial(_is_done, run, name),
        )
        for name, (explanation, *commands) in stages.items()
    ]  # fmt: skip


_GO_ON: Final = ("retrieval", "retrieval few-shot", "statements", "statements few-shot")
"""Stages whose commands know themselves what is done."""


def _is_done(run: Path, name: str) -> bool:
    """Return whether a stage's product is there; tables and pages are quick, and made anew."""
    products = {"data": DATA / "retrieval-few_shot" / "manifest.json", "before": run / "before" / "done.json"}
    return name in products and products[name].exists()


def _few_images(run: Path) -> dict[str, str]:
    return {
        "run_folder": str(run / "retrieval-few_shot"),
        "start.sources": json.dumps([str(run / "retrieval" / "seed_{seed}")]),
        "finetune.rerank_top_k": "0",
        "finetune.dev_sets": "{}",
        "views.image_text.sources": json.dumps({"few": {"path": str(DATA / "retrieval-few_shot")}}),
        "views.image_text.languages": "null",
        "views.image_text.batch_size": "64",
    }


def _few_statements(run: Path) -> dict[str, str]:
    from finetune.demo_data import LANGUAGES

    files = {one: {"path": f"marvl/few_shot/annotations/marvl-{one}_train{SHOTS}.jsonl"} for one in LANGUAGES}
    return {
        "run_folder": str(run / "statements-few_shot"),
        "start.sources": json.dumps([str(run / "statements" / "seed_{seed}")]),
        "views.classify.sources": json.dumps(files),
        "views.classify.dev": "{}",
        "views.classify.batch_size": "64",
    }


def _words(settings: Mapping[str, str]) -> str:
    return shlex.join([word for key, value in settings.items() for word in (f"--{key}", value)])


def summary(run: Path) -> str:
    """Return the tables in short: English and the average over the other languages, with chance beside."""
    return "\n\n".join(_short(one) for one in read_json(run / TABLE_NAME, []))


def _short(one: Mapping[str, Any]) -> str:
    head = ("", "English", f"mean of {len(one['languages']) - 1} other languages")
    rows = [[_row_title(row), *(_cell(row, name) for name in ("en", AVERAGE))] for row in one["rows"]]
    title = f"{one['task']}, {one['metric']} in % (mean ± deviation over seeds; chance {CHANCE[one['metric']]:g})"
    return f"{title}\n{table(head, rows)}"


def _row_title(row: Mapping[str, Any]) -> str:
    shots = f" {row['shots']}" if row["shots"] else ""
    return f"{row['protocol']}{shots}" + (f", re-ranked {row['reranked']}" if row["reranked"] else "")


def _cell(row: Mapping[str, Any], name: str) -> str:
    cell, comparison = row["cells"].get(name), row["comparisons"].get(name)
    if cell is None:
        return "–"
    deviation = "" if cell["deviation"] is None else f" ± {cell['deviation']:.1f}"
    mark = f" ({comparison['difference']:+.1f} to zero-shot, p {comparison['p_bootstrap']:.4f})" if comparison else ""
    return f"{cell['mean']:.1f}{deviation}{mark}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit code is that of the first stage that fails."""
    parser = Parser(prog="python -m finetune.demo", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("runs/demo"), help="what `make demo` pre-trained")
    parser.add_argument("--run", type=Path, default=Path("runs/demo-finetune"), help="folder of all runs and tables")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    options = parser.parse(arguments)
    open_output()
    stages = plan(options.run, options.model, seeds=options.seeds)
    return run_stages(stages, options.run, options.run / "table.html", lambda: summary(options.run))


if __name__ == "__main__":
    sys.exit(main())
