"""The main thing: a recipe trains with ZeRO-3 on two nodes × two ranks, and the losses are those of one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.slurm.jobs import STEPS_ALONE, attempts, ended, exact_values, launch, losses, read_done, said, submit, tiny

STEPS = STEPS_ALONE


def test_two_nodes_with_two_ranks_train_like_one_process(corpus: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(tiny(corpus, run, STEPS), "--nodes", "2", "--tasks-per-node", "2")
    assert ended(job, run) == "COMPLETED", said(run)
    assert read_done(run) == STEPS
    assert attempts(run)[-1].reason == f"done at step {STEPS}"
    statuses = [json.loads(path.read_text()) for path in sorted((run / "status").glob("rank_*.json"))]
    assert [status["host"] for status in statuses] == ["n1", "n1", "n2", "n2"]
    assert "preflight: all-reduce over 4 ranks" in said(run)
    assert "preflight: 2 node(s) healthy" in said(run)
    zero = json.loads((run / "ds_config.json").read_text())["zero_optimization"]
    assert zero["stage"] == 3

    together, single = losses(run), losses(alone)
    assert list(together) == list(single) == list(range(STEPS))
    for step, loss in single.items():
        assert together[step] == pytest.approx(loss, rel=1e-4), step
    assert (run / "ledger.jsonl").read_bytes() == (alone / "ledger.jsonl").read_bytes()
    assert len(exact_values(run)) == STEPS


def test_the_quick_start_of_the_docs_trains_the_demo_on_two_nodes(corpus: Path, tmp_path: Path) -> None:
    """docs/slurm.md's own command, on a corpus that is there; 66 ranks are refused before anything is queued."""
    run = tmp_path / "demo"
    shards = {"image_text.sources.image-train": corpus / "images", "text_pair.sources.text-train": corpus / "pairs"}
    overrides = [f"--views.{source}.path={path}" for source, path in shards.items()]
    overrides += [f"--data.tokenizer={corpus / 'tokenizer'}", "--track.every_steps=1"]
    overrides += ["--optimizer.total_steps=3", "--optimizer.warmup_steps=1"]
    words = ["submit", "demo", "--run-folder", str(run), "--time", "20", "--save-s", "60"]
    told = launch(*words, "--nodes", "2", "--tasks-per-node", "33", "--", *overrides)
    assert told.returncode == 2, told.stdout
    assert not run.exists()
    told = launch(*words, "--nodes", "2", "--", *overrides)
    assert told.returncode == 0, told.stderr
    assert ended(told.stdout.strip(), run) == "COMPLETED", said(run)
    assert read_done(run) == 3
    statuses = [json.loads(path.read_text()) for path in sorted((run / "status").glob("rank_*.json"))]
    assert [status["host"] for status in statuses] == ["n1", "n2"]


def test_the_job_runs_what_was_submitted(corpus: Path, tmp_path: Path) -> None:
    """Not the checkout: the recipe and code in the run folder, with the overrides."""
    run = tmp_path / "run"
    told = launch("submit", str(tiny(corpus, run, STEPS)), "--nodes", "1", "--dry-run", "--", "--seed", "9")
    assert told.returncode == 0
    assert not run.exists()
    where = "import cclm.types, os; print(cclm.types.__file__, os.environ['RANK'])"
    options = ["--run-folder", str(run), "--nodes", "1", "--preflight", "none", "--time", "5", "--save-s", "60"]
    told = launch("submit", *options, "--", "python", "-c", where)
    assert told.returncode == 0, told.stderr
    assert ended(told.stdout.strip(), run) == "COMPLETED", said(run)
    assert (run / "logs/rank_0.log").read_text().splitlines()[-1] == f"{run}/code/cclm/types.py 0"
    assert yaml.safe_load(tiny(corpus, run, STEPS).read_text())["seed"] == 7
