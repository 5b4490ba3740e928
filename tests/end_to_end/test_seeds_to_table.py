"""From a pre-trained run to what is told about its fine-tuning: seeds, a table, a gallery, a soup that is measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cclm.evaluate.results import ResultStore
from tests.tiny_finetune import command, pretrained_run, run, run_here, stand_in

pytestmark = pytest.mark.slow


def test_seeds_table_gallery_and_soup(tmp_path: Path) -> None:
    pretrained, data = pretrained_run(tmp_path), stand_in("marvl", tmp_path / "data")
    file = "marvl/zero_shot/annotations/marvl-{}.jsonl"
    settings = {
        "views.classify.batch_size": 9,
        "views.classify.max_tokens": 8,
        "views.classify.transform.method": "none",
        "views.classify.test": {language: file.format(language) for language in ("en", "tr")},
        "engine": "plain",
        "finetune.epochs": 1,
        "finetune.name": "tiny",
        "finetune.benchmark": "circles",
    }
    runs, soup = tmp_path / "runs", tmp_path / "soup"
    words = command("marvl", pretrained, data, runs, settings)
    run([*words, "--seeds", "2"])
    run([*words, "--seeds", "2"])  # all is done: nothing changes
    results = [one for seed in (42, 43) for one in ResultStore(runs / f"seed_{seed}" / "results.jsonl").read()]
    assert {(one.task, one.model, one.seed) for one in results} == {("circles", "tiny", 42), ("circles", "tiny", 43)}

    run_here(
        ["-m", "finetune", "table", str(runs), "--verify", "--format", "json", "--to", str(tmp_path / "table.json")]
    )
    ((row,),) = [table["rows"] for table in json.loads((tmp_path / "table.json").read_text())]
    assert row["cells"]["tr"]["num_seeds"] == 2 and row["source"] == ""
    run_here(["-m", "finetune", "gallery", str(runs / "seed_42")])
    assert "data:image/jpeg" in (runs / "seed_42" / "gallery.html").read_text(encoding="utf-8")

    run_here(["-m", "cclm.cli", "average", str(runs / "seed_42"), str(runs / "seed_43"), "--out", str(soup)])
    measured = {**settings, "finetune.epochs": 0, "finetune.name": "soup"}
    run_here(command("marvl", soup, data, tmp_path / "measured", measured))
    after = ResultStore(tmp_path / "measured" / "results.jsonl").read()
    assert {(one.model, one.language, one.num_rows) for one in after} == {("soup", "en", 27), ("soup", "tr", 27)}
